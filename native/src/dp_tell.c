/* dp_tell: an upstream from the builder's calls: its endpoints, its check, a route's retries. No
 * I/O.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "dp_core.h"

enum { REQUEST_MAX = 2048, STATUS_FIRST = 400, STATUS_LAST = 599 };

static const char UNIX_PREFIX[] = "unix:";

static const char *text_of(dp_engine *engine, const char *text, uint32_t *ret_len)
{
    size_t len = strlen(text);
    *ret_len = (uint32_t)len;
    return dp_arena_text(&engine->arena, text, len);
}

/* Nothing that would end a line early, or a request's target, may stand in what we send. */
static bool is_plain(const char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text <= ' ' || (unsigned char)*text >= 0x7f)
            return false;
    return true;
}

/* --- upstreams ---------------------------------------------------------------------------------
 */

static bool is_sound(const dp_upstream_options *options)
{
    size_t name = strlen(options->name);
    bool keyed = options->key == DP_BY_SOURCE ||
                 ((options->key == DP_BY_HEADER || options->key == DP_BY_COOKIE) &&
                  options->key_name != NULL && options->key_name[0] != '\0');
    return name >= 1 && name <= DP_NAME_MAX && options->connect_timeout_ms != 0 &&
           options->endpoints >= 1 && options->endpoints <= DP_ENDPOINTS_MAX &&
           options->balance >= DP_ROUND_ROBIN && options->balance <= DP_MAGLEV &&
           (options->balance != DP_MAGLEV || keyed) &&
           (options->sticky == NULL || (options->sticky[0] != '\0' && is_plain(options->sticky))) &&
           options->max_waiting <= UINT32_MAX / 4 && options->proxy_protocol <= 2 &&
           (options->eject_failures == 0 || options->eject_ms != 0);
}

static int take_options(dp_engine *engine, const dp_upstream_options *options,
                        dp_upstream *upstream)
{
    memcpy(upstream->name, options->name, strlen(options->name) + 1);
    upstream->balance = options->balance;
    upstream->connect_timeout_ms = options->connect_timeout_ms;
    upstream->keepalive = options->keepalive;
    upstream->key = options->key;
    upstream->max_connections = options->max_connections;
    upstream->max_waiting = options->max_waiting;
    upstream->eject_failures = options->eject_failures;
    upstream->eject_ms = options->eject_ms;
    upstream->eject_server_errors = options->eject_server_errors != 0;
    upstream->slow_start_ms = options->slow_start_ms;
    upstream->proxy_protocol = options->proxy_protocol;
    upstream->endpoint_room = options->endpoints;
    upstream->endpoints = dp_arena_take(&engine->arena, options->endpoints * sizeof(dp_endpoint));
    bool whole = upstream->endpoints != NULL;
    if (options->key_name != NULL) {
        upstream->key_name = text_of(engine, options->key_name, &upstream->key_name_len);
        whole = whole && upstream->key_name != NULL;
    }
    if (options->sticky != NULL) {
        upstream->sticky = text_of(engine, options->sticky, &upstream->sticky_len);
        whole = whole && upstream->sticky != NULL;
    }
    return whole ? DP_OK : DP_ENOMEM;
}

int dp_upstream_add(dp_engine *engine, const dp_upstream_options *options)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    if (!is_sound(options))
        return DP_EINVAL;
    if (engine->tables.upstream_count == DP_UPSTREAMS_MAX)
        return DP_ETOOBIG;
    dp_upstream *upstream = &engine->tables.upstreams[engine->tables.upstream_count];
    int result = take_options(engine, options, upstream);
    return result == DP_OK ? (int)engine->tables.upstream_count++ : result;
}

static dp_upstream *upstream_at(dp_engine *engine, int index)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed || index < 0 || (uint32_t)index >= engine->tables.upstream_count)
        return NULL;
    return &engine->tables.upstreams[index];
}

int dp_upstream_check(dp_engine *engine, int index, const dp_health_options *options)
{
    dp_upstream *upstream = upstream_at(engine, index);
    if (upstream == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    if (options->interval_ms == 0 || options->timeout_ms == 0 ||
        options->timeout_ms > options->interval_ms || options->fall == 0 || options->rise == 0)
        return DP_EINVAL;
    dp_check *check = dp_arena_take(&engine->arena, sizeof(*check));
    if (check == NULL)
        return DP_ENOMEM;
    *check = (dp_check){.interval_ms = options->interval_ms,
                        .timeout_ms = options->timeout_ms,
                        .fall = options->fall,
                        .rise = options->rise,
                        .status_min = options->status_min,
                        .status_max = options->status_max};
    if (options->path != NULL) {
        char request[REQUEST_MAX];
        const char *host = options->host != NULL ? options->host : upstream->name;
        if (!is_plain(options->path) || !is_plain(host) || options->path[0] != '/')
            return DP_EINVAL;
        int len = snprintf(request, sizeof(request),
                           "GET %s HTTP/1.1\r\nhost: %s\r\nuser-agent: dataplane\r\n"
                           "connection: close\r\n\r\n",
                           options->path, host);
        if (len < 0 || (size_t)len >= sizeof(request))
            return DP_ETOOBIG;
        check->request = text_of(engine, request, &check->request_len);
        if (check->request == NULL)
            return DP_ENOMEM;
    }
    upstream->check = check;
    return DP_OK;
}

/* --- endpoints ---------------------------------------------------------------------------------
 */

static int take_address(dp_endpoint *endpoint, const char *address, uint16_t port)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    size_t prefix = sizeof(UNIX_PREFIX) - 1;
    if (strncmp(address, UNIX_PREFIX, prefix) == 0) {
        size_t len = strlen(address + prefix);
        if (len == 0 || address[prefix] != '/' || len >= sizeof(local.sun_path) || port != 0)
            return DP_EINVAL;
        memcpy(local.sun_path, address + prefix, len);
        memcpy(&endpoint->address, &local, sizeof(local));
        endpoint->address_len = sizeof(local);
    } else if (inet_pton(AF_INET, address, &v4.sin_addr) == 1) {
        memcpy(&endpoint->address, &v4, sizeof(v4));
        endpoint->address_len = sizeof(v4);
    } else if (inet_pton(AF_INET6, address, &v6.sin6_addr) == 1) {
        memcpy(&endpoint->address, &v6, sizeof(v6));
        endpoint->address_len = sizeof(v6);
    } else {
        return DP_EINVAL;
    }
    return DP_OK;
}

static const char *name_of(dp_engine *engine, const dp_endpoint *endpoint, const char *address,
                           uint16_t port, uint32_t *ret_len)
{
    char name[sizeof(struct sockaddr_un) + sizeof(UNIX_PREFIX)];
    int family = endpoint->address.ss_family;
    int len = family == AF_UNIX    ? snprintf(name, sizeof(name), "%s", address)
              : family == AF_INET6 ? snprintf(name, sizeof(name), "[%s]:%u", address, port)
                                   : snprintf(name, sizeof(name), "%s:%u", address, port);
    return len > 0 && (size_t)len < sizeof(name) ? text_of(engine, name, ret_len) : NULL;
}

int dp_endpoint_add(dp_engine *engine, int index, const char *address, uint16_t port,
                    uint32_t weight)
{
    dp_upstream *upstream = upstream_at(engine, index);
    if (upstream == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    if (upstream->endpoint_count == upstream->endpoint_room)
        return DP_ETOOBIG;
    dp_endpoint *endpoint = &upstream->endpoints[upstream->endpoint_count];
    if (weight < 1 || weight > DP_WEIGHT_MAX || take_address(endpoint, address, port) != DP_OK)
        return DP_EINVAL;
    endpoint->weight = weight;
    endpoint->name = name_of(engine, endpoint, address, port, &endpoint->name_len);
    if (endpoint->name == NULL)
        return DP_ENOMEM;
    engine->tables.endpoint_count++;
    return (int)upstream->endpoint_count++;
}

static int build_maglev(dp_engine *engine, dp_upstream *upstream)
{
    uint64_t hashes[DP_ENDPOINTS_MAX];
    uint32_t weights[DP_ENDPOINTS_MAX];
    upstream->maglev_size = dp_maglev_size(upstream->endpoint_count);
    uint16_t *table = dp_arena_take(&engine->arena, upstream->maglev_size * sizeof(*table));
    if (table == NULL)
        return DP_ENOMEM;
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        hashes[i] = dp_hash(upstream->endpoints[i].name, upstream->endpoints[i].name_len);
        weights[i] = upstream->endpoints[i].weight;
    }
    dp_maglev_build(table, upstream->maglev_size, hashes, weights, upstream->endpoint_count);
    upstream->maglev = table;
    return DP_OK;
}

int dp_tell_seal(dp_engine *engine)
{
    uint32_t slot = 0;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++) {
        dp_upstream *upstream = &engine->tables.upstreams[i];
        if (upstream->endpoint_count == 0)
            return DP_EINVAL;
        for (uint32_t j = 0; j < upstream->endpoint_count; j++, slot++) {
            upstream->endpoints[j].slot = slot;
            engine->pools[slot].endpoint = &upstream->endpoints[j];
            engine->pools[slot].keepalive = upstream->keepalive;
            engine->pools[slot].upstream = (uint16_t)i;
            engine->pools[slot].index = (uint16_t)j;
        }
        if (upstream->balance == DP_MAGLEV && build_maglev(engine, upstream) != DP_OK)
            return DP_ENOMEM;
    }
    return DP_OK;
}

/* --- a route's retries -------------------------------------------------------------------------
 */

int dp_route_retry(dp_engine *engine, int index, const dp_retry_options *options)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    if (index < 0 || (uint32_t)index >= engine->tables.route_count || options->attempts > UINT8_MAX)
        return DP_EINVAL;
    dp_retries *retries = dp_arena_take(&engine->arena, sizeof(*retries));
    if (retries == NULL)
        return DP_ENOMEM;
    *retries = (dp_retries){.attempts = options->attempts,
                            .causes = options->causes,
                            .methods = options->methods,
                            .budget_percent = options->budget_percent};
    for (uint32_t i = 0; i < options->status_count; i++) {
        uint32_t status = options->statuses[i];
        if (status < STATUS_FIRST || status > STATUS_LAST)
            return DP_EINVAL;
        uint32_t bit = status - STATUS_FIRST;
        retries->statuses[bit / 64] |= (uint64_t)1 << bit % 64;
    }
    engine->tables.by_order[index]->retries = retries;
    return DP_OK;
}
