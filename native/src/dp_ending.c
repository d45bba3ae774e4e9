/* dp_ending: how an exchange ends, with its request and its answer whole or not. */
#include "dp_core.h"

void dp_http_drop_upstream(dp_engine *engine, dp_conn *down, bool reusable)
{
    dp_queue_leave(engine, down);
    dp_exchange_forget_sent(engine, down);
    if (down->peer != NULL)
        dp_upstream_release(engine, down->peer, reusable);
}

static void leave_exchange(dp_engine *engine, dp_conn *down)
{
    if (down->state == DP_S_EXCHANGE)
        dp_exchange_over(engine, down, false);
    dp_limit_request_over(engine, down);
    dp_http_drop_upstream(engine, down, false);
}

void dp_http_close(dp_engine *engine, dp_conn *down)
{
    leave_exchange(engine, down);
    dp_conn_close(engine, down);
}

void dp_http_reset(dp_engine *engine, dp_conn *down)
{
    leave_exchange(engine, down);
    dp_conn_reset(engine, down);
}

void dp_http_cut_short(dp_engine *engine, dp_conn *down)
{
    const dp_exchange *exchange = down->exchange;
    bool ends_by_close = exchange->response_framing == DP_BODY_CLOSE ||
                         (exchange->response_framing == DP_BODY_CHUNKED && exchange->minor == 0);
    if (exchange->head_sent && ends_by_close)
        dp_http_reset(engine, down);
    else
        dp_http_close(engine, down);
}

void dp_http_finish(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    dp_http_drop_upstream(engine, down, exchange->reusable && exchange->request_done);
    dp_exchange_over(engine, down, true);
    dp_limit_request_over(engine, down);
    down->request_by = 0;
    down->state = DP_S_IDLE;
    if (!exchange->keep_alive || !exchange->request_done || engine->closing_idle) {
        bool told = !exchange->keep_alive && exchange->may_send;
        if (told || !exchange->request_done || down->in.len != 0 || (down->io & DP_IO_READ) != 0) {
            dp_linger_begin(engine, down);
            return;
        }
        if (exchange->keep_alive) /* it was told nothing */
            engine->ended_as = &engine->drained.closed;
        dp_conn_close(engine, down);
        engine->ended_as = &engine->drained.finished;
        return;
    }
    dp_exchange_close(engine, down);
    down->scanned = 0;
    down->looked = 0;
    if (engine->draining)
        down->flags |= DP_C_AFTER_REQUEST;
    dp_timer_set(engine, down, engine->options.idle_ms);
}
