/* dp_tcp: the tcp codec: bytes both ways, each direction ended on its own (half-close). */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

static void end_tunnel(dp_engine *engine, dp_conn *down, bool with_reset)
{
    dp_conn *up = down->peer;
    dp_queue_leave(engine, down);
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
    if (to->out.len != 0)
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
    size_t size = dp_conn_read_size(from);
    ssize_t got = dp_conn_read(engine, from, engine->read_buffer, size);
    if (got == -EAGAIN)
        return 0;
    if (got < 0)
        return (int)got;
    if (got == 0)
        return 1;
    struct iovec iov = {.iov_base = engine->read_buffer, .iov_len = (size_t)got};
    int result = dp_conn_send(engine, to, &iov, 1);
    if (result != 0)
        return result;
    if (to->out.len != 0 && from->read_shift > 0)
        from->read_shift--;
    else if (to->out.len == 0 && (size_t)got == size && size < DP_READ_MAX)
        from->read_shift++;
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
    down->state = DP_S_TUNNEL;
    down->exchange.upstream = engine->tables.listeners[down->listener].upstream;
    struct iovec nothing = {.iov_base = engine->read_buffer, .iov_len = 0};
    dp_pick_key(engine, down, NULL, NULL);
    dp_tcp_opened(engine, down, dp_upstream_open(engine, down, &nothing, 1));
}

void dp_tcp_opened(dp_engine *engine, dp_conn *down, int result)
{
    if (result == DP_NEED_MORE)
        return; /* it waits for a connection */
    if (result != DP_OK) {
        engine->stats->upstream_failures_total++;
        dp_conn_reset(engine, down);
        return;
    }
    engine->stats->tunnels++;
    dp_timer_set(engine, down, engine->options.tunnel_idle_ms);
}

void dp_tcp_upstream_failed(dp_engine *engine, dp_conn *down)
{
    engine->stats->upstream_failures_total++;
    engine->stats->tunnels--; /* its upstream connection is gone already */
    dp_conn_reset(engine, down);
}

void dp_tcp_timeout(dp_engine *engine, dp_conn *down)
{
    end_tunnel(engine, down, true);
}
