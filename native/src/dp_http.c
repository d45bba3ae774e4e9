/* dp_http: the http1 codec: requests from a downstream connection, answers from an upstream, both
 * bodies at once. It works on dp_conn's reads and writes and knows no descriptor.
 *
 * Backpressure: a side is read only while everything read before has left, so that a slow peer
 * holds back the fast one and not our memory. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "dp_core.h"
#include "dp_forward.h"

enum {
    REQUEST_READ = 16 * 1024, /* a head, and the start of a body */
    RESPONSE_READ = 68 * 1024 /* a head, and most bodies whole: one write for both */
};

/* --- what goes wrong ------------------------------------------------------------------------- */

void dp_http_upstream_failed(dp_engine *engine, dp_conn *down, bool timed_out)
{
    dp_exchange *exchange = down->exchange;
    dp_meter_failed(engine, down);
    dp_exchange_blame(down, timed_out            ? DP_OUT_UPSTREAM_TIMEOUT
                            : down->peer == NULL ? DP_OUT_CONNECT_FAILED
                                                 : DP_OUT_UPSTREAM_BROKE);
    if (exchange->head_sent) {
        dp_http_cut_short(engine, down);
        return;
    }
    dp_outcome_latency(engine, down, true);
    if (down->peer != NULL &&
        (timed_out || (down->peer->flags & DP_C_FRESH) != 0 || down->peer->in.len != 0))
        dp_outcome_failed(engine, down->peer->endpoint);
    dp_answer_refuse(engine, down, timed_out ? 504 : 502);
}

void dp_http_timeout(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    switch ((enum dp_state)down->state) {
    case DP_S_HEAD:
        dp_answer_refuse_head(engine, down, 408, dp_buffer_start(&down->in), down->in.len);
        return;
    case DP_S_EXCHANGE:
        if (dp_conn_unsent(down) != 0) {
            dp_exchange_blame(down, DP_OUT_CLIENT_TIMEOUT);
            dp_http_reset(engine, down); /* it does not read */
        } else if (exchange->ticket != 0) {
            dp_answer_refuse(engine, down, 503); /* it has waited for a connection */
        } else if (!exchange->request_done &&
                   (down->peer == NULL || dp_conn_unsent(down->peer) == 0)) {
            dp_exchange_blame(down, DP_OUT_CLIENT_TIMEOUT);
            if (exchange->head_sent)
                dp_http_cut_short(engine, down);
            else
                dp_answer_refuse(engine, down, 408);
        } else {
            dp_http_upstream_failed(engine, down, true);
        }
        return;
    case DP_S_IDLE:
    case DP_S_LINGER:
        dp_conn_close(engine, down);
        return;
    case DP_S_FREE:
    case DP_S_PROXY:
    case DP_S_TUNNEL:
    case DP_S_CONNECTING:
    case DP_S_FROZEN:
    case DP_S_HELD:
    case DP_S_DEAD:
        return;
    }
}

/* --- bodies ----------------------------------------------------------------------------------- */

static dp_body_step request_feed(dp_engine *engine, dp_exchange *exchange, uint8_t *data,
                                 size_t len)
{
    dp_body_step step = dp_body_feed(exchange->request_framing, &exchange->request_left,
                                     &exchange->request_chunked, exchange->request_keep, data, len);
    /* What was announced was held against the limit with the head. */
    if (step.failure == DP_OK && engine->options.max_body_bytes != 0 &&
        exchange->request_chunked.total > engine->options.max_body_bytes)
        step.failure = DP_ETOOBIG;
    return step;
}

/* --- request heads ---------------------------------------------------------------------------- */

void dp_http_opened(dp_engine *engine, dp_conn *down, int result)
{
    if (result == DP_OK) {
        dp_deadline_sent(engine, down);
        dp_retry_opened(engine, down, NULL, 0);
    } else if (result == DP_EGONE) {
        dp_exchange_blame(down, DP_OUT_NO_ENDPOINT);
        dp_answer_refuse_saying(engine, down, 503, "no endpoint of the upstream is well\n", 0);
    } else if (result == DP_ENOMEM || result == DP_ETOOBIG) {
        dp_answer_refuse(engine, down, 503);
    } else if (result != DP_NEED_MORE) {
        dp_http_upstream_failed(engine, down, false);
    }
}

static void open_upstream(dp_engine *engine, dp_conn *down, const dp_route *route, uint8_t *data,
                          const uint8_t *body, size_t body_len)
{
    dp_exchange *exchange = down->exchange;
    size_t head_len = dp_head_request(engine, down, data, &engine->request, route);
    if (head_len == 0) {
        dp_answer_refuse(engine, down, 431);
        return;
    }
    struct iovec iov[2] = {{.iov_base = engine->head_buffer, .iov_len = head_len}};
    iov[1].iov_base = data + (body - data);
    iov[1].iov_len = body_len;
    exchange->upstream = route->upstream;
    dp_pick_key(engine, down, data, &engine->request);
    dp_retry_begin(engine, down, iov, 2);
    int result = dp_upstream_open(engine, down, iov, 2);
    dp_http_opened(engine, down, result);
    if (result == DP_OK)
        dp_retry_opened(engine, down, iov, 2);
}

/* data[0..len) begins with the head in engine->request. */
static void begin_exchange(dp_engine *engine, dp_conn *down, uint8_t *data, size_t len,
                           bool buffered)
{
    const dp_request_head *head = &engine->request;
    if (!dp_exchange_open(engine, down))
        return;
    dp_exchange *exchange = down->exchange;
    exchange->method = head->method;
    exchange->minor = (uint8_t)head->minor;
    exchange->keep_alive = head->keep_alive != 0;
    exchange->may_send = exchange->keep_alive;
    exchange->expects_continue = head->expects_continue != 0;
    exchange->request_framing = (uint8_t)head->framing;
    exchange->request_left = head->content_length;
    down->state = DP_S_EXCHANGE;
    down->flags &= (uint8_t)~DP_C_SKIPPED;
    down->lingered = 0;
    dp_deadline_begin(engine, down);
    dp_exchange_begun(engine, down, data);

    if (down->trusted)
        dp_client_walk(engine, down, data, head);
    else if (head->is_https) { /* RFC 9110 7.4: not over a connection without TLS */
        dp_answer_refuse(engine, down, 421);
        return;
    }
    uint8_t *body = data + head->head_len;
    uint64_t max_body = engine->options.max_body_bytes;
    if (max_body != 0 && head->framing == DP_BODY_LENGTH && head->content_length > max_body) {
        dp_answer_refuse(engine, down, 413);
        return;
    }
    const dp_route *route = dp_route_lookup(&engine->tables, data, head);
    exchange->route = route;
    dp_forward_choose(exchange, data, head);
    dp_body_step step = request_feed(engine, exchange, body, len - head->head_len);
    if (step.failure != DP_OK) {
        dp_answer_refuse(engine, down, step.failure == DP_ETOOBIG ? 413 : 400);
        return;
    }
    exchange->request_done = step.done;
    exchange->account.bytes_in += step.used;
    uint32_t retry_after;
    uint32_t limited = dp_limit_request(engine, down, data, head, route, &retry_after);
    if ((down->flags & DP_C_PROBE) != 0) {
        dp_answer ok = {.status = 200, .body = (const uint8_t *)"ready\n", .body_len = 6};
        dp_answer_send(engine, down, &ok);
    } else if (limited != 0) {
        dp_answer_refuse_saying(engine, down, limited, dp_status_text(limited), retry_after);
    } else if (head->max_forwards == 0) { /* RFC 9110 7.6.2: it goes no further */
        dp_answer none = {.status = 200};
        if (head->method == DP_M_OPTIONS)
            dp_answer_send(engine, down, &none);
        else
            dp_answer_refuse(engine, down, 501);
    } else if (route == NULL) {
        dp_answer_refuse(engine, down, 404);
    } else if (route->upstream < 0) {
        dp_answer_route(engine, down, route, data);
    } else {
        open_upstream(engine, down, route, data, body, step.kept);
    }
    if (down->state == DP_S_DEAD || down->state == DP_S_LINGER)
        return;
    if (dp_input_keep(engine, down, buffered, data, len, head->head_len + step.used, step.done) !=
        DP_OK)
        dp_http_close(engine, down);
}

static void begin_head(dp_engine *engine, dp_conn *down)
{
    if (down->state != DP_S_IDLE)
        return;
    down->state = DP_S_HEAD;
    dp_deadline_begin(engine, down);
    dp_deadline_set(engine, down, engine->options.header_ms);
}

/* Keeps part of a head until there is more. Always true: the next read may bring it. */
static bool wait_for_head(dp_engine *engine, dp_conn *down, const uint8_t *data, size_t len,
                          bool buffered)
{
    begin_head(engine, down);
    if (!buffered && dp_buffer_append(engine, &down->in, data, len) != DP_OK)
        dp_answer_refuse_head(engine, down, 503, data, len);
    else
        down->looked = down->in.len;
    return true;
}

/* Passes over one empty line before a request line (RFC 9112 2.2), however it is split. False:
 * there is nothing else yet. */
static bool skip_empty_line(dp_engine *engine, dp_conn *down, uint8_t **data, size_t *len,
                            bool buffered)
{
    if ((down->flags & DP_C_SKIPPED) != 0 || (*data)[0] != '\r' || (*len > 1 && (*data)[1] != '\n'))
        return true;
    if (*len == 1) {
        (void)wait_for_head(engine, down, *data, *len, buffered);
        return false;
    }
    begin_head(engine, down);
    down->flags |= DP_C_SKIPPED;
    if (buffered) {
        dp_buffer_consume(engine, &down->in, 2);
        down->looked = 0;
        *data = dp_buffer_start(&down->in);
    } else {
        *data += 2;
    }
    *len -= 2;
    return *len != 0;
}

/* Reads and, once it is whole, starts a request. True: there may be more to do at once. */
static bool read_request(dp_engine *engine, dp_conn *down)
{
    if (engine->draining && !engine->closing_idle && (down->flags & DP_C_PROBE) == 0) {
        dp_move_offer(engine, down);
        return false;
    }
    uint8_t *data;
    bool buffered;
    ssize_t got = dp_input_take(engine, down, REQUEST_READ, &data, &buffered);
    if (got == -EAGAIN) {
        if (engine->closing_idle && down->in.len == 0 && (down->flags & DP_C_PROBE) == 0) {
            engine->ended_as = &engine->drained.closed;
            dp_conn_close(engine, down);
            engine->ended_as = &engine->drained.finished;
        }
        return false;
    }
    if (got == -ENOBUFS) {
        dp_answer_refuse_head(engine, down, 503, dp_buffer_start(&down->in), down->in.len);
        return true;
    }
    if (got <= 0) { /* gone; a head that was not finished is never completed by us */
        dp_conn_close(engine, down);
        return false;
    }
    size_t len = (size_t)got;
    if (!skip_empty_line(engine, down, &data, &len, buffered))
        return true;
    dp_head_limits limits = dp_head_limits_of(engine);
    uint32_t head_len;
    int result = dp_head_end(data, len, &limits, &down->scanned, &head_len);
    if (result == DP_NEED_MORE)
        return wait_for_head(engine, down, data, len, buffered);
    if (result == DP_OK)
        result = dp_request_parse(data, head_len, &limits, &engine->request);
    if (result == DP_OK)
        result = dp_request_normalise(data, &engine->request);
    if (result != DP_OK) {
        dp_answer_refuse_head(engine, down, dp_status_of(result), data, len);
        return down->state == DP_S_LINGER;
    }
    begin_exchange(engine, down, data, len, buffered);
    return down->state != DP_S_DEAD;
}

/* --- during an exchange ----------------------------------------------------------------------- */

/* The upstream takes no more. It may have answered already: that is still passed on. */
static void stop_request(dp_engine *engine, dp_conn *up)
{
    up->io |= DP_IO_NO_WRITE;
    dp_conn_drop_unsent(engine, up);
}

/* More of the request's body. True: something moved. */
static bool pump_request(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    dp_conn *up = down->peer;
    if (exchange->request_done || dp_conn_unsent(up) != 0 || (up->io & DP_IO_NO_WRITE) != 0)
        return false;
    enum dp_passed passed = DP_PASSED_NO_PIPE;
    if (!exchange->keeps) /* what is to be sent again must be seen */
        passed =
            dp_splice_body(engine, down, up, exchange->request_framing, &exchange->request_left,
                           &exchange->request_piped, &exchange->request_done);
    if (passed == DP_PASSED_SINK_FAILED)
        stop_request(engine, up);
    if (passed == DP_PASSED_SOME || passed == DP_PASSED_SINK_FAILED)
        dp_deadline_progress(engine, down);
    if (passed == DP_PASSED_SOURCE_FAILED)
        dp_http_cut_short(engine, down); /* unfinished, as below */
    if (passed != DP_PASSED_NO_PIPE)
        return passed == DP_PASSED_SOME || passed == DP_PASSED_SINK_FAILED;
    uint8_t *data;
    bool buffered;
    ssize_t got = dp_input_take(engine, down, dp_conn_read_size(down), &data, &buffered);
    if (got == -EAGAIN)
        return false;
    if (got <= 0) {
        /* RFC 9112 8: unfinished, so it must not look finished to the upstream. */
        dp_http_cut_short(engine, down);
        return false;
    }
    size_t len = (size_t)got;
    dp_body_step step = request_feed(engine, exchange, data, len);
    if (step.failure != DP_OK) {
        dp_exchange_blame(down, dp_outcome_of(step.failure == DP_ETOOBIG ? 413 : 400));
        if (exchange->head_sent)
            dp_http_cut_short(engine, down);
        else
            dp_answer_refuse(engine, down, step.failure == DP_ETOOBIG ? 413 : 400);
        return down->state == DP_S_LINGER;
    }
    exchange->request_done = step.done;
    dp_retry_sent(engine, down, data, step.kept);
    exchange->account.bytes_in += step.used;
    struct iovec iov = {.iov_base = data, .iov_len = step.kept};
    int result = dp_conn_send(engine, up, &iov, 1);
    if (result == -ENOBUFS) {
        dp_http_cut_short(engine, down);
        return false;
    }
    if (result != 0)
        up->io |= DP_IO_NO_WRITE; /* it may have answered already: that is still passed on */
    if (dp_input_keep(engine, down, buffered, data, len, step.used, step.done) != DP_OK) {
        dp_http_cut_short(engine, down);
        return false;
    }
    dp_conn_adapt_read(down, up, len);
    dp_deadline_progress(engine, down);
    return true;
}

static bool respond_interim(dp_engine *engine, dp_conn *down, const uint8_t *data)
{
    const dp_response_head *head = &engine->response;
    const dp_exchange *exchange = down->exchange;
    if (exchange->minor == 0 || (head->status == 100 && !exchange->expects_continue))
        return true; /* RFC 9110 15.2: not to an HTTP/1.0 client */
    size_t len = dp_head_interim(engine, data, head);
    struct iovec iov = {.iov_base = engine->head_buffer, .iov_len = len};
    return len != 0 && dp_conn_send(engine, down, &iov, 1) == 0;
}

/* An upstream that answers before it has all of the request may never read the rest, and many do
 * not read a body where they expect none: either would be its next request. */
static bool is_in_step(const dp_exchange *exchange, const dp_conn *up)
{
    const uint32_t bodiless = DP_M_GET | DP_M_HEAD | DP_M_OPTIONS | DP_M_TRACE;
    return exchange->response_framing != DP_BODY_CLOSE && exchange->request_done &&
           dp_conn_unsent(up) == 0 &&
           ((exchange->method & bodiless) == 0 || exchange->request_framing == DP_BODY_NONE);
}

/* Where there is room before a body that was just read, the head goes there: one piece costs the
 * kernel less than two. */
static int joined(const dp_engine *engine, size_t head_len, size_t old_len, bool buffered,
                  struct iovec iov[2])
{
    if (buffered || head_len > old_len || iov[1].iov_len == 0)
        return 2;
    iov[0].iov_base = (uint8_t *)iov[1].iov_base - head_len;
    iov[0].iov_len = head_len + iov[1].iov_len;
    memcpy(iov[0].iov_base, engine->head_buffer, head_len);
    return 1;
}

/* Forwards the head in engine->response with what came of the body. */
static bool respond_head(dp_engine *engine, dp_conn *down, uint8_t *data, size_t len, bool buffered)
{
    const dp_response_head *head = &engine->response;
    dp_exchange *exchange = down->exchange;
    dp_conn *up = down->peer;
    exchange->response_framing = (uint8_t)head->framing;
    exchange->response_left = head->framing == DP_BODY_LENGTH ? head->content_length : 0;
    exchange->reusable = head->keep_alive != 0 && is_in_step(exchange, up);
    bool unframed = head->framing == DP_BODY_CLOSE ||
                    (head->framing == DP_BODY_CHUNKED && exchange->minor == 0);
    if (unframed || !exchange->request_done || engine->closing_idle)
        exchange->keep_alive = false;
    uint8_t *body = data + head->head_len;
    dp_body_step step = dp_body_feed(exchange->response_framing, &exchange->response_left,
                                     &exchange->response_chunked, exchange->response_keep, body,
                                     len - head->head_len);
    if (head->framing == DP_BODY_LENGTH && head->content_length == 0)
        step.done = true;
    if (step.failure != DP_OK) {
        dp_http_upstream_failed(engine, down, false);
        return down->state == DP_S_LINGER;
    }
    size_t head_len = dp_head_response(engine, down, data, head);
    if (head_len == 0) {
        dp_http_upstream_failed(engine, down, false);
        return down->state == DP_S_LINGER;
    }
    exchange->head_sent = true;
    exchange->response_done = step.done;
    engine->stats->answers_total[head->status / 100]++;
    dp_exchange_answered(engine, down, head->status, head_len);
    struct iovec iov[2] = {{.iov_base = engine->head_buffer, .iov_len = head_len},
                           {.iov_base = body, .iov_len = step.kept}};
    int count = joined(engine, head_len, head->head_len, buffered, iov);
    if (dp_conn_send(engine, down, iov, count) != 0 ||
        dp_input_keep(engine, up, buffered, data, len, head->head_len + step.used, step.done) !=
            DP_OK) {
        dp_http_cut_short(engine, down);
        return false;
    }
    if (!step.done || dp_conn_unsent(down) != 0)
        dp_deadline_client(engine, down);
    return true;
}

static void note_answer(dp_engine *engine, dp_conn *down)
{
    dp_outcome_answered(engine, down->peer->endpoint, engine->response.status);
    dp_outcome_latency(engine, down, false);
}

static bool pump_response_head(dp_engine *engine, dp_conn *down)
{
    dp_conn *up = down->peer;
    uint8_t *data;
    bool buffered;
    ssize_t got = dp_input_take(engine, up, RESPONSE_READ, &data, &buffered);
    if (got == -EAGAIN)
        return false;
    if (got <= 0) {
        if (dp_retry(engine, down, DP_CAUSE_ENDED, 0))
            return true;
        dp_http_upstream_failed(engine, down, false);
        return down->state != DP_S_DEAD;
    }
    if (!down->exchange->keeps)
        dp_exchange_forget_sent(engine, down); /* it was received */
    size_t len = (size_t)got;
    dp_head_limits limits = dp_head_limits_of(engine);
    limits.max_target = 0;
    uint32_t head_len;
    int result = dp_head_end(data, len, &limits, &up->scanned, &head_len);
    if (result == DP_NEED_MORE) {
        if (!buffered && dp_buffer_append(engine, &up->in, data, len) != DP_OK) {
            dp_answer_refuse(engine, down, 503);
            return down->state != DP_S_DEAD;
        }
        up->looked = up->in.len;
        return true;
    }
    if (result == DP_OK)
        result = dp_response_parse(data, head_len, &limits, down->exchange->method == DP_M_HEAD,
                                   &engine->response);
    if (result == DP_OK && engine->response.status == 101)
        result = dp_tunnel_begin(engine, down, data, len);
    if (down->state == DP_S_TUNNEL)
        return true;
    if (result == DP_ESYSTEM) {
        dp_http_close(engine, down);
        return false;
    }
    if (result != DP_OK) {
        dp_http_upstream_failed(engine, down, false);
        return down->state != DP_S_DEAD;
    }
    if (engine->response.status >= 200) {
        note_answer(engine, down);
        if (dp_retry(engine, down, DP_CAUSE_STATUS, engine->response.status))
            return true;
        dp_buffer_free(engine, &down->exchange->sent);
        return respond_head(engine, down, data, len, buffered);
    }
    if (++down->exchange->interims > DP_INTERIM_MAX) {
        dp_http_upstream_failed(engine, down, false);
        return down->state != DP_S_DEAD;
    }
    if (!respond_interim(engine, down, data) ||
        dp_input_keep(engine, up, buffered, data, len, head_len, true) != DP_OK) {
        dp_http_close(engine, down);
        return false;
    }
    return true;
}

static bool pump_response_body(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    dp_conn *up = down->peer;
    enum dp_passed passed =
        dp_splice_body(engine, up, down, exchange->response_framing, &exchange->response_left,
                       &exchange->response_piped, &exchange->response_done);
    /* A read that takes no more than the body does not tell whether something follows it. */
    if (exchange->response_done && dp_conn_read(engine, up, engine->read_buffer, 1) != -EAGAIN)
        exchange->reusable = false;
    if (passed == DP_PASSED_SOURCE_FAILED)
        dp_http_upstream_failed(engine, down, false);
    if (passed == DP_PASSED_SINK_FAILED)
        dp_http_cut_short(engine, down);
    if (passed == DP_PASSED_SOME)
        dp_deadline_client(engine, down);
    if (passed != DP_PASSED_NO_PIPE)
        return passed == DP_PASSED_SOME;
    uint8_t *data;
    bool buffered;
    ssize_t got = dp_input_take(engine, up, dp_conn_read_size(up), &data, &buffered);
    if (got == -EAGAIN)
        return false;
    if (got == 0 && exchange->response_framing == DP_BODY_CLOSE) {
        exchange->response_done = true;
        return true;
    }
    if (got <= 0) {
        dp_http_upstream_failed(engine, down, false);
        return false;
    }
    size_t len = (size_t)got;
    dp_body_step step =
        dp_body_feed(exchange->response_framing, &exchange->response_left,
                     &exchange->response_chunked, exchange->response_keep, data, len);
    struct iovec iov = {.iov_base = data, .iov_len = step.kept};
    if (step.failure != DP_OK) {
        dp_http_upstream_failed(engine, down, false);
        return false;
    }
    exchange->response_done = step.done;
    if (dp_conn_send(engine, down, &iov, 1) != 0 ||
        dp_input_keep(engine, up, buffered, data, len, step.used, step.done) != DP_OK) {
        dp_http_cut_short(engine, down);
        return false;
    }
    dp_conn_adapt_read(up, down, len);
    dp_deadline_client(engine, down);
    return true;
}

/* True: something moved, and more may. */
static bool run_exchange(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    size_t unread = dp_conn_unsent(down);
    if ((down->io & DP_IO_BROKEN) != 0 || dp_conn_flush(engine, down) != 0) {
        dp_http_close(engine, down); /* nobody is there to answer */
        return false;
    }
    if (exchange->head_sent && dp_conn_unsent(down) != unread)
        dp_deadline_client(engine, down);
    bool moved = false;
    dp_conn *up = down->peer;
    if (up != NULL && up->state == DP_S_EXCHANGE) {
        size_t unsent = dp_conn_unsent(up);
        if (dp_conn_flush(engine, up) != 0)
            stop_request(engine, up);
        if (dp_conn_unsent(up) != unsent)
            dp_deadline_progress(engine, down);
        moved = pump_request(engine, down);
        if (down->state == DP_S_EXCHANGE && down->peer == up && !exchange->response_done &&
            dp_conn_unsent(down) == 0)
            moved |= exchange->head_sent ? pump_response_body(engine, down)
                                         : pump_response_head(engine, down);
    }
    if (down->state != DP_S_EXCHANGE)
        return down->state != DP_S_DEAD;
    if (!exchange->response_done)
        return moved;
    /* The upstream is free for others while a slow client still reads. */
    dp_http_drop_upstream(engine, down, exchange->reusable && exchange->request_done);
    if (dp_conn_unsent(down) != 0)
        return false;
    dp_http_finish(engine, down);
    return down->state != DP_S_DEAD;
}

void dp_http_pump(dp_engine *engine, dp_conn *down)
{
    for (int burst = 0; burst < DP_PUMP_BURST; burst++) {
        switch ((enum dp_state)down->state) {
        case DP_S_IDLE:
        case DP_S_HEAD:
            if (!read_request(engine, down))
                return;
            break;
        case DP_S_EXCHANGE:
            if (!run_exchange(engine, down))
                return;
            break;
        case DP_S_LINGER:
            dp_linger_pump(engine, down);
            return;
        case DP_S_TUNNEL:
            dp_tcp_pump(engine, down);
            return;
        case DP_S_FREE:
        case DP_S_PROXY:
        case DP_S_CONNECTING:
        case DP_S_FROZEN:
        case DP_S_HELD:
        case DP_S_DEAD:
            return;
        }
    }
    dp_ready_push(engine, down);
}

void dp_http_turn_away(dp_engine *engine, dp_conn *down)
{
    dp_linger_begin(engine, down);
    dp_linger_pump(engine, down);
}

void dp_http_accepted(dp_engine *engine, dp_conn *down)
{
    down->state = DP_S_IDLE;
    uint32_t status = dp_limit_source(engine, down);
    if (status != 0) {
        dp_accept_turn_away(engine, down, status);
        return;
    }
    /* The wheel looks at it after so long, whatever its deadline is by then. */
    dp_timer_set(engine, down, DP_WATCH_LATE_MS);
    /* A client that connects and says nothing is as slow with its head as one that dribbles. */
    dp_timer_set(engine, down, engine->options.header_ms);
    dp_http_pump(engine, down);
}
