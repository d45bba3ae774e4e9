/* dp_accept: listening sockets, lent to the engine, and the connections that come from them. I/O.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "dp_core.h"

enum { DEFER_SECONDS = 1 };

/* --- listeners -------------------------------------------------------------------------------- */

int dp_engine_fd(const dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    return engine->epoll_fd;
}

int dp_listener_attach(dp_engine *engine, int listener, int fd)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (!engine->sealed)
        return DP_ESTATE;
    if (listener < 0 || (uint32_t)listener >= engine->tables.listener_count || fd < 0)
        return DP_EINVAL;
    if (engine->attached_count == DP_ATTACHED_MAX)
        return DP_ETOOBIG;
    engine->attached[engine->attached_count++] = (dp_attached){.fd = fd, .listener = listener};
    return DP_OK;
}

/* An http client speaks first: its connection is taken once it has, and read at once (tcp(7),
 * TCP_DEFER_ACCEPT). One that says nothing comes after DEFER_SECONDS all the same. On a tcp
 * listener the server may be the first to speak, so nothing is put off there; the socket may have
 * been an http listener's before. A socket that knows no such option goes without. */
static void put_off(const dp_engine *engine, const dp_attached *attached)
{
    bool http = engine->tables.listeners[attached->listener].protocol == DP_HTTP;
    int seconds = http ? DEFER_SECONDS : 0;
    (void)setsockopt(attached->fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof(seconds));
}

int dp_accept_start(dp_engine *engine)
{
    for (uint32_t i = 0; i < engine->attached_count; i++) {
        dp_attached *attached = &engine->attached[i];
        struct epoll_event event = {.events = EPOLLIN,
                                    .data.u64 = (uint64_t)DP_KEY_LISTENER << 56 | i};
        if (attached->accepting)
            continue;
        put_off(engine, attached);
        if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, attached->fd, &event) != 0)
            return DP_ESYSTEM;
        attached->accepting = true;
    }
    return DP_OK;
}

void dp_accept_stop(dp_engine *engine)
{
    struct epoll_event none = {0};
    for (uint32_t i = 0; i < engine->attached_count; i++) {
        dp_attached *attached = &engine->attached[i];
        if (attached->accepting)
            (void)epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, attached->fd, &none);
        attached->accepting = false;
    }
}

int dp_engine_serve(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (!engine->sealed)
        return DP_ESTATE;
    engine->serving = true;
    engine->draining = false;
    engine->closing_idle = false;
    engine->now_ms = dp_clock_ms();
    dp_move_withdraw(engine);
    dp_ready_run(engine); /* what came while they waited has no event any more */
    dp_conn_collect(engine);
    return dp_accept_start(engine);
}

int dp_engine_pause(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    engine->serving = false;
    engine->accept_again = 0;
    dp_accept_stop(engine);
    return DP_OK;
}

/* Says so, if there are words for it in this protocol; fd is still to be closed. Returns how many
 * bytes that took. */
static size_t turn_away(dp_engine *engine, int fd, int protocol, uint32_t status)
{
    static const char busy[] = "the connection limit is reached\n";
    const char *text = status == 503 ? busy : dp_status_text(status);
    if (protocol != DP_HTTP)
        return 0;
    dp_answer answer = {
        .status = status, .minor = 1, .body = (const uint8_t *)text, .body_len = strlen(text)};
    size_t len = dp_head_answer(engine, &answer);
    ssize_t put = write(fd, engine->head_buffer, len);
    if (put <= 0)
        return 0;
    engine->stats->own_answers_total[dp_status_slot(status)]++;
    engine->stats->answers_total[status / 100]++;
    return (size_t)put;
}

void dp_accept_turn_away(dp_engine *engine, dp_conn *conn, uint32_t status)
{
    dp_refused(engine, conn, status, turn_away(engine, conn->fd, conn->protocol, status));
    if (conn->protocol != DP_HTTP || engine->turned_away == DP_TURNED_AWAY_MAX)
        dp_conn_close(engine, conn);
    if (conn->state == DP_S_DEAD)
        return;
    dp_conn_count_down(engine, conn, -1);
    dp_limit_left(engine, conn);
    conn->flags |= DP_C_TURNED_AWAY;
    engine->turned_away++;
    dp_http_turn_away(engine, conn);
}

static void accept_one(dp_engine *engine, const dp_attached *attached, int fd,
                       const struct sockaddr_storage *address)
{
    int protocol = engine->tables.listeners[attached->listener].protocol;
    engine->stats->connections_total++;
    bool full = !dp_limit_connection(engine);
    engine->stats->refused_total += full;
    bool cut = full && (protocol != DP_HTTP || engine->turned_away == DP_TURNED_AWAY_MAX);
    dp_conn *conn = cut ? NULL : dp_conn_new(engine, fd, DP_DOWN);
    if (conn == NULL) {
        if (!full) {
            dp_shared_give(engine->limits.connections, engine->limits.own_connections);
            engine->stats->refused_total++;
        }
        (void)turn_away(engine, fd, protocol, 503);
        (void)close(fd);
        return;
    }
    if (full) {
        conn->flags |= DP_C_TURNED_AWAY;
        engine->turned_away++;
    } else {
        conn->counted = DP_COUNTED_CONNECTION;
    }
    dp_conn_count_down(engine, conn, 1);
    conn->protocol = (uint8_t)protocol;
    conn->listener = (uint16_t)attached->listener;
    conn->io = DP_IO_READ | DP_IO_WRITE;
    dp_client_accepted(engine, conn, address);
    bool hears_proxy = conn->trusted && engine->tables.listeners[conn->listener].expects_proxy;
    if (full) {
        dp_refused(engine, conn, 503, turn_away(engine, fd, protocol, 503));
        if (conn->state == DP_S_DEAD)
            return;
        dp_http_turn_away(engine, conn);
        dp_conn_settle(engine, conn);
    } else if (protocol == DP_HTTP && !hears_proxy) {
        dp_http_accepted(engine, conn);
        dp_conn_settle(engine, conn);
    } else if (dp_conn_watch(engine, conn, DP_W_OWN) != DP_OK) {
        dp_conn_close(engine, conn);
    } else if (hears_proxy) {
        dp_proxy_accepted(engine, conn);
    } else {
        dp_tcp_accepted(engine, conn);
    }
}

void dp_accept_burst(dp_engine *engine, uint32_t index)
{
    dp_attached *attached = &engine->attached[index];
    for (int i = 0; i < DP_ACCEPT_BURST && attached->accepting; i++) {
        struct sockaddr_storage address = {0};
        socklen_t len = sizeof(address);
        int fd =
            accept4(attached->fd, (struct sockaddr *)&address, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accept_one(engine, attached, fd, &address);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The queue keeps them; a level-triggered set would spin on it meanwhile. */
            dp_accept_stop(engine);
            engine->accept_again = engine->now_ms + DP_ACCEPT_PAUSE_MS;
            return;
        }
        if (errno == EAGAIN || errno == EINVAL)
            return;
        /* ECONNABORTED and the like: that one is gone, the next may be fine */
    }
}

int dp_engine_probe(dp_engine *engine, int fd)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (!engine->sealed)
        return DP_ESTATE;
    dp_conn *conn = dp_conn_new(engine, fd, DP_DOWN);
    if (conn == NULL)
        return DP_ENOMEM;
    conn->flags |= DP_C_PROBE;
    conn->protocol = DP_HTTP;
    conn->io = DP_IO_READ | DP_IO_WRITE;
    engine->now_ms = dp_clock_ms();
    if (dp_conn_watch(engine, conn, DP_W_OWN) != DP_OK) {
        dp_conn_close(engine, conn);
        return DP_ESYSTEM;
    }
    dp_http_accepted(engine, conn);
    return DP_OK;
}
