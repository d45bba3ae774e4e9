/* dp_answer: the engine's own answers: refusals, redirects and fixed responses. */
#include <stdio.h>
#include <string.h>

#include "dp_core.h"

enum { LOCATION_MAX = 16 * 1024 };

void dp_answer_send(dp_engine *engine, dp_conn *down, dp_answer *answer)
{
    dp_exchange *exchange = down->exchange;
    dp_http_drop_upstream(engine, down, false);
    down->request_by = 0; /* the answer has time to leave, whatever was still to come */
    exchange->keep_alive = exchange->keep_alive && exchange->request_done && !engine->closing_idle;
    answer->keep_alive = exchange->keep_alive;
    answer->minor = exchange->minor;
    answer->head_only = exchange->method == DP_M_HEAD;
    size_t len = dp_head_answer(engine, answer);
    struct iovec iov = {.iov_base = engine->head_buffer, .iov_len = len};
    if (len != 0)
        dp_exchange_answered(engine, down, answer->status,
                             len - (answer->head_only ? 0 : answer->body_len));
    if (len == 0 || dp_conn_send(engine, down, &iov, 1) != 0) {
        engine->stats->answers_total[0]++;
        dp_http_close(engine, down);
        return;
    }
    engine->stats->answers_total[answer->status / 100] += (down->flags & DP_C_PROBE) == 0;
    exchange->head_sent = true;
    exchange->response_done = true;
    if (dp_conn_unsent(down) == 0)
        dp_http_finish(engine, down);
    else
        dp_deadline_client(engine, down);
}

void dp_answer_refuse_saying(dp_engine *engine, dp_conn *down, uint32_t status, const char *text,
                             uint32_t retry_after)
{
    char again[32];
    dp_exchange_blame(down, dp_outcome_of(status));
    engine->stats->own_answers_total[dp_status_slot(status)]++;
    dp_answer answer = {.status = status, .body = (const uint8_t *)text, .body_len = strlen(text)};
    if (retry_after != 0) {
        int len = snprintf(again, sizeof(again), "retry-after: %u\r\n", retry_after);
        answer.extra = again;
        answer.extra_len = (size_t)len;
    }
    dp_answer_send(engine, down, &answer);
}

void dp_answer_refuse(dp_engine *engine, dp_conn *down, uint32_t status)
{
    dp_answer_refuse_saying(engine, down, status, dp_status_text(status), 0);
}

void dp_answer_refuse_head(dp_engine *engine, dp_conn *down, uint32_t status, const uint8_t *data,
                           size_t len)
{
    bool head = data != NULL && len >= 5 && memcmp(data, "HEAD ", 5) == 0;
    if (!dp_exchange_open(engine, down))
        return;
    down->exchange->minor = 1;
    down->exchange->method = head ? DP_M_HEAD : 0;
    down->state = DP_S_EXCHANGE;
    dp_exchange_begun(engine, down, NULL);
    dp_answer_refuse(engine, down, status);
}

void dp_answer_route(dp_engine *engine, dp_conn *down, const dp_route *route, const uint8_t *data)
{
    char location[LOCATION_MAX];
    dp_answer answer = {.status = route->status,
                        .edits = route->response_edits,
                        .body = (const uint8_t *)route->body.data,
                        .body_len = route->body.len};
    if (route->location.data != NULL) {
        answer.extra = location;
        answer.extra_len =
            dp_head_location(route, data, &engine->request, location, sizeof(location));
        if (answer.extra_len == 0) {
            dp_answer_refuse(engine, down, 414);
            return;
        }
    }
    dp_answer_send(engine, down, &answer);
}
