/* dp_limit: who may come, how many at once, and how often. No I/O but the clock.
 *
 * What is counted is counted once for the app: in the mapping that all of its workers share, of
 * both generations. Where there is none, or no room in it, this process counts for itself. The
 * client is who the request is from: behind a trusted proxy that is whom the proxy named. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "dp_core.h"

enum { OWN_BUCKETS = 65536, OWN_SOURCES = 65536 };
enum { BY_SOURCE = 1, BY_HEADER = 2, SECOND_NS = 1000000000 };

/* --- building --------------------------------------------------------------------------------- */

/* Where the builder's calls put a list. NULL: there is no such route. */
static const dp_acl **access_of(dp_engine *engine, int route)
{
    if (route == -1)
        return &engine->tables.access;
    bool known = route >= 0 && (uint32_t)route < engine->tables.route_count;
    return known ? &engine->tables.by_order[route]->access : NULL;
}

static const dp_rate_rule **rate_of(dp_engine *engine, int route)
{
    if (route == -1)
        return &engine->tables.rate;
    bool known = route >= 0 && (uint32_t)route < engine->tables.route_count;
    return known ? &engine->tables.by_order[route]->rate : NULL;
}

int dp_access_set(dp_engine *engine, int route, const dp_access_rule *rules, uint32_t count)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    const dp_acl **place = access_of(engine, route);
    if (place == NULL)
        return DP_EINVAL;
    dp_acl *acl = dp_arena_take(&engine->arena, sizeof(*acl));
    void *memory = dp_arena_take(&engine->arena, dp_acl_bytes(count));
    if (acl == NULL || memory == NULL)
        return DP_ENOMEM;
    int result = dp_acl_make(acl, rules, count, memory);
    if (result != DP_OK)
        return result;
    *place = acl;
    return DP_OK;
}

int dp_rate_set(dp_engine *engine, int route, const dp_rate_options *options)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    const dp_rate_rule **place = rate_of(engine, route);
    if (place == NULL || options->requests == 0 || options->requests > DP_RATE_PER_SECOND ||
        options->burst > DP_RATE_PER_SECOND)
        return DP_EINVAL;
    dp_rate_rule *rule = dp_arena_take(&engine->arena, sizeof(*rule));
    if (rule == NULL)
        return DP_ENOMEM;
    rule->rate = dp_rate_of(options->requests, options->burst);
    rule->scope = options->scope;
    if (options->header != NULL) {
        rule->header.len = (uint32_t)strlen(options->header);
        rule->header.data = dp_arena_text(&engine->arena, options->header, rule->header.len);
        if (rule->header.data == NULL)
            return DP_ENOMEM;
    }
    *place = rule;
    return DP_OK;
}

static bool counts_rates(const dp_engine *engine)
{
    bool found = engine->tables.rate != NULL;
    for (uint32_t i = 0; i < engine->tables.route_count; i++)
        found = found || engine->tables.routes[i]->rate != NULL;
    return found;
}

/* Tables of our own, where the app shares none. */
static int make_own(dp_engine *engine)
{
    dp_limits *limits = &engine->limits;
    if (limits->buckets.count == 0 && counts_rates(engine)) {
        limits->memory[0] = calloc(OWN_BUCKETS, sizeof(dp_bucket));
        limits->buckets = (dp_buckets){.at = limits->memory[0], .count = OWN_BUCKETS};
        if (limits->memory[0] == NULL)
            return DP_ENOMEM;
    }
    if (limits->sources.held == NULL && engine->options.max_per_source != 0) {
        limits->memory[1] = calloc(OWN_SOURCES, sizeof(uint64_t));
        _Atomic uint32_t *row = calloc(OWN_SOURCES + DP_SOURCE_HEAD, sizeof(uint32_t));
        limits->memory[2] = row;
        if (limits->memory[1] == NULL || row == NULL)
            return DP_ENOMEM;
        limits->sources = (dp_sources){
            .at = limits->memory[1], .held = row + DP_SOURCE_HEAD, .count = OWN_SOURCES};
    }
    return DP_OK;
}

static dp_shared_endpoint *record_of(dp_engine *engine, const char *key, uint32_t own,
                                     dp_shared_count **ret_part)
{
    dp_limits *limits = &engine->limits;
    dp_shared_endpoint *found = dp_shared_find(&engine->shared, key, strlen(key), ret_part);
    if (found != NULL)
        return found;
    *ret_part = &limits->parts[own];
    return &limits->records[own];
}

int dp_limit_seal(dp_engine *engine)
{
    dp_limits *limits = &engine->limits;
    if (engine->shared.header != NULL)
        memcpy(limits->seed, engine->shared.header->key, sizeof(limits->seed));
    else if (getrandom(limits->seed, sizeof(limits->seed), 0) != sizeof(limits->seed))
        return DP_ESYSTEM;
    limits->buckets = engine->shared.buckets;
    if (engine->shared.sources.held != NULL)
        limits->sources = engine->shared.sources;
    limits->connections = record_of(engine, "lconnections", 0, &limits->own_connections);
    limits->requests = record_of(engine, "lrequests", 1, &limits->own_requests);
    return make_own(engine);
}

void dp_limit_free(dp_engine *engine)
{
    for (size_t i = 0; i < DP_ARRAY_LEN(engine->limits.memory); i++)
        free(engine->limits.memory[i]);
}

/* --- sources ---------------------------------------------------------------------------------- */

/* False: it has no address, a client of a UNIX socket or the self-test. */
static bool address_of(const dp_conn *down, dp_ip *ret_ip)
{
    uint8_t address[16];
    if (!dp_client_address(down, address))
        return false;
    *ret_ip = dp_ip_of(address);
    return true;
}

/* Whoever connects speaks for many clients: they are told request by request. */
static bool speaks_for_others(const dp_engine *engine, const dp_conn *down)
{
    return down->trusted && engine->tables.listeners[down->listener].protocol == DP_HTTP;
}

/* Of IPv6 a site's whole network is one source: it may have as many addresses as it likes. */
static uint64_t source_key(const dp_engine *engine, dp_ip ip, uint64_t scope)
{
    const uint64_t words[3] = {scope, BY_SOURCE, dp_ip_is_v4(ip) ? ip.low : ip.high};
    return dp_rate_key(engine->limits.seed, words, sizeof(words));
}

bool dp_limit_allows(const dp_engine *engine, const dp_conn *down)
{
    dp_ip ip;
    const dp_acl *access = engine->tables.access;
    return access == NULL || speaks_for_others(engine, down) || !address_of(down, &ip) ||
           dp_acl_allows(access, ip);
}

/* --- connections ------------------------------------------------------------------------------ */

bool dp_limit_connection(dp_engine *engine)
{
    return dp_shared_take(engine->limits.connections, engine->limits.own_connections,
                          engine->options.max_connections);
}

uint32_t dp_limit_source(dp_engine *engine, dp_conn *down)
{
    dp_ip ip;
    uint32_t max = engine->options.max_per_source;
    if ((max == 0 && engine->tables.access == NULL) || speaks_for_others(engine, down) ||
        !address_of(down, &ip))
        return 0;
    if (engine->tables.access != NULL && !dp_acl_allows(engine->tables.access, ip)) {
        engine->stats->denied_total++;
        return 403;
    }
    if (max == 0)
        return 0;
    int64_t place = dp_source_take(&engine->limits.sources, source_key(engine, ip, 0), max);
    if (place == DP_SOURCE_FULL) {
        engine->stats->refused_total++;
        return 503;
    }
    down->source = (uint32_t)place;
    return 0;
}

void dp_limit_arrived(dp_engine *engine, dp_conn *down)
{
    dp_ip ip;
    (void)dp_shared_take(engine->limits.connections, engine->limits.own_connections, 0);
    down->counted |= DP_COUNTED_CONNECTION;
    if (engine->options.max_per_source != 0 && !speaks_for_others(engine, down) &&
        address_of(down, &ip))
        down->source =
            (uint32_t)dp_source_take(&engine->limits.sources, source_key(engine, ip, 0), 0);
}

void dp_limit_left(dp_engine *engine, dp_conn *down)
{
    dp_limit_request_over(engine, down);
    if ((down->counted & DP_COUNTED_CONNECTION) != 0)
        dp_shared_give(engine->limits.connections, engine->limits.own_connections);
    dp_source_give(&engine->limits.sources, down->source);
    down->counted = 0;
    down->source = 0;
}

/* --- requests --------------------------------------------------------------------------------- */

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* 0: nothing to count it by. */
static uint64_t rate_key(const dp_engine *engine, const dp_conn *down, const uint8_t *data,
                         const dp_request_head *head, const dp_rate_rule *rule)
{
    dp_ip ip;
    for (uint32_t i = 0; rule->header.len != 0 && i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        if (field->name.len != rule->header.len ||
            !dp_equal_fold(data + field->name.off, (const uint8_t *)rule->header.data,
                           rule->header.len))
            continue;
        const uint8_t *value = data + field->value.off;
        const uint64_t words[3] = {rule->scope, BY_HEADER,
                                   dp_rate_key(engine->limits.seed, value, field->value.len)};
        return dp_rate_key(engine->limits.seed, words, sizeof(words));
    }
    return address_of(down, &ip) ? source_key(engine, ip, rule->scope) : 0;
}

/* Whole seconds until the next may come; 0: this one may. */
static uint32_t rate_wait(const dp_engine *engine, const dp_conn *down, const uint8_t *data,
                          const dp_request_head *head, const dp_rate_rule *rule)
{
    uint64_t key = rule != NULL ? rate_key(engine, down, data, head, rule) : 0;
    if (key == 0)
        return 0;
    uint64_t wait = dp_rate_take(&engine->limits.buckets, &rule->rate, key, now_ns());
    return (uint32_t)((wait + SECOND_NS - 1) / SECOND_NS);
}

static bool is_allowed(const dp_engine *engine, const dp_conn *down, const dp_route *route)
{
    dp_ip ip;
    const dp_acl *of_route = route != NULL ? route->access : NULL;
    if ((engine->tables.access == NULL && of_route == NULL) || !address_of(down, &ip))
        return true;
    return (engine->tables.access == NULL || dp_acl_allows(engine->tables.access, ip)) &&
           (of_route == NULL || dp_acl_allows(of_route, ip));
}

bool dp_limit_allows_client(const dp_engine *engine, const dp_conn *down)
{
    return is_allowed(engine, down, NULL);
}

uint32_t dp_limit_request(dp_engine *engine, dp_conn *down, const uint8_t *data,
                          const dp_request_head *head, const dp_route *route,
                          uint32_t *ret_retry_after)
{
    *ret_retry_after = 0;
    if ((down->flags & DP_C_PROBE) != 0)
        return 0;
    if (!is_allowed(engine, down, route)) {
        engine->stats->denied_total++;
        return 403;
    }
    uint32_t wait = rate_wait(engine, down, data, head, engine->tables.rate);
    if (wait == 0 && route != NULL)
        wait = rate_wait(engine, down, data, head, route->rate);
    if (wait != 0) {
        engine->stats->limited_total++;
        *ret_retry_after = wait;
        return 429;
    }
    if (engine->options.max_requests == 0)
        return 0;
    if (!dp_shared_take(engine->limits.requests, engine->limits.own_requests,
                        engine->options.max_requests)) {
        engine->stats->limited_total++;
        *ret_retry_after = 1;
        return 503;
    }
    down->counted |= DP_COUNTED_REQUEST;
    return 0;
}

void dp_limit_request_moved(dp_engine *engine, dp_conn *down)
{
    (void)dp_shared_take(engine->limits.requests, engine->limits.own_requests, 0);
    down->counted |= DP_COUNTED_REQUEST;
}

void dp_limit_request_over(dp_engine *engine, dp_conn *down)
{
    if ((down->counted & DP_COUNTED_REQUEST) == 0)
        return;
    down->counted &= (uint8_t)~DP_COUNTED_REQUEST;
    dp_shared_give(engine->limits.requests, engine->limits.own_requests);
}
