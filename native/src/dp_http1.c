/* dp_http1: HTTP/1.1 message heads (RFC 9110, RFC 9112). Pure: no I/O, no allocation, no state.
 *
 * Where the RFCs leave a choice the strict one is taken: what two parsers could read in two ways
 * is refused, for behind this one stands another that we do not know. */
#include "dp_http1.h"

#include <stdbool.h>
#include <string.h>

#include "dp_chars.h"
#include "dp_field.h"
#include "dp_scan.h"
#include "dp_target.h"
#include "dp_upgrade.h"

/* What a request line may hold beside its target: the longest registered method
 * (UPDATEREDIRECTREF, 17), two spaces and the version, with room to spare. A first line that has
 * not ended within max_target plus this has a target that is too long. */
enum { REQUEST_LINE_ROOM = 64 };

/* --- bytes --------------------------------------------------------------------------------- */

int dp_equal_fold(const uint8_t *a, const uint8_t *b, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (dp_lower(a[i]) != dp_lower(b[i])) {
            return 0;
        }
    }
    return 1;
}

/* --- where a head ends ---------------------------------------------------------------------- */

/* Follows lines in data[*at..end). DP_NEED_MORE moves *at to the first byte not judged yet: end,
 * or a CR whose LF is not there. */
static int follow_lines(const uint8_t *data, size_t end, size_t *at, uint32_t *ret_len)
{
    const uint8_t *const stop = data + end;
    const uint8_t *byte = data + *at;

    for (;;) {
        byte = dp_skip_text(byte, stop);
        if (stop - byte < 2) {
            if (byte < stop && *byte != '\r') {
                return DP_EMALFORMED;
            }
            *at = (size_t)(byte - data);
            return DP_NEED_MORE;
        }
        /* RFC 9112 2.2: a bare LF may, a bare CR must not be taken for a line's end. Both are
         * refused, as is every control byte but HTAB, NUL first of all. */
        if (byte[0] != '\r' || byte[1] != '\n') {
            return DP_EMALFORMED;
        }
        /* A head starts with a token, so there is a byte before. If it is LF, it ended a line. */
        if (byte[-1] == '\n') {
            *ret_len = (uint32_t)(byte + 2 - data);
            return DP_OK;
        }
        byte += 2;
    }
}

int dp_head_end(const uint8_t *data, size_t len, const dp_head_limits *limits, uint32_t *scanned,
                uint32_t *ret_len)
{
    const size_t known = len < limits->max_bytes ? len : limits->max_bytes;
    const size_t line_room = (size_t)limits->max_target + REQUEST_LINE_ROOM;
    size_t at = *scanned;
    int result;

    if (len == 0) {
        return DP_NEED_MORE;
    }
    if (at == 0 && !dp_is_class(data[0], DP_CH_TOKEN)) {
        return DP_EMALFORMED;
    }
    /* The first line is judged when the first byte beyond its room comes, and by the bytes within
     * it alone, so that the verdict does not depend on how the bytes were split. */
    if (limits->max_target != 0 && at <= line_room && known > line_room) {
        result = follow_lines(data, line_room, &at, ret_len);
        if (result != DP_NEED_MORE) {
            return result;
        }
        if (memchr(data, '\n', line_room) == NULL) {
            return DP_ETARGET;
        }
    }
    result = follow_lines(data, known, &at, ret_len);
    if (result != DP_NEED_MORE) {
        return result;
    }
    if (len >= limits->max_bytes) {
        return DP_ETOOBIG;
    }
    *scanned = (uint32_t)at;
    return DP_NEED_MORE;
}

/* --- names ---------------------------------------------------------------------------------- */

uint32_t dp_method_bit(const char *method, size_t len)
{
    /* RFC 9110 9.1: case-sensitive. */
    switch (len) {
    case 3:
        if (memcmp(method, "GET", 3) == 0) {
            return DP_M_GET;
        }
        return memcmp(method, "PUT", 3) == 0 ? DP_M_PUT : 0;
    case 4:
        if (memcmp(method, "POST", 4) == 0) {
            return DP_M_POST;
        }
        return memcmp(method, "HEAD", 4) == 0 ? DP_M_HEAD : 0;
    case 5:
        if (memcmp(method, "PATCH", 5) == 0) {
            return DP_M_PATCH;
        }
        return memcmp(method, "TRACE", 5) == 0 ? DP_M_TRACE : 0;
    case 6:
        return memcmp(method, "DELETE", 6) == 0 ? DP_M_DELETE : 0;
    case 7:
        if (memcmp(method, "OPTIONS", 7) == 0) {
            return DP_M_OPTIONS;
        }
        return memcmp(method, "CONNECT", 7) == 0 ? DP_M_CONNECT : 0;
    default:
        return 0;
    }
}

/* RFC 9112 6.1, 6.3: the rules on framing that hold in both directions. */
static int judge_framing(const struct dp_facts *facts)
{
    if (facts->codings == 0) {
        return DP_OK;
    }
    if (facts->has_length || facts->minor == 0) {
        return DP_EMALFORMED;
    }
    return (facts->codings & DP_CODING_OTHER) != 0 ? DP_ECODING : DP_OK;
}

/* RFC 9112 9.3. */
static uint32_t may_persist(const struct dp_facts *facts)
{
    if ((facts->options & DP_OPTION_CLOSE) != 0) {
        return 0;
    }
    return facts->minor == 1 || (facts->options & DP_OPTION_KEEP_ALIVE) != 0;
}

/* RFC 9110 7.8: an Upgrade counts where Connection names it, in HTTP/1.1. Stricter: there is one
 * field, and no body, which would have to be over before the protocol changes. */
static dp_span settle_upgrade(const struct dp_facts *facts)
{
    const uint8_t *const value = facts->data + facts->upgrade.off;

    if (facts->upgrade_count != 1 || facts->minor == 0 ||
        (facts->options & DP_OPTION_UPGRADE) == 0 || facts->codings != 0 ||
        facts->content_length != 0) {
        return (dp_span){0, 0};
    }
    return dp_upgrade_pick(facts->data, value, value + facts->upgrade.len);
}

static bool is_whole_head(const uint8_t *data, size_t len)
{
    return len >= 4 && memcmp(data + len - 4, "\r\n\r\n", 4) == 0;
}

/* RFC 9112 2.3: the version at at, eight bytes. */
static int parse_version(const uint8_t *at, const uint8_t *end, uint32_t *ret_minor)
{
    if (end - at < 8 || memcmp(at, "HTTP/", 5) != 0 || at[5] < '0' || at[5] > '9' || at[6] != '.' ||
        at[7] < '0' || at[7] > '9') {
        return DP_EMALFORMED;
    }
    if (at[5] != '1' || at[7] > '1') {
        return DP_EVERSION;
    }
    *ret_minor = (uint32_t)(at[7] - '0');
    return DP_OK;
}

/* --- requests ------------------------------------------------------------------------------- */

/* RFC 9112 3: method SP request-target SP HTTP-version CRLF, with exactly these spaces. */
static int parse_request_line(const uint8_t *data, const uint8_t *end, const dp_head_limits *limits,
                              dp_request_head *ret_head, const uint8_t **ret_end)
{
    /* RFC 9113 3.4: the head of a client's HTTP/2 preface */
    static const char PREFACE[] = "PRI * HTTP/2.0\r\n\r\n";
    unsigned seen;
    int result;
    const uint8_t *at = dp_skip_token(data, end, &seen);

    if ((size_t)(end - data) == sizeof(PREFACE) - 1 &&
        memcmp(data, PREFACE, sizeof(PREFACE) - 1) == 0) {
        return DP_EVERSION;
    }
    if (at == data || *at != ' ') {
        return DP_EMALFORMED;
    }
    const size_t method_len = (size_t)(at - data);
    ret_head->method_span = dp_span_of(data, data, at);
    ret_head->method = dp_method_bit((const char *)data, method_len);
    at++;
    const uint8_t *const target = at;
    if (ret_head->method == DP_M_CONNECT) {
        /* RFC 9112 3.2.3: authority-form, which only CONNECT has. Not served, so not judged but for
         * the shape of the line. */
        while (dp_is_class(*at, DP_CH_QUERY)) {
            at++;
        }
    } else {
        result = dp_target_parse(data, at, ret_head, &at);
        if (result != DP_OK) {
            return result;
        }
    }
    if (*at != ' ' || at == target) {
        return DP_EMALFORMED;
    }
    ret_head->target = dp_span_of(data, target, at);
    if (limits->max_target != 0 && ret_head->target.len > limits->max_target) {
        return DP_ETARGET;
    }
    at++;
    result = parse_version(at, end, &ret_head->minor);
    if (result != DP_OK) {
        return result;
    }
    at += 8;
    if (at[0] != '\r' || at[1] != '\n') {
        return DP_EMALFORMED;
    }
    *ret_end = at + 2;
    return ret_head->method == DP_M_CONNECT ? DP_EMETHOD : DP_OK;
}

/* RFC 9112 3.2: Host must be there in HTTP/1.1. 3.2.2: the target's authority is what counts; the
 * client had to send the same, so a Host that differs is a sign of two readers. */
static int settle_host(const struct dp_facts *facts, dp_request_head *ret_head)
{
    if (!facts->has_host) {
        return facts->minor == 0 ? DP_OK : DP_EMALFORMED;
    }
    if (ret_head->host.len == 0) {
        ret_head->host = facts->host;
        ret_head->host_name = facts->host_name;
        return DP_OK;
    }
    if (ret_head->host.len != facts->host.len ||
        !dp_equal_fold(facts->data + ret_head->host.off, facts->data + facts->host.off,
                       facts->host.len)) {
        return DP_EMALFORMED;
    }
    return DP_OK;
}

int dp_request_parse(const uint8_t *data, size_t len, const dp_head_limits *limits,
                     dp_request_head *ret_head)
{
    const uint8_t *const end = data + len;
    const uint8_t *at;
    struct dp_facts facts = {.data = data, .is_request = true};
    int result;

    if (len > limits->max_bytes) {
        return DP_ETOOBIG;
    }
    if (!is_whole_head(data, len)) {
        return DP_EMALFORMED;
    }
    result = parse_request_line(data, end, limits, ret_head, &at);
    if (result != DP_OK) {
        return result;
    }
    facts.minor = ret_head->minor;
    result = dp_fields_parse(&facts, at, end, limits->max_fields, ret_head->fields);
    if (result != DP_OK) {
        return result;
    }
    result = settle_host(&facts, ret_head);
    if (result != DP_OK) {
        return result;
    }
    result = judge_framing(&facts);
    if (result != DP_OK) {
        return result;
    }
    if (ret_head->method == DP_M_TRACE && (facts.codings != 0 || facts.content_length != 0)) {
        return DP_EMALFORMED; /* RFC 9110 9.3.8 */
    }
    const bool counts_hops = (ret_head->method & (DP_M_TRACE | DP_M_OPTIONS)) != 0;
    ret_head->max_forwards = counts_hops ? facts.max_forwards - 1 : UINT32_MAX;
    ret_head->expects_continue = 0;
    if (facts.expect_count > 0 && facts.minor == 1) {
        /* RFC 9110 10.1.1: not heeded in HTTP/1.0 */
        if (facts.expect_count > 1 || !facts.expects_continue) {
            return DP_EEXPECT;
        }
        ret_head->expects_continue = 1;
    }
    ret_head->head_len = (uint32_t)len;
    ret_head->framing = facts.codings != 0 ? DP_BODY_CHUNKED
                        : facts.has_length ? DP_BODY_LENGTH
                                           : DP_BODY_NONE;
    ret_head->content_length = facts.content_length;
    ret_head->keep_alive = may_persist(&facts);
    ret_head->has_upgrade = facts.upgrade_count != 0;
    ret_head->upgrade = settle_upgrade(&facts);
    ret_head->takes_trailers = facts.takes_trailers && facts.minor == 1;
    ret_head->field_count = facts.field_count;
    return DP_OK;
}

/* --- responses ------------------------------------------------------------------------------ */

/* RFC 9112 4: HTTP-version SP status-code SP [ reason-phrase ]. The second space is often left out
 * where no reason follows; nothing is ambiguous about that. */
static int parse_status_line(const uint8_t *data, const uint8_t *end, dp_response_head *ret_head,
                             const uint8_t **ret_end)
{
    const int result = parse_version(data, end, &ret_head->minor);
    if (result != DP_OK) {
        return result;
    }
    const uint8_t *at = data + 8;
    if (end - at < 8 || *at++ != ' ') { /* at the least " 200\r\n\r\n" */
        return DP_EMALFORMED;
    }
    uint32_t status = 0;
    for (unsigned i = 0; i < 3; i++, at++) {
        if (*at < '0' || *at > '9') {
            return DP_EMALFORMED;
        }
        status = status * 10 + (uint32_t)(*at - '0');
    }
    if (status < 100 || status > 599) { /* RFC 9110 15 */
        return DP_EMALFORMED;
    }
    ret_head->status = status;
    const uint8_t *reason = at;
    if (*at == ' ') {
        reason = at + 1;
        at = dp_skip_text(reason, end);
    }
    if (at[0] != '\r' || at[1] != '\n') {
        return DP_EMALFORMED;
    }
    ret_head->reason = dp_span_of(data, reason, at);
    *ret_end = at + 2;
    return DP_OK;
}

/* RFC 9112 6.3: which body follows. */
static int settle_body(const struct dp_facts *facts, bool to_head, dp_response_head *ret_head)
{
    const uint32_t status = ret_head->status;
    const bool bodiless = status < 200 || status == 204;

    ret_head->keep_alive = may_persist(facts);
    ret_head->content_length = facts->has_length ? facts->content_length : UINT64_MAX;
    if (bodiless && (facts->codings != 0 || facts->content_length != 0)) {
        /* RFC 9112 6.1, RFC 9110 8.6: must not be told. If bytes follow all the same, they must
         * not be taken for the next response. */
        if (status < 200) {
            return DP_EMALFORMED;
        }
        ret_head->keep_alive = 0;
    }
    if (bodiless || to_head || status == 304) {
        ret_head->framing = DP_BODY_NONE;
    } else if (facts->codings != 0) {
        ret_head->framing = DP_BODY_CHUNKED;
    } else if (facts->has_length) {
        ret_head->framing = DP_BODY_LENGTH;
    } else {
        ret_head->framing = DP_BODY_CLOSE;
        ret_head->keep_alive = 0;
    }
    if (bodiless && facts->has_length) {
        for (uint32_t i = 0; i < facts->field_count; i++) {
            if (ret_head->fields[i].id == DP_F_CONTENT_LENGTH) {
                ret_head->fields[i].flags |= DP_FIELD_DROP;
            }
        }
    }
    return DP_OK;
}

int dp_response_parse(const uint8_t *data, size_t len, const dp_head_limits *limits, int to_head,
                      dp_response_head *ret_head)
{
    const uint8_t *const end = data + len;
    const uint8_t *at;
    struct dp_facts facts = {.data = data, .is_request = false};
    int result;

    if (len > limits->max_bytes) {
        return DP_ETOOBIG;
    }
    if (!is_whole_head(data, len)) {
        return DP_EMALFORMED;
    }
    result = parse_status_line(data, end, ret_head, &at);
    if (result != DP_OK) {
        return result;
    }
    facts.minor = ret_head->minor;
    result = dp_fields_parse(&facts, at, end, limits->max_fields, ret_head->fields);
    if (result != DP_OK) {
        return result;
    }
    result = judge_framing(&facts);
    if (result != DP_OK) {
        return result;
    }
    ret_head->head_len = (uint32_t)len;
    ret_head->field_count = facts.field_count;
    ret_head->upgrade = settle_upgrade(&facts);
    return settle_body(&facts, to_head != 0, ret_head);
}
