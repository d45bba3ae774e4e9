/* dp_target: request targets and authorities. Pure. See the header. */
#include "dp_target.h"

#include <string.h>

#include "dp_chars.h"
#include "dp_http1.h"
#include "dp_path.h"

/* --- authorities ---------------------------------------------------------------------------- */

static bool is_ipv4(const uint8_t *at, const uint8_t *end)
{
    for (unsigned octet = 0; octet < 4; octet++) {
        const uint8_t *const start = at;
        unsigned value = 0;

        while (at < end && at - start < 3 && *at >= '0' && *at <= '9') {
            value = value * 10 + (unsigned)(*at - '0');
            at++;
        }
        if (at == start || value > 255 || (*start == '0' && at - start > 1)) {
            return false;
        }
        if (octet < 3) {
            if (at == end || *at != '.') {
                return false;
            }
            at++;
        }
    }
    return at == end;
}

/* RFC 3986 3.2.2: IPv6address, without a zone. */
static bool is_ipv6(const uint8_t *at, const uint8_t *end)
{
    unsigned groups = 0;
    bool gap = false;

    if (end - at >= 2 && at[0] == ':' && at[1] == ':') {
        gap = true;
        at += 2;
    }
    while (at < end) {
        const uint8_t *const start = at;

        while (at < end && at - start < 4 && dp_is_class(*at, DP_CH_HEX)) {
            at++;
        }
        if (at == start) {
            return false;
        }
        if (at < end && *at == '.') {
            return is_ipv4(start, end) && (gap ? groups <= 5 : groups == 6);
        }
        groups++;
        if (at == end) {
            break;
        }
        if (*at++ != ':' || at == end) {
            return false;
        }
        if (*at == ':') {
            if (gap) {
                return false;
            }
            gap = true;
            at++;
        }
    }
    return gap ? groups <= 7 : groups == 8;
}

/* RFC 9110 7.2, RFC 3986 3.2: host [ ":" port ], without userinfo. Stricter in this: a name is of
 * unreserved bytes and has no empty label ("a,b" and "a%2fb" are hosts to few and trouble to
 * many), and a port that is given is 1 to 65535 without leading zeros. *ret_name_len is where the
 * name ends; an IPv6 literal keeps its brackets. */
bool dp_authority_parse(const uint8_t *host, const uint8_t *end, size_t *ret_name_len)
{
    const uint8_t *at = host;

    if (at < end && *at == '[') {
        const uint8_t *const close = memchr(at, ']', (size_t)(end - at));
        if (close == NULL || !is_ipv6(at + 1, close)) {
            return false;
        }
        at = close + 1;
    } else {
        while (at < end && dp_is_class(*at, DP_CH_HOST)) {
            if (*at == '.' && (at == host || at[-1] == '.')) {
                return false;
            }
            at++;
        }
        if (at == host) {
            return false;
        }
    }
    *ret_name_len = (size_t)(at - host);
    if (at == end) {
        return true;
    }
    if (*at++ != ':' || at == end || end - at > 5 || *at == '0') {
        return false;
    }
    unsigned port = 0;
    for (; at < end; at++) {
        const unsigned digit = (unsigned)*at - '0';
        if (digit > 9) {
            return false;
        }
        port = port * 10 + digit;
    }
    return port <= 65535;
}

/* --- request targets ------------------------------------------------------------------------ */

/* Passes over bytes of a class and percent-encoded ones (RFC 3986 2.1), from at on, which lies
 * before the end of a head. Returns NULL where a percent sign does not start an encoding, or
 * encodes NUL. */
static const uint8_t *skip_encoded(const uint8_t *at, unsigned classes)
{
    for (;;) {
        while (dp_is_class(*at, classes)) {
            at++;
        }
        if (*at != '%') {
            return at;
        }
        if (!dp_is_class(at[1], DP_CH_HEX) || !dp_is_class(at[2], DP_CH_HEX) ||
            (at[1] == '0' && at[2] == '0')) {
            return NULL;
        }
        at += 3;
    }
}

/* Reads a path and a query from at; *ret_end is the byte after. */
static int parse_path(const uint8_t *data, const uint8_t *at, dp_request_head *ret_head,
                      const uint8_t **ret_end)
{
    const uint8_t *const path = at;

    at = skip_encoded(at, DP_CH_PATH);
    if (at == NULL) {
        return DP_EMALFORMED;
    }
    ret_head->path = dp_span_of(data, path, at);
    ret_head->path_is_plain = dp_path_is_plain(path, (size_t)(at - path));
    const uint8_t *const query = at;
    if (*at == '?') {
        at = skip_encoded(at, DP_CH_QUERY);
        if (at == NULL) {
            return DP_EMALFORMED;
        }
    }
    ret_head->query = dp_span_of(data, query, at);
    *ret_end = at;
    return DP_OK;
}

/* RFC 9112 3.2.2: absolute-form, http and https only. Sets host and host_name too. */
static int parse_absolute(const uint8_t *data, const uint8_t *at, dp_request_head *ret_head,
                          const uint8_t **ret_end)
{
    static const char SCHEME[] = "http";
    size_t name_len;

    for (size_t i = 0; i < sizeof(SCHEME) - 1; i++) {
        if (dp_lower(*at++) != (uint8_t)SCHEME[i]) {
            return DP_EMALFORMED;
        }
    }
    if (dp_lower(*at) == 's') {
        ret_head->is_https = 1;
        at++;
    }
    if (at[0] != ':' || at[1] != '/' || at[2] != '/') {
        return DP_EMALFORMED;
    }
    at += 3;
    const uint8_t *const host = at;
    while (dp_is_class(*at, DP_CH_QUERY) && *at != '/' && *at != '?') {
        at++;
    }
    if (!dp_authority_parse(host, at, &name_len)) {
        return DP_EMALFORMED;
    }
    ret_head->host = dp_span_of(data, host, at);
    ret_head->host_name = dp_span_of(data, host, host + name_len);
    if (*at == '/') {
        return parse_path(data, at, ret_head, ret_end);
    }
    if (*at != '?' && *at != ' ') {
        return DP_EMALFORMED;
    }
    /* RFC 9110 4.2.3: an empty path is "/". The span lends the slash before the host. */
    const int result = parse_path(data, at, ret_head, ret_end);
    ret_head->path = dp_span_of(data, host - 1, host);
    ret_head->path_is_plain = 1;
    return result;
}

int dp_target_parse(const uint8_t *data, const uint8_t *at, dp_request_head *ret_head,
                    const uint8_t **ret_end)
{
    ret_head->host = (dp_span){0, 0};
    ret_head->host_name = (dp_span){0, 0};
    ret_head->is_https = 0;
    if (*at == '/') {
        return parse_path(data, at, ret_head, ret_end);
    }
    if (*at == '*') {
        /* RFC 9112 3.2.4 */
        if (ret_head->method != DP_M_OPTIONS) {
            return DP_EMALFORMED;
        }
        ret_head->path = dp_span_of(data, at, at + 1);
        ret_head->path_is_plain = 1;
        ret_head->query = dp_span_of(data, at + 1, at + 1);
        *ret_end = at + 1;
        return DP_OK;
    }
    return parse_absolute(data, at, ret_head, ret_end);
}
