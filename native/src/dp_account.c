/* dp_account: the steps of an exchange as they are counted: its beginning, its answer, its end and
 * why. Self-tests are not counted. No I/O but the clock. */
#include "dp_core.h"

static const char *const words[] = {
    [DP_OUT_UNKNOWN] = "unknown",
    [DP_OUT_OK] = "ok",
    [DP_OUT_MALFORMED] = "malformed",
    [DP_OUT_DENIED] = "denied",
    [DP_OUT_NO_ROUTE] = "no_route",
    [DP_OUT_CLIENT_TIMEOUT] = "client_timeout",
    [DP_OUT_CLIENT_GONE] = "client_gone",
    [DP_OUT_BODY_TOO_LARGE] = "body_too_large",
    [DP_OUT_TARGET_TOO_LONG] = "target_too_long",
    [DP_OUT_HEAD_TOO_LARGE] = "head_too_large",
    [DP_OUT_EXPECTATION] = "unknown_expectation",
    [DP_OUT_MISDIRECTED] = "misdirected",
    [DP_OUT_RATE] = "rate_limit",
    [DP_OUT_NOT_IMPLEMENTED] = "not_implemented",
    [DP_OUT_VERSION] = "unknown_version",
    [DP_OUT_NO_ENDPOINT] = "no_endpoint",
    [DP_OUT_CONNECT_FAILED] = "connect_failed",
    [DP_OUT_UPSTREAM_BROKE] = "upstream_broke",
    [DP_OUT_UPSTREAM_TIMEOUT] = "upstream_timeout",
    [DP_OUT_LIMIT] = "limit",
    [DP_OUT_IDLE] = "idle_timeout",
    [DP_OUT_DRAIN_DEADLINE] = "drain_deadline",
};
_Static_assert(DP_ARRAY_LEN(words) == DP_OUT_COUNT, "each outcome has its word");

const char *dp_outcome_word(enum dp_outcome outcome)
{
    return words[outcome < DP_OUT_COUNT ? outcome : DP_OUT_UNKNOWN];
}

enum dp_outcome dp_outcome_of(uint32_t status)
{
    switch (status) {
    case 400:
        return DP_OUT_MALFORMED;
    case 403:
        return DP_OUT_DENIED;
    case 404:
        return DP_OUT_NO_ROUTE;
    case 408:
        return DP_OUT_CLIENT_TIMEOUT;
    case 413:
        return DP_OUT_BODY_TOO_LARGE;
    case 414:
        return DP_OUT_TARGET_TOO_LONG;
    case 417:
        return DP_OUT_EXPECTATION;
    case 421:
        return DP_OUT_MISDIRECTED;
    case 429:
        return DP_OUT_RATE;
    case 431:
        return DP_OUT_HEAD_TOO_LARGE;
    case 501:
        return DP_OUT_NOT_IMPLEMENTED;
    case 502:
        return DP_OUT_UPSTREAM_BROKE;
    case 504:
        return DP_OUT_UPSTREAM_TIMEOUT;
    case 505:
        return DP_OUT_VERSION;
    default:
        return DP_OUT_LIMIT;
    }
}

static bool is_probe(const dp_conn *down)
{
    return (down->flags & DP_C_PROBE) != 0;
}

void dp_exchange_begun(dp_engine *engine, dp_conn *down, const uint8_t *data)
{
    engine->stats->requests_active++;
    engine->request_ids++;
    if (is_probe(down))
        return;
    engine->stats->requests_total++;
    down->exchange->account.began_us = dp_clock_us();
    down->exchange->account.bytes_in = data != NULL ? engine->request.head_len : 0;
    if (engine->access != NULL)
        dp_access_begin(engine, down, data);
}

static dp_route_stats *route_of(const dp_engine *engine, const dp_exchange *exchange)
{
    uint32_t none = engine->tables.route_count;
    return &engine->meter.routes[exchange->route != NULL ? exchange->route->order : none];
}

void dp_exchange_answered(dp_engine *engine, dp_conn *down, uint32_t status, size_t head_bytes)
{
    dp_account *account = &down->exchange->account;
    account->status = (uint16_t)status;
    account->head_bytes = (uint32_t)head_bytes;
    if (is_probe(down))
        return;
    route_of(engine, down->exchange)->answers_total[status / 100]++;
    if (engine->access != NULL && down->peer != NULL)
        account->head_us = (uint32_t)(dp_clock_us() - account->began_us);
}

void dp_exchange_blame(dp_conn *down, enum dp_outcome outcome)
{
    dp_account *account = &down->exchange->account;
    if (account->outcome == DP_OUT_UNKNOWN)
        account->outcome = (uint8_t)outcome;
}

static void count_duration(dp_engine *engine, const dp_account *account, uint64_t now_us)
{
    uint64_t us = now_us - account->began_us;
    engine->meter.durations->sum_us += us;
    engine->meter.durations->buckets[dp_duration_bucket(us)]++;
}

void dp_exchange_switched(dp_engine *engine, dp_conn *down, size_t head_bytes)
{
    dp_exchange_answered(engine, down, 101, head_bytes);
    engine->stats->requests_active--;
    count_duration(engine, &down->exchange->account, dp_clock_us());
}

void dp_exchange_over(dp_engine *engine, dp_conn *down, bool whole)
{
    dp_account *account = &down->exchange->account;
    engine->stats->requests_active--;
    if (is_probe(down))
        return;
    uint64_t now_us = dp_clock_us();
    count_duration(engine, account, now_us);
    if (account->status == 0)
        route_of(engine, down->exchange)->answers_total[0]++;
    dp_exchange_blame(down, whole ? DP_OUT_OK : DP_OUT_CLIENT_GONE);
    if (engine->access != NULL)
        dp_access_line(engine, down, now_us);
}

void dp_refused(dp_engine *engine, dp_conn *down, uint32_t status, size_t bytes_out)
{
    if (engine->access == NULL || !dp_exchange_open(engine, down))
        return;
    dp_account *account = &down->exchange->account;
    account->began_us = dp_clock_us();
    account->status = bytes_out != 0 ? (uint16_t)status : 0;
    account->bytes_out = bytes_out;
    dp_exchange_blame(down, dp_outcome_of(status));
    dp_access_line(engine, down, account->began_us);
    dp_exchange_close(engine, down);
}

void dp_tunnel_begun(dp_engine *engine, dp_conn *down)
{
    down->exchange->account.began_us = engine->access != NULL ? dp_clock_us() : 0;
}

void dp_tunnel_over(dp_engine *engine, dp_conn *down, enum dp_outcome outcome)
{
    dp_exchange_blame(down, outcome);
    if (engine->access != NULL)
        dp_access_line(engine, down, dp_clock_us());
}
