/* dp_upstream: upstream connections: opening one for a request, connecting, pools. I/O. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

static const dp_upstream *upstream_of(const dp_engine *engine, uint32_t slot)
{
    return &engine->tables.upstreams[engine->pools[slot].upstream];
}

static void detach(dp_engine *engine, dp_conn *up)
{
    dp_conn *down = up->peer;
    if (down == NULL)
        return;
    const dp_pool *pool = &engine->pools[up->endpoint];
    dp_balancer_end(&engine->groups[pool->upstream].balancer, pool->index);
    dp_meter_detached(engine, up->endpoint);
    down->peer = NULL;
    up->peer = NULL;
}

static void attach(dp_engine *engine, dp_conn *down, dp_conn *up)
{
    DP_CHECK(down->peer == NULL && up->peer == NULL);
    const dp_pool *pool = &engine->pools[up->endpoint];
    down->peer = up;
    up->peer = down;
    up->protocol = down->protocol;
    dp_balancer_begin(&engine->groups[pool->upstream].balancer, pool->index);
    dp_meter_attached(engine, down, up->endpoint);
    if (engine->tables.upstreams[pool->upstream].balance == DP_P2C)
        down->exchange->opened_us = dp_clock_us();
}

/* Whether it may wait in its pool. */
static bool is_kept(const dp_engine *engine, const dp_conn *up)
{
    const dp_pool *pool = &engine->pools[up->endpoint];
    return pool->idle.count < pool->keepalive && !dp_queue_is_wanted(engine, pool->upstream) &&
           up->in.len == 0 && dp_conn_unsent(up) == 0 &&
           (up->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN | DP_IO_AT_EOF | DP_IO_NO_WRITE)) == 0;
}

void dp_upstream_release(dp_engine *engine, dp_conn *up, bool reusable)
{
    if (up->state == DP_S_DEAD)
        return;
    dp_pool *pool = &engine->pools[up->endpoint];
    if (up->state == DP_S_IDLE) {
        dp_list_remove(&pool->idle, up);
        engine->stats->upstream_idle--;
    }
    dp_conn *down = up->peer;
    detach(engine, up);
    bool speaks_for_one = upstream_of(engine, up->endpoint)->proxy_protocol != 0;
    if (!reusable || !is_kept(engine, up) || (speaks_for_one && down == NULL)) {
        dp_conn_close(engine, up);
        return;
    }
    if (speaks_for_one) {
        dp_upstream_unbind(engine, down); /* of another route's upstream */
        down->bound = dp_conn_key(up);
    }
    dp_gather_end(up);
    up->state = DP_S_IDLE;
    up->flags &= (uint8_t)~DP_C_FRESH;
    dp_list_push(&pool->idle, up);
    engine->stats->upstream_idle++;
    dp_timer_set(engine, up, DP_UPSTREAM_IDLE_MS);
    dp_queue_room(engine, up->endpoint);
}

/* The idle connection that speaks for down alone, or NULL. */
static dp_conn *bound_to(const dp_engine *engine, const dp_conn *down)
{
    dp_conn *up = down->bound != 0 ? dp_conn_find(engine, down->bound) : NULL;
    return up != NULL && up->role == DP_UP && up->state == DP_S_IDLE ? up : NULL;
}

void dp_upstream_unbind(dp_engine *engine, dp_conn *down)
{
    dp_conn *up = bound_to(engine, down);
    down->bound = 0;
    if (up != NULL)
        dp_upstream_release(engine, up, false);
}

void dp_upstream_closed(dp_engine *engine, const dp_conn *up)
{
    const dp_pool *pool = &engine->pools[up->endpoint];
    engine->stats->upstream_connections--;
    if (upstream_of(engine, up->endpoint)->max_connections == 0)
        return;
    dp_shared_give(pool->shared, pool->count);
    dp_queue_room(engine, up->endpoint);
}

/* --- connecting --------------------------------------------------------------------------------
 */

static int connecting_socket(dp_engine *engine, const dp_endpoint *endpoint)
{
    int family = endpoint->address.ss_family;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int on = 1;
    if (family != AF_UNIX)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    dp_meter_connect(engine, endpoint->slot);
    if (connect(fd, (const struct sockaddr *)&endpoint->address, endpoint->address_len) == 0 ||
        errno == EINPROGRESS)
        return fd;
    dp_meter_connect_failed(engine, endpoint->slot);
    (void)close(fd);
    return -1;
}

static dp_conn *watched(dp_engine *engine, const dp_endpoint *endpoint, int fd)
{
    dp_conn *up = dp_conn_new(engine, fd, DP_UP);
    if (up == NULL) {
        (void)close(fd);
        return NULL;
    }
    engine->stats->upstream_connections++;
    up->endpoint = endpoint->slot;
    up->state = DP_S_CONNECTING;
    up->flags |= DP_C_FRESH;
    return up;
}

/* Takes its share of max_connections first: with it, up is closed as any other. */
static dp_conn *connect_to(dp_engine *engine, const dp_endpoint *endpoint)
{
    const dp_pool *pool = &engine->pools[endpoint->slot];
    const dp_upstream *upstream = upstream_of(engine, endpoint->slot);
    int fd = connecting_socket(engine, endpoint);
    dp_conn *up = fd >= 0 ? watched(engine, endpoint, fd) : NULL;
    if (up == NULL) {
        if (upstream->max_connections != 0)
            dp_shared_give(pool->shared, pool->count);
        return NULL;
    }
    if (dp_conn_watch(engine, up, DP_W_OWN) != DP_OK) {
        dp_conn_close(engine, up);
        return NULL;
    }
    dp_timer_set(engine, up, upstream->connect_timeout_ms);
    return up;
}

static bool takes_one_more(dp_engine *engine, const dp_endpoint *endpoint)
{
    const dp_pool *pool = &engine->pools[endpoint->slot];
    const dp_upstream *upstream = upstream_of(engine, endpoint->slot);
    dp_group *group = &engine->groups[pool->upstream];
    if (upstream->max_connections == 0 ||
        dp_shared_take(pool->shared, pool->count, upstream->max_connections))
        return true;
    dp_balancer_fill(&group->balancer, pool->index, true);
    group->full++;
    if (engine->room_ms > engine->now_ms + DP_ROOM_MS)
        engine->room_ms = engine->now_ms + DP_ROOM_MS;
    return false;
}

/* A pooled connection that takes the first bytes at once, or NULL. What a dead one refused whole
 * was certainly not executed. */
static dp_conn *from_pool(dp_engine *engine, const dp_conn *down, uint32_t slot)
{
    dp_pool *pool = &engine->pools[slot];
    bool speaks_for_one = upstream_of(engine, slot)->proxy_protocol != 0;
    dp_conn *up;
    while ((up = speaks_for_one ? bound_to(engine, down) : pool->idle.head) != NULL) {
        if (up->endpoint != slot)
            return NULL;
        /* Its event may stand in this very batch, marked but not yet looked at. */
        if ((up->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) != 0) {
            dp_upstream_release(engine, up, false);
            continue;
        }
        dp_list_remove(&pool->idle, up);
        engine->stats->upstream_idle--;
        up->state = DP_S_EXCHANGE;
        up->deadline = 0;
        return up;
    }
    return NULL;
}

/* DP_OK: up is attached. DP_EGONE: it was dead. DP_ENOMEM. */
static int reuse(dp_engine *engine, dp_conn *down, dp_conn *up, const struct iovec *iov, int count)
{
    struct iovec copy[4];
    DP_CHECK(count <= 4);
    memcpy(copy, iov, (size_t)count * sizeof(*iov));
    /* The first write either takes bytes or proves that the connection is dead. */
    up->io |= DP_IO_WRITE;
    int result = dp_conn_send(engine, up, copy, count);
    if (result == 0) {
        attach(engine, down, up);
        return DP_OK;
    }
    dp_conn_close(engine, up);
    return result == -ENOBUFS ? DP_ENOMEM : DP_EGONE;
}

static int begin(dp_engine *engine, dp_conn *down, dp_conn *up, struct iovec *iov, int count)
{
    const dp_upstream *upstream = upstream_of(engine, up->endpoint);
    uint8_t header[DP_PROXY_MAX];
    struct iovec first = {.iov_base = header};
    if (upstream->proxy_protocol != 0)
        first.iov_len = dp_proxy_write(upstream->proxy_protocol, down, header);
    /* Kept: it cannot be written yet. */
    if (dp_conn_send(engine, up, &first, 1) != 0 || dp_conn_send(engine, up, iov, count) != 0) {
        dp_conn_close(engine, up);
        return DP_ENOMEM;
    }
    attach(engine, down, up);
    return DP_OK;
}

dp_conn *dp_upstream_adopt(dp_engine *engine, dp_conn *down, uint32_t slot)
{
    const dp_pool *pool = &engine->pools[slot];
    dp_conn *up = dp_conn_new(engine, -1, DP_UP);
    if (up == NULL)
        return NULL;
    engine->stats->upstream_connections++;
    if (upstream_of(engine, slot)->max_connections != 0)
        (void)dp_shared_take(pool->shared, pool->count, 0);
    up->endpoint = slot;
    up->state = DP_S_EXCHANGE;
    up->protocol = down->protocol;
    down->peer = up;
    up->peer = down;
    dp_balancer_begin(&engine->groups[pool->upstream].balancer, pool->index);
    dp_meter_adopted(engine, slot);
    return up;
}

/* --- opening -----------------------------------------------------------------------------------
 */

/* DP_OK, DP_ENOMEM; DP_NEED_MORE: it is full; DP_ESYSTEM: it failed. */
static int open_at(dp_engine *engine, dp_conn *down, const dp_endpoint *endpoint, struct iovec *iov,
                   int count)
{
    bool pooled = down->protocol == DP_HTTP && !down->exchange->again;
    dp_conn *up;
    while (pooled && (up = from_pool(engine, down, endpoint->slot)) != NULL) {
        int result = reuse(engine, down, up, iov, count);
        if (result != DP_EGONE)
            return result;
    }
    if (!takes_one_more(engine, endpoint))
        return DP_NEED_MORE;
    up = connect_to(engine, endpoint);
    return up != NULL ? begin(engine, down, up, iov, count) : DP_ESYSTEM;
}

/* Why no endpoint was left, as dp_upstream_open says it. */
static int nobody_left(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count)
{
    const dp_group *group = &engine->groups[down->exchange->upstream];
    if (group->balancer.usable == 0)
        return down->exchange->tried.count == 0 ? DP_EGONE : DP_ESYSTEM;
    if (group->full == 0 || group->balancer.usable == group->balancer.open_count)
        return DP_ESYSTEM;
    return dp_queue_join(engine, down, iov, count);
}

/* Whether those that wait have the first claim on what room there is. Where they were offered it,
 * they have tried those endpoints already. */
static bool is_after_others(const dp_group *group)
{
    return group->waiting != 0 && (group->has_room || group->balancer.open_count == 0);
}

int dp_upstream_open(dp_engine *engine, dp_conn *down, struct iovec *iov, int count)
{
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    dp_tried *tried = &down->exchange->tried;
    if (is_after_others(&engine->groups[down->exchange->upstream]))
        return dp_queue_join(engine, down, iov, count);
    const dp_conn *bound = bound_to(engine, down);
    if (bound != NULL && down->exchange->stuck < 0 &&
        engine->pools[bound->endpoint].upstream == down->exchange->upstream)
        down->exchange->stuck = engine->pools[bound->endpoint].index;
    int index;
    while ((index = dp_pick(engine, down)) >= 0) {
        const dp_endpoint *endpoint = &upstream->endpoints[index];
        int result = open_at(engine, down, endpoint, iov, count);
        if (result == DP_OK || result == DP_ENOMEM)
            return result;
        if (result == DP_NEED_MORE)
            continue; /* the balancer knows that it is full */
        dp_tried_add(tried, (uint32_t)index);
        dp_outcome_failed(engine, endpoint->slot);
        if (!dp_retry_may_fail_over(down->exchange))
            return DP_ESYSTEM;
    }
    int result = nobody_left(engine, down, iov, count);
    if (result == DP_EGONE || result == DP_ESYSTEM)
        dp_meter_up(engine, (uint32_t)down->exchange->upstream, false);
    return result;
}

/* What waits to leave by up, without a PROXY header: down's once more. */
static void take_back(dp_engine *engine, dp_conn *down, dp_conn *up)
{
    dp_buffer *sent = &down->exchange->sent;
    dp_proxy_header header;
    if (sent->len != 0) /* the same bytes, for the route's retries */
        return;
    dp_buffer_free(engine, sent);
    *sent = up->out;
    up->out = (dp_buffer){0};
    if (upstream_of(engine, up->endpoint)->proxy_protocol != 0 &&
        dp_proxy_parse(dp_buffer_start(sent), sent->len, &header) == DP_OK)
        dp_buffer_consume(engine, sent, header.header_len);
}

int dp_upstream_retry(dp_engine *engine, dp_conn *up)
{
    dp_conn *down = up->peer;
    const dp_pool *pool = &engine->pools[up->endpoint];
    dp_meter_connect_failed(engine, up->endpoint);
    dp_tried_add(&down->exchange->tried, pool->index);
    take_back(engine, down, up);
    detach(engine, up);
    dp_conn_close(engine, up);
    dp_outcome_failed(engine, pool->endpoint->slot);
    if (!dp_retry_may_fail_over(down->exchange)) {
        dp_meter_up(engine, pool->upstream, false);
        return DP_ESYSTEM;
    }
    struct iovec iov = {.iov_base = dp_buffer_start(&down->exchange->sent),
                        .iov_len = down->exchange->sent.len};
    return dp_upstream_open(engine, down, &iov, 1);
}

int dp_socket_connected(int fd, const dp_endpoint *endpoint)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error != 0)
        return DP_ESYSTEM;
    /* A self-connect: a closed loopback port inside the ephemeral range can answer itself. */
    struct sockaddr_storage own;
    socklen_t own_len = sizeof(own);
    if (getsockname(fd, (struct sockaddr *)&own, &own_len) == 0 &&
        own_len == endpoint->address_len && memcmp(&own, &endpoint->address, own_len) == 0)
        return DP_ESYSTEM;
    return DP_OK;
}

int dp_upstream_connected(dp_engine *engine, dp_conn *up)
{
    if (dp_socket_connected(up->fd, engine->pools[up->endpoint].endpoint) != DP_OK)
        return DP_ESYSTEM;
    if (up->protocol == DP_TCP) { /* no other answer is known to be one */
        dp_outcome_answered(engine, up->endpoint, 0);
        dp_outcome_latency(engine, up->peer, false);
    }
    up->state = DP_S_EXCHANGE;
    up->deadline = 0;
    dp_meter_up(engine, engine->pools[up->endpoint].upstream, true);
    return DP_OK;
}
