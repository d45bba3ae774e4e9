/* dp_shared: what an app learned, in one mapping that all of its workers share.
 *
 * The supervisor makes one memory file for each app (its size fixed by seals, its bytes writable)
 * and gives it to every worker of every generation. So a swap forgets nothing, a limit counts once
 * however many workers there are, and one worker's probe tells all of them. The Python half, which
 * makes it and reads it, is dataplane/control/shared.py.
 *
 *   offset 0   dp_shared_header: magic, version, size, a random key, the epoch, a table of sections
 *   ...        the sections; each has a kind, a version, an offset, a count and a stride in bytes
 *
 *   kind 1 names      uint64 each: the hash of a record's key, 0: free. Filled from the front.
 *   kind 2 endpoints  dp_shared_endpoint each, at the same index as its name
 *   kind 3 seats      dp_shared_seat each: a process that counts here
 *   kind 4 counts     dp_shared_count[endpoints] each, at the same index as its seat: what that
 *                     process holds of each endpoint's counts
 *   kind 5 buckets    dp_bucket each: see dp_rate.h
 *   kind 6 sources    one word each: see dp_source.h
 *   kind 7 held       uint32[16 + sources] each, at the same index as its seat: what that process
 *                     holds of each source's connections, behind a head (dp_source.h)
 *   kind 8 and up     free for others: a reader passes over kinds that it does not know
 *
 * Rules. Who maps it checks magic, version, and that every section lies inside, once; counts and
 * strides are then its own copies, never read again from the mapping. Every field that changes is
 * an atomic of its own size; no field is a pointer or an index that is followed without a check.
 * Times are milliseconds of CLOCK_MONOTONIC, which all processes of a host share. `epoch` is added
 * to after every change of what may be chosen (health, ejection), so that others look again.
 *
 * A process takes a seat with its first breath. What it adds to a shared count, it adds to its own
 * row first and takes away last; so when it dies the row says what to give back. The supervisor
 * marks the seat dead; the next worker that sees it gives everything back and frees the seat.
 *
 * A record is reused when no seat is attached to it. It is attached by setting the bit of one's own
 * row, then looking again whether the record is still that of the key; who reuses it takes the
 * state first and then looks for bits. So one of the two always sees the other. */
#ifndef DP_SHARED_H
#define DP_SHARED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp_rate.h"
#include "dp_source.h"

enum {
    DP_SHARED_MAGIC = 0x64707368, /* "dpsh" */
    DP_SHARED_VERSION = 1,
    DP_SHARED_SECTIONS = 16,
    DP_SHARED_KEY_MAX = 208 /* an upstream's name, an address, and a check's settings */
};

enum dp_shared_kind {
    DP_SHARED_NAMES = 1,
    DP_SHARED_ENDPOINTS,
    DP_SHARED_SEATS,
    DP_SHARED_COUNTS,
    DP_SHARED_BUCKETS, /* this and what follows may be missing */
    DP_SHARED_SOURCES,
    DP_SHARED_HELD
};

typedef struct dp_shared_section {
    uint32_t kind;
    uint32_t version;
    uint64_t offset;
    uint32_t count;
    uint32_t stride;
} dp_shared_section;

typedef struct dp_shared_header {
    uint32_t magic;
    uint32_t version;
    uint64_t size;
    uint8_t key[16]; /* of hashes that a client sees */
    _Atomic uint32_t epoch;
    uint32_t section_count;
    dp_shared_section sections[DP_SHARED_SECTIONS];
} dp_shared_header;

enum dp_record_state { DP_RECORD_FREE = 0, DP_RECORD_TAKING, DP_RECORD_READY };
enum dp_health { DP_HEALTH_UNKNOWN = 0, DP_HEALTH_UP, DP_HEALTH_DOWN };

typedef struct dp_shared_endpoint {
    _Atomic uint32_t state; /* dp_record_state */
    uint32_t key_len;
    char key[DP_SHARED_KEY_MAX];
    _Atomic uint32_t open;     /* connections to it, over all workers */
    _Atomic uint32_t waiting;  /* requests that wait for one of them */
    _Atomic uint32_t failures; /* in a row */
    _Atomic uint32_t ejections;
    _Atomic uint64_t ejected_until_ms;
    _Atomic uint64_t up_since_ms; /* when a check found it well again; 0: it always was */
    _Atomic uint64_t probe_at_ms; /* when the next probe is due, whoever makes it */
    _Atomic uint32_t health;      /* dp_health */
    _Atomic uint32_t streak;      /* probes in a row that speak against it */
    _Atomic uint32_t latency_us;  /* a moving average that follows peaks at once */
    _Atomic uint32_t latency_at_ms;
    _Atomic uint32_t answers; /* that were no failure; wraps */
    uint32_t reserved[10];
} dp_shared_endpoint;

_Static_assert(sizeof(dp_shared_endpoint) == 320, "control/shared.py knows the layout");

enum dp_seat_state { DP_SEAT_FREE = 0, DP_SEAT_TAKEN, DP_SEAT_DEAD, DP_SEAT_CLEARING };

typedef struct dp_shared_seat {
    _Atomic uint32_t state; /* dp_seat_state */
    _Atomic uint32_t pid;
} dp_shared_seat;

typedef struct dp_shared_count {
    _Atomic uint32_t attached; /* 1: this process uses the record */
    _Atomic uint32_t open;
    _Atomic uint32_t waiting;
} dp_shared_count;

/* A checked view of a mapping. base NULL: there is none, all is this process's own. */
typedef struct dp_shared {
    dp_shared_header *header;
    _Atomic uint64_t *names;
    dp_shared_endpoint *endpoints;
    uint32_t endpoint_count;
    dp_shared_seat *seats;
    uint8_t *counts;
    uint32_t seat_count;
    uint32_t count_stride; /* of one seat's row */
    uint32_t seat;         /* ours, plus 1; 0: none */
    dp_buckets buckets;    /* count 0: there are none */
    dp_sources sources;    /* held is ours, where we have a seat */
    uint8_t *held;         /* of all seats */
} dp_shared;

/* DP_OK, DP_EVERSION, or DP_EMALFORMED for what does not fit into len bytes. */
int dp_shared_open(dp_shared *shared, void *base, size_t len);
bool dp_shared_sit(dp_shared *shared, uint32_t pid);
bool dp_shared_alone(const dp_shared *shared); /* nobody else has a seat */
/* Our record of that key, made where there is none. NULL: no room, no seat, or a key too long. */
dp_shared_endpoint *dp_shared_find(dp_shared *shared, const char *key, size_t len,
                                   dp_shared_count **ret_count);
/* Gives back what dead processes counted. True: something changed. */
bool dp_shared_sweep(dp_shared *shared);
/* Whether a process other than ours finds a record well whose key begins so. */
bool dp_shared_others_find_well(const dp_shared *shared, const char *key, size_t len);
void dp_shared_leave(dp_shared *shared); /* ours, too */

/* At most max of open (0: no limit), and a share of it in one's own row. */
bool dp_shared_take(dp_shared_endpoint *endpoint, dp_shared_count *count, uint32_t max);
void dp_shared_give(dp_shared_endpoint *endpoint, dp_shared_count *count);
void dp_shared_wait(dp_shared_endpoint *endpoint, dp_shared_count *count, int by);

/* The moving average of an endpoint's answers, as it stands now; 0: nothing is known. */
uint32_t dp_latency_now(const dp_shared_endpoint *endpoint, uint64_t now_ms);
void dp_latency_add(dp_shared_endpoint *endpoint, uint64_t now_ms, uint64_t took_us);

#endif
