/* dp_tables: what an app is configured to do: listeners, routes and upstreams. Part of dp_core.h,
 * in a file of its own: nobody else includes it. */
#ifndef DP_TABLES_H
#define DP_TABLES_H

#include <stdbool.h>

#include "dp.h"
#include "dp_acl.h"
#include "dp_live.h"
#include "dp_rate.h"

enum {
    DP_NAME_MAX = 63,        /* names of listeners and upstreams: a label's length */
    DP_UPSTREAMS_MAX = 1024, /* more upstreams in one app are several apps */
    DP_LISTENERS_MAX = 64,
    DP_ROUTES_MAX = 4096,
    DP_TRUSTED_MAX = 256 /* networks of one listener */
};

/* --- tables: in one mapping that dp_engine_seal makes read-only ------------------------------ */

typedef struct dp_arena {
    uint8_t *base;
    size_t size; /* reserved address space */
    size_t used;
} dp_arena;

void *dp_arena_take(dp_arena *arena, size_t size); /* zeroed, 16-aligned; NULL: full */
char *dp_arena_text(dp_arena *arena, const char *text, size_t len);

typedef struct dp_text {
    const char *data;
    uint32_t len;
} dp_text;

typedef struct dp_rate_rule {
    dp_rate rate;
    uint64_t scope;
    dp_text header; /* empty: by source */
} dp_rate_rule;

typedef struct dp_edit {
    const struct dp_edit *next;
    dp_text name; /* lower case */
    dp_text line; /* "name: value\r\n" of a set; empty for a remove */
} dp_edit;

typedef struct dp_header_match {
    const struct dp_header_match *next;
    dp_text name;
    dp_text value;
} dp_header_match;

typedef struct dp_route {
    dp_text host; /* without the "*" of a wildcard, whose first byte is then '.' */
    dp_text path;
    dp_text location;
    dp_text body;
    const dp_header_match *headers;
    const dp_edit *request_edits;
    const dp_edit *response_edits;
    const dp_acl *access;      /* NULL: as the app's */
    const dp_rate_rule *rate;  /* NULL: none beside the app's */
    const dp_retries *retries; /* NULL: only what was certainly not executed is sent again */
    uint32_t methods;
    int32_t upstream;
    uint32_t request_timeout_ms;
    uint32_t status;
    uint32_t order;
    uint8_t any_host;
    uint8_t wildcard_host;
    uint8_t any_path;
    uint8_t prefix_path;
} dp_route;

typedef struct dp_network {
    uint8_t address[16]; /* IPv4 in its IPv6-mapped form */
    uint8_t bits;
} dp_network;

typedef struct dp_listener {
    char name[DP_NAME_MAX + 1];
    int protocol;
    int upstream; /* tcp */
    dp_network *trusted;
    uint32_t trusted_count;
    bool expects_proxy; /* from trusted peers */
} dp_listener;

typedef struct dp_route_index dp_route_index; /* dp_route's own */

typedef struct dp_tables {
    const dp_acl *access; /* NULL: all may come */
    const dp_rate_rule *rate;
    dp_listener *listeners;
    dp_upstream *upstreams;
    dp_route **routes;   /* in the order they were added, then sorted by dp_route_sort */
    dp_route **by_order; /* index as given to the builder */
    const dp_route_index *index;
    uint32_t listener_count;
    uint32_t upstream_count;
    uint32_t route_count;
    uint32_t endpoint_count;
} dp_tables;

#endif
