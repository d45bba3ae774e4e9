/* dp_upstream: upstream connections: choosing an endpoint, connecting, pools. I/O. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

static void detach(dp_engine *engine, dp_conn *up)
{
    dp_conn *down = up->peer;
    if (down == NULL)
        return;
    engine->pools[up->endpoint].active--;
    down->peer = NULL;
    up->peer = NULL;
}

static void attach(dp_engine *engine, dp_conn *down, dp_conn *up)
{
    DP_CHECK(down->peer == NULL && up->peer == NULL);
    down->peer = up;
    up->peer = down;
    up->protocol = down->protocol;
    engine->pools[up->endpoint].active++;
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
    detach(engine, up);
    if (!reusable || pool->idle.count >= pool->keepalive || up->in.len != 0 ||
        dp_conn_unsent(up) != 0 ||
        (up->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN | DP_IO_AT_EOF | DP_IO_NO_WRITE)) != 0) {
        dp_conn_close(engine, up);
        return;
    }
    up->state = DP_S_IDLE;
    up->flags &= (uint8_t)~DP_C_FRESH;
    dp_list_push(&pool->idle, up);
    engine->stats->upstream_idle++;
    dp_timer_set(engine, up, DP_UPSTREAM_IDLE_MS);
}

static dp_conn *connect_to(dp_engine *engine, const dp_endpoint *endpoint, uint32_t timeout_ms)
{
    int fd = socket(endpoint->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return NULL;
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    engine->stats->upstream_connects_total++;
    if (connect(fd, (const struct sockaddr *)&endpoint->address, endpoint->address_len) != 0 &&
        errno != EINPROGRESS) {
        engine->stats->upstream_connect_failures_total++;
        (void)close(fd);
        return NULL;
    }
    dp_conn *up = dp_conn_new(engine, fd, DP_UP);
    if (up == NULL) {
        (void)close(fd);
        return NULL;
    }
    engine->stats->upstream_connections++;
    up->endpoint = endpoint->slot;
    up->state = DP_S_CONNECTING;
    up->flags |= DP_C_FRESH;
    if (dp_conn_watch(engine, up, DP_W_OWN) != DP_OK) {
        dp_conn_close(engine, up);
        return NULL;
    }
    dp_timer_set(engine, up, timeout_ms);
    return up;
}

/* A pooled connection that takes the first bytes at once, or NULL. What a dead one refused whole
 * was certainly not executed. */
static dp_conn *from_pool(dp_engine *engine, uint32_t slot)
{
    dp_pool *pool = &engine->pools[slot];
    dp_conn *up;
    while ((up = pool->idle.head) != NULL) {
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

static int pick(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    const dp_upstream *upstream = &engine->tables.upstreams[exchange->upstream];
    uint32_t active[DP_ENDPOINTS_MAX];
    for (uint32_t i = 0; i < upstream->endpoint_count; i++)
        active[i] = engine->pools[upstream->endpoints[i].slot].active;
    int index = dp_balance_pick(upstream->balance, active, upstream->endpoint_count,
                                exchange->tried, &engine->rotors[exchange->upstream]);
    if (index >= 0)
        exchange->tried[index / 64] |= (uint64_t)1 << (index % 64);
    return index;
}

int dp_upstream_open(dp_engine *engine, dp_conn *down, struct iovec *iov, int count)
{
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    int index;
    while ((index = pick(engine, down)) >= 0) {
        const dp_endpoint *endpoint = &upstream->endpoints[index];
        dp_conn *up;
        bool pooled = down->protocol == DP_HTTP && !down->exchange->again;
        while (pooled && (up = from_pool(engine, endpoint->slot)) != NULL) {
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
            if (result == -ENOBUFS) {
                dp_conn_close(engine, up);
                return DP_ENOMEM;
            }
            dp_conn_close(engine, up);
        }
        if ((up = connect_to(engine, endpoint, upstream->connect_timeout_ms)) == NULL)
            continue;
        if (dp_conn_send(engine, up, iov, count) != 0) { /* kept: it cannot be written yet */
            dp_conn_close(engine, up);
            return DP_ENOMEM;
        }
        attach(engine, down, up);
        return DP_OK;
    }
    return DP_ESYSTEM;
}

int dp_upstream_retry(dp_engine *engine, dp_conn *up)
{
    dp_conn *down = up->peer;
    dp_buffer first = up->out;
    up->out = (dp_buffer){0};
    engine->stats->upstream_connect_failures_total++;
    detach(engine, up);
    dp_conn_close(engine, up);
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    int index;
    while ((index = pick(engine, down)) >= 0) {
        dp_conn *other =
            connect_to(engine, &upstream->endpoints[index], upstream->connect_timeout_ms);
        if (other == NULL)
            continue;
        other->out = first;
        attach(engine, down, other);
        return DP_OK;
    }
    dp_buffer_free(engine, &first);
    return DP_ESYSTEM;
}

int dp_upstream_connected(dp_engine *engine, dp_conn *up)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(up->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error != 0)
        return DP_ESYSTEM;
    /* A self-connect: a closed loopback port inside the ephemeral range can answer itself. */
    struct sockaddr_storage own;
    socklen_t own_len = sizeof(own);
    const dp_endpoint *endpoint = engine->pools[up->endpoint].endpoint;
    if (getsockname(up->fd, (struct sockaddr *)&own, &own_len) == 0 &&
        own_len == endpoint->address_len && memcmp(&own, &endpoint->address, own_len) == 0)
        return DP_ESYSTEM;
    up->state = DP_S_EXCHANGE;
    up->deadline = 0;
    return DP_OK;
}
