/* dp_deadline: what an exchange waits for, and how long. No I/O.
 *
 * Beside the deadline of each step a request may have one for the whole of it: from its first byte
 * to the end of its body, however steadily it dribbles. */
#include "dp_core.h"

void dp_deadline_begin(const dp_engine *engine, dp_conn *down)
{
    if (down->request_by == 0 && engine->options.request_ms != 0)
        down->request_by = engine->now_ms + engine->options.request_ms;
}

void dp_deadline_set(dp_engine *engine, dp_conn *down, uint64_t ms)
{
    bool comes =
        down->state == DP_S_HEAD || (down->exchange != NULL && !down->exchange->request_done);
    if (down->request_by != 0 && comes) {
        uint64_t left = down->request_by > engine->now_ms ? down->request_by - engine->now_ms : 1;
        ms = left < ms ? left : ms;
    }
    dp_timer_set(engine, down, ms);
}

void dp_deadline_client(dp_engine *engine, dp_conn *down)
{
    bool sends = dp_conn_unsent(down) != 0 && engine->options.send_ms != 0;
    dp_deadline_set(engine, down, sends ? engine->options.send_ms : engine->options.body_idle_ms);
}

void dp_deadline_sent(dp_engine *engine, dp_conn *down)
{
    const dp_exchange *exchange = down->exchange;
    dp_deadline_set(engine, down,
                    exchange->request_done ? exchange->route->request_timeout_ms
                                           : engine->options.body_idle_ms);
}

void dp_deadline_progress(dp_engine *engine, dp_conn *down)
{
    const dp_exchange *exchange = down->exchange;
    if (dp_conn_unsent(down) != 0)
        return; /* it does not read: that has a deadline of its own, which sending does not move */
    bool waits_for_head = exchange->request_done && !exchange->head_sent;
    dp_deadline_set(engine, down,
                    waits_for_head ? exchange->route->request_timeout_ms
                                   : engine->options.body_idle_ms);
}
