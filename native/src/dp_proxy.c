/* dp_proxy: a connection from a trusted proxy that tells by a PROXY header who its client is,
 * before anything else. I/O. A connection that does not, or not in time, ends without a word:
 * nobody who may be answered is known. */
#include <errno.h>
#include <string.h>

#include "dp_core.h"

enum { READ_SIZE = 4096 }; /* no header is longer; what follows it is kept */

static void introduce(dp_engine *engine, dp_conn *down, const dp_proxy_header *header)
{
    if (header->family == 0)
        return; /* it speaks for itself */
    uint8_t address[16] = {0};
    if (header->family == 4) {
        memset(address + 10, 0xff, 2);
        memcpy(address + 12, header->source, 4);
    } else {
        memcpy(address, header->source, 16);
    }
    dp_client_set(engine, down, address);
    down->client_port = header->source_port;
}

void dp_proxy_pump(dp_engine *engine, dp_conn *down)
{
    dp_proxy_header header;
    int result = DP_NEED_MORE;
    while (result == DP_NEED_MORE) {
        ssize_t got = dp_conn_read(engine, down, engine->read_buffer, READ_SIZE);
        if (got == -EAGAIN)
            return;
        if (got <= 0 ||
            dp_buffer_append(engine, &down->in, engine->read_buffer, (size_t)got) != DP_OK) {
            dp_conn_close(engine, down);
            return;
        }
        result = dp_proxy_parse(dp_buffer_start(&down->in), down->in.len, &header);
    }
    if (result != DP_OK) {
        dp_conn_close(engine, down);
        return;
    }
    dp_buffer_consume(engine, &down->in, header.header_len);
    introduce(engine, down, &header);
    if (down->protocol == DP_HTTP)
        dp_http_accepted(engine, down);
    else
        dp_tcp_accepted(engine, down);
}

void dp_proxy_accepted(dp_engine *engine, dp_conn *down)
{
    down->state = DP_S_PROXY;
    dp_timer_set(engine, down, engine->options.header_ms);
    dp_proxy_pump(engine, down);
}
