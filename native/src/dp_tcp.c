/* dp_tcp: the tcp codec: bytes both ways, each direction ended on its own (half-close). */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

static void end_tunnel(dp_engine *engine, dp_conn *down, bool with_reset)
{
    dp_conn *up = down->peer;
    dp_queue_leave(engine, down);
    dp_tunnel_over(engine, down, with_reset ? DP_OUT_CLIENT_GONE : DP_OUT_OK);
    if (up != NULL) {
        engine->stats->tunnels--;
        if (with_reset) /* neither side may take what it got for all there was */
            dp_conn_abortive(up);
        dp_upstream_release(engine, up, false);
    }
    if (with_reset)
        dp_conn_reset(engine, down);
    else
        dp_conn_close(engine, down);
}

/* Gone without an end of its own: its end came, ours did not, and yet the kernel gave it up. */
static bool is_reset(const dp_conn *conn)
{
    return (conn->io & (DP_IO_BROKEN | DP_IO_AT_EOF | DP_IO_SHUT)) == (DP_IO_BROKEN | DP_IO_AT_EOF);
}

/* Bytes from one side to the other. 1: something moved, 0: nothing can, negative: it broke. */
static int pump_one(dp_engine *engine, dp_conn *from, dp_conn *to)
{
    if (dp_conn_flush(engine, to) != 0)
        return -EPIPE;
    if (dp_conn_unsent(to) != 0)
        return 0;
    if ((from->io & DP_IO_AT_EOF) != 0) {
        if ((to->io & DP_IO_SHUT) == 0) {
            to->io |= DP_IO_SHUT;
            (void)shutdown(to->fd, SHUT_WR);
            return 1;
        }
        return 0;
    }
    if ((from->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) == 0)
        return 0;
    if (from->read_shift >= DP_SPLICE_SHIFT) {
        ssize_t got = dp_splice_in(engine, from, to, DP_SPLICE_MAX);
        if (got > 0) {
            int result = dp_conn_flush(engine, to);
            return result != 0 ? result : 1;
        }
        if (got != -ENOBUFS)
            return got == 0 ? 1 : got == -EAGAIN ? 0 : (int)got;
    }
    size_t size = dp_conn_read_size(from);
    ssize_t got = dp_conn_read(engine, from, engine->read_buffer, size);
    if (got == -EAGAIN)
        return 0;
    if (got < 0)
        return (int)got;
    if (from->role == DP_DOWN)
        from->exchange->account.bytes_in += (uint64_t)got;
    if (got == 0)
        return 1;
    struct iovec iov = {.iov_base = engine->read_buffer, .iov_len = (size_t)got};
    int result = dp_conn_send(engine, to, &iov, 1);
    if (result != 0)
        return result;
    dp_conn_adapt_read(from, to, (size_t)got);
    return 1;
}

void dp_tcp_pump(dp_engine *engine, dp_conn *down)
{
    dp_conn *up = down->peer;
    if (up == NULL || up->state == DP_S_CONNECTING) {
        if ((down->io & DP_IO_BROKEN) != 0)
            end_tunnel(engine, down, true);
        return;
    }
    for (int burst = 0; burst < DP_PUMP_BURST; burst++) {
        int there = pump_one(engine, down, up);
        int back = there < 0 ? 0 : pump_one(engine, up, down);
        if (there < 0 || back < 0 || is_reset(down) || is_reset(up)) {
            if (is_reset(up))
                dp_exchange_blame(down, DP_OUT_UPSTREAM_BROKE);
            end_tunnel(engine, down, true);
            return;
        }
        if ((down->io & DP_IO_SHUT) != 0 && (up->io & DP_IO_SHUT) != 0) {
            end_tunnel(engine, down, false);
            return;
        }
        if (there == 0 && back == 0)
            return;
        dp_timer_set(engine, down, engine->options.tunnel_idle_ms);
    }
    dp_ready_push(engine, down);
}

void dp_tcp_accepted(dp_engine *engine, dp_conn *down)
{
    uint32_t status = dp_limit_source(engine, down);
    if (status != 0) {
        dp_accept_turn_away(engine, down, status);
        return;
    }
    if (!dp_exchange_open(engine, down))
        return;
    down->state = DP_S_TUNNEL;
    down->exchange->upstream = engine->tables.listeners[down->listener].upstream;
    dp_tunnel_begun(engine, down);
    dp_pick_key(engine, down, NULL, NULL);
    /* What came behind a PROXY header, if there was one: kept while it waits for a connection. */
    down->exchange->sent = down->in;
    down->in = (dp_buffer){0};
    down->exchange->account.bytes_in = down->exchange->sent.len;
    struct iovec first = {.iov_base = dp_buffer_start(&down->exchange->sent),
                          .iov_len = down->exchange->sent.len};
    dp_tcp_opened(engine, down, dp_upstream_open(engine, down, &first, 1));
}

void dp_tcp_opened(dp_engine *engine, dp_conn *down, int result)
{
    if (result == DP_NEED_MORE)
        return; /* it waits for a connection */
    if (result != DP_OK) {
        bool full = result == DP_ETOOBIG || result == DP_ENOMEM;
        dp_meter_failed(engine, down);
        if (result == DP_EGONE)
            dp_exchange_blame(down, DP_OUT_NO_ENDPOINT);
        dp_tunnel_over(engine, down, full ? DP_OUT_LIMIT : DP_OUT_CONNECT_FAILED);
        dp_conn_reset(engine, down);
        return;
    }
    dp_buffer_free(engine, &down->exchange->sent);
    engine->stats->tunnels++;
    dp_timer_set(engine, down, engine->options.tunnel_idle_ms);
}

void dp_tcp_reopened(dp_engine *engine, dp_conn *down, int result)
{
    engine->stats->tunnels--; /* its upstream connection is gone */
    dp_tcp_opened(engine, down, result);
}

void dp_tcp_timeout(dp_engine *engine, dp_conn *down)
{
    dp_exchange_blame(down, down->exchange->ticket != 0 ? DP_OUT_LIMIT : DP_OUT_IDLE);
    end_tunnel(engine, down, true);
}
