/* dp_splice: bytes from one socket to another through a pipe, without a copy through this process.
 * I/O.
 *
 * A pipe belongs to the socket that its bytes go to, after what stands in conn->out, and only while
 * it holds some: it is taken when bytes come in and given back when the last has left. So few of
 * them serve many connections. Where none is to be had, the caller reads and writes instead.
 *
 * While much of an answer of known length is to come, the kernel tells of its bytes only once there
 * are DP_GATHER_BYTES, or all that are left (socket(7), SO_RCVLOWAT): a source that writes as fast
 * as we read would else wake us for every segment. One that stalls for DP_GATHER_MS is told of at
 * once from then on, so nothing is held back for longer.
 *
 * SPLICE_F_MORE is never given: it would hold back the tail for up to 200 ms when the source stalls
 * (tcp(7), TCP_CORK). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dp_core.h"

enum {
    DENIED_MS = 1000, /* the user's share of pipe memory is used up: not asked again so long */
    BULK_BYTES = 64 * 1024
};

static void pipe_close(dp_engine *engine, dp_pipe *pipe)
{
    (void)close(pipe->read_fd);
    (void)close(pipe->write_fd);
    engine->pipe_count--;
    free(pipe);
}

static dp_pipe *pipe_make(dp_engine *engine)
{
    int fds[2];
    dp_pipe *pipe = malloc(sizeof(*pipe));
    if (pipe == NULL)
        return NULL;
    if (pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0) {
        free(pipe);
        return NULL;
    }
    *pipe = (dp_pipe){.read_fd = fds[0], .write_fd = fds[1]};
    engine->pipe_count++;
    /* Beyond /proc/sys/fs/pipe-user-pages-soft a new pipe has two pages and gets no more. */
    if (fcntl(fds[1], F_SETPIPE_SZ, DP_PIPE_BYTES) < DP_PIPE_BYTES) {
        pipe_close(engine, pipe);
        return NULL;
    }
    return pipe;
}

static dp_pipe *pipe_take(dp_engine *engine)
{
    dp_pipe *pipe = engine->free_pipes;
    if (pipe != NULL) {
        engine->free_pipes = pipe->next;
        pipe->next = NULL;
        return pipe;
    }
    if (engine->pipe_count >= DP_PIPES_MAX || engine->now_ms < engine->pipes_denied_until)
        return NULL;
    pipe = pipe_make(engine);
    if (pipe == NULL)
        engine->pipes_denied_until = engine->now_ms + DENIED_MS;
    return pipe;
}

static void pipe_give(dp_engine *engine, dp_conn *conn)
{
    dp_pipe *pipe = conn->pipe;
    conn->pipe = NULL;
    engine->stats->pipes--;
    if (pipe->held != 0) { /* what is in it is lost with it */
        pipe_close(engine, pipe);
        return;
    }
    pipe->next = engine->free_pipes;
    engine->free_pipes = pipe;
}

bool dp_pipe_adopt(dp_engine *engine, dp_conn *conn, uint32_t held)
{
    dp_pipe *pipe = malloc(sizeof(*pipe));
    if (pipe == NULL)
        return false;
    *pipe = (dp_pipe){.read_fd = -1, .write_fd = -1, .held = held};
    engine->pipe_count++;
    engine->stats->pipes++;
    conn->pipe = pipe;
    return true;
}

void dp_pipe_drop(dp_engine *engine, dp_conn *conn)
{
    if (conn->pipe != NULL)
        pipe_give(engine, conn);
}

void dp_pipes_trim(dp_engine *engine, bool all)
{
    dp_pipe *pipe;
    while ((pipe = engine->free_pipes) != NULL) {
        engine->free_pipes = pipe->next;
        pipe_close(engine, pipe);
        if (!all)
            break;
    }
}

static ssize_t splice_once(int from, int to, size_t len)
{
    ssize_t moved;
    do
        moved = splice(from, NULL, to, NULL, len, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
    while (moved < 0 && errno == EINTR);
    if (moved < 0)
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    return moved;
}

ssize_t dp_splice_in(dp_engine *engine, dp_conn *from, dp_conn *to, size_t max)
{
    DP_CHECK(to->pipe == NULL);
    if (!engine->transport->may_splice)
        return -ENOBUFS;
    if ((from->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) == 0)
        return -EAGAIN;
    if ((to->pipe = pipe_take(engine)) == NULL)
        return -ENOBUFS;
    engine->stats->pipes++;
    ssize_t got =
        splice_once(from->fd, to->pipe->write_fd, max < DP_SPLICE_MAX ? max : DP_SPLICE_MAX);
    if (got <= 0) {
        pipe_give(engine, to);
        from->io &= (uint8_t)~DP_IO_READ;
        if (got == 0)
            from->io |= DP_IO_AT_EOF;
        return got;
    }
    /* Few bytes do not mean that the socket is empty: a pipe may be full of small pieces. */
    to->pipe->held = (uint32_t)got;
    engine->stats->spliced_bytes_total += (uint64_t)got;
    /* Bulk ends with a small piece, and more bulk may follow it: one of those does not count. */
    if (got >= BULK_BYTES && from->read_shift < DP_SPLICE_SHIFT_MAX)
        from->read_shift++;
    else if (got < DP_READ_MIN && from->read_shift > 0)
        from->read_shift--;
    if (from->role == DP_DOWN) {
        engine->stats->received_bytes_total += (uint64_t)got;
        from->exchange->account.bytes_in += (uint64_t)got;
    }
    return got;
}

int dp_splice_out(dp_engine *engine, dp_conn *to)
{
    dp_pipe *pipe = to->pipe;
    while (pipe->held != 0 && (to->io & DP_IO_WRITE) != 0) {
        ssize_t put = splice_once(pipe->read_fd, to->fd, pipe->held);
        if (put == -EAGAIN) {
            to->io &= (uint8_t)~DP_IO_WRITE; /* there are bytes, so it is the socket that is full */
            return 0;
        }
        if (put <= 0)
            return put < 0 ? (int)put : -EPIPE;
        pipe->held -= (uint32_t)put;
        dp_conn_count_sent(engine, to, (size_t)put);
    }
    if (pipe->held == 0)
        pipe_give(engine, to);
    return 0;
}

/* How much of a body may go through a pipe now; 0: it is to be read and written. */
static size_t size_for(const dp_conn *from, uint8_t framing, uint64_t left, bool piped)
{
    if (from->in.len != 0)
        return 0;
    if (framing == DP_BODY_LENGTH && left >= (piped ? DP_READ_MIN : DP_SPLICE_MIN))
        return left < DP_SPLICE_MAX ? (size_t)left : DP_SPLICE_MAX;
    return framing == DP_BODY_CLOSE && from->read_shift >= DP_SPLICE_SHIFT ? DP_SPLICE_MAX : 0;
}

/* --- gathering -------------------------------------------------------------------------------- */

/* The kernel looks at once whether so many are there. */
static void tell_from(dp_conn *up, uint32_t bytes)
{
    int told = (int)bytes;
    if (up->gathers != bytes &&
        setsockopt(up->fd, SOL_SOCKET, SO_RCVLOWAT, &told, sizeof(told)) == 0)
        up->gathers = bytes;
}

void dp_gather_end(dp_conn *up)
{
    if (up->role != DP_UP || up->gathers <= 1)
        return;
    tell_from(up, 1);
    up->deadline = 0;
}

/* So much of its answer is still to come. */
static void gather(dp_engine *engine, dp_conn *up, uint64_t left)
{
    if (left == 0) {
        dp_gather_end(up);
        return;
    }
    tell_from(up, left < DP_GATHER_BYTES ? (uint32_t)left : DP_GATHER_BYTES);
    dp_timer_set(engine, up, DP_GATHER_MS);
}

void dp_gather_timeout(dp_engine *engine, dp_conn *up)
{
    if (dp_conn_unsent(up->peer) != 0) { /* it is the client that is slow */
        dp_timer_set(engine, up, DP_GATHER_MS);
        return;
    }
    up->peer->exchange->response_stalled = true;
    dp_gather_end(up);
    up->io |= DP_IO_READ;
    dp_ready_push(engine, up->peer);
}

static bool may_gather(const dp_conn *from, uint8_t framing)
{
    return from->role == DP_UP && framing == DP_BODY_LENGTH &&
           !from->peer->exchange->response_stalled;
}

enum dp_passed dp_splice_body(dp_engine *engine, dp_conn *from, dp_conn *to, uint8_t framing,
                              uint64_t *left, bool *piped, bool *ret_done)
{
    size_t size = size_for(from, framing, *left, *piped);
    ssize_t got = size != 0 ? dp_splice_in(engine, from, to, size) : -ENOBUFS;
    if (got == -ENOBUFS) {
        dp_gather_end(from);
        return DP_PASSED_NO_PIPE;
    }
    if ((got > 0 || got == -EAGAIN) && may_gather(from, framing))
        gather(engine, from, got > 0 ? *left - (uint64_t)got : *left);
    if (got == -EAGAIN)
        return DP_PASSED_NOTHING;
    if (got < 0 || (got == 0 && framing != DP_BODY_CLOSE))
        return DP_PASSED_SOURCE_FAILED;
    *piped = true;
    if (framing == DP_BODY_CLOSE) {
        *ret_done = got == 0;
    } else {
        *left -= (uint64_t)got;
        *ret_done = *left == 0;
    }
    return dp_conn_flush(engine, to) == 0 ? DP_PASSED_SOME : DP_PASSED_SINK_FAILED;
}
