/* dp_account: what is counted and told of exchanges and tunnels. Part of dp_core.h. */
#ifndef DP_ACCOUNT_H
#define DP_ACCOUNT_H

/* How an exchange or a tunnel ended: the word in its log line. */
enum dp_outcome {
    DP_OUT_UNKNOWN = 0, /* still to be found out */
    DP_OUT_OK,
    DP_OUT_MALFORMED,
    DP_OUT_DENIED, /* its source may not come */
    DP_OUT_NO_ROUTE,
    DP_OUT_CLIENT_TIMEOUT,
    DP_OUT_CLIENT_GONE,
    DP_OUT_BODY_TOO_LARGE,
    DP_OUT_TARGET_TOO_LONG,
    DP_OUT_HEAD_TOO_LARGE,
    DP_OUT_EXPECTATION,
    DP_OUT_MISDIRECTED,
    DP_OUT_RATE,
    DP_OUT_NOT_IMPLEMENTED,
    DP_OUT_VERSION,
    DP_OUT_NO_ENDPOINT, /* of its upstream none is well */
    DP_OUT_CONNECT_FAILED,
    DP_OUT_UPSTREAM_BROKE,
    DP_OUT_UPSTREAM_TIMEOUT,
    DP_OUT_LIMIT,
    DP_OUT_IDLE, /* a tunnel in which nothing went for too long */
    DP_OUT_DRAIN_DEADLINE,
    DP_OUT_COUNT
};

const char *dp_outcome_word(enum dp_outcome outcome);
enum dp_outcome dp_outcome_of(uint32_t status); /* of an answer of our own */

/* --- dp_account: the steps of an exchange ---------------------------------------------------- */

/* The head in engine->request stands at data; NULL: none that could be understood. */
void dp_exchange_begun(dp_engine *engine, dp_conn *down, const uint8_t *data);
/* Its answer begins, with a head of so many bytes. */
void dp_exchange_answered(dp_engine *engine, dp_conn *down, uint32_t status, size_t head_bytes);
/* It ends. whole: as it should have. To be called once for each begin. */
void dp_exchange_over(dp_engine *engine, dp_conn *down, bool whole);
/* It goes on as a tunnel, whose end is told by dp_tunnel_over. */
void dp_exchange_switched(dp_engine *engine, dp_conn *down, size_t head_bytes);
/* The first reason that is told stands. */
void dp_exchange_blame(dp_conn *down, enum dp_outcome outcome);
/* A connection beyond the limit was answered so many bytes, and no request of it is read. */
void dp_refused(dp_engine *engine, dp_conn *down, uint32_t status, size_t bytes_out);
void dp_tunnel_begun(dp_engine *engine, dp_conn *down);
void dp_tunnel_over(dp_engine *engine, dp_conn *down, enum dp_outcome outcome);

/* --- dp_meter: figures in the stats mapping --------------------------------------------------- */

int dp_meter_seal(dp_engine *engine); /* the tables are known */
void dp_meter_done(dp_engine *engine);
void dp_meter_tick(dp_engine *engine); /* now and then: what nothing else would write down */
void dp_meter_connect(dp_engine *engine, uint32_t slot);
void dp_meter_connect_failed(dp_engine *engine, uint32_t slot);
void dp_meter_attached(dp_engine *engine, dp_conn *down, uint32_t slot);
void dp_meter_adopted(dp_engine *engine, uint32_t slot); /* attached elsewhere before */
void dp_meter_detached(dp_engine *engine, uint32_t slot);
void dp_meter_failed(dp_engine *engine, const dp_conn *down);
void dp_meter_up(dp_engine *engine, uint32_t upstream, bool up);

/* --- dp_access: lines on their way to the pipe ------------------------------------------------ */

void dp_access_done(dp_engine *engine);
void dp_access_begin(dp_engine *engine, dp_conn *down, const uint8_t *data);
int dp_access_format(const dp_engine *engine); /* DP_LOG_NONE: there is none */
void dp_access_line(dp_engine *engine, dp_conn *down, uint64_t now_us);
void dp_access_flush(dp_engine *engine); /* what the pipe takes; never waits */

/* --- dp_trace: pure ----------------------------------------------------------------------------
 */

/* A traceparent field's value (W3C Trace Context 3.2): its trace id's 32 digits, or NULL. */
const uint8_t *dp_trace_id(const uint8_t *value, size_t len);
/* The trace id of a head, or NULL: it has no traceparent, several, or none that is valid. */
const uint8_t *dp_trace_of(const uint8_t *data, const dp_request_head *head);

#endif
