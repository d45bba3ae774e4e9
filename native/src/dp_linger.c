/* dp_linger: the end of a downstream connection that was answered while it may still be sending.
 * A close with unread input would make the kernel send a reset that can overtake our last answer
 * (RFC 9112 9.6). I/O. */
#include <errno.h>
#include <sys/socket.h>

#include "dp_core.h"

void dp_linger_begin(dp_engine *engine, dp_conn *down)
{
    down->state = DP_S_LINGER;
    dp_buffer_free(engine, &down->in);
    (void)shutdown(down->fd, SHUT_WR);
    down->io |= DP_IO_SHUT;
    dp_timer_set(engine, down, DP_LINGER_MS);
}

void dp_linger_pump(dp_engine *engine, dp_conn *down)
{
    while ((down->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) != 0) {
        ssize_t got = dp_conn_read(engine, down, engine->read_buffer, DP_READ_MIN);
        if (got == -EAGAIN)
            return;
        if (got > 0 && (down->lingered += (uint32_t)got) <= DP_LINGER_BYTES)
            continue;
        dp_conn_close(engine, down);
        return;
    }
}
