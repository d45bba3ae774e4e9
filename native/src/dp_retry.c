/* dp_retry: sending a request again, where that is safe or the route says so. No I/O of its own.
 *
 * Three kinds of failure. Nothing was sent: another endpoint is tried (dp_upstream). A pooled
 * connection ended without a byte of an answer: its end and the request may have crossed, so a safe
 * request goes out once more (RFC 9112 9.3.1). Anything else may have been executed: it is repeated
 * only where the route's retries name the cause and the method may be repeated, while the route's
 * budget lasts, so that a failing upstream does not get a multiple of its load. */
#include "dp_core.h"

static const uint32_t SAFE = DP_M_GET | DP_M_HEAD | DP_M_OPTIONS | DP_M_TRACE;

/* --- the budget --------------------------------------------------------------------------------
 */

static dp_budget *budget_of(dp_engine *engine, const dp_route *route)
{
    return &engine->budgets[route->order];
}

static void budget_earn(dp_engine *engine, const dp_route *route)
{
    dp_budget *budget = budget_of(engine, route);
    uint64_t quiet = (engine->now_ms - budget->at_ms) / 1000; /* one a second, up to a few */
    if (quiet != 0) {
        budget->at_ms = engine->now_ms;
        uint64_t least = budget->tokens + quiet * 100;
        if (least > DP_BUDGET_LEAST * 100)
            least = DP_BUDGET_LEAST * 100;
        if (budget->tokens < least)
            budget->tokens = (uint32_t)least;
    }
    budget->tokens += route->retries->budget_percent;
    if (budget->tokens > DP_BUDGET_MOST * 100)
        budget->tokens = DP_BUDGET_MOST * 100;
}

static bool budget_spend(dp_engine *engine, const dp_route *route)
{
    dp_budget *budget = budget_of(engine, route);
    if (budget->tokens < 100) {
        engine->stats->retries_refused_total++;
        return false;
    }
    budget->tokens -= 100;
    return true;
}

/* --- what is kept ------------------------------------------------------------------------------
 */

static void stop_keeping(dp_engine *engine, dp_exchange *exchange)
{
    exchange->keeps = false;
    dp_buffer_free(engine, &exchange->sent);
}

static bool keep(dp_engine *engine, dp_exchange *exchange, const uint8_t *data, size_t len)
{
    return exchange->sent.len + len <= DP_REPLAY_MAX &&
           dp_buffer_append(engine, &exchange->sent, data, len) == DP_OK;
}

void dp_retry_begin(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count)
{
    dp_exchange *exchange = &down->exchange;
    const dp_retries *retries = exchange->route->retries;
    if (retries == NULL)
        return;
    budget_earn(engine, exchange->route);
    bool names_more = (retries->causes & DP_ON_RESET) != 0;
    for (size_t i = 0; i < DP_ARRAY_LEN(retries->statuses); i++)
        names_more = names_more || retries->statuses[i] != 0;
    if (!names_more || retries->attempts == 0 || (retries->methods & exchange->method) == 0)
        return;
    exchange->keeps = true;
    for (int i = 0; i < count; i++)
        if (exchange->keeps && !keep(engine, exchange, iov[i].iov_base, iov[i].iov_len))
            stop_keeping(engine, exchange);
}

void dp_retry_sent(dp_engine *engine, dp_conn *down, const uint8_t *data, size_t len)
{
    if (down->exchange.keeps && !keep(engine, &down->exchange, data, len))
        stop_keeping(engine, &down->exchange);
}

/* --- deciding ----------------------------------------------------------------------------------
 */

bool dp_retry_may_fail_over(const dp_exchange *exchange)
{
    const dp_retries *retries = exchange->route != NULL ? exchange->route->retries : NULL;
    if (retries == NULL)
        return true;
    return (retries->causes & DP_ON_CONNECT_FAILURE) != 0 &&
           exchange->tried.count <= retries->attempts;
}

static bool names(const dp_retries *retries, enum dp_retry_cause cause, uint32_t status)
{
    if (cause == DP_CAUSE_ENDED)
        return (retries->causes & DP_ON_RESET) != 0;
    uint32_t bit = status - 400;
    return status >= 400 && bit < 64 * DP_ARRAY_LEN(retries->statuses) &&
           (retries->statuses[bit / 64] >> bit % 64 & 1) != 0;
}

static bool is_allowed(dp_engine *engine, dp_conn *down, enum dp_retry_cause cause, uint32_t status)
{
    dp_exchange *exchange = &down->exchange;
    const dp_retries *retries = exchange->route->retries;
    const dp_conn *up = down->peer;
    bool crossed = cause == DP_CAUSE_ENDED && (up->flags & DP_C_FRESH) == 0 && up->in.len == 0;
    if (crossed && !exchange->again && (exchange->method & SAFE) != 0 && exchange->request_done &&
        (retries == NULL || retries->attempts != 0)) {
        exchange->again = true;
        exchange->tried.count = 0; /* it is not the endpoint's fault */
        return true;
    }
    if (retries == NULL || !exchange->keeps || exchange->repeats >= retries->attempts ||
        !names(retries, cause, status) || !budget_spend(engine, exchange->route))
        return false;
    exchange->repeats++;
    dp_tried_add(&exchange->tried, engine->pools[up->endpoint].index);
    if (exchange->tried.count >= engine->groups[exchange->upstream].balancer.open_count)
        exchange->tried.count = 0; /* there is no other: the same one again */
    return true;
}

bool dp_retry(dp_engine *engine, dp_conn *down, enum dp_retry_cause cause, uint32_t status)
{
    dp_exchange *exchange = &down->exchange;
    if (exchange->sent.len == 0 || down->peer == NULL || !is_allowed(engine, down, cause, status))
        return false;
    if (cause == DP_CAUSE_ENDED && (down->peer->flags & DP_C_FRESH) != 0)
        dp_outcome_failed(engine, down->peer->endpoint);
    engine->stats->retries_total++;
    dp_upstream_release(engine, down->peer, false);
    struct iovec iov = {.iov_base = exchange->sent.data + exchange->sent.off,
                        .iov_len = exchange->sent.len};
    dp_http_opened(engine, down, dp_upstream_open(engine, down, &iov, 1));
    return true;
}
