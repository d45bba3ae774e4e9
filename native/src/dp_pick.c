/* dp_pick: which endpoint a request goes to: by the balancer, by a key of the request's, or by the
 * cookie that an earlier answer set. No I/O. */
#include <stdlib.h>
#include <string.h>

#include "dp_core.h"

enum { TOKEN_DIGITS = 16 };

/* --- what a request says -----------------------------------------------------------------------
 */

static bool is_named(const uint8_t *data, const dp_field *field, const char *name, uint32_t len)
{
    return field->name.len == len &&
           dp_equal_fold(data + field->name.off, (const uint8_t *)name, len);
}

/* The value of a cookie in one field's (RFC 6265 4.2.1): "a=1; b=2". */
static bool cookie_in(const uint8_t *data, dp_span value, const char *name, uint32_t len,
                      dp_span *ret_value)
{
    uint32_t at = value.off;
    uint32_t end = value.off + value.len;
    while (at < end) {
        while (at < end && (data[at] == ' ' || data[at] == '\t'))
            at++;
        uint32_t stop = at;
        while (stop < end && data[stop] != ';')
            stop++;
        if (stop - at > len && data[at + len] == '=' && memcmp(data + at, name, len) == 0) {
            *ret_value = (dp_span){.off = at + len + 1, .len = stop - at - len - 1};
            return true;
        }
        at = stop + 1;
    }
    return false;
}

static bool cookie_of(const uint8_t *data, const dp_request_head *head, const char *name,
                      uint32_t len, dp_span *ret_value)
{
    for (uint32_t i = 0; i < head->field_count; i++)
        if (is_named(data, &head->fields[i], "cookie", 6) &&
            cookie_in(data, head->fields[i].value, name, len, ret_value))
            return true;
    return false;
}

static bool header_of(const uint8_t *data, const dp_request_head *head, const char *name,
                      uint32_t len, dp_span *ret_value)
{
    for (uint32_t i = 0; i < head->field_count; i++)
        if (is_named(data, &head->fields[i], name, len)) {
            *ret_value = head->fields[i].value;
            return true;
        }
    return false;
}

static uint64_t hash_of(const dp_upstream *upstream, const dp_conn *down, const uint8_t *data,
                        const dp_request_head *head)
{
    dp_span value = {0};
    bool found = false;
    if (head != NULL && upstream->key == DP_BY_HEADER)
        found = header_of(data, head, upstream->key_name, upstream->key_name_len, &value);
    else if (head != NULL && upstream->key == DP_BY_COOKIE)
        found = cookie_of(data, head, upstream->key_name, upstream->key_name_len, &value);
    /* Those without the key go by their source, or all of them would go to one endpoint. */
    if (found)
        return dp_hash(data + value.off, value.len);
    char client[DP_CLIENT_TEXT];
    const size_t len = dp_client_text(down, client);
    return dp_hash(client, len);
}

/* --- sticky ------------------------------------------------------------------------------------
 */

static uint64_t token_of(const dp_engine *engine, const dp_upstream *upstream,
                         const dp_endpoint *endpoint)
{
    uint8_t own[16];
    const uint8_t *key = own;
    memcpy(own, &engine->options.seed_low, 8);
    memcpy(own + 8, &engine->options.seed_high, 8);
    if (engine->shared.header != NULL) /* all workers say the same, and a swap changes nothing */
        key = engine->shared.header->key;
    uint64_t name = dp_siphash(key, upstream->name, strlen(upstream->name));
    uint64_t token = dp_siphash(key, endpoint->name, endpoint->name_len);
    token = dp_mix(token ^ dp_mix(name));
    return token != 0 ? token : 1;
}

int dp_pick_seal(dp_engine *engine, uint32_t index)
{
    const dp_upstream *upstream = &engine->tables.upstreams[index];
    dp_group *group = &engine->groups[index];
    if (upstream->sticky == NULL)
        return DP_OK;
    uint32_t size = 4;
    while (size < 2 * upstream->endpoint_count)
        size *= 2;
    group->tokens = calloc(size, sizeof(*group->tokens));
    group->token_of = calloc(size, sizeof(*group->token_of));
    if (group->tokens == NULL || group->token_of == NULL)
        return DP_ENOMEM;
    group->token_mask = size - 1;
    for (uint32_t i = 0; i < upstream->endpoint_count; i++) {
        uint64_t token = token_of(engine, upstream, &upstream->endpoints[i]);
        uint32_t at = (uint32_t)token & group->token_mask;
        while (group->tokens[at] != 0)
            at = (at + 1) & group->token_mask;
        group->tokens[at] = token;
        group->token_of[at] = (uint16_t)i;
        engine->pools[upstream->endpoints[i].slot].token = token;
    }
    return DP_OK;
}

static int32_t stuck_to(const dp_group *group, const uint8_t *digits, uint32_t len)
{
    uint64_t token = 0;
    if (len != TOKEN_DIGITS)
        return -1;
    for (uint32_t i = 0; i < len; i++) {
        uint8_t digit = digits[i];
        if (digit >= '0' && digit <= '9')
            token = token << 4 | (uint64_t)(digit - '0');
        else if (digit >= 'a' && digit <= 'f')
            token = token << 4 | (uint64_t)(digit - 'a' + 10);
        else
            return -1;
    }
    if (token == 0)
        return -1;
    for (uint32_t at = (uint32_t)token & group->token_mask; group->tokens[at] != 0;
         at = (at + 1) & group->token_mask)
        if (group->tokens[at] == token)
            return group->token_of[at];
    return -1;
}

size_t dp_pick_cookie(const dp_engine *engine, const dp_conn *down, char *ret_line, size_t capacity)
{
    static const char hex[] = "0123456789abcdef";
    static const char before[] = "set-cookie: ";
    static const char after[] = "; Path=/; HttpOnly; SameSite=Lax\r\n";
    const dp_upstream *upstream = &engine->tables.upstreams[down->exchange->upstream];
    if (upstream->sticky == NULL || down->peer == NULL)
        return 0;
    const dp_pool *pool = &engine->pools[down->peer->endpoint];
    if (down->exchange->stuck == pool->index)
        return 0;
    size_t len = sizeof(before) - 1;
    if (len + upstream->sticky_len + 1 + TOKEN_DIGITS + sizeof(after) > capacity)
        return 0;
    memcpy(ret_line, before, len);
    memcpy(ret_line + len, upstream->sticky, upstream->sticky_len);
    len += upstream->sticky_len;
    ret_line[len++] = '=';
    for (int shift = 60; shift >= 0; shift -= 4)
        ret_line[len++] = hex[pool->token >> shift & 15];
    memcpy(ret_line + len, after, sizeof(after) - 1);
    return len + sizeof(after) - 1;
}

/* --- choosing ----------------------------------------------------------------------------------
 */

void dp_pick_key(dp_engine *engine, dp_conn *down, const uint8_t *data, const dp_request_head *head)
{
    dp_exchange *exchange = down->exchange;
    const dp_upstream *upstream = &engine->tables.upstreams[exchange->upstream];
    dp_span value;
    exchange->stuck = -1;
    if (upstream->balance == DP_MAGLEV)
        exchange->key_hash = hash_of(upstream, down, data, head);
    if (upstream->sticky != NULL && head != NULL &&
        cookie_of(data, head, upstream->sticky, upstream->sticky_len, &value))
        exchange->stuck =
            stuck_to(&engine->groups[exchange->upstream], data + value.off, value.len);
}

/* What one more request would wait for there: the answers' time, by how many share it. */
static uint64_t cost_of(const dp_balancer *balancer, uint32_t item, uint64_t latency_us)
{
    uint64_t weight = balancer->weight[item];
    return latency_us * (weight + (uint64_t)balancer->active[item] * DP_WEIGHT_ONE) / weight;
}

/* Two at random, and the better one of them. */
static int pick_p2c(dp_engine *engine, dp_conn *down, dp_balancer *balancer)
{
    const dp_endpoint *endpoints = engine->tables.upstreams[down->exchange->upstream].endpoints;
    int one = dp_balancer_any(balancer, &down->exchange->tried);
    dp_tried rest = down->exchange->tried;
    if (one < 0 || rest.count == DP_TRIED_MAX)
        return one;
    dp_tried_add(&rest, (uint32_t)one);
    int other = dp_balancer_any(balancer, &rest);
    if (other < 0)
        return one;
    uint64_t first = dp_latency_now(engine->pools[endpoints[one].slot].shared, engine->now_ms);
    uint64_t second = dp_latency_now(engine->pools[endpoints[other].slot].shared, engine->now_ms);
    /* One that is not known yet is taken for as quick as the other, and not for infinitely so. */
    if (first == 0)
        first = second != 0 ? second : 1;
    if (second == 0)
        second = first;
    return cost_of(balancer, (uint32_t)other, second) < cost_of(balancer, (uint32_t)one, first)
               ? other
               : one;
}

int dp_pick(dp_engine *engine, dp_conn *down)
{
    dp_exchange *exchange = down->exchange;
    dp_balancer *balancer = &engine->groups[exchange->upstream].balancer;
    if (exchange->tried.count == DP_TRIED_MAX)
        return -1;
    if (exchange->stuck >= 0 &&
        dp_balancer_takes(balancer, (uint32_t)exchange->stuck, &exchange->tried))
        return exchange->stuck;
    switch (balancer->kind) {
    case DP_MAGLEV:
        return dp_balancer_keyed(balancer, exchange->key_hash, &exchange->tried);
    case DP_P2C:
        return pick_p2c(engine, down, balancer);
    default:
        return dp_balancer_next(balancer, &exchange->tried);
    }
}
