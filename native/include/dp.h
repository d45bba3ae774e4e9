/* dp.h: all of the engine that Python may call. The marked part is fed to cffi as it stands, so
 * it uses no macro and no preprocessor line.
 *
 * The engine is single-threaded and non-blocking. It owns one epoll descriptor; whoever drives it
 * watches that descriptor and calls dp_engine_turn when it is readable, or has dp_engine_stay wait
 * for both. It never calls back.
 *
 * Life: dp_engine_new, then the _add and _set functions (the builder), then dp_engine_seal, which
 * makes the tables read-only. Builder calls on a sealed engine are refused with DP_ESTATE. */
#ifndef DP_H
#define DP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DP_MUST_CHECK __attribute__((warn_unused_result))
#pragma GCC visibility push(default)
#endif

/* cdef: begin */
typedef struct dp_engine dp_engine;

enum { DP_ABI = 1 };           /* checked by Python at boot: dp_abi() must say the same */
enum { DP_STATS_VERSION = 1 }; /* layout of dp_stats */
enum { DP_MOVE_VERSION = 2 };  /* newest layout of a moved connection's record */

enum {
    DP_OK = 0,
    DP_NEED_MORE = 1,
    DP_EMALFORMED = -1, /* what came breaks the grammar */
    DP_ETOOBIG = -2,    /* a stated limit is exceeded */
    DP_ENOMEM = -3,
    DP_ESTATE = -4,   /* not now: sealed already, or not sealed yet */
    DP_EINVAL = -5,   /* an argument that the caller should have checked */
    DP_ESYSTEM = -6,  /* a system call failed: errno tells */
    DP_EVERSION = -7, /* a version this code does not know */
    DP_ETARGET = -8,  /* the request target is too long */
    DP_ECODING = -9,  /* a transfer coding other than chunked */
    DP_EEXPECT = -10, /* an expectation other than 100-continue */
    DP_EGONE = -11,   /* a moved connection's listener is not here */
    DP_EMETHOD = -12  /* a method that is not served (CONNECT) */
};

enum { DP_HTTP = 1, DP_TCP = 2 };
enum { DP_ROUND_ROBIN = 1, DP_LEAST_REQUEST = 2, DP_P2C = 3, DP_MAGLEV = 4 };
enum { DP_BY_SOURCE = 1, DP_BY_HEADER = 2, DP_BY_COOKIE = 3 }; /* what maglev chooses by */
enum {
    DP_ON_CONNECT_FAILURE = 1, /* nothing was sent */
    DP_ON_RESET = 2            /* the connection ended before an answer */
};
enum {
    DP_EVENT_DOWN = 1, /* a health check failed it */
    DP_EVENT_UP = 2,
    DP_EVENT_EJECTED = 3, /* it failed too often in a row */
    DP_EVENT_LOST = 4     /* so many came at once that some were not kept */
};
enum {
    DP_EDIT_REQUEST_SET = 1,
    DP_EDIT_REQUEST_REMOVE,
    DP_EDIT_RESPONSE_SET,
    DP_EDIT_RESPONSE_REMOVE
};
enum {
    DP_TRANSPORT_PLAIN = 0,
    DP_TRANSPORT_TRICKLE = 1
}; /* trickle: a byte at a time, for tests */

enum { DP_LOG_NONE = 0, DP_LOG_JSON = 1, DP_LOG_COMBINED = 2 };

/* What dp_engine_turn has to tell, as bits. */
enum {
    DP_NOTE_AGAIN = 1,   /* work is left: call again soon, without waiting for the descriptor */
    DP_NOTE_MOVABLE = 2, /* draining, and at least one connection may be saved */
    DP_NOTE_EMPTY = 4,   /* draining, and no downstream connection is left */
    DP_NOTE_EVENTS = 8   /* dp_event_take has something */
};

typedef struct {
    uint32_t transport;        /* DP_TRANSPORT_* */
    uint32_t max_connections;  /* downstream; 0: no limit but descriptors */
    uint32_t max_header_bytes; /* of one message head */
    uint32_t max_headers;      /* fields in one head, at most 256 */
    uint64_t max_body_bytes;   /* of a request; 0: no limit */
    uint64_t max_buffer_bytes; /* all buffers of the engine together */
    uint32_t header_ms;        /* first byte of a head to its end */
    uint32_t body_idle_ms;     /* between two reads or writes of a body */
    uint32_t idle_ms;          /* between exchanges on a kept-alive connection */
    uint32_t tunnel_idle_ms;   /* tcp: no byte in either direction */
    uint64_t seed_low;         /* for hashes and request ids: drawn after the fork */
    uint64_t seed_high;
    uint32_t tick_ms;        /* the timer tick that shows the engine lives; 0: none */
    uint32_t max_per_source; /* connections of one source, over all workers; 0: no limit */
    uint32_t max_requests;   /* answered at once, over all workers; 0: no limit */
    uint32_t request_ms;     /* first byte of a request to the end of its body; 0: no limit */
    uint32_t send_ms;        /* a client takes nothing of what waits for it; 0: body_idle_ms */
    uint64_t stats_bytes;    /* size of the mapping at stats; 0: dp_stats alone */
} dp_engine_options;

/* A page that the engine writes and the supervisor reads. Counters never go back. */
typedef struct {
    uint32_t magic; /* 0x64707374, "dpst" */
    uint32_t version;
    uint64_t turns;       /* of dp_engine_turn, and batches of dp_engine_stay: the heartbeat */
    uint64_t connections; /* downstream, open now */
    uint64_t connections_total;
    uint64_t moved_in_total;
    uint64_t moved_out_total;
    uint64_t refused_total; /* connections beyond a limit of the app or of a source */
    uint64_t requests_total;
    uint64_t requests_active;
    uint64_t received_bytes_total;
    uint64_t sent_bytes_total;
    uint64_t answers_total[6]; /* by class; [0]: none could be sent */
    uint64_t
        own_answers_total[8]; /* made here: 400 408 413/414/417/431 404/421 502 503 504 other */
    uint64_t upstream_connects_total;
    uint64_t upstream_connect_failures_total;
    uint64_t upstream_failures_total; /* broke, timed out or answered garbage */
    uint64_t upstream_connections;    /* open now */
    uint64_t upstream_idle;           /* in pools now */
    uint64_t buffer_bytes;            /* in use now */
    uint64_t tunnels;                 /* open now */
    uint64_t retries_total;           /* requests that were sent again */
    uint64_t retries_refused_total;   /* not sent again: the budget was spent */
    uint64_t ejections_total;
    uint64_t waiting; /* requests that wait for an upstream connection now */
    uint64_t waited_total;
    uint64_t probes_total;
    uint64_t probe_failures_total;
    /* Later fields are only ever added where zeros were reserved. */
    uint64_t cpu_us_total;      /* CPU time of the processes that wrote here, at their last tick */
    uint64_t log_lines_total;   /* access log lines made */
    uint64_t log_dropped_total; /* of these, never written: nobody took them in time */
    uint64_t log_pending;       /* of these, made and not written yet */
    uint64_t pipes;             /* with bytes in them now */
    uint64_t spliced_bytes_total; /* that went through a pipe, in either direction */
    uint64_t denied_total;  /* connections and requests of sources that access does not allow */
    uint64_t limited_total; /* requests beyond a rate, or beyond max_requests */
    uint64_t reserved[8];
} dp_stats;

/* What a mapping larger than dp_stats holds beside it: a table at DP_STATS_TABLE names sections by
 * kind. An entry of a section may grow in a later version, so stride is told; what is read beyond
 * the reader's own layout is passed over. */
enum { DP_STATS_TABLE = 1024, DP_STATS_TABLE_VERSION = 1 };
enum {
    DP_SECTION_DURATION = 1,  /* one dp_duration_stats: of requests */
    DP_SECTION_UPSTREAMS = 2, /* a dp_upstream_stats for each, in the order they were added */
    DP_SECTION_ROUTES = 3 /* a dp_route_stats for each, in the order added; then one: no route */
};
typedef struct {
    uint32_t kind;
    uint32_t count;
    uint32_t stride; /* bytes from one entry to the next */
    uint32_t offset; /* from the mapping's start */
} dp_stats_section;
typedef struct {
    uint32_t magic; /* 0x64707374 once it is written */
    uint32_t version;
    uint32_t count;
    uint32_t reserved;
    dp_stats_section sections[8];
} dp_stats_table;

/* Log-linear: for v microseconds, 0 to 9 each, then 90 buckets for each power of ten up to 10^8,
 * then one for all beyond. Bucket i holds what is above its lower and up to its upper bound. */
enum { DP_DURATION_BUCKETS = 641 };
typedef struct {
    uint64_t sum_us;
    uint64_t buckets[641];
} dp_duration_stats;
typedef struct {
    uint64_t requests_total; /* attempts: a repeated request counts again */
    uint64_t connects_total;
    uint64_t connect_failures_total;
    uint64_t failures_total; /* broke, timed out or answered garbage */
    uint64_t active;         /* exchanges and tunnels now */
    uint64_t up;             /* 1, or 0: the last look for a living endpoint found none */
    uint64_t reserved[2];
} dp_upstream_stats;
typedef struct {
    uint64_t answers_total[6]; /* by class; [0]: none could be sent */
    uint64_t reserved[2];
} dp_route_stats;

typedef struct {
    const char *host;            /* NULL: any; lower case; "*.example.com": any name below */
    const char *path;            /* ends in '/': a prefix; else exact; NULL: any */
    uint32_t methods;            /* bits of dp_method_bit; 0: any */
    int32_t upstream;            /* index, or -1: redirect or respond */
    uint32_t request_timeout_ms; /* request sent to response head */
    uint32_t status;             /* of a redirect or a fixed response */
    const char *location; /* redirect: where to (a prefix keeps the rest); NULL: a fixed response */
    const uint8_t *body;  /* fixed response */
    size_t body_len;
} dp_route_options;

typedef struct {
    const char *name;
    uint32_t endpoints; /* how many will be added, at most 1000 */
    int balance;
    int key;              /* DP_BY_*, for DP_MAGLEV */
    const char *key_name; /* of the header, lower case, or of the cookie */
    const char *sticky;   /* name of a cookie that names the endpoint; NULL: none is set */
    uint32_t connect_timeout_ms;
    uint32_t keepalive;       /* idle connections to one endpoint */
    uint32_t max_connections; /* to one endpoint, over all workers that share; 0: no limit */
    uint32_t max_waiting;     /* requests that wait for one of them; they wait connect_timeout_ms */
    uint32_t eject_failures;  /* in a row, and an endpoint is left out for eject_ms; 0: never */
    uint32_t eject_ms;        /* doubled each time it fails again, up to 32 times */
    uint32_t eject_server_errors; /* answers of 500 and above count as failures */
    uint32_t slow_start_ms;       /* from its return until it has its whole share; 0: at once */
    uint32_t proxy_protocol;      /* version of the header that each connection begins with; 0 */
} dp_upstream_options;

typedef struct {
    const char *path; /* NULL: connecting is enough */
    const char *host;
    uint32_t interval_ms;
    uint32_t timeout_ms; /* at most interval_ms */
    uint32_t fall;       /* failures in a row until it is down */
    uint32_t rise;
    uint32_t status_min;
    uint32_t status_max;
} dp_health_options;

typedef struct {
    uint32_t attempts;        /* how often a request is sent again at most */
    uint32_t causes;          /* DP_ON_* */
    const uint16_t *statuses; /* 400 to 599 */
    uint32_t status_count;
    uint32_t methods;        /* that may be repeated though the first try may have been executed */
    uint32_t budget_percent; /* of the route's requests; a quiet route may repeat a few always */
} dp_retry_options;

typedef struct {         /* a network whose sources may come, or may not */
    uint8_t address[16]; /* IPv4 in its mapped form, ::ffff:0:0/96 */
    uint8_t bits;        /* 0 to 128: 96 more for IPv4 */
    uint8_t denies;
} dp_access_rule;

typedef struct {
    uint32_t requests;  /* a second, 1 to 1000000 */
    uint32_t burst;     /* how many may come at once; 0 is as 1 */
    const char *header; /* lower case: by its value, where a request has it; NULL: by source */
    uint64_t scope;     /* equal for what counts together, in both generations */
} dp_rate_options;

typedef struct {   /* something changed about an endpoint */
    uint32_t kind; /* DP_EVENT_* */
    uint32_t upstream;
    uint32_t endpoint;
} dp_event;

enum {                        /* why a connection that was to move was declined */
       DP_DECLINED_OTHER = 1, /* of a kind that is not known there, or it was not told */
       DP_DECLINED_LISTENER,  /* its listener is not there */
       DP_DECLINED_DENIED,    /* its source may not come any more */
       DP_DECLINED_UPSTREAM,  /* the endpoint that it speaks to is not there */
       DP_DECLINED_NO_ROOM,   /* no memory */
       DP_DECLINED_COUNT
};

typedef struct { /* what happened to connections while draining, or on arrival */
    uint64_t moved_idle;
    uint64_t moved_after_request;
    uint64_t finished;
    uint64_t closed;
    uint64_t reset;
    uint64_t moved_streaming; /* in the middle of a response */
    uint64_t moved_tunnel;
    uint64_t declined[6]; /* by DP_DECLINED_ */
} dp_drain_counts;

uint32_t dp_abi(void);
const char *dp_result_text(int result);
uint32_t dp_method_bit(const char *method, size_t len); /* 0: not a method routes can name */

/* --- building ------------------------------------------------------------------------------ */

/* stats: a writable mapping of at least sizeof(dp_stats), kept by the caller, or NULL. Counters in
 * it go on from what they are, so that a restarted worker's numbers do not fall. */
int dp_engine_new(const dp_engine_options *options, dp_stats *stats, dp_engine **ret_engine);
void dp_engine_free(dp_engine *engine); /* accepts NULL */

/* Each returns an index >= 0, or a failure. Names and strings are copied. */
int dp_upstream_add(dp_engine *engine, const dp_upstream_options *options);
int dp_upstream_check(dp_engine *engine, int upstream, const dp_health_options *options);
/* address: numeric, or "unix:/path" with port 0. weight: 1 to 256. */
int dp_endpoint_add(dp_engine *engine, int upstream, const char *address, uint16_t port,
                    uint32_t weight);
int dp_listener_add(dp_engine *engine, const char *name, int protocol, int upstream);
/* Connections from trusted peers begin with a PROXY header, version 1 or 2; others do not. */
int dp_listener_expect_proxy(dp_engine *engine, int listener);
/* Peers in address/bits are trusted proxies: what they say of a client is believed. */
int dp_listener_trust(dp_engine *engine, int listener, const char *address, uint32_t bits);
int dp_route_add(dp_engine *engine, const dp_route_options *options);
int dp_route_match_header(dp_engine *engine, int route, const char *name, const char *value);
int dp_route_edit(dp_engine *engine, int route, int edit, const char *name, const char *value);
int dp_route_retry(dp_engine *engine, int route, const dp_retry_options *options);
/* Who may come, and how often. route -1: of the whole app. A source is an IPv4 address or an IPv6
 * network of 64 bits; clients of UNIX sockets have none, and are let through. */
int dp_access_set(dp_engine *engine, int route, const dp_access_rule *rules, uint32_t count);
int dp_rate_set(dp_engine *engine, int route, const dp_rate_options *options);
/* What all workers of the app share: a writable mapping as native/src/dp_shared.h says, kept by
 * the caller until the engine is freed. pid: ours, as the supervisor knows it. DP_EVERSION and
 * DP_EMALFORMED: the engine goes on without. */
int dp_engine_share(dp_engine *engine, void *base, size_t len, uint32_t pid);
/* Access log: a line an exchange, DP_LOG_ format, to fd, a pipe that stays the caller's and is made
 * non-blocking. image: the first digits of its digest. */
int dp_engine_log(dp_engine *engine, int format, int fd, const char *app, uint32_t generation,
                  const char *image);
int dp_engine_seal(dp_engine *engine);

/* --- serving ------------------------------------------------------------------------------- */

int dp_engine_fd(const dp_engine *engine);
/* A listening socket, lent: it is never closed by the engine, only taken out of its epoll set. */
int dp_listener_attach(dp_engine *engine, int listener, int fd);
int dp_engine_serve(dp_engine *engine); /* accept on all attached sockets; also ends a drain */
int dp_engine_pause(dp_engine *engine); /* accept no more; EPOLL_CTL_DEL before any close */
/* Takes over fd, one end of a stream socket pair, as an http connection that proves the whole
 * path: the request is parsed and routed, then answered 200 here instead of by an upstream. */
int dp_engine_probe(dp_engine *engine, int fd);
/* Handles ready events until none is left, max_rounds batches are done or some milliseconds have
 * passed. Returns DP_NOTE_ bits, or DP_ESYSTEM. */
int dp_engine_turn(dp_engine *engine, uint32_t max_rounds);
/* Handles what comes, and waits for it, until others_fd is readable, a signal comes, there is more
 * to tell than DP_NOTE_AGAIN, or something came after a second. others_fd is in the engine's epoll
 * set meanwhile: it must not watch the engine's descriptor. Returns DP_NOTE_ bits, or DP_ESYSTEM.
 */
int dp_engine_stay(dp_engine *engine, int others_fd);

/* The next thing that happened to an endpoint. 1: *ret_event is set; 0: nothing is left. */
int dp_event_take(dp_engine *engine, dp_event *ret_event);
/* How many endpoints with a health check no probe has judged yet. */
int dp_checks_open(const dp_engine *engine);
/* How an upstream stands: 1 up (or not checked), 0 down: a check failed every endpoint's. */
int dp_upstream_is_up(const dp_engine *engine, int upstream);
/* 1: it is down here, and well for another process of the app; 0: not so. */
int dp_upstream_regressed(const dp_engine *engine, int upstream);

/* --- draining and moving ------------------------------------------------------------------- */

/* From now on connections stop after their exchange and wait to be saved. */
int dp_engine_drain(dp_engine *engine);
/* No peer to move to: close what waits now and whatever finishes later. */
int dp_engine_close_idle(dp_engine *engine);
/* Cuts what is left. Returns how many connections were cut. */
int dp_engine_reset_all(dp_engine *engine);
int dp_engine_drain_counts(const dp_engine *engine, dp_drain_counts *ret_counts);

/* Freezes connections (out of epoll) as batch number `batch` and writes their records, of version
 * `version` at most: between requests, in the middle of a response, and tunnels. Returns the count
 * of records (0: none may be saved now). Each has from one to six descriptors, at most max_fds in
 * all, which stay the engine's. */
int dp_move_save(dp_engine *engine, uint32_t batch, uint32_t version, uint8_t *ret_records,
                 size_t capacity, int *ret_fds, uint32_t max_fds, uint32_t *ret_fd_count,
                 size_t *ret_len);
/* The commit was sent: forget the batch and close its descriptors. verdicts has a byte a record, at
 * most count: 0, or DP_DECLINED_. What is no longer allowed is closed, or cut, and counted; what
 * may end here goes on here. */
int dp_move_commit(dp_engine *engine, uint32_t batch, const uint8_t *verdicts, size_t count);
/* The peer is gone or said no: all of the batch goes on here. */
int dp_move_take_back(dp_engine *engine, uint32_t batch);

/* Takes over fds and holds them still, as batch `batch` of `count` records. ret_verdicts has a byte
 * a record: 0, or DP_DECLINED_ and its descriptors are closed. DP_EVERSION, DP_EMALFORMED (also:
 * not as many records or descriptors as the records say), DP_ESTATE: nothing is held, and fds are
 * the caller's. */
int dp_move_hold(dp_engine *engine, uint32_t batch, const uint8_t *records, size_t len,
                 uint32_t count, const int *fds, uint32_t fd_count, uint8_t *ret_verdicts);
/* The commit came: the held batch begins to run. ret_stall_us gets one figure a started
 * connection, at most max_stalls. Returns how many started. */
int dp_move_start(dp_engine *engine, uint32_t batch, uint32_t *ret_stall_us, uint32_t max_stalls);
/* No commit came: close the held copies without a word to the client. */
int dp_move_drop(dp_engine *engine, uint32_t batch);

/* --- pure functions, for tests and tools --------------------------------------------------- */

typedef struct {
    uint32_t off;
    uint32_t len;
} dp_span;

typedef struct {
    dp_span name;
    dp_span value;
    uint16_t id;    /* DP_F_..., 0: not one we know */
    uint16_t flags; /* DP_FIELD_... */
} dp_field;

enum { DP_MAX_FIELDS = 256 };

typedef struct {
    uint32_t head_len; /* through the empty line */
    uint32_t method;   /* dp_method_bit's value, 0: another token */
    dp_span method_span;
    dp_span target;    /* as it came */
    dp_span host;      /* host[:port] from the target or the Host field; empty if none */
    dp_span host_name; /* without the port; an IPv6 literal keeps its brackets */
    dp_span path;      /* from '/' up to '?', or "*"; never empty, may lie apart from query */
    dp_span query;     /* with its '?', or empty */
    dp_span upgrade;   /* the protocol that is asked for and may be passed on; empty: none */
    uint32_t minor;    /* HTTP/1.minor */
    uint32_t framing;  /* DP_BODY_NONE, DP_BODY_LENGTH or DP_BODY_CHUNKED */
    uint64_t content_length;
    uint32_t keep_alive; /* may the connection go on after this exchange */
    uint32_t expects_continue;
    uint32_t has_upgrade;
    uint32_t takes_trailers; /* TE: trailers */
    uint32_t is_https;       /* the target is an https URI */
    uint32_t max_forwards;   /* of a TRACE or OPTIONS; UINT32_MAX: not told */
    uint32_t path_is_plain;  /* the path has its one form already: see dp_request_normalise */
    uint32_t field_count;
    dp_field fields[256];
} dp_request_head;

typedef struct {
    uint32_t head_len;
    uint32_t status;
    dp_span reason;
    dp_span upgrade; /* of a 101: the one protocol that it switches to; empty: not told */
    uint32_t minor;
    uint32_t framing;        /* DP_BODY_*; NONE where status or method forbid a body */
    uint64_t content_length; /* as told, also where no body comes; UINT64_MAX: not told */
    uint32_t keep_alive;
    uint32_t field_count;
    dp_field fields[256];
} dp_response_head;

enum { DP_BODY_NONE = 0, DP_BODY_LENGTH = 1, DP_BODY_CHUNKED = 2, DP_BODY_CLOSE = 3 };

enum {
    DP_FIELD_DROP = 1, /* hop-by-hop by itself or named by Connection: not forwarded */
    DP_FIELD_FORWARDED =
        2 /* says where a request came from: x-forwarded-..., forwarded, x-real-ip */
};

typedef struct {
    uint32_t max_bytes;
    uint32_t max_fields;
    uint32_t max_target; /* longer: DP_ETARGET */
} dp_head_limits;

/* Where the head at data ends. *scanned is 0 at first and is kept between calls, so that bytes are
 * looked at once. DP_OK: *ret_len is set. DP_NEED_MORE, DP_EMALFORMED (a bare LF or a NUL seen on
 * the way, leading space), DP_ETOOBIG. At most one leading CRLF before a request line is passed
 * over by the caller, not here. data is borrowed for the call. */
int dp_head_end(const uint8_t *data, size_t len, const dp_head_limits *limits, uint32_t *scanned,
                uint32_t *ret_len);
/* data[0..len) is one whole head as dp_head_end found it. ret_head is scratch: its content is only
 * meaningful after DP_OK. Spans are offsets into data. */
int dp_request_parse(const uint8_t *data, size_t len, const dp_head_limits *limits,
                     dp_request_head *ret_head);
/* Brings path[0..len), which begins with '/', into the one form in which it is routed and forwarded
 * (dp_path.h tells it), in place: *ret_len is at most len. DP_OK, or DP_EMALFORMED: then what
 * stands at path is scratch, and the request is refused. Borrowed for the call. */
int dp_path_normalise(uint8_t *path, size_t len, size_t *ret_len);
/* The same with the path of a head that dp_request_parse took from data: the second half of the
 * judgement on a request. Its target is scratch afterwards. */
int dp_request_normalise(uint8_t *data, dp_request_head *head);
/* to_head: the response answers a HEAD request. */
int dp_response_parse(const uint8_t *data, size_t len, const dp_head_limits *limits, int to_head,
                      dp_response_head *ret_head);

typedef struct {
    uint32_t header_len;
    uint32_t family; /* 4 or 6; 0: no address is told, the peer speaks for itself */
    uint8_t source[16];
    uint8_t destination[16];
    uint16_t source_port;
    uint16_t destination_port;
} dp_proxy_header;

/* A PROXY header, version 1 or 2, at the start of data. DP_OK: *ret_header is set. DP_NEED_MORE,
 * DP_EMALFORMED, DP_ETOOBIG (version 1: 107 bytes, version 2: 4096). data is borrowed for the
 * call. */
int dp_proxy_parse(const uint8_t *data, size_t len, dp_proxy_header *ret_header);

typedef struct {
    uint64_t left;  /* data bytes left of the current chunk */
    uint64_t total; /* data bytes of all chunks so far */
    uint32_t state;
    uint32_t overhead; /* bytes of extensions and trailers so far, bounded */
} dp_chunked;          /* all zero: the start */

enum {
    DP_CHUNKED_BARE = 0,    /* the data alone */
    DP_CHUNKED_FRAMED = 1,  /* the same framing without extensions and trailer fields */
    DP_CHUNKED_TRAILERS = 2 /* and with the trailer fields that may go on */
};

/* Checks data as chunked framing and compacts it in place to what is forwarded, as keep says. Each
 * byte kept is a byte of this call, so size digits pass as they came, leading zeros too: at most
 * 16. *ret_used bytes were read, *ret_kept bytes stand at data now. DP_OK: the body is complete
 * (bytes beyond *ret_used are not its own). DP_NEED_MORE: all of data was used but for a trailer
 * field that has not ended, which is at most 8 KiB and must come again with more behind it.
 * DP_EMALFORMED, DP_ETOOBIG: poisoned, what stands at data is not to be forwarded. Resumes at any
 * byte. */
int dp_chunked_feed(dp_chunked *state, uint8_t *data, size_t len, int keep, size_t *ret_used,
                    size_t *ret_kept);
/* The route that a request head would take, or -1. For tests and tools; the engine's own lookup. */
int dp_route_find(const dp_engine *engine, const uint8_t *data, const dp_request_head *head);

/* The bucket of dp_duration_stats that so many microseconds count in. */
uint32_t dp_duration_bucket(uint64_t us);
/* Where each section stands in a mapping for so many upstreams and routes. Returns its size. */
size_t dp_stats_layout(uint32_t upstreams, uint32_t routes, dp_stats_table *ret_table);
/* A part of this process's memory, whole pages, and where its content stands in a memory file. */
typedef struct {
    uint64_t start;
    uint64_t len;
    uint64_t offset;
} dp_memory_area;

/* Writes each area to the file and lays a private mapping of the file over it: nothing changes for
 * who reads or writes there. An area that cannot be moved stays as it was and gets len 0. No other
 * thread may run, and the stack must not be among them. DP_ESYSTEM (ENOTSUP): a library that was
 * built with the address sanitiser moves nothing. */
int dp_memory_share(dp_memory_area *areas, uint32_t count, int fd);
/* Maps the file for reading, for as long as the process lives. DP_ESYSTEM. */
int dp_memory_map(int fd, size_t len, const uint8_t **ret_base);
/* Gives back each page of the areas that this process wrote to and that equals the file, which
 * dp_memory_map mapped at base: it is the file's page again. pagemap is this process's own
 * (proc_pid_pagemap(5)). No other thread may run. DP_ESYSTEM; *ret_given: bytes. */
int dp_memory_give_back(const dp_memory_area *areas, uint32_t count, const uint8_t *base,
                        int pagemap, uint64_t *ret_given);
/* Takes for good what free room an allocator has between what it gave before, for blocks of up to
 * largest bytes, a multiple of 16. At most 1 MiB a size. */
void dp_memory_fill(void *(*allocate)(size_t), size_t largest);
/* cdef: end */

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif
#endif
