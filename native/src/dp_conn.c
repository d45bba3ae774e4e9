/* dp_conn: one socket, downstream or upstream: its slab, its place in epoll, reading and writing
 * through its transport. I/O.
 *
 * Each socket is registered once, edge-triggered, for both directions. conn->io remembers what the
 * kernel said; a transport clears a bit when a call shows that nothing is left. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dp_core.h"

void dp_fail(const char *file, int line, const char *condition)
{
    fprintf(stderr, "dataplane engine: %s:%d: %s does not hold\n", file, line, condition);
    abort();
}

enum { JOINED_MAX = 2048 };

/* --- transports ------------------------------------------------------------------------------- */

static ssize_t plain_read(dp_conn *conn, uint8_t *data, size_t len)
{
    ssize_t got = read(conn->fd, data, len);
    if (got < 0) {
        conn->io &= (uint8_t)~DP_IO_READ;
        return -errno;
    }
    /* A short read emptied the socket; what comes later is a new edge. Where the end was told
     * already, no new edge follows: the next read gives it. */
    if ((size_t)got < len && (conn->io & (DP_IO_EOF | DP_IO_BROKEN)) == 0)
        conn->io &= (uint8_t)~DP_IO_READ;
    return got;
}

/* SIGPIPE is ignored in this process (as CPython does): send's flags would cost the kernel's bitmap
 * of calls that need no look at their arguments. */
static ssize_t put_all(int fd, const struct iovec *iov, int count)
{
    uint8_t joined[JOINED_MAX];
    if (count == 1)
        return write(fd, iov->iov_base, iov->iov_len);
    if (count > 2 || iov[0].iov_len + iov[1].iov_len > sizeof(joined))
        return writev(fd, iov, count);
    /* A head and a small body: to copy both costs less than to have the kernel read a vector. */
    memcpy(joined, iov[0].iov_base, iov[0].iov_len);
    memcpy(joined + iov[0].iov_len, iov[1].iov_base, iov[1].iov_len);
    return write(fd, joined, iov[0].iov_len + iov[1].iov_len);
}

static ssize_t plain_write(dp_conn *conn, const struct iovec *iov, int count)
{
    ssize_t put = put_all(conn->fd, iov, count);
    if (put < 0) {
        conn->io &= (uint8_t)~DP_IO_WRITE;
        return -errno;
    }
    return put;
}

const dp_transport dp_transport_plain = {
    .read = plain_read, .write = plain_write, .may_splice = true};

static ssize_t trickle_read(dp_conn *conn, uint8_t *data, size_t len)
{
    ssize_t got = plain_read(conn, data, len < 1 ? len : 1);
    int left = 0;
    if (got == 1 && (conn->io & (DP_IO_EOF | DP_IO_BROKEN)) == 0 &&
        ioctl(conn->fd, FIONREAD, &left) == 0 && left == 0)
        conn->io &= (uint8_t)~DP_IO_READ;
    return got;
}

static ssize_t trickle_write(dp_conn *conn, const struct iovec *iov, int count)
{
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len == 0)
            continue;
        struct iovec one = {.iov_base = iov[i].iov_base, .iov_len = 1};
        return plain_write(conn, &one, 1);
    }
    return 0;
}

const dp_transport dp_transport_trickle = {.read = trickle_read, .write = trickle_write};

/* --- slab ------------------------------------------------------------------------------------- */

static bool slab_grow(dp_engine *engine)
{
    dp_conn **chunks = realloc(engine->chunks, (engine->chunk_count + 1) * sizeof(*engine->chunks));
    if (chunks == NULL)
        return false;
    engine->chunks = chunks;
    dp_conn *chunk = calloc(DP_CHUNK, sizeof(*chunk));
    if (chunk == NULL)
        return false;
    chunks[engine->chunk_count] = chunk;
    for (uint32_t i = DP_CHUNK; i-- > 0;) {
        chunk[i].id = engine->chunk_count * DP_CHUNK + i;
        chunk[i].next = engine->free_conns;
        engine->free_conns = &chunk[i];
    }
    engine->chunk_count++;
    return true;
}

dp_conn *dp_conn_new(dp_engine *engine, int fd, enum dp_role role)
{
    if (engine->free_conns == NULL && !slab_grow(engine))
        return NULL;
    dp_conn *conn = engine->free_conns;
    engine->free_conns = conn->next;
    uint32_t id = conn->id;
    uint32_t stamp = (conn->stamp + 1) & 0xffffff;
    memset(conn, 0, sizeof(*conn));
    conn->magic = DP_CONN_MAGIC;
    conn->id = id;
    conn->stamp = stamp;
    conn->fd = fd;
    conn->role = (uint8_t)role;
    conn->state = DP_S_IDLE;
    return conn;
}

/* An idle connection needs none, and there are many more of those: hence a slab of its own. */
static bool grow_exchanges(dp_engine *engine)
{
    size_t size = (engine->exchange_chunk_count + 1u) * sizeof(*engine->exchange_chunks);
    dp_exchange **chunks = realloc(engine->exchange_chunks, size);
    if (chunks == NULL)
        return false;
    engine->exchange_chunks = chunks;
    dp_exchange *chunk = calloc(DP_CHUNK, sizeof(*chunk));
    if (chunk == NULL)
        return false;
    chunks[engine->exchange_chunk_count++] = chunk;
    for (uint32_t i = DP_CHUNK; i > 0; i--) {
        chunk[i - 1].next = engine->free_exchanges;
        engine->free_exchanges = &chunk[i - 1];
    }
    return true;
}

bool dp_exchange_open(dp_engine *engine, dp_conn *down)
{
    dp_exchange_close(engine, down);
    if (engine->free_exchanges == NULL && !grow_exchanges(engine)) {
        dp_conn_close(engine, down);
        return false;
    }
    dp_exchange *exchange = engine->free_exchanges;
    engine->free_exchanges = exchange->next;
    memset(exchange, 0, sizeof(*exchange));
    down->exchange = exchange;
    dp_client_begin(down);
    return true;
}

void dp_exchange_forget_sent(dp_engine *engine, dp_conn *down)
{
    if (down->exchange != NULL)
        dp_buffer_free(engine, &down->exchange->sent);
}

static void empty_exchange(dp_engine *engine, dp_conn *down)
{
    dp_exchange_forget_sent(engine, down);
    if (down->exchange != NULL)
        dp_buffer_free(engine, &down->exchange->account.line);
}

void dp_exchange_close(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    empty_exchange(engine, down);
    if (exchange == NULL)
        return;
    exchange->next = engine->free_exchanges;
    engine->free_exchanges = exchange;
    down->exchange = NULL;
}

/* The epoll key: kind 0 in the top byte, then the stamp, then the id. */
uint64_t dp_conn_key(const dp_conn *conn)
{
    return (uint64_t)conn->stamp << 32 | conn->id;
}

dp_conn *dp_conn_find(const dp_engine *engine, uint64_t key)
{
    uint32_t id = (uint32_t)key;
    if (id / DP_CHUNK >= engine->chunk_count)
        return NULL;
    dp_conn *conn = &engine->chunks[id / DP_CHUNK][id % DP_CHUNK];
    if (conn->magic != DP_CONN_MAGIC || conn->state == DP_S_DEAD || dp_conn_key(conn) != key)
        return NULL;
    return conn;
}

int dp_conn_watch(dp_engine *engine, dp_conn *conn, enum dp_watch as)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u64 = dp_conn_key(conn)};
    if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, conn->fd, &event) != 0)
        return DP_ESYSTEM;
    conn->watch = (uint8_t)as;
    return DP_OK;
}

void dp_conn_unwatch(dp_engine *engine, dp_conn *conn)
{
    struct epoll_event none = {0};
    if (conn->watch != DP_W_NONE)
        (void)epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, conn->fd, &none);
    conn->watch = DP_W_NONE;
}

void dp_conn_watch_late(dp_engine *engine, dp_conn *conn)
{
    /* What is there already is told at once: no edge is missed. */
    if (dp_conn_watch(engine, conn, DP_W_OWN) == DP_OK)
        return;
    (void)shutdown(conn->fd, SHUT_RDWR); /* nothing could wake it: it ends here */
    conn->io |= DP_IO_READ | DP_IO_BROKEN;
    dp_ready_push(engine, conn);
}

void dp_conn_count_down(dp_engine *engine, dp_conn *conn, int by)
{
    if (conn->role != DP_DOWN || (conn->flags & (DP_C_PROBE | DP_C_TURNED_AWAY)) != 0)
        return;
    engine->down_count = by > 0 ? engine->down_count + 1 : engine->down_count - 1;
    engine->stats->connections = engine->down_count;
}

static void unlist(dp_engine *engine, dp_conn *conn)
{
    if ((conn->flags & DP_C_QUEUED) != 0)
        dp_list_remove(&engine->ready, conn);
    if ((conn->flags & DP_C_MOVABLE) != 0)
        dp_list_remove(&engine->movable, conn);
    conn->flags &= (uint8_t)~(DP_C_QUEUED | DP_C_MOVABLE);
}

static void bury(dp_engine *engine, dp_conn *conn)
{
    unlist(engine, conn);
    dp_timer_cancel(conn);
    dp_buffer_free(engine, &conn->in);
    dp_conn_drop_unsent(engine, conn);
    empty_exchange(engine, conn);
    if ((conn->flags & DP_C_TURNED_AWAY) != 0)
        engine->turned_away--;
    if (conn->role == DP_DOWN) {
        dp_conn_count_down(engine, conn, -1);
        dp_limit_left(engine, conn);
        dp_upstream_unbind(engine, conn);
    } else if (conn->role == DP_UP) {
        dp_upstream_closed(engine, conn);
    }
    conn->state = DP_S_DEAD;
    conn->fd = -1;
    conn->peer = NULL;
    conn->next = engine->dead_conns;
    engine->dead_conns = conn;
}

void dp_conn_close(dp_engine *engine, dp_conn *conn)
{
    if (conn->state == DP_S_DEAD)
        return;
    DP_CHECK(conn->peer == NULL);
    /* While a swap passes descriptors, a copy may be open elsewhere: then close alone would
     * neither tell the client nor take the socket out of this epoll set. */
    if (conn->watch == DP_W_SHARED)
        dp_conn_unwatch(engine, conn);
    (void)close(conn->fd);
    if (engine->draining && conn->role == DP_DOWN &&
        (conn->flags & (DP_C_PROBE | DP_C_TURNED_AWAY)) == 0)
        ++*engine->ended_as;
    bury(engine, conn);
}

void dp_conn_abortive(dp_conn *conn)
{
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

void dp_conn_reset(dp_engine *engine, dp_conn *conn)
{
    if (conn->state == DP_S_DEAD)
        return;
    dp_conn_abortive(conn);
    dp_conn_close(engine, conn);
}

void dp_conn_forget(dp_engine *engine, dp_conn *conn)
{
    (void)close(conn->fd); /* out of epoll since it was frozen, or never in it */
    bury(engine, conn);
}

void dp_conn_collect(dp_engine *engine)
{
    dp_conn *conn;
    while ((conn = engine->dead_conns) != NULL) {
        engine->dead_conns = conn->next;
        dp_exchange_close(engine, conn);
        conn->magic = 0;
        conn->state = DP_S_FREE;
        conn->next = engine->free_conns;
        engine->free_conns = conn;
    }
}

/* --- lists ------------------------------------------------------------------------------------ */

void dp_list_push(dp_list *list, dp_conn *conn)
{
    conn->prev = NULL;
    conn->next = list->head;
    if (list->head != NULL)
        list->head->prev = conn;
    else
        list->tail = conn;
    list->head = conn;
    list->count++;
}

void dp_list_append(dp_list *list, dp_conn *conn)
{
    conn->next = NULL;
    conn->prev = list->tail;
    if (list->tail != NULL)
        list->tail->next = conn;
    else
        list->head = conn;
    list->tail = conn;
    list->count++;
}

void dp_list_remove(dp_list *list, dp_conn *conn)
{
    if (conn->prev != NULL)
        conn->prev->next = conn->next;
    else
        list->head = conn->next;
    if (conn->next != NULL)
        conn->next->prev = conn->prev;
    else
        list->tail = conn->prev;
    conn->next = NULL;
    conn->prev = NULL;
    list->count--;
}

void dp_ready_push(dp_engine *engine, dp_conn *conn)
{
    if ((conn->flags & (DP_C_QUEUED | DP_C_MOVABLE)) != 0)
        return;
    conn->flags |= DP_C_QUEUED;
    dp_list_append(&engine->ready, conn);
}

/* --- reading and writing ---------------------------------------------------------------------- */

size_t dp_conn_read_size(const dp_conn *conn)
{
    size_t size = (size_t)DP_READ_MIN << conn->read_shift;
    return size < DP_READ_MAX ? size : DP_READ_MAX;
}

ssize_t dp_conn_read(dp_engine *engine, dp_conn *conn, uint8_t *data, size_t len)
{
    ssize_t got = engine->transport->read(conn, data, len);
    if (got == -EINTR)
        got = engine->transport->read(conn, data, len);
    if (got == -EWOULDBLOCK)
        return -EAGAIN;
    if (got == 0) {
        conn->io |= DP_IO_AT_EOF;
        conn->io &= (uint8_t)~DP_IO_READ;
    } else if (got > 0 && conn->role == DP_DOWN) {
        engine->stats->received_bytes_total += (uint64_t)got;
    }
    return got;
}

void dp_conn_count_sent(dp_engine *engine, dp_conn *conn, size_t put)
{
    if (conn->role != DP_DOWN)
        return;
    engine->stats->sent_bytes_total += put;
    if (conn->exchange != NULL)
        conn->exchange->account.bytes_out += put;
}

static int write_some(dp_engine *engine, dp_conn *conn, struct iovec **iov, int *count)
{
    while (*count > 0) {
        if ((*iov)->iov_len == 0) {
            (*iov)++;
            (*count)--;
            continue;
        }
        size_t asked = 0;
        for (int i = 0; i < *count; i++)
            asked += (*iov)[i].iov_len;
        ssize_t put = engine->transport->write(conn, *iov, *count);
        if (put == -EINTR)
            continue;
        if (put == -EAGAIN)
            return 0;
        if (put < 0)
            return (int)put;
        dp_conn_count_sent(engine, conn, (size_t)put);
        size_t left = (size_t)put;
        while (left > 0) {
            size_t step = left < (*iov)->iov_len ? left : (*iov)->iov_len;
            (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + step;
            (*iov)->iov_len -= step;
            left -= step;
            if ((*iov)->iov_len == 0) {
                (*iov)++;
                (*count)--;
            }
        }
        if ((size_t)put < asked && engine->transport == &dp_transport_plain) {
            conn->io &= (uint8_t)~DP_IO_WRITE; /* the socket is full: an edge will tell */
            return 0;
        }
    }
    return 0;
}

int dp_conn_send(dp_engine *engine, dp_conn *conn, struct iovec *iov, int count)
{
    while (count > 0 && iov[count - 1].iov_len == 0)
        count--;
    if (conn->out.len == 0 && (conn->io & DP_IO_WRITE) != 0) {
        int result = write_some(engine, conn, &iov, &count);
        if (result != 0)
            return result;
    }
    size_t left = 0;
    for (int i = 0; i < count; i++)
        left += iov[i].iov_len;
    if (left == 0)
        return 0;
    DP_CHECK(conn->pipe == NULL); /* what it holds was there before these */
    if (dp_buffer_reserve(engine, &conn->out, conn->out.len + left) != DP_OK)
        return -ENOBUFS;
    for (int i = 0; i < count; i++)
        if (dp_buffer_append(engine, &conn->out, iov[i].iov_base, iov[i].iov_len) != DP_OK)
            return -ENOBUFS;
    return 0;
}

int dp_conn_flush(dp_engine *engine, dp_conn *conn)
{
    if ((conn->io & DP_IO_WRITE) == 0)
        return 0;
    if (conn->out.len != 0) {
        struct iovec one = {.iov_base = dp_buffer_start(&conn->out), .iov_len = conn->out.len};
        struct iovec *iov = &one;
        int count = 1;
        int result = write_some(engine, conn, &iov, &count);
        dp_buffer_consume(engine, &conn->out, conn->out.len - (count > 0 ? iov->iov_len : 0));
        if (result != 0 || conn->out.len != 0)
            return result;
    }
    return conn->pipe != NULL ? dp_splice_out(engine, conn) : 0;
}

size_t dp_conn_unsent(const dp_conn *conn)
{
    return conn->out.len + (conn->pipe != NULL ? conn->pipe->held : 0u);
}

void dp_conn_drop_unsent(dp_engine *engine, dp_conn *conn)
{
    dp_buffer_free(engine, &conn->out);
    dp_pipe_drop(engine, conn);
}

void dp_conn_adapt_read(dp_conn *from, const dp_conn *to, size_t got)
{
    if (dp_conn_unsent(to) != 0) {
        if (from->read_shift > 0)
            from->read_shift--;
    } else if (got == dp_conn_read_size(from) && dp_conn_read_size(from) < DP_READ_MAX) {
        from->read_shift++;
    }
}

/* --- dispatch --------------------------------------------------------------------------------- */

static dp_conn *down_of(dp_conn *conn)
{
    return conn->role == DP_DOWN ? conn : conn->peer;
}

void dp_conn_settle(dp_engine *engine, dp_conn *down)
{
    if (down->watch != DP_W_NONE || down->state == DP_S_DEAD ||
        (down->flags & (DP_C_MOVABLE | DP_C_QUEUED)) != 0)
        return;
    /* Its request is whole and nothing waits for it to read: the next thing that happens is the
     * upstream's answer, and often its end. Until then it costs no place in the epoll set; after
     * DP_WATCH_LATE_MS the wheel sees to it that its going is noticed. */
    if (down->state == DP_S_EXCHANGE && down->peer != NULL && down->exchange->request_done &&
        !down->exchange->head_sent && dp_conn_unsent(down) == 0)
        return;
    dp_conn_watch_late(engine, down);
}

/* up could not be connected: another endpoint has its turn, or down waits, or is told. */
static void connect_failed(dp_engine *engine, dp_conn *up, bool timed_out)
{
    dp_conn *down = up->peer;
    int result = dp_upstream_retry(engine, up);
    if (down->protocol == DP_TCP)
        dp_tcp_reopened(engine, down, result);
    else if (result == DP_ESYSTEM)
        dp_http_upstream_failed(engine, down, timed_out);
    else
        dp_http_opened(engine, down, result);
    if (down->state != DP_S_DEAD)
        dp_ready_push(engine, down);
}

void dp_conn_handle(dp_engine *engine, dp_conn *conn)
{
    if (conn->role == DP_PROBER) {
        dp_health_handle(engine, conn);
        return;
    }
    if (conn->role == DP_UP) {
        if (conn->state == DP_S_IDLE) {
            /* Nothing is owed to us: this is the end, or something nobody asked for. */
            if ((conn->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) != 0)
                dp_upstream_release(engine, conn, false);
            return;
        }
        if (conn->state == DP_S_CONNECTING) {
            if ((conn->io & (DP_IO_WRITE | DP_IO_BROKEN | DP_IO_EOF)) == 0)
                return;
            if (dp_upstream_connected(engine, conn) != DP_OK) {
                connect_failed(engine, conn, false);
                return;
            }
        }
    }
    dp_conn *down = down_of(conn);
    if (down == NULL || (down->flags & DP_C_MOVABLE) != 0)
        return;
    if (down->state == DP_S_FROZEN || down->state == DP_S_HELD || down->state == DP_S_DEAD)
        return;
    if (down->state == DP_S_PROXY)
        dp_proxy_pump(engine, down);
    else if (down->protocol == DP_HTTP)
        dp_http_pump(engine, down);
    else
        dp_tcp_pump(engine, down);
    dp_conn_settle(engine, down);
    if (engine->draining)
        dp_move_notice(engine, down);
}

static void upstream_timeout(dp_engine *engine, dp_conn *up)
{
    if (up->state == DP_S_IDLE)
        dp_upstream_release(engine, up, false);
    else if (up->gathers > 1)
        dp_gather_timeout(engine, up);
    else if (up->state == DP_S_CONNECTING)
        connect_failed(engine, up, true);
}

void dp_conn_timeout(dp_engine *engine, dp_conn *conn)
{
    if (conn->role == DP_UP) {
        upstream_timeout(engine, conn);
        return;
    }
    if (conn->role == DP_PROBER) {
        dp_health_timeout(engine, conn);
        return;
    }
    if (conn->state == DP_S_FROZEN || conn->state == DP_S_HELD ||
        (conn->flags & DP_C_MOVABLE) != 0) {
        dp_timer_set(engine, conn, 100); /* a moment: it is about to change process */
        return;
    }
    if (conn->state == DP_S_PROXY)
        dp_conn_close(engine, conn);
    else if (conn->protocol == DP_HTTP)
        dp_http_timeout(engine, conn);
    else
        dp_tcp_timeout(engine, conn);
    if (conn->state != DP_S_DEAD)
        dp_ready_push(engine, conn);
}
