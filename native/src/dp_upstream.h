/* dp_upstream: the way to upstreams: choosing, connecting, waiting, checking, sending again. Part
 * of dp_core.h. */
#ifndef DP_UPSTREAM_H
#define DP_UPSTREAM_H

/* --- dp_upstream: pools and connecting ---------------------------------------------------------
 */

/* Attaches an upstream connection to down, from the pool or a new one, with iov as the first
 * bytes to send. DP_OK. DP_NEED_MORE: down waits, its bytes are kept. Else nothing was begun:
 * DP_EGONE: no endpoint is healthy; DP_ETOOBIG: too many wait already; DP_ESYSTEM: none is left to
 * try; DP_ENOMEM. */
int dp_upstream_open(dp_engine *engine, dp_conn *down, struct iovec *iov, int count);
/* up, connecting, failed: another endpoint with the same bytes, as dp_upstream_open. */
int dp_upstream_retry(dp_engine *engine, dp_conn *up);
void dp_upstream_release(dp_engine *engine, dp_conn *up, bool reusable);
/* One that another process attached to down, without its descriptor; counted here, whatever the
 * limits. NULL: no memory. */
dp_conn *dp_upstream_adopt(dp_engine *engine, dp_conn *down, uint32_t slot);
/* A connecting socket became writable: DP_OK or DP_ESYSTEM. */
int dp_upstream_connected(dp_engine *engine, dp_conn *up);
int dp_socket_connected(int fd, const dp_endpoint *endpoint);
/* down ends: so does the connection that speaks for it alone. */
void dp_upstream_unbind(dp_engine *engine, dp_conn *down);
/* Its socket is closed: what it counted is given back. */
void dp_upstream_closed(dp_engine *engine, const dp_conn *up);

/* --- dp_tell: upstreams as the builder is told of them ------------------------------------------
 */

int dp_tell_seal(dp_engine *engine); /* slots, and the tables of consistent choices */

/* --- dp_pick: choosing an endpoint -------------------------------------------------------------
 */

int dp_pick_seal(dp_engine *engine, uint32_t upstream); /* the sticky tokens */
/* Takes from the request what its choice depends on. head NULL: a tunnel. */
void dp_pick_key(dp_engine *engine, dp_conn *down, const uint8_t *data,
                 const dp_request_head *head);
int dp_pick(dp_engine *engine, dp_conn *down); /* an index, or -1 */
/* The set-cookie line that the client needs to come back to where it is; 0: none. */
size_t dp_pick_cookie(const dp_engine *engine, const dp_conn *down, char *ret_line,
                      size_t capacity);

/* --- dp_view: which endpoints may be chosen ----------------------------------------------------
 */

int dp_view_seal(dp_engine *engine);
void dp_view_free(dp_engine *engine);
void dp_view_look(dp_engine *engine, uint32_t upstream);
void dp_view_refresh(dp_engine *engine); /* where others changed something, or it is time */
uint64_t dp_chores_due(const dp_engine *engine);
void dp_chores_run(dp_engine *engine);
void dp_outcome_failed(dp_engine *engine, uint32_t slot);
void dp_outcome_answered(dp_engine *engine, uint32_t slot, uint32_t status);
void dp_outcome_latency(dp_engine *engine, const dp_conn *down, bool failed);
void dp_event_tell(dp_engine *engine, uint32_t slot, uint32_t kind);

/* --- dp_queue: waiting for a connection --------------------------------------------------------
 */

int dp_queue_join(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count);
void dp_queue_leave(dp_engine *engine, dp_conn *down); /* where it waits */
void dp_queue_room(dp_engine *engine, uint32_t slot);  /* a connection of it ended, or is idle */
/* Whether other workers wait for this upstream's connections, and nobody here does. */
bool dp_queue_is_wanted(const dp_engine *engine, uint32_t upstream);
void dp_queue_poll(dp_engine *engine);
void dp_queue_serve(dp_engine *engine);

/* --- dp_health: active checks ------------------------------------------------------------------
 */

int dp_health_seal(dp_engine *engine);
void dp_health_run(dp_engine *engine); /* starts what is due */
void dp_health_handle(dp_engine *engine, dp_conn *probe);
void dp_health_timeout(dp_engine *engine, dp_conn *probe);

/* --- dp_retry: sending a request again ---------------------------------------------------------
 */

enum dp_retry_cause { DP_CAUSE_ENDED, DP_CAUSE_STATUS };

void dp_retry_begin(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count);
void dp_retry_sent(dp_engine *engine, dp_conn *down, const uint8_t *data, size_t len);
/* down has its upstream connection: keeps what went there only while it may have to go again. */
void dp_retry_opened(dp_engine *engine, dp_conn *down, const struct iovec *iov, int count);
bool dp_retry_may_fail_over(const dp_exchange *exchange);
/* False: the answer that there is stands. True: it was sent again, or waits, or was refused. */
bool dp_retry(dp_engine *engine, dp_conn *down, enum dp_retry_cause cause, uint32_t status);

/* --- dp_proxy: the PROXY protocol, towards upstreams --------------------------------------------
 */

enum { DP_PROXY_MAX = 128 };

/* The header for a connection that speaks for down; NULL: for itself. */
size_t dp_proxy_write(uint32_t version, const dp_conn *down, uint8_t ret_header[DP_PROXY_MAX]);

#endif
