/* dp_tunnel: from an exchange to a tunnel (RFC 9110 7.8, 15.2.2): once the upstream answered 101
 * with the protocol that was asked for, the connection is a tcp tunnel like any other. I/O.
 *
 * Until then nothing of it is a tunnel: what the client sent behind its request waits in down->in,
 * and is an ordinary request if the answer is another one. */
#include "dp_core.h"
#include "dp_upgrade.h"

/* What came early, to where it belongs. down's bytes wait in its buffer, up's were read with the
 * head, and the head goes out with them. */
static int send_early(dp_engine *engine, dp_conn *down, size_t head_len, uint8_t *rest, size_t len)
{
    dp_conn *up = down->peer;
    struct iovec answer[2] = {{.iov_base = engine->head_buffer, .iov_len = head_len},
                              {.iov_base = rest, .iov_len = len}};
    if (dp_conn_send(engine, down, answer, 2) != 0)
        return DP_ESYSTEM;
    dp_buffer_free(engine, &up->in);
    down->exchange->account.bytes_in += down->in.len;
    struct iovec held = {.iov_base = dp_buffer_start(&down->in), .iov_len = down->in.len};
    if (held.iov_len != 0 && dp_conn_send(engine, up, &held, 1) != 0)
        return DP_ESYSTEM;
    dp_buffer_free(engine, &down->in);
    return DP_OK;
}

int dp_tunnel_begin(dp_engine *engine, dp_conn *down, uint8_t *data, size_t len)
{
    const dp_response_head *head = &engine->response;
    const dp_exchange *exchange = down->exchange;
    if (exchange->upgrade == 0 || head->upgrade.len == 0 ||
        dp_upgrade_mark(data, head->upgrade) != exchange->upgrade)
        return DP_EMALFORMED;
    size_t head_len = dp_head_switching(engine, down, data, head);
    if (head_len == 0)
        return DP_EMALFORMED;
    int result = send_early(engine, down, head_len, data + head->head_len, len - head->head_len);
    if (result != DP_OK)
        return result;
    dp_buffer_free(engine, &down->exchange->sent);
    dp_exchange_switched(engine, down, head_len);
    dp_limit_request_over(engine, down);
    down->request_by = 0;
    engine->stats->answers_total[1]++;
    engine->stats->tunnels++;
    down->state = DP_S_TUNNEL;
    down->protocol = DP_TCP;
    down->peer->protocol = DP_TCP;
    dp_timer_set(engine, down, engine->options.tunnel_idle_ms);
    return DP_OK;
}
