/* dp_core: the engine's own structures. Seen by the modules that do I/O (dp_engine, dp_conn,
 * dp_http, dp_tcp, dp_move) and by nobody else. */
#ifndef DP_CORE_H
#define DP_CORE_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "dp.h"
#include "dp_acl.h"
#include "dp_http1.h"
#include "dp_live.h"
#include "dp_record.h"
#include "dp_tables.h"

#define DP_ARRAY_LEN(array) (sizeof(array) / sizeof((array)[0]))
#define DP_CHECK(condition) ((condition) ? (void)0 : dp_fail(__FILE__, __LINE__, #condition))

/* A broken invariant: says where on standard error and aborts; the supervisor starts another. */
void dp_fail(const char *file, int line, const char *condition) __attribute__((noreturn, cold));

enum {
    DP_ENGINE_MAGIC = 0x64706531, /* "dpe1" */
    DP_CONN_MAGIC = 0x64706331,   /* "dpc1" */
    DP_STATS_MAGIC = 0x64707374   /* "dpst" */
};

enum {
    DP_ATTACHED_MAX = 256,    /* listening sockets lent to one process */
    DP_READ_MAX = 256 * 1024, /* one read of a body; also the most that waits for a slow peer */
    DP_READ_MIN = 16 * 1024,
    DP_BATCH_EVENTS = 256, /* events taken from the kernel at once */
    DP_ACCEPT_BURST = 64,  /* accepts on one socket before others have their turn */
    DP_PUMP_BURST = 8,     /* exchanges or reads on one connection before others have their turn */
    DP_TURN_MS = 2,        /* a turn that has lasted so long begins no further batch */
    DP_STAY_ROUNDS = 16,   /* batches before what is for later is looked at */
    DP_STAY_MS = 1000,     /* a batch after so long is the last before others have their turn */
    DP_LINGER_MS = 2000,   /* how long a refused client may still send what nobody reads */
    DP_LINGER_BYTES = 1 << 20,
    DP_TURNED_AWAY_MAX = 256, /* refused connections that linger; more are cut */
    DP_UPSTREAM_IDLE_MS = 60000,
    DP_CHUNK = 64,         /* connections that the slab grows by */
    DP_FREEZE_BATCHES = 8, /* batches frozen or held at once */
    DP_PIPE_BYTES = 256 * 1024,
    DP_PIPES_MAX = 128,          /* half of what the kernel lets a user who is not root have */
    DP_SPLICE_MIN = 256 * 1024,  /* less of a body is read and written */
    DP_SPLICE_MAX = 1024 * 1024, /* at once: a pipe of pages holds segments, which are larger */
    DP_SPLICE_SHIFT = 3,         /* so many times the read size doubled: bulk, of no known length */
    DP_SPLICE_SHIFT_MAX = 5,
    DP_GATHER_BYTES = 1024 * 1024, /* of an answer, before they are told of */
    DP_GATHER_MS = 20,             /* a source that is silent for so long is slow */
    DP_INTERIM_MAX = 256,          /* answers of the 1xx kind to one request */
    DP_WATCH_LATE_MS = 1000        /* a client that goes unseen is noticed after so long */
};

/* --- connections ----------------------------------------------------------------------------- */

enum { DP_BUFFER_CLASSES = 10, DP_BUFFER_MIN = 1024 }; /* 1 KiB to 512 KiB */

typedef struct dp_buffer {
    uint8_t *data;
    uint32_t off : 24;  /* first unread byte */
    uint32_t class : 8; /* of the block: DP_BUFFER_MIN << class bytes */
    uint32_t len;       /* unread bytes */
} dp_buffer;

typedef struct dp_pipe {
    struct dp_pipe *next; /* in dp_engine.free_pipes */
    int read_fd;
    int write_fd;
    uint32_t held; /* bytes */
} dp_pipe;

enum dp_role { DP_DOWN = 1, DP_UP = 2, DP_PROBER = 3 /* a health check's, without a peer */ };

enum dp_watch {
    DP_W_NONE = 0,
    DP_W_OWN,   /* in the epoll set; close(2) takes it out */
    DP_W_SHARED /* the same, and a copy of the descriptor may be open in another process */
};

enum dp_state {
    DP_S_FREE = 0,
    DP_S_PROXY,      /* down: its PROXY header must come first */
    DP_S_IDLE,       /* down: between exchanges, nothing read yet; up: in its pool */
    DP_S_HEAD,       /* down: part of a request head is here */
    DP_S_EXCHANGE,   /* down: a request is being answered; up: it serves its peer */
    DP_S_TUNNEL,     /* tcp, both sides; http after an upgrade */
    DP_S_CONNECTING, /* up */
    DP_S_LINGER,     /* down: answered and half-closed, input is thrown away until it ends */
    DP_S_FROZEN,     /* down: saved, out of epoll, waits for the commit */
    DP_S_HELD,       /* down: arrived, not in epoll, waits for the commit */
    DP_S_DEAD        /* closed, freed at the end of the batch */
};

enum {                     /* dp_conn.io */
       DP_IO_READ = 1,     /* a read may give something */
       DP_IO_WRITE = 2,    /* a write may take something */
       DP_IO_EOF = 4,      /* the peer ended its side: told by the kernel, not yet read */
       DP_IO_BROKEN = 8,   /* error or full hang-up */
       DP_IO_AT_EOF = 16,  /* a read returned 0 */
       DP_IO_SHUT = 32,    /* we ended our side */
       DP_IO_NO_WRITE = 64 /* up: writing failed; an early answer may still be there */
};

enum {                         /* dp_conn.flags */
       DP_C_QUEUED = 1,        /* in the ready queue */
       DP_C_PROBE = 2,         /* the self-test: not counted, not moved */
       DP_C_MOVABLE = 4,       /* in the movable list */
       DP_C_AFTER_REQUEST = 8, /* its last exchange ended during this drain */
       DP_C_FRESH = 16,        /* up: has not been used before */
       DP_C_SKIPPED = 32,      /* down: an empty line was passed over before this head */
       DP_C_TURNED_AWAY = 64,  /* down: beyond the limit, answered, only lingers; not counted */
       DP_C_STAYS = 128        /* down: declined in this drain, it ends here */
};

/* What is counted and told of one exchange or tunnel: kept by dp_account and dp_access. */
typedef struct dp_account {
    uint64_t began_us; /* its head was whole; a tunnel: accepted */
    uint64_t bytes_in;
    uint64_t bytes_out;
    dp_buffer line;      /* the request's part of its log line; empty where none is written */
    uint32_t head_us;    /* until the response's head; 0: none came */
    uint32_t head_bytes; /* of the head that went to the client */
    uint32_t endpoint;   /* the last that it was attached to: its slot + 1; 0: none */
    uint16_t status;     /* of the answer, 0: none */
    uint8_t attempts;    /* how often it was attached to an upstream connection */
    uint8_t outcome;     /* enum dp_outcome */
} dp_account;

typedef struct dp_exchange {
    struct dp_exchange *next; /* in dp_engine.free_exchanges */
    const dp_route *route;
    uint64_t request_left;
    uint64_t response_left;
    dp_chunked request_chunked;
    dp_chunked response_chunked;
    dp_tried tried;
    uint64_t key_hash;  /* maglev */
    uint64_t opened_us; /* p2c: when the request was sent */
    int32_t stuck;      /* sticky: the endpoint that the client's cookie names, or -1 */
    uint32_t ticket;    /* of its place among those that wait; 0: it does not */
    int32_t upstream;
    uint32_t method;
    uint32_t upgrade; /* dp_upgrade_mark of the protocol that was asked for; 0: none */
    uint8_t request_framing;
    uint8_t response_framing;
    uint8_t minor; /* the client's HTTP/1.minor */
    bool request_done;
    bool head_sent; /* of the final response */
    bool response_done;
    bool keep_alive; /* downstream, after this exchange */
    bool may_send;   /* the client was not told yet that no other request is read */
    bool reusable;   /* upstream, after this exchange */
    bool expects_continue;
    uint8_t request_keep;  /* DP_CHUNKED_: of the request's framing */
    uint8_t response_keep; /* of the response's */
    bool again;            /* sent once more: over a new connection only */
    bool keeps;            /* sent is kept for the route's retries */
    uint8_t repeats;
    uint16_t interims; /* answers of the 1xx kind that came */
    bool request_piped;
    bool response_piped;
    uint8_t client[16];    /* whom a trusted proxy named for this request, else the peer */
    bool response_stalled; /* for DP_GATHER_MS: its bytes are passed on as they come */
    dp_buffer sent;        /* the whole request so far, while it may be sent again, or waits */
    dp_account account;
} dp_exchange;

typedef struct dp_conn dp_conn;
/* Of many open connections nearly all are idle, and then this is all that they take: what only an
 * exchange needs is the exchange's. */
struct dp_conn {
    uint32_t magic;
    uint32_t id;
    uint32_t stamp; /* tells this use of the slot from earlier ones in stale events */
    int fd;
    uint8_t role;
    uint8_t state;
    uint8_t io;
    uint8_t flags;
    uint8_t protocol;
    uint8_t read_shift; /* how much one read of a body takes: DP_READ_MIN << read_shift */
    uint8_t watch;      /* enum dp_watch */
    uint8_t counted;    /* down: DP_COUNTED_* */
    dp_conn *peer;
    dp_exchange *exchange; /* down: of a request or a tunnel; NULL between requests */
    dp_buffer in;          /* read, not yet used */
    dp_buffer out;         /* to be written */
    dp_pipe *pipe;         /* to be written after out; NULL: nothing */
    uint64_t deadline;     /* ms, 0: none */
    dp_conn *timer_next;
    dp_conn **timer_at;
    uint32_t linked;   /* the wheel's tick that fires; not after deadline's */
    uint16_t listener; /* down */
    bool trusted;      /* down: the peer is a trusted proxy */
    uint32_t endpoint; /* up: slot in dp_engine.pools */
    uint32_t scanned;  /* of a partial head, dp_head_end's */
    uint32_t looked;   /* bytes of in that were looked at: more must come */
    union {
        uint32_t lingered; /* down */
        uint32_t gathers;  /* up: bytes that must be here before they are told of; 0: any */
    };
    uint32_t source;      /* down: its place among the counted sources, or 0 */
    uint16_t client_port; /* down: as its PROXY header told; 0: not told */
    dp_conn *next;        /* ready queue, pool, movable list or dead list */
    dp_conn *prev;        /* pool and movable list */
    uint64_t bound;       /* down: key of the idle upstream connection that speaks for it alone */
    uint64_t frozen_us;   /* when it was taken out of service, for the stall */
    uint64_t request_by;  /* down: ms, when the whole request must be here; 0: no limit */
    uint8_t address[16];  /* down: the peer's, or what its PROXY header told; zeros: none */
};
_Static_assert(sizeof(dp_conn) <= 192, "three lines of the cache");

typedef struct dp_list {
    dp_conn *head;
    dp_conn *tail;
    uint32_t count;
} dp_list;

typedef struct dp_pool { /* live state of one endpoint */
    dp_list idle;        /* LIFO: the warmest first */
    const dp_endpoint *endpoint;
    dp_shared_endpoint *shared; /* what all workers know of it */
    dp_shared_endpoint *check;  /* what probes found; NULL: none are made */
    dp_shared_count *count;     /* our part of what is counted in shared */
    dp_conn *probe;             /* under way */
    uint64_t token;             /* sticky */
    uint32_t keepalive;         /* idle connections kept at most */
    uint16_t upstream;
    uint16_t index;
} dp_pool;

enum { DP_COUNTED_CONNECTION = 1, DP_COUNTED_REQUEST = 2 };

typedef struct dp_limits { /* what is counted, for all workers where they share */
    uint8_t seed[16];
    dp_buckets buckets;
    dp_sources sources;
    dp_shared_endpoint *connections; /* its `open` counts */
    dp_shared_endpoint *requests;
    dp_shared_count *own_connections; /* our part of it */
    dp_shared_count *own_requests;
    dp_shared_endpoint records[2]; /* where nothing is shared */
    dp_shared_count parts[2];
    void *memory[3];
} dp_limits;

typedef struct dp_transport {
    /* As read(2) and writev(2), but errors are negative errno. Each keeps conn->io true. */
    ssize_t (*read)(dp_conn *conn, uint8_t *data, size_t len);
    ssize_t (*write)(dp_conn *conn, const struct iovec *iov, int count);
    bool may_splice; /* the socket's bytes are the connection's */
} dp_transport;

extern const dp_transport dp_transport_plain;
extern const dp_transport dp_transport_trickle;

enum { DP_WHEEL_SLOTS = 1024, DP_WHEEL_MS = 16 };

typedef struct dp_attached {
    int fd;
    int listener;
    bool accepting;
} dp_attached;

typedef struct dp_access dp_access;

typedef struct dp_meter {         /* figures by section, in the stats mapping or in own */
    dp_duration_stats *durations; /* of requests */
    dp_upstream_stats *upstreams;
    dp_route_stats *routes; /* one more than there are: no route */
    void *own;
    uint64_t cpu_before_us; /* of earlier processes */
    uint64_t cpu_at_ms;     /* when the CPU time was last looked at */
} dp_meter;

typedef struct dp_batch { /* connections frozen here, or held here, until a commit */
    dp_list conns;
    uint32_t number;
    uint8_t state; /* DP_S_FROZEN, DP_S_HELD, or DP_S_FREE: not in use */
} dp_batch;

struct dp_engine {
    uint32_t magic;
    bool sealed;
    bool serving;
    bool draining;
    bool closing_idle;
    int epoll_fd;
    int timer_fd;
    uint64_t now_ms;
    uint64_t next_timer;   /* what timer_fd is armed for */
    uint64_t accept_again; /* ms: out of descriptors until then; 0: accepting */
    dp_engine_options options;
    const dp_transport *transport;
    dp_tables tables;
    dp_arena arena;
    dp_stats *stats;
    dp_stats own_stats; /* where the caller gave no page */
    dp_pool *pools;
    dp_group *groups;   /* by upstream */
    dp_budget *budgets; /* by route */
    dp_shared shared;
    dp_limits limits;
    dp_shared_endpoint *own_endpoints; /* where the app shares nothing */
    dp_shared_count *own_counts;
    void *group_memory;
    uint32_t epoch;   /* of shared, as last seen */
    uint64_t look_ms; /* when time alone changes what may be chosen */
    uint64_t room_ms; /* when to look for room that others left; UINT64_MAX: nobody needs any */
    bool has_room;    /* in at least one group */
    uint32_t tickets;
    uint64_t random;
    dp_prober prober;
    dp_event events[DP_EVENTS_MAX];
    uint32_t event_head;
    uint32_t event_count;

    dp_conn **chunks; /* slab of connections */
    uint32_t chunk_count;
    dp_conn *free_conns;
    dp_exchange **exchange_chunks; /* slab of exchanges */
    uint32_t exchange_chunk_count;
    dp_exchange *free_exchanges;
    dp_conn *dead_conns;
    uint32_t down_count;  /* without probes */
    uint32_t turned_away; /* DP_C_TURNED_AWAY, open now */

    dp_list ready;
    dp_list movable;
    dp_drain_counts drained;
    dp_batch batches[DP_FREEZE_BATCHES];
    uint32_t move_at;   /* where in the slab to look on for what flows and may be saved */
    bool move_news;     /* before that there is more of it */
    uint64_t *ended_as; /* the count of drained for connections that end now */

    uint8_t *free_buffers[DP_BUFFER_CLASSES];
    uint64_t buffer_bytes;
    dp_pipe *free_pipes;
    uint32_t pipe_count;         /* in use and free */
    uint64_t pipes_denied_until; /* ms */

    dp_conn *wheel[DP_WHEEL_SLOTS];
    uint64_t wheel_bits[DP_WHEEL_SLOTS / 64];
    uint64_t wheel_tick; /* the slot that is looked at next, in DP_WHEEL_MS */

    dp_attached attached[DP_ATTACHED_MAX];
    uint32_t attached_count;

    dp_meter meter;
    dp_access *access; /* NULL: no access log */
    uint64_t request_ids;
    uint64_t date_second;
    char date[32]; /* IMF-fixdate, RFC 9110 5.6.7 */

    uint8_t *read_buffer; /* DP_READ_MAX, and before it room for a partial head */
    uint8_t *head_buffer; /* where heads are written that go out */
    size_t head_buffer_size;
    dp_request_head request;
    dp_response_head response;
};

/* --- dp_buffer ------------------------------------------------------------------------------- */

/* Room for need bytes in all, keeping what is there. DP_ENOMEM: the engine's limit, too. */
int dp_buffer_reserve(dp_engine *engine, dp_buffer *buffer, size_t need);
int dp_buffer_append(dp_engine *engine, dp_buffer *buffer, const uint8_t *data, size_t len);
void dp_buffer_consume(dp_engine *engine, dp_buffer *buffer, size_t len); /* freed when empty */
void dp_buffer_free(dp_engine *engine, dp_buffer *buffer);
void dp_buffers_trim(dp_engine *engine, bool all);

static inline size_t dp_buffer_room(const dp_buffer *buffer)
{
    return buffer->data != NULL ? (size_t)DP_BUFFER_MIN << buffer->class : 0;
}

/* The first unread byte; NULL where there is no buffer, to which C lets nobody add, not even 0. */
static inline uint8_t *dp_buffer_start(const dp_buffer *buffer)
{
    return buffer->data != NULL ? buffer->data + buffer->off : NULL;
}
/* --- dp_splice -------------------------------------------------------------------------------- */

/* Takes at most max bytes from one socket into a pipe on the way to the other, which has none. The
 * count, 0 at the end, or negative errno; -ENOBUFS: no pipe is to be had, read and write instead.
 */
ssize_t dp_splice_in(dp_engine *engine, dp_conn *from, dp_conn *to, size_t max);
/* Writes what to->pipe holds, as far as the socket takes it. 0, or negative errno. */
int dp_splice_out(dp_engine *engine, dp_conn *to);
enum dp_passed {
    DP_PASSED_NO_PIPE, /* not for a pipe, or none is to be had: to be read and written */
    DP_PASSED_NOTHING,
    DP_PASSED_SOME,
    DP_PASSED_SOURCE_FAILED, /* or ended too early */
    DP_PASSED_SINK_FAILED
};

/* More of a body through a pipe; left, piped and *ret_done are its state. */
enum dp_passed dp_splice_body(dp_engine *engine, dp_conn *from, dp_conn *to, uint8_t framing,
                              uint64_t *left, bool *piped, bool *ret_done);
void dp_gather_end(dp_conn *up); /* nothing if it does not */
void dp_gather_timeout(dp_engine *engine, dp_conn *up);
void dp_pipe_drop(dp_engine *engine, dp_conn *conn); /* with all that is in it */
/* A pipe with so many bytes in it, which comes from another process, without its descriptors. */
bool dp_pipe_adopt(dp_engine *engine, dp_conn *conn, uint32_t held);
void dp_pipes_trim(dp_engine *engine, bool all);

/* --- dp_timer -------------------------------------------------------------------------------- */

uint64_t dp_clock_ms(void);
uint64_t dp_clock_us(void);
void dp_timer_set(dp_engine *engine, dp_conn *conn, uint64_t after_ms); /* 0: none */
void dp_timer_cancel(dp_conn *conn);
void dp_timer_run(dp_engine *engine); /* calls dp_conn_timeout for what is due */
int dp_timer_arm(dp_engine *engine, bool force);

/* --- dp_conn: one socket --------------------------------------------------------------------- */

dp_conn *dp_conn_new(dp_engine *engine, int fd, enum dp_role role);
/* Gives down a zeroed exchange, in place of one that it may have. False: no memory, it is closed.
 */
bool dp_exchange_open(dp_engine *engine, dp_conn *down);
void dp_exchange_close(dp_engine *engine, dp_conn *down);       /* nothing if there is none */
void dp_exchange_forget_sent(dp_engine *engine, dp_conn *down); /* it will not be sent again */
dp_conn *dp_conn_find(const dp_engine *engine, uint64_t key);
uint64_t dp_conn_key(const dp_conn *conn);
int dp_conn_watch(dp_engine *engine, dp_conn *conn, enum dp_watch as);
void dp_conn_unwatch(dp_engine *engine, dp_conn *conn);
/* conn waits, and not for its upstream alone: from now on its events are told. */
void dp_conn_watch_late(dp_engine *engine, dp_conn *conn);
/* After something was done with a downstream connection: watches one that is not, if it has to. */
void dp_conn_settle(dp_engine *engine, dp_conn *down);
/* Ends it; the object lives on as DP_S_DEAD until the end of the batch. */
void dp_conn_close(dp_engine *engine, dp_conn *conn);
void dp_conn_reset(dp_engine *engine, dp_conn *conn);  /* with RST */
void dp_conn_abortive(dp_conn *conn);                  /* its close will be a reset */
void dp_conn_forget(dp_engine *engine, dp_conn *conn); /* moved away: close without shutdown */
void dp_conn_collect(dp_engine *engine);
void dp_conn_count_down(dp_engine *engine, dp_conn *conn, int by);
/* So many bytes left by conn. */
void dp_conn_count_sent(dp_engine *engine, dp_conn *conn, size_t put);
/* Writes, and keeps in conn->out what the socket does not take. 0, or negative errno. */
int dp_conn_send(dp_engine *engine, dp_conn *conn, struct iovec *iov, int count);
int dp_conn_flush(dp_engine *engine, dp_conn *conn);
size_t dp_conn_unsent(const dp_conn *conn);
void dp_conn_drop_unsent(dp_engine *engine, dp_conn *conn);
/* After bytes went from one to the other: reads as large as what comes and leaves in one go. */
void dp_conn_adapt_read(dp_conn *from, const dp_conn *to, size_t got);
ssize_t dp_conn_read(dp_engine *engine, dp_conn *conn, uint8_t *data, size_t len);
size_t dp_conn_read_size(const dp_conn *conn);
void dp_conn_timeout(dp_engine *engine, dp_conn *conn);
void dp_conn_handle(dp_engine *engine, dp_conn *conn);
void dp_ready_push(dp_engine *engine, dp_conn *conn);
void dp_ready_run(dp_engine *engine); /* handles what was queued until now */

void dp_list_push(dp_list *list, dp_conn *conn); /* at the head */
void dp_list_append(dp_list *list, dp_conn *conn);
void dp_list_remove(dp_list *list, dp_conn *conn);

/* --- dp_accept: listening sockets --------------------------------------------------------------
 */

/* The top byte of an epoll key; 0: a connection. */
enum { DP_KEY_LISTENER = 1, DP_KEY_TIMER = 2, DP_KEY_OTHERS = 3 };
enum { DP_ACCEPT_PAUSE_MS = 100 }; /* out of descriptors: the queue waits */

int dp_accept_start(dp_engine *engine);
void dp_accept_stop(dp_engine *engine);
/* Answers and lingers, where there are words for it; else closes. */
void dp_accept_turn_away(dp_engine *engine, dp_conn *conn, uint32_t status);
void dp_accept_burst(dp_engine *engine, uint32_t index);

/* --- dp_deadline: how long an exchange waits ---------------------------------------------------
 */

void dp_deadline_begin(const dp_engine *engine, dp_conn *down); /* of a request */
/* ms from now, or when the whole request must be here. */
void dp_deadline_set(dp_engine *engine, dp_conn *down, uint64_t ms);
/* Something moved on its way to or from the client: until the next such. */
void dp_deadline_client(dp_engine *engine, dp_conn *down);

/* Its request, or what there is of it, is on its way to an upstream. */
void dp_deadline_sent(dp_engine *engine, dp_conn *down);
/* Bytes went on: the time that the next ones may take begins. */
void dp_deadline_progress(dp_engine *engine, dp_conn *down);

/* --- dp_limit: who may come, how many, and how often ------------------------------------------
 */

int dp_limit_seal(dp_engine *engine);
void dp_limit_free(dp_engine *engine);
bool dp_limit_connection(dp_engine *engine); /* counts one more; false: there is no room */
/* Its source is known now. 0: it may stay; else the status that it is turned away with. */
uint32_t dp_limit_source(dp_engine *engine, dp_conn *down);
void dp_limit_arrived(dp_engine *engine, dp_conn *down); /* moved here: counted, never refused */
bool dp_limit_allows(const dp_engine *engine, const dp_conn *down);
/* By the app's rules alone, as a request of it would be. */
bool dp_limit_allows_client(const dp_engine *engine, const dp_conn *down);
void dp_limit_request_moved(dp_engine *engine, dp_conn *down); /* counted, never refused */
/* 0: the request may go on, and is counted; else the status that answers it, and the seconds after
 * which another may come (0: not told). route may be NULL. */
uint32_t dp_limit_request(dp_engine *engine, dp_conn *down, const uint8_t *data,
                          const dp_request_head *head, const dp_route *route,
                          uint32_t *ret_retry_after);
void dp_limit_request_over(dp_engine *engine, dp_conn *down);
void dp_limit_left(dp_engine *engine, dp_conn *down); /* closed, or moved away */

/* --- dp_route: pure ----------------------------------------------------------------------------
 */

void dp_route_sort(dp_route **routes, uint32_t count);
/* The index over tables->routes, sorted, in dp_route_index_size zeroed bytes of the caller's. */
size_t dp_route_index_size(dp_route *const *routes, uint32_t count);
void dp_route_index_build(dp_tables *tables, void *memory);
const dp_route *dp_route_lookup(const dp_tables *tables, const uint8_t *data,
                                const dp_request_head *head);

/* --- dp_client: who a connection comes from */

bool dp_address_parse(const char *text, uint8_t ret_address[16]);
size_t dp_address_text(const uint8_t address[16], char ret_text[46]);
bool dp_network_make(const char *address, uint32_t bits, dp_network *ret_network);
bool dp_network_has(const dp_network *network, const uint8_t address[16]);
enum { DP_CLIENT_TEXT = 46 };
/* Of its request's client, or between requests its peer's. False: it has none. */
bool dp_client_address(const dp_conn *conn, uint8_t ret_address[16]);
size_t dp_client_text(const dp_conn *conn, char ret_text[DP_CLIENT_TEXT]); /* or "unknown" */
/* Each sets address and trusted, the last by conn->listener. */
void dp_client_set(const dp_engine *engine, dp_conn *conn, const uint8_t address[16]);
void dp_client_accepted(const dp_engine *engine, dp_conn *conn,
                        const struct sockaddr_storage *peer);
/* As dp_client_text wrote it; false: nobody of ours did. */
bool dp_client_moved(const dp_engine *engine, dp_conn *conn, const uint8_t *text, size_t len);
void dp_client_begin(dp_conn *conn); /* of its exchange: the peer */
void dp_client_carried(const dp_engine *engine, dp_conn *conn, const dp_record *record);
void dp_client_named(dp_conn *conn, const dp_moved_bytes *text); /* of its exchange */
/* For a trusted peer: the client of this request, by its x-forwarded-for. */
void dp_client_walk(const dp_engine *engine, dp_conn *conn, const uint8_t *data,
                    const dp_request_head *head);

/* --- dp_proxy: PROXY headers */

void dp_proxy_accepted(dp_engine *engine, dp_conn *down);
void dp_proxy_pump(dp_engine *engine, dp_conn *down);

/* --- dp_input -------------------------------------------------------------------------------- */

/* Gives what waits in conn->in, or together with it what one read adds. The length, 0 at the end,
 * or negative errno. *ret_buffered: the bytes are conn->in's. */
ssize_t dp_input_take(dp_engine *engine, dp_conn *conn, size_t max, uint8_t **ret_data,
                      bool *ret_buffered);
/* Keeps what was not used of bytes that dp_input_take gave. Of a body that is not done they were
 * looked at: more must come. */
int dp_input_keep(dp_engine *engine, dp_conn *conn, bool buffered, const uint8_t *data, size_t len,
                  size_t used, bool done);

/* --- dp_linger: the end of a connection that may still be sending */

void dp_linger_begin(dp_engine *engine, dp_conn *down); /* ends our side */
void dp_linger_pump(dp_engine *engine, dp_conn *down);  /* reads on for a while, then closes */

/* --- dp_tunnel ------------------------------------------------------------------------------- */

/* data[0..len) begins with the 101 in engine->response. DP_OK: down and its peer are a tcp tunnel
 * now. DP_EMALFORMED: it is no answer to what was asked. DP_ESYSTEM: a side is gone. */
int dp_tunnel_begin(dp_engine *engine, dp_conn *down, uint8_t *data, size_t len);

/* --- dp_tcp ----------------------------------------------------------------------------------- */

void dp_tcp_accepted(dp_engine *engine, dp_conn *down);
void dp_tcp_pump(dp_engine *engine, dp_conn *down);
void dp_tcp_timeout(dp_engine *engine, dp_conn *down);
void dp_tcp_opened(dp_engine *engine, dp_conn *down, int result);   /* what dp_upstream_open gave */
void dp_tcp_reopened(dp_engine *engine, dp_conn *down, int result); /* dp_upstream_retry */

/* Of a request's head. */
static inline dp_head_limits dp_head_limits_of(const dp_engine *engine)
{
    return (dp_head_limits){.max_bytes = engine->options.max_header_bytes,
                            .max_fields = engine->options.max_headers,
                            .max_target = engine->options.max_header_bytes / 2};
}

#include "dp_account.h"
#include "dp_http.h"
#include "dp_move.h"
#include "dp_upstream.h"

#endif
