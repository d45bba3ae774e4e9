/* dp_view: which endpoints may be chosen, and with what weight: what checks found, what failures
 * taught, and how long ago. No I/O but the clock that the engine read.
 *
 * All of that is in the shared records, written by whoever learns it. Here it becomes the weights
 * of this engine's balancers: when something changed (the epoch moved) or when time alone changes
 * it (an ejection ends, a slow start goes on), never for a request. */
#include <stdlib.h>
#include <string.h>

#include "dp_core.h"

enum { SWEEP_MS = 1000, FAILED_US = 1000000 };

/* --- building and freeing --------------------------------------------------------------------- */

/* Two keys: what traffic teaches is the address's, what probes find is also the check's settings'.
 * So a new image with another check begins with a fresh look, and one with the same goes on. */
static size_t record_key(const dp_upstream *upstream, const dp_endpoint *endpoint, bool checked,
                         char *ret_key)
{
    size_t name = strlen(upstream->name);
    size_t len = 1 + name + 1 + endpoint->name_len;
    if (len + 1 + sizeof(uint64_t) > DP_SHARED_KEY_MAX)
        return 0;
    ret_key[0] = checked ? 'c' : 't';
    memcpy(ret_key + 1, upstream->name, name + 1);
    memcpy(ret_key + 2 + name, endpoint->name, endpoint->name_len);
    if (!checked)
        return len;
    const dp_check *check = upstream->check;
    const uint32_t numbers[4] = {check->fall, check->rise, check->status_min, check->status_max};
    uint64_t settings = dp_hash(numbers, sizeof(numbers));
    if (check->request != NULL)
        settings ^= dp_hash(check->request, check->request_len);
    ret_key[len++] = '\0';
    memcpy(ret_key + len, &settings, sizeof(settings));
    return len + sizeof(settings);
}

static dp_shared_endpoint *record_of(dp_engine *engine, uint32_t slot, bool checked,
                                     dp_shared_count **ret_count)
{
    const dp_pool *pool = &engine->pools[slot];
    char key[DP_SHARED_KEY_MAX];
    size_t len =
        record_key(&engine->tables.upstreams[pool->upstream], pool->endpoint, checked, key);
    dp_shared_endpoint *found =
        len != 0 ? dp_shared_find(&engine->shared, key, len, ret_count) : NULL;
    if (found != NULL)
        return found;
    uint32_t own = 2 * slot + checked; /* none shared, or no room: each worker for itself */
    *ret_count = &engine->own_counts[own];
    return &engine->own_endpoints[own];
}

static int seal_group(dp_engine *engine, uint32_t index, uint8_t *memory)
{
    const dp_upstream *upstream = &engine->tables.upstreams[index];
    dp_group *group = &engine->groups[index];
    dp_balancer_init(&group->balancer, upstream->balance, upstream->endpoint_count,
                     engine->options.seed_low, memory);
    group->balancer.maglev = upstream->maglev;
    group->balancer.maglev_size = upstream->maglev_size;
    group->balancer.random ^= dp_mix(engine->options.seed_high + index);
    if (upstream->max_connections != 0 && upstream->max_waiting != 0) {
        group->ring_size = upstream->max_waiting * 2;
        group->ring = calloc(group->ring_size, sizeof(*group->ring));
        if (group->ring == NULL)
            return DP_ENOMEM;
    }
    return dp_pick_seal(engine, index);
}

int dp_view_seal(dp_engine *engine)
{
    const dp_tables *tables = &engine->tables;
    size_t bytes = 0;
    for (uint32_t i = 0; i < tables->upstream_count; i++)
        bytes += (dp_balancer_bytes(tables->upstreams[i].endpoint_count) + 7) / 8 * 8;
    engine->groups = calloc(tables->upstream_count + 1u, sizeof(*engine->groups));
    engine->budgets = calloc(tables->route_count + 1u, sizeof(*engine->budgets));
    engine->own_endpoints = calloc(2u * tables->endpoint_count + 1, sizeof(*engine->own_endpoints));
    engine->own_counts = calloc(2u * tables->endpoint_count + 1, sizeof(*engine->own_counts));
    engine->group_memory = calloc(1, bytes + 1);
    if (engine->groups == NULL || engine->budgets == NULL || engine->own_endpoints == NULL ||
        engine->own_counts == NULL || engine->group_memory == NULL)
        return DP_ENOMEM;
    uint8_t *memory = engine->group_memory;
    engine->random = dp_mix(engine->options.seed_low ^ engine->options.seed_high << 1);
    for (uint32_t i = 0; i < tables->route_count; i++)
        engine->budgets[i].tokens = DP_BUDGET_LEAST * 100;
    for (uint32_t i = 0; i < tables->upstream_count; i++) {
        int result = seal_group(engine, i, memory);
        if (result != DP_OK)
            return result;
        memory += (dp_balancer_bytes(tables->upstreams[i].endpoint_count) + 7) / 8 * 8;
    }
    for (uint32_t slot = 0; slot < tables->endpoint_count; slot++) {
        dp_pool *pool = &engine->pools[slot];
        dp_shared_count *unused;
        pool->shared = record_of(engine, slot, false, &pool->count);
        if (tables->upstreams[pool->upstream].check != NULL)
            pool->check = record_of(engine, slot, true, &unused);
    }
    engine->room_ms = UINT64_MAX;
    for (uint32_t i = 0; i < tables->upstream_count; i++)
        dp_view_look(engine, i);
    return dp_health_seal(engine);
}

void dp_view_free(dp_engine *engine)
{
    dp_shared_leave(&engine->shared);
    for (uint32_t i = 0; engine->groups != NULL && i < engine->tables.upstream_count; i++) {
        free(engine->groups[i].ring);
        free(engine->groups[i].tokens);
        free(engine->groups[i].token_of);
    }
    free(engine->groups);
    free(engine->budgets);
    free(engine->own_endpoints);
    free(engine->own_counts);
    free(engine->group_memory);
    free(engine->prober.memory);
}

int dp_engine_share(dp_engine *engine, void *base, size_t len, uint32_t pid)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed || engine->shared.header != NULL)
        return DP_ESTATE;
    int result = dp_shared_open(&engine->shared, base, len);
    if (result == DP_OK)
        (void)dp_shared_sit(&engine->shared, pid);
    return result;
}

/* --- looking ---------------------------------------------------------------------------------- */

typedef struct endpoint_view {
    bool down;
    uint64_t ejected_until;
    uint64_t back_since; /* 0: long ago */
} endpoint_view;

static endpoint_view view_of(const dp_engine *engine, const dp_pool *pool)
{
    uint64_t until = atomic_load_explicit(&pool->shared->ejected_until_ms, memory_order_relaxed);
    endpoint_view view = {.ejected_until = until > engine->now_ms ? until : 0};
    view.back_since = view.ejected_until == 0 ? until : 0;
    if (pool->check != NULL) {
        uint64_t up = atomic_load_explicit(&pool->check->up_since_ms, memory_order_relaxed);
        view.down =
            atomic_load_explicit(&pool->check->health, memory_order_relaxed) == DP_HEALTH_DOWN;
        if (up > view.back_since)
            view.back_since = up;
    }
    return view;
}

/* Its weight now; *next is when time alone will change it. */
static uint32_t weight_now(const dp_engine *engine, const dp_upstream *upstream,
                           const dp_endpoint *endpoint, const endpoint_view *view, uint64_t *next)
{
    uint64_t ramp = upstream->slow_start_ms;
    uint64_t back = engine->now_ms - view->back_since;
    if (view->back_since == 0 || view->back_since > engine->now_ms || back >= ramp)
        return endpoint->weight * DP_WEIGHT_ONE;
    if (*next > engine->now_ms + DP_RAMP_MS)
        *next = engine->now_ms + DP_RAMP_MS;
    uint64_t percent = 100 * back / ramp;
    if (percent < DP_RAMP_LEAST)
        percent = DP_RAMP_LEAST;
    return (uint32_t)(endpoint->weight * DP_WEIGHT_ONE * percent / 100);
}

void dp_view_look(dp_engine *engine, uint32_t index)
{
    const dp_upstream *upstream = &engine->tables.upstreams[index];
    dp_group *group = &engine->groups[index];
    uint32_t usable = 0;
    group->look_ms = UINT64_MAX;
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        endpoint_view view = view_of(engine, &engine->pools[upstream->endpoints[i].slot]);
        usable += !view.down && view.ejected_until == 0;
    }
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        const dp_endpoint *endpoint = &upstream->endpoints[i];
        endpoint_view view = view_of(engine, &engine->pools[endpoint->slot]);
        /* Where nobody is left, an ejected one may be as good as any: better than no answer. */
        bool out = view.down || (view.ejected_until != 0 && usable != 0);
        if (view.ejected_until != 0 && group->look_ms > view.ejected_until)
            group->look_ms = view.ejected_until;
        uint32_t weight = out ? 0 : weight_now(engine, upstream, endpoint, &view, &group->look_ms);
        dp_balancer_weigh(&group->balancer, i, weight);
    }
    if (group->waiting != 0) {
        group->has_room = true;
        engine->has_room = true;
    }
    engine->look_ms = UINT64_MAX;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++)
        if (engine->groups[i].look_ms != 0 && engine->groups[i].look_ms < engine->look_ms)
            engine->look_ms = engine->groups[i].look_ms;
}

void dp_view_refresh(dp_engine *engine)
{
    bool all = false;
    if (engine->shared.header != NULL) {
        uint32_t epoch = atomic_load_explicit(&engine->shared.header->epoch, memory_order_relaxed);
        all = epoch != engine->epoch;
        engine->epoch = epoch;
        if (all) {
            (void)dp_shared_sweep(&engine->shared);
            dp_queue_poll(engine);
        }
    }
    if (!all && engine->now_ms < engine->look_ms)
        return;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++)
        if (all || engine->groups[i].look_ms <= engine->now_ms)
            dp_view_look(engine, i);
}

static void changed(dp_engine *engine, uint32_t upstream)
{
    if (engine->shared.header != NULL)
        (void)atomic_fetch_add(&engine->shared.header->epoch, 1);
    dp_view_look(engine, upstream);
}

/* --- chores: what is to be done at a time ------------------------------------------------------
 */

uint64_t dp_chores_due(const dp_engine *engine)
{
    uint64_t due = engine->look_ms < engine->room_ms ? engine->look_ms : engine->room_ms;
    if (engine->prober.due.count != 0) {
        uint64_t probe = engine->prober.due.key[engine->prober.due.order[0]];
        if (probe < due)
            due = probe;
    }
    return due;
}

void dp_chores_run(dp_engine *engine)
{
    (void)dp_shared_sweep(&engine->shared);
    dp_view_refresh(engine);
    if (engine->now_ms >= engine->room_ms)
        dp_queue_poll(engine);
    dp_health_run(engine);
}

/* --- outcomes --------------------------------------------------------------------------------- */

/* Whether one more may be left out: half of them at most, or those that stay would take it all. */
static bool may_eject(const dp_engine *engine, const dp_upstream *upstream)
{
    uint32_t out = 1;
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        endpoint_view view = view_of(engine, &engine->pools[upstream->endpoints[i].slot]);
        out += view.down || view.ejected_until != 0;
    }
    return out * 2 <= upstream->endpoint_count;
}

void dp_outcome_failed(dp_engine *engine, uint32_t slot)
{
    dp_pool *pool = &engine->pools[slot];
    const dp_upstream *upstream = &engine->tables.upstreams[pool->upstream];
    dp_shared_endpoint *shared = pool->shared;
    uint32_t failures = atomic_fetch_add(&shared->failures, 1) + 1;
    if (upstream->eject_failures == 0 || failures < upstream->eject_failures)
        return;
    atomic_store(&shared->failures, upstream->eject_failures - 1); /* the next one counts again */
    uint64_t until = atomic_load(&shared->ejected_until_ms);
    if (until > engine->now_ms || !may_eject(engine, upstream))
        return;
    uint32_t before = atomic_load(&shared->ejections);
    uint64_t length = (uint64_t)upstream->eject_ms
                      << (before < DP_EJECT_DOUBLINGS ? before : DP_EJECT_DOUBLINGS);
    if (!atomic_compare_exchange_strong(&shared->ejected_until_ms, &until, engine->now_ms + length))
        return;
    (void)atomic_fetch_add(&shared->ejections, 1);
    engine->stats->ejections_total++;
    dp_event_tell(engine, slot, DP_EVENT_EJECTED);
    changed(engine, pool->upstream);
}

void dp_outcome_answered(dp_engine *engine, uint32_t slot, uint32_t status)
{
    dp_pool *pool = &engine->pools[slot];
    const dp_upstream *upstream = &engine->tables.upstreams[pool->upstream];
    dp_shared_endpoint *shared = pool->shared;
    if (status >= 500 && upstream->eject_server_errors) {
        dp_outcome_failed(engine, slot);
        return;
    }
    /* Looked at before it is written: the line stays shared between all workers' processors. */
    if (atomic_load_explicit(&shared->failures, memory_order_relaxed) != 0)
        atomic_store_explicit(&shared->failures, 0, memory_order_relaxed);
    if (atomic_load_explicit(&shared->answers, memory_order_relaxed) == 0)
        atomic_store_explicit(&shared->answers, 1, memory_order_relaxed);
    if (atomic_load_explicit(&shared->ejections, memory_order_relaxed) != 0 &&
        engine->now_ms >= atomic_load_explicit(&shared->ejected_until_ms, memory_order_relaxed) +
                              upstream->eject_ms)
        atomic_store_explicit(&shared->ejections, 0, memory_order_relaxed);
}

void dp_outcome_latency(dp_engine *engine, const dp_conn *down, bool failed)
{
    if (down->exchange.opened_us == 0 || down->peer == NULL)
        return;
    uint64_t took = dp_clock_us() - down->exchange.opened_us;
    if (failed && took < FAILED_US)
        took = FAILED_US; /* quick to fail is not quick */
    dp_latency_add(engine->pools[down->peer->endpoint].shared, engine->now_ms, took);
}

/* --- events ----------------------------------------------------------------------------------- */

void dp_event_tell(dp_engine *engine, uint32_t slot, uint32_t kind)
{
    const dp_pool *pool = &engine->pools[slot];
    if (kind != DP_EVENT_EJECTED)
        changed(engine, pool->upstream);
    uint32_t at = engine->event_count;
    if (at == DP_EVENTS_MAX) {
        at--;
        kind = DP_EVENT_LOST;
    } else {
        engine->event_count++;
    }
    engine->events[(engine->event_head + at) % DP_EVENTS_MAX] =
        (dp_event){.kind = kind, .upstream = pool->upstream, .endpoint = pool->index};
}

int dp_event_take(dp_engine *engine, dp_event *ret_event)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->event_count == 0)
        return 0;
    *ret_event = engine->events[engine->event_head];
    engine->event_head = (engine->event_head + 1) % DP_EVENTS_MAX;
    engine->event_count--;
    return 1;
}

int dp_checks_open(const dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    uint32_t open = 0;
    for (uint32_t slot = 0; slot < engine->tables.endpoint_count; slot++) {
        const dp_shared_endpoint *check = engine->pools[slot].check;
        open += check != NULL && atomic_load(&check->health) == DP_HEALTH_UNKNOWN &&
                atomic_load(&check->streak) == 0;
    }
    return (int)open;
}

int dp_upstream_is_up(const dp_engine *engine, int index)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (index < 0 || (uint32_t)index >= engine->tables.upstream_count)
        return DP_EINVAL;
    const dp_upstream *upstream = &engine->tables.upstreams[index];
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        const dp_shared_endpoint *check = engine->pools[upstream->endpoints[i].slot].check;
        if (check == NULL || atomic_load(&check->health) == DP_HEALTH_UP ||
            (atomic_load(&check->health) == DP_HEALTH_UNKNOWN && atomic_load(&check->streak) == 0))
            return 1;
    }
    return 0;
}
