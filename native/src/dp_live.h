/* dp_live: upstreams as they are configured, and what is known of them while the engine runs. Part
 * of dp_core.h, in a file of its own: nobody else includes it. */
#ifndef DP_LIVE_H
#define DP_LIVE_H

#include <stdbool.h>
#include <sys/socket.h>

#include "dp.h"
#include "dp_balance.h"
#include "dp_shared.h"

enum {
    DP_REPLAY_MAX = 64 * 1024, /* of a request that may have to be sent again */
    DP_EVENTS_MAX = 256,       /* transitions that wait to be told; more are told as lost */
    DP_EJECT_DOUBLINGS = 5,    /* an ejection grows to 32 times its first length */
    DP_RAMP_MS = 250,          /* a slow start's steps */
    DP_RAMP_LEAST = 10,        /* percent of its weight that an endpoint returns with */
    DP_ROOM_MS = 16,           /* how soon room that another process left is seen */
    DP_OVERTAKEN_MAX = 16,     /* those first in line that the others pass for once */
    DP_LEND_MS = 100,          /* how soon idle connections are given up to those that wait */
    DP_BUDGET_LEAST = 10,      /* repeats that a quiet route has in hand */
    DP_BUDGET_MOST = 100
};

/* --- tables: read-only once sealed ------------------------------------------------------------ */

typedef struct dp_endpoint {
    struct sockaddr_storage address;
    socklen_t address_len;
    uint32_t weight;
    uint32_t slot;    /* where its live state stands in dp_engine.pools */
    const char *name; /* its address as text */
    uint32_t name_len;
} dp_endpoint;

typedef struct dp_check { /* an active health check */
    const char *request;  /* NULL: connecting is all */
    uint32_t request_len;
    uint32_t interval_ms;
    uint32_t timeout_ms;
    uint32_t fall;
    uint32_t rise;
    uint32_t status_min;
    uint32_t status_max;
} dp_check;

typedef struct dp_upstream {
    char name[64];
    dp_endpoint *endpoints;
    uint32_t endpoint_count;
    uint32_t endpoint_room;
    uint32_t connect_timeout_ms;
    uint32_t keepalive;
    int balance;
    int key;              /* DP_BY_*, for maglev */
    const char *key_name; /* lower case for a header */
    uint32_t key_name_len;
    const char *sticky; /* a cookie's name; NULL: off */
    uint32_t sticky_len;
    uint32_t max_connections;
    uint32_t max_waiting;
    uint32_t eject_failures; /* in a row; 0: never */
    uint32_t eject_ms;
    bool eject_server_errors;
    uint32_t slow_start_ms;
    uint32_t proxy_protocol; /* 0, 1, 2 */
    const dp_check *check;   /* NULL: none */
    const uint16_t *maglev;
    uint32_t maglev_size;
} dp_upstream;

typedef struct dp_retries {
    uint32_t attempts;
    uint32_t causes;      /* DP_ON_* */
    uint64_t statuses[4]; /* bits from 400 on */
    uint32_t methods;     /* that may be repeated though they may have been executed */
    uint32_t budget_percent;
} dp_retries;

/* --- live state ------------------------------------------------------------------------------- */

typedef struct dp_waiter {
    uint64_t key; /* of a downstream connection */
    uint32_t ticket;
} dp_waiter;

typedef struct dp_group { /* live state of one upstream */
    dp_balancer balancer;
    dp_waiter *ring; /* first come, first served; those that left are passed over */
    uint32_t ring_size;
    uint32_t ring_head;
    uint32_t ring_count;
    uint32_t waiting; /* entries that still wait */
    uint32_t full;    /* endpoints without room */
    uint64_t look_ms; /* when time alone changes what may be chosen */
    bool has_room;    /* and somebody may wait for it */
    uint64_t *tokens; /* sticky: open addressing, 0: none */
    uint16_t *token_of;
    uint32_t token_mask;
} dp_group;

typedef struct dp_budget { /* of a route's repeats, in hundredths */
    uint32_t tokens;
    uint64_t at_ms;
} dp_budget;

typedef struct dp_prober { /* active checks of all upstreams */
    dp_heap due;           /* by slot: when its next probe is */
    uint64_t *memory;
    uint32_t unknown; /* endpoints with a check that no probe of anybody's has judged */
} dp_prober;

#endif
