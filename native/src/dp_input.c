/* dp_input: what a connection gave and nobody has used yet: it waits in conn->in. I/O through
 * dp_conn's reads. */
#include <errno.h>

#include "dp_core.h"

ssize_t dp_input_take(dp_engine *engine, dp_conn *conn, size_t max, uint8_t **ret_data,
                      bool *ret_buffered)
{
    dp_buffer *in = &conn->in;
    *ret_buffered = in->len != 0;
    if (in->len > conn->looked) {
        *ret_data = in->data + in->off;
        return (ssize_t)in->len;
    }
    if ((conn->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) == 0)
        return -EAGAIN;
    if (in->len == 0) {
        *ret_data = engine->read_buffer;
        return dp_conn_read(engine, conn, engine->read_buffer, max);
    }
    size_t room = in->len + 1024;
    if (dp_buffer_reserve(engine, in, room) != DP_OK)
        return -ENOBUFS;
    room = dp_buffer_room(in) - in->off - in->len;
    ssize_t got = dp_conn_read(engine, conn, in->data + in->off + in->len, room);
    *ret_data = in->data + in->off;
    if (got <= 0)
        return got;
    in->len += (uint32_t)got;
    return (ssize_t)in->len;
}

int dp_input_keep(dp_engine *engine, dp_conn *conn, bool buffered, const uint8_t *data, size_t len,
                  size_t used, bool done)
{
    int result = DP_OK;
    if (buffered)
        dp_buffer_consume(engine, &conn->in, used);
    else
        result = dp_buffer_append(engine, &conn->in, data + used, len - used);
    conn->scanned = 0;
    conn->looked = done ? 0 : conn->in.len;
    return result;
}
