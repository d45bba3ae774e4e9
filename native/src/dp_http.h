/* dp_http: the http1 codec and its parts. Part of dp_core.h. */
#ifndef DP_HTTP_H
#define DP_HTTP_H

void dp_http_accepted(dp_engine *engine, dp_conn *down);
void dp_http_turn_away(dp_engine *engine, dp_conn *down); /* answered already: only lingers */
void dp_http_pump(dp_engine *engine, dp_conn *down);
void dp_http_timeout(dp_engine *engine, dp_conn *down);
void dp_http_upstream_failed(dp_engine *engine, dp_conn *down, bool timed_out);
void dp_http_opened(dp_engine *engine, dp_conn *down, int result); /* what dp_upstream_open gave */

/* --- dp_ending -------------------------------------------------------------------------------- */

/* Gives its upstream connection back, or its place among those that wait for one. */
void dp_http_drop_upstream(dp_engine *engine, dp_conn *down, bool reusable);
void dp_http_close(dp_engine *engine, dp_conn *down); /* both sides */
void dp_http_reset(dp_engine *engine, dp_conn *down); /* the same, with RST */
/* Ends an answer that cannot be finished: the client must notice that it is not whole. */
void dp_http_cut_short(dp_engine *engine, dp_conn *down);
/* All of the answer has left: the next request, or the end of the connection. */
void dp_http_finish(dp_engine *engine, dp_conn *down);

/* --- dp_body: pure ---------------------------------------------------------------------------- */

typedef struct dp_body_step {
    size_t used; /* bytes of the input */
    size_t kept; /* bytes to forward, from where the input began */
    bool done;
    int failure; /* DP_OK or a negative result */
} dp_body_step;

/* Takes what belongs to the body at data[0..len); chunked framing is compacted in place, to what
 * keep (DP_CHUNKED_) says. left and chunked are the body's state. Of an unfinished body all is used
 * but a trailer field that has not ended. */
dp_body_step dp_body_feed(uint8_t framing, uint64_t *left, dp_chunked *chunked, int keep,
                          uint8_t *data, size_t len);

/* --- dp_head: heads and answers that go out --------------------------------------------------- */

size_t dp_head_request(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                       const dp_request_head *head, const dp_route *route); /* 0: too large */
size_t dp_head_response(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                        const dp_response_head *head); /* 0: too large */
/* The head of a 101 whose protocol was asked for. */
size_t dp_head_switching(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                         const dp_response_head *head); /* 0: too large */
size_t dp_head_interim(dp_engine *engine, const uint8_t *data, const dp_response_head *head);
/* A whole answer of our own. */
typedef struct dp_answer {
    uint32_t status;
    uint32_t minor;    /* the client's */
    const char *extra; /* more field lines */
    size_t extra_len;
    const uint8_t *body;
    size_t body_len;
    const dp_edit *edits;
    bool head_only;
    bool keep_alive;
} dp_answer;

size_t dp_head_answer(dp_engine *engine, const dp_answer *answer); /* 0: too large */
/* The location line of a redirect. 0: too large. */
size_t dp_head_location(const dp_route *route, const uint8_t *data, const dp_request_head *head,
                        char *ret_line, size_t capacity);
const char *dp_status_reason(uint32_t status);
const char *dp_status_text(uint32_t status); /* one line, for answers of our own */
uint32_t dp_status_of(int result);           /* of a head that was refused */
size_t dp_status_slot(uint32_t status);      /* in dp_stats.own_answers_total */

/* The client's own x-request-id, where it is one and plain; NULL: it gets ours. */
const dp_field *dp_head_request_id(const uint8_t *data, const dp_request_head *head);
enum { DP_REQUEST_ID_LEN = 32 };
void dp_request_id(const dp_engine *engine, char ret_text[DP_REQUEST_ID_LEN]); /* ours, for now */

/* --- dp_answer: answers of our own ------------------------------------------------------------ */

void dp_answer_send(dp_engine *engine, dp_conn *down, dp_answer *answer);
/* What route, which has no upstream, answers the request in engine->request, whose head is data. */
void dp_answer_route(dp_engine *engine, dp_conn *down, const dp_route *route, const uint8_t *data);
void dp_answer_refuse(dp_engine *engine, dp_conn *down, uint32_t status);
/* With a reason in a line: for http problems that are the client's or an upstream's, or a limit's.
 * retry_after: seconds; 0: not told. */
void dp_answer_refuse_saying(dp_engine *engine, dp_conn *down, uint32_t status, const char *text,
                             uint32_t retry_after);
/* Refuses what never became an exchange, or only data[0..len) of one: the connection ends with the
 * answer. Whoever asked by HEAD takes a body for the next answer (RFC 9110 9.3.2). */
void dp_answer_refuse_head(dp_engine *engine, dp_conn *down, uint32_t status, const uint8_t *data,
                           size_t len);

#endif
