/* dp_route: from a request head to a route. Pure.
 *
 * The most specific match wins: an exact host before a wildcard (the longer first) before any; an
 * exact path before the longest prefix before any; then the order in the config.
 *
 * The index makes that a matter of the request's length and not of how many routes there are: a
 * hash of hosts, and under each a tree of path segments, whose edges stand in one more hash. Routes
 * of one host and one path stand together in dp_tables.routes, in their order: a run, of which the
 * first whose methods and headers agree is the answer. Only what the config says is ever put into a
 * hash, so a client cannot make it slow. */
#include <stdlib.h>
#include <string.h>

#include "dp_core.h"

typedef struct route_run {
    uint32_t first; /* in dp_tables.routes */
    uint32_t count;
} route_run;

typedef struct route_node {
    uint32_t parent;  /* its own number: a root */
    route_run prefix; /* whose path ends here with a '/' */
} route_node;

typedef struct route_edge { /* from one node by one segment of a path */
    const uint8_t *segment;
    uint32_t len;
    uint32_t from;
    uint32_t to;     /* a route_node */
    route_run exact; /* count not 0: no node follows, the path ends without a '/' */
    bool is_exact;
    bool used;
} route_edge;

typedef struct route_host {
    const uint8_t *name;
    uint32_t len;
    uint32_t root;
    route_run any_path;
    const struct route_host
        *shorter; /* of a wildcard: the next one that matches all that this does */
    bool wildcard;
    bool used;
} route_host;

struct dp_route_index {
    route_node *nodes;
    route_edge *edges;
    route_host *hosts;
    uint32_t node_count;
    uint32_t edge_mask;
    uint32_t host_mask;
    uint32_t longest_segment;
    uint32_t longest_host;
    route_host any; /* routes without a route_host */
};

/* --- order ------------------------------------------------------------------------------------ */

static int host_rank(const dp_route *route)
{
    return route->any_host ? 2 : route->wildcard_host ? 1 : 0;
}

static int path_rank(const dp_route *route)
{
    return route->any_path ? 2 : route->prefix_path ? 1 : 0;
}

/* The longer first, then by bytes: equal ones stand together. */
static int by_text(const dp_text *a, const dp_text *b)
{
    if (a->len != b->len)
        return a->len > b->len ? -1 : 1;
    return a->len != 0 ? memcmp(a->data, b->data, a->len) : 0;
}

static int by_specificity(const void *left, const void *right)
{
    const dp_route *a = *(dp_route *const *)left;
    const dp_route *b = *(dp_route *const *)right;
    if (host_rank(a) != host_rank(b))
        return host_rank(a) - host_rank(b);
    int order = by_text(&a->host, &b->host);
    if (order == 0)
        order = path_rank(a) - path_rank(b);
    if (order == 0)
        order = by_text(&a->path, &b->path);
    return order != 0 ? order : a->order < b->order ? -1 : a->order > b->order ? 1 : 0;
}

void dp_route_sort(dp_route **routes, uint32_t count)
{
    qsort(routes, count, sizeof(*routes), by_specificity);
}

/* --- hashes ----------------------------------------------------------------------------------- */

static uint32_t step(uint32_t hash, uint8_t byte)
{
    return (hash ^ byte) * 16777619u; /* FNV-1a */
}

static uint8_t fold(uint8_t byte)
{
    return byte >= 'A' && byte <= 'Z' ? (uint8_t)(byte | 0x20) : byte;
}

static uint32_t segment_hash(uint32_t from, const uint8_t *segment, uint32_t len, bool is_exact)
{
    uint32_t hash = 2166136261u ^ (from * 2u + is_exact) * 2654435761u;
    for (uint32_t i = 0; i < len; i++)
        hash = step(hash, segment[i]);
    return hash ^ hash >> 15;
}

/* Where it stands, or the free place for it. */
static route_edge *edge_at(const dp_route_index *index, uint32_t from, const uint8_t *segment,
                           uint32_t len, bool is_exact)
{
    uint32_t at = segment_hash(from, segment, len, is_exact);
    for (;; at++) {
        route_edge *found = &index->edges[at & index->edge_mask];
        if (!found->used ||
            (found->from == from && found->is_exact == is_exact && found->len == len &&
             (len == 0 || memcmp(found->segment, segment, len) == 0)))
            return found;
    }
}

/* hash: of the name from its last byte to its first, so that each suffix's is on the way. */
static route_host *host_at(const dp_route_index *index, uint32_t hash, const uint8_t *name,
                           uint32_t len, bool wildcard)
{
    for (uint32_t at = hash ^ hash >> 15 ^ wildcard;; at++) {
        route_host *found = &index->hosts[at & index->host_mask];
        if (!found->used || (found->wildcard == wildcard && found->len == len &&
                             dp_equal_fold(found->name, name, len)))
            return found;
    }
}

static uint32_t host_hash(const uint8_t *name, uint32_t len)
{
    uint32_t hash = 2166136261u;
    while (len > 0)
        hash = step(hash, fold(name[--len]));
    return hash;
}

/* The longest wildcard that stands for this name: ".example.com" for "a.example.com". */
static const route_host *wildcard_for(const dp_route_index *index, const uint8_t *name,
                                      uint32_t len)
{
    const route_host *longest = NULL;
    uint32_t hash = 2166136261u;
    for (uint32_t at = len; at > 1 && len - at < index->longest_host;) {
        hash = step(hash, fold(name[--at]));
        if (name[at] != '.')
            continue;
        const route_host *found = host_at(index, hash, name + at, len - at, true);
        if (found->used)
            longest = found;
    }
    return longest;
}

/* --- building --------------------------------------------------------------------------------- */

static uint32_t power_above(uint32_t count)
{
    uint32_t size = 2;
    while (size < count)
        size *= 2;
    return size;
}

static uint32_t count_segments(dp_route *const *routes, uint32_t count)
{
    uint32_t segments = 0;
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t at = 1; at < routes[i]->path.len; at++)
            segments += routes[i]->path.data[at] == '/';
        segments++;
    }
    return segments;
}

typedef struct sizes {
    uint32_t edges;
    uint32_t hosts;
    uint32_t nodes;
} sizes;

/* No hash is more than half full. */
static sizes sizes_for(dp_route *const *routes, uint32_t count)
{
    uint32_t segments = count_segments(routes, count);
    return (sizes){.edges = power_above(2 * segments + 2),
                   .hosts = power_above(2 * count + 2),
                   .nodes = segments + count + 1};
}

size_t dp_route_index_size(dp_route *const *routes, uint32_t count)
{
    sizes need = sizes_for(routes, count);
    return sizeof(dp_route_index) + need.edges * sizeof(route_edge) +
           need.hosts * sizeof(route_host) + need.nodes * sizeof(route_node);
}

static uint32_t add_node(dp_route_index *index, uint32_t parent)
{
    uint32_t number = index->node_count++;
    index->nodes[number] = (route_node){.parent = parent};
    return number;
}

static route_host *host_of(dp_route_index *index, const dp_route *route)
{
    if (route->any_host)
        return &index->any;
    const uint8_t *name = (const uint8_t *)route->host.data;
    uint32_t len = route->host.len;
    route_host *found = host_at(index, host_hash(name, len), name, len, route->wildcard_host != 0);
    if (!found->used) {
        *found = (route_host){.name = name,
                              .len = len,
                              .root = add_node(index, index->node_count),
                              .wildcard = route->wildcard_host != 0,
                              .used = true};
        if (len > index->longest_host)
            index->longest_host = len;
    }
    return found;
}

static route_edge *edge_of(dp_route_index *index, uint32_t from, const uint8_t *segment,
                           uint32_t len, bool is_exact)
{
    route_edge *found = edge_at(index, from, segment, len, is_exact);
    if (!found->used) {
        *found = (route_edge){
            .segment = segment, .len = len, .from = from, .is_exact = is_exact, .used = true};
        if (!is_exact)
            found->to = add_node(index, from);
        if (len > index->longest_segment)
            index->longest_segment = len;
    }
    return found;
}

static route_run *run_of(dp_route_index *index, route_host *under, const dp_route *route)
{
    if (route->any_path)
        return &under->any_path;
    const uint8_t *at = (const uint8_t *)route->path.data + 1;
    const uint8_t *end = at + route->path.len - 1;
    uint32_t from = under->root;
    const uint8_t *slash;
    while (at < end && (slash = memchr(at, '/', (size_t)(end - at))) != NULL) {
        from = edge_of(index, from, at, (uint32_t)(slash - at), false)->to;
        at = slash + 1;
    }
    if (route->prefix_path)
        return &index->nodes[from].prefix;
    return &edge_of(index, from, at, (uint32_t)(end - at), true)->exact;
}

/* memory: dp_route_index_size zeroed bytes, aligned for pointers; the routes are sorted. */
void dp_route_index_build(dp_tables *tables, void *memory)
{
    sizes need = sizes_for(tables->routes, tables->route_count);
    dp_route_index *index = memory;
    index->edges = (route_edge *)(void *)(index + 1);
    index->hosts = (route_host *)(void *)(index->edges + need.edges);
    index->nodes = (route_node *)(void *)(index->hosts + need.hosts);
    index->edge_mask = need.edges - 1;
    index->host_mask = need.hosts - 1;
    index->any.root = add_node(index, 0);
    for (uint32_t i = 0; i < tables->route_count; i++) {
        const dp_route *route = tables->routes[i];
        route_run *in = run_of(index, host_of(index, route), route);
        if (in->count == 0)
            in->first = i;
        DP_CHECK(in->first + in->count == i);
        in->count++;
    }
    for (uint32_t i = 0; i <= index->host_mask; i++) {
        route_host *wildcard = &index->hosts[i];
        if (wildcard->used && wildcard->wildcard)
            wildcard->shorter = wildcard_for(index, wildcard->name, wildcard->len);
    }
    tables->index = index;
}

/* --- looking up ------------------------------------------------------------------------------- */

static bool headers_match(const dp_route *route, const uint8_t *data, const dp_request_head *head)
{
    for (const dp_header_match *want = route->headers; want != NULL; want = want->next) {
        bool found = false;
        for (uint32_t i = 0; i < head->field_count && !found; i++) {
            const dp_field *field = &head->fields[i];
            found = field->name.len == want->name.len && field->value.len == want->value.len &&
                    dp_equal_fold(data + field->name.off, (const uint8_t *)want->name.data,
                                  want->name.len) &&
                    memcmp(data + field->value.off, want->value.data, want->value.len) == 0;
        }
        if (!found)
            return false;
    }
    return true;
}

typedef struct question {
    const dp_tables *tables;
    const uint8_t *data;
    const dp_request_head *head;
    const uint8_t *path;
    uint32_t path_len;
} question;

static const dp_route *in_run(const question *asked, route_run among)
{
    for (uint32_t i = 0; i < among.count; i++) {
        const dp_route *route = asked->tables->routes[among.first + i];
        if ((route->methods == 0 || (route->methods & asked->head->method) != 0) &&
            headers_match(route, asked->data, asked->head))
            return route;
    }
    return NULL;
}

static const dp_route *under_host(const question *asked, const route_host *under)
{
    const dp_route_index *index = asked->tables->index;
    const dp_route *route = NULL;
    if (asked->path[0] != '/') /* "*", which only a route without a path means */
        return in_run(asked, under->any_path);
    const uint8_t *at = asked->path + 1;
    const uint8_t *end = asked->path + asked->path_len;
    uint32_t from = under->root;
    for (;;) {
        const uint8_t *slash = at < end ? memchr(at, '/', (size_t)(end - at)) : NULL;
        uint32_t len = (uint32_t)((slash != NULL ? slash : end) - at);
        if (len > index->longest_segment)
            break;
        const route_edge *next = edge_at(index, from, at, len, slash == NULL);
        if (slash == NULL)
            route = next->used ? in_run(asked, next->exact) : NULL;
        if (slash == NULL || !next->used)
            break;
        from = next->to;
        at = slash + 1;
    }
    while (route == NULL) {
        const route_node *here = &index->nodes[from];
        route = in_run(asked, here->prefix);
        if (here->parent == from)
            break;
        from = here->parent;
    }
    return route != NULL ? route : in_run(asked, under->any_path);
}

const dp_route *dp_route_lookup(const dp_tables *tables, const uint8_t *data,
                                const dp_request_head *head)
{
    const dp_route_index *index = tables->index;
    const uint8_t *name = data + head->host_name.off;
    uint32_t len = head->host_name.len;
    if (len > 1 && name[len - 1] == '.')
        len--; /* the root label's dot names the same route_host */
    question asked = {.tables = tables,
                      .data = data,
                      .head = head,
                      .path = data + head->path.off,
                      .path_len = head->path.len};
    if (asked.path_len == 0) { /* absolute-form without a path, RFC 9112 3.2.2 */
        asked.path = (const uint8_t *)"/";
        asked.path_len = 1;
    }
    const dp_route *route = NULL;
    if (len != 0 && index->longest_host != 0) {
        if (len <= index->longest_host) {
            const route_host *exact = host_at(index, host_hash(name, len), name, len, false);
            route = exact->used ? under_host(&asked, exact) : NULL;
        }
        const route_host *wild = route == NULL ? wildcard_for(index, name, len) : NULL;
        for (; route == NULL && wild != NULL; wild = wild->shorter)
            route = under_host(&asked, wild);
    }
    return route != NULL ? route : under_host(&asked, &index->any);
}
