/* dp_queue: requests and tunnels that wait for a connection to an upstream whose endpoints all have
 * as many as they may. First come, first served; each waits connect_timeout at most. No I/O. */
#include "dp_core.h"

static dp_group *group_of(const dp_engine *engine, const dp_conn *down)
{
    return &engine->groups[down->exchange->upstream];
}

/* Those that wait are counted once an upstream, at its first endpoint's record. */
static void count_waiting(dp_engine *engine, const dp_conn *down, int by)
{
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    const dp_pool *first = &engine->pools[upstream->endpoints[0].slot];
    dp_shared_wait(first->shared, first->count, by);
    engine->stats->waiting = by > 0 ? engine->stats->waiting + 1 : engine->stats->waiting - 1;
}

static dp_conn *waiter_of(const dp_engine *engine, const dp_waiter *waiter)
{
    dp_conn *down = dp_conn_find(engine, waiter->key);
    bool waits = down != NULL && down->exchange != NULL && down->exchange->ticket == waiter->ticket;
    return waits ? down : NULL;
}

/* Leaves no entry of one that has gone. */
static void close_ranks(const dp_engine *engine, dp_group *group)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < group->ring_count; i++) {
        dp_waiter waiter = group->ring[(group->ring_head + i) % group->ring_size];
        if (waiter_of(engine, &waiter) != NULL)
            group->ring[(group->ring_head + kept++) % group->ring_size] = waiter;
    }
    group->ring_count = kept;
}

static int keep_bytes(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count)
{
    if (down->exchange->sent.len != 0) /* the same ones, for the route's retries */
        return DP_OK;
    for (int i = 0; i < count; i++)
        if (dp_buffer_append(engine, &down->exchange->sent, iov[i].iov_base, iov[i].iov_len) !=
            DP_OK) {
            dp_buffer_free(engine, &down->exchange->sent);
            return DP_ENOMEM;
        }
    return DP_OK;
}

int dp_queue_join(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count)
{
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    dp_group *group = group_of(engine, down);
    if (group->waiting >= upstream->max_waiting)
        return DP_ETOOBIG;
    if (keep_bytes(engine, down, iov, count) != DP_OK)
        return DP_ENOMEM;
    if (group->ring_count == group->ring_size)
        close_ranks(engine, group);
    if (++engine->tickets == 0)
        engine->tickets = 1;
    down->exchange->ticket = engine->tickets;
    group->ring[(group->ring_head + group->ring_count++) % group->ring_size] =
        (dp_waiter){.key = dp_conn_key(down), .ticket = down->exchange->ticket};
    group->waiting++;
    engine->stats->waited_total++;
    count_waiting(engine, down, 1);
    dp_timer_set(engine, down, upstream->connect_timeout_ms);
    if (engine->room_ms > engine->now_ms + DP_ROOM_MS)
        engine->room_ms = engine->now_ms + DP_ROOM_MS;
    if (group->waiting == 1 && engine->shared.header != NULL) /* others may have idle ones */
        (void)atomic_fetch_add(&engine->shared.header->epoch, 1);
    return DP_NEED_MORE;
}

void dp_queue_leave(dp_engine *engine, dp_conn *down)
{
    if (down->exchange == NULL || down->exchange->ticket == 0)
        return;
    down->exchange->ticket = 0;
    group_of(engine, down)->waiting--;
    count_waiting(engine, down, -1);
}

/* --- room ------------------------------------------------------------------------------------- */

static void mark_room(dp_engine *engine, dp_group *group, uint32_t index)
{
    if (group->balancer.full[index]) {
        dp_balancer_fill(&group->balancer, index, false);
        group->full--;
    }
    if (group->waiting != 0) {
        group->has_room = true;
        engine->has_room = true;
    }
}

void dp_queue_room(dp_engine *engine, uint32_t slot)
{
    const dp_pool *pool = &engine->pools[slot];
    if (engine->tables.upstreams[pool->upstream].max_connections != 0)
        mark_room(engine, &engine->groups[pool->upstream], pool->index);
}

bool dp_queue_is_wanted(const dp_engine *engine, uint32_t index)
{
    const dp_upstream *upstream = &engine->tables.upstreams[index];
    const dp_pool *first = &engine->pools[upstream->endpoints[0].slot];
    return upstream->max_connections != 0 && engine->groups[index].waiting == 0 &&
           atomic_load_explicit(&first->shared->waiting, memory_order_relaxed) >
               atomic_load_explicit(&first->count->waiting, memory_order_relaxed);
}

static void lend_idle(dp_engine *engine, const dp_upstream *upstream)
{
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        dp_pool *pool = &engine->pools[upstream->endpoints[i].slot];
        if (pool->idle.tail != NULL)
            dp_upstream_release(engine, pool->idle.tail, false);
    }
}

/* Looks for room that other processes left, and leaves them what stands idle here. */
void dp_queue_poll(dp_engine *engine)
{
    bool alone = dp_shared_alone(&engine->shared);
    engine->room_ms = UINT64_MAX;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++) {
        const dp_upstream *upstream = &engine->tables.upstreams[i];
        dp_group *group = &engine->groups[i];
        if (upstream->max_connections == 0)
            continue;
        if (dp_queue_is_wanted(engine, i))
            lend_idle(engine, upstream);
        for (uint32_t j = 0; j < upstream->endpoint_count && group->full != 0; j++) {
            const dp_pool *pool = &engine->pools[upstream->endpoints[j].slot];
            if (group->balancer.full[j] &&
                (pool->idle.count != 0 ||
                 atomic_load(&pool->shared->open) < upstream->max_connections))
                mark_room(engine, group, j);
        }
        bool busy = group->full != 0 || group->waiting != 0;
        uint64_t again = busy ? DP_ROOM_MS : DP_LEND_MS;
        if ((busy || !alone) && engine->room_ms > engine->now_ms + again)
            engine->room_ms = engine->now_ms + again;
    }
}

/* The ring's place of the waiter that has so many before it. */
static dp_waiter *place_of(const dp_group *group, uint32_t before)
{
    return &group->ring[(group->ring_head + before) % group->ring_size];
}

static void take_out(dp_group *group, uint32_t place)
{
    for (uint32_t i = place; i > 0; i--)
        *place_of(group, i) = *place_of(group, i - 1);
    group->ring_head = (group->ring_head + 1) % group->ring_size;
    group->ring_count--;
}

/* down, which joined as the last, has its place again. */
static void put_back(dp_group *group, uint32_t place, const dp_conn *down)
{
    group->ring_head = (group->ring_head + group->ring_size - 1) % group->ring_size;
    for (uint32_t i = 0; i < place; i++)
        *place_of(group, i) = *place_of(group, i + 1);
    *place_of(group, place) =
        (dp_waiter){.key = dp_conn_key(down), .ticket = down->exchange->ticket};
}

/* Opens for one that waits, and is out of the ring. False: it has to go on, at its place again. */
static bool serve_one(dp_engine *engine, dp_group *group, dp_conn *down, uint32_t place)
{
    uint64_t left = down->deadline > engine->now_ms ? down->deadline - engine->now_ms : 1;
    struct iovec iov = {.iov_base = dp_buffer_start(&down->exchange->sent),
                        .iov_len = down->exchange->sent.len};
    dp_queue_leave(engine, down);
    uint32_t others = group->waiting;
    group->waiting = 0; /* it has waited: nobody is before it */
    int result = dp_upstream_open(engine, down, &iov, 1);
    group->waiting += others;
    if (result == DP_NEED_MORE) {
        put_back(group, place, down);
        dp_timer_set(engine, down, left);
        return false;
    }
    if (down->protocol == DP_HTTP)
        dp_http_opened(engine, down, result);
    else
        dp_tcp_opened(engine, down, result);
    if (down->state != DP_S_DEAD)
        dp_ready_push(engine, down);
    return true;
}

static void serve_group(dp_engine *engine, dp_group *group)
{
    group->has_room = false;
    uint32_t passed = 0; /* those that have tried where there is room, and wait for the others */
    while (group->ring_count > passed && passed < DP_OVERTAKEN_MAX) {
        const dp_waiter waiter = *place_of(group, passed);
        dp_conn *down = waiter_of(engine, &waiter);
        if (down != NULL && group->balancer.open_count == 0 && group->balancer.usable != 0)
            return; /* it stays the first */
        take_out(group, passed);
        if (down != NULL && !serve_one(engine, group, down, passed))
            passed++;
    }
}

void dp_queue_serve(dp_engine *engine)
{
    if (!engine->has_room)
        return;
    engine->has_room = false;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++)
        if (engine->groups[i].has_room)
            serve_group(engine, &engine->groups[i]);
}
