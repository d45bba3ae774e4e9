/* dp_field: field lines. Pure. See the header. */
#include "dp_field.h"

#include <string.h>

#include "dp_chars.h"
#include "dp_http1.h"
#include "dp_scan.h"
#include "dp_target.h"

/* Options in all Connection fields of a head. Each is looked for among up to 256 fields, so the
 * product is bounded here; real messages have one to three. */
enum { CONNECTION_OPTIONS_MAX = 32 };

/* RFC 9110 8.6 sets no bound; what fits a signed 64-bit offset is far beyond any body. */
static const uint64_t CONTENT_LENGTH_MAX = INT64_MAX;

/* --- names ---------------------------------------------------------------------------------- */

static inline bool fold_is(const uint8_t *data, size_t len, const char *text)
{
    return len == strlen(text) && dp_equal_fold(data, (const uint8_t *)text, len);
}

/* Equality of a token with a lower-case name of the same length. Setting bit 0x20 folds letters,
 * and makes no other pair of token bytes equal to a letter, a digit or '-'. */
static inline bool token_is(const uint8_t *token, const char *name, size_t len)
{
    const uint64_t fold = UINT64_C(0x2020202020202020);
    uint64_t a;
    uint64_t b;
    size_t at = 0;

    if (len < 8) {
        unsigned differ = 0;
        for (; at < len; at++) {
            differ |= (unsigned)((token[at] | 0x20) ^ (uint8_t)name[at]);
        }
        return differ == 0;
    }
    for (; at + 8 < len; at += 8) {
        memcpy(&a, token + at, 8);
        memcpy(&b, name + at, 8);
        if ((a | fold) != b) {
            return false;
        }
    }
    memcpy(&a, token + len - 8, 8);
    memcpy(&b, name + len - 8, 8);
    return (a | fold) == b;
}

static uint16_t field_id(const uint8_t *name, size_t len)
{
    switch (len) {
    case 2:
        return token_is(name, "te", 2) ? DP_F_TE : DP_F_OTHER;
    case 4:
        if (token_is(name, "host", 4)) {
            return DP_F_HOST;
        }
        return token_is(name, "date", 4) ? DP_F_DATE : DP_F_OTHER;
    case 5:
        return token_is(name, "proxy", 5) ? DP_F_PROXY : DP_F_OTHER;
    case 6:
        if (token_is(name, "expect", 6)) {
            return DP_F_EXPECT;
        }
        return token_is(name, "server", 6) ? DP_F_SERVER : DP_F_OTHER;
    case 7:
        if (token_is(name, "upgrade", 7)) {
            return DP_F_UPGRADE;
        }
        return token_is(name, "trailer", 7) ? DP_F_TRAILER : DP_F_OTHER;
    case 9:
        return token_is(name, "forwarded", 9) ? DP_F_FORWARDED : DP_F_OTHER;
    case 10:
        if (token_is(name, "connection", 10)) {
            return DP_F_CONNECTION;
        }
        return token_is(name, "keep-alive", 10) ? DP_F_KEEP_ALIVE : DP_F_OTHER;
    case 11:
        return token_is(name, "traceparent", 11) ? DP_F_TRACEPARENT : DP_F_OTHER;
    case 12:
        if (token_is(name, "max-forwards", 12)) {
            return DP_F_MAX_FORWARDS;
        }
        return token_is(name, "x-request-id", 12) ? DP_F_X_REQUEST_ID : DP_F_OTHER;
    case 14:
        if (token_is(name, "content-length", 14)) {
            return DP_F_CONTENT_LENGTH;
        }
        return token_is(name, "http2-settings", 14) ? DP_F_HTTP2_SETTINGS : DP_F_OTHER;
    case 15:
        return token_is(name, "x-forwarded-for", 15) ? DP_F_X_FORWARDED_FOR : DP_F_OTHER;
    case 16:
        if (token_is(name, "x-forwarded-host", 16)) {
            return DP_F_X_FORWARDED_HOST;
        }
        if (token_is(name, "x-forwarded-port", 16)) {
            return DP_F_X_FORWARDED_PORT;
        }
        return token_is(name, "proxy-connection", 16) ? DP_F_PROXY_CONNECTION : DP_F_OTHER;
    case 17:
        if (token_is(name, "transfer-encoding", 17)) {
            return DP_F_TRANSFER_ENCODING;
        }
        return token_is(name, "x-forwarded-proto", 17) ? DP_F_X_FORWARDED_PROTO : DP_F_OTHER;
    default:
        return DP_F_OTHER;
    }
}

/* X-Forwarded- and whatever follows, X-Real-IP: proxies tell each other by them where a request
 * came from. */
static bool says_where_from(const uint8_t *name, size_t len)
{
    if ((name[0] | 0x20) != 'x')
        return false;
    return (len > 12 && token_is(name, "x-forwarded-", 12)) ||
           (len == 9 && token_is(name, "x-real-ip", 9));
}

/* An upstream that turns names into variables (CGI, WSGI) reads "X_Forwarded_For" as
 * "X-Forwarded-For". So a name that only differs from one of ours by '_' for '-' is not passed. */
static bool is_lookalike(const uint8_t *name, size_t len)
{
    uint8_t dashed[17]; /* the longest name of field_id */

    for (size_t i = 0; i < len && i < sizeof(dashed); i++) {
        dashed[i] = name[i] == '_' ? '-' : name[i];
    }
    return says_where_from(dashed, len) ||
           (len <= sizeof(dashed) && field_id(dashed, len) != DP_F_OTHER);
}

/* Fields that a Connection option cannot remove: RFC 9110 7.6.1 forbids options that name what is
 * meant for all recipients, and a client must not be able to strip what a proxy before us, or we,
 * put in. Those that go hop by hop anyway are flagged by their id. */
static bool is_end_to_end(const uint8_t *name, size_t len)
{
    static const char *const NAMES[] = {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "cookie",
        "date",
        "etag",
        "expect",
        "expires",
        "forwarded",
        "from",
        "host",
        "last-modified",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "prefer",
        "priority",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "server",
        "set-cookie",
        "strict-transport-security",
        "traceparent",
        "tracestate",
        "trailer",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-request-id",
        "x-real-ip",
    };
    static const char *const PREFIXES[] = {"x-forwarded-", "content-", "if-", "sec-",
                                           "access-control-"};

    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++) {
        const size_t prefix_len = strlen(PREFIXES[i]);
        if (len > prefix_len && fold_is(name, prefix_len, PREFIXES[i])) {
            return true;
        }
    }
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        if (fold_is(name, len, NAMES[i])) {
            return true;
        }
    }
    return false;
}

/* --- what single fields say ------------------------------------------------------------------ */

/* RFC 9110 8.6, RFC 9112 6.3: digits and nothing else, once. A list of equal values may be taken;
 * it is refused. */
static int note_length(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    uint64_t length = 0;

    if (facts->has_length || at == end) {
        return DP_EMALFORMED;
    }
    for (; at < end; at++) {
        const unsigned digit = (unsigned)*at - '0';
        if (digit > 9 || length > (CONTENT_LENGTH_MAX - digit) / 10) {
            return DP_EMALFORMED;
        }
        length = length * 10 + digit;
    }
    facts->has_length = true;
    facts->content_length = length;
    return DP_OK;
}

/* RFC 9112 6.1, 7: chunked once and last. Parameters on chunked and empty elements are refused. */
static int note_codings(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    for (;;) {
        while (at < end && dp_is_blank(*at)) {
            at++;
        }
        const uint8_t *const coding = at;
        while (at < end && dp_is_class(*at, DP_CH_TOKEN)) {
            at++;
        }
        const size_t len = (size_t)(at - coding);
        while (at < end && dp_is_blank(*at)) {
            at++;
        }
        if (len == 0 || (facts->codings & DP_CODING_CHUNKED) != 0) {
            return DP_EMALFORMED;
        }
        if (fold_is(coding, len, "chunked")) {
            facts->codings |= DP_CODING_CHUNKED;
            if (at < end && *at != ',') {
                return DP_EMALFORMED;
            }
        } else {
            facts->codings |= DP_CODING_OTHER;
            if (at < end && *at != ',' && *at != ';') {
                return DP_EMALFORMED;
            }
            while (at < end && *at != ',') {
                at++;
            }
        }
        if (at == end) {
            return DP_OK;
        }
        at++;
    }
}

/* RFC 9110 7.6.2: digits. More than nine are more hops than there are, and any other value is for
 * the one behind us to judge. */
static void note_max_forwards(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    uint32_t count = 0;

    if (at == end || end - at > 9) {
        return;
    }
    for (; at < end; at++) {
        if (*at < '0' || *at > '9') {
            return;
        }
        count = count * 10 + (uint32_t)(*at - '0');
    }
    facts->max_forwards = count + 1;
}

/* RFC 9110 10.1.4: TE names codings with weights, or just "trailers". */
static void note_te(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        while (at < end && (dp_is_blank(*at) || *at == ',')) {
            at++;
        }
        const uint8_t *const coding = at;
        while (at < end && *at != ',') {
            at++;
        }
        const uint8_t *last = at;
        while (last > coding && dp_is_blank(last[-1])) {
            last--;
        }
        facts->takes_trailers |= fold_is(coding, (size_t)(last - coding), "trailers");
    }
}

/* Takes the next option of a Connection value from *at. *ret_len is 0 for an empty element.
 * Returns false if there is something that is not a token. */
static bool next_option(const uint8_t **at, const uint8_t *end, const uint8_t **ret_option,
                        size_t *ret_len)
{
    const uint8_t *byte = *at;

    while (byte < end && dp_is_blank(*byte)) {
        byte++;
    }
    *ret_option = byte;
    while (byte < end && dp_is_class(*byte, DP_CH_TOKEN)) {
        byte++;
    }
    *ret_len = (size_t)(byte - *ret_option);
    while (byte < end && dp_is_blank(*byte)) {
        byte++;
    }
    if (byte < end && *byte != ',') {
        return false;
    }
    *at = byte < end ? byte + 1 : end;
    return true;
}

/* RFC 9110 7.6.1. Empty elements are passed over, as RFC 9110 5.6.1.2 demands. */
static int note_options(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        const uint8_t *option;
        size_t len;

        if (!next_option(&at, end, &option, &len)) {
            return DP_EMALFORMED;
        }
        if (len == 0) {
            continue;
        }
        if (++facts->option_count > CONNECTION_OPTIONS_MAX) {
            return DP_ETOOBIG;
        }
        if (len == 10 && token_is(option, "keep-alive", 10)) {
            facts->options |= DP_OPTION_KEEP_ALIVE;
        } else if (len == 5 && token_is(option, "close", 5)) {
            facts->options |= DP_OPTION_CLOSE;
        } else if (len == 7 && token_is(option, "upgrade", 7)) {
            facts->options |= DP_OPTION_UPGRADE;
        } else {
            facts->options |= DP_OPTION_NAME;
        }
    }
    return DP_OK;
}

/* RFC 9110 7.6.1: what Connection names goes no further. Only called when it names something. */
static void drop_named_fields(const struct dp_facts *facts, dp_field *fields)
{
    for (uint32_t i = 0; i < facts->field_count; i++) {
        if (fields[i].id != DP_F_CONNECTION) {
            continue;
        }
        const uint8_t *at = facts->data + fields[i].value.off;
        const uint8_t *const end = at + fields[i].value.len;
        const uint8_t *option;
        size_t len;

        while (at < end && next_option(&at, end, &option, &len)) {
            if (len == 0 || is_end_to_end(option, len)) {
                continue;
            }
            for (uint32_t j = 0; j < facts->field_count; j++) {
                if (fields[j].name.len == len &&
                    dp_equal_fold(facts->data + fields[j].name.off, option, len)) {
                    fields[j].flags |= DP_FIELD_DROP;
                }
            }
        }
    }
}

/* --- Host ----------------------------------------------------------------------------------- */

/* RFC 9112 3.2: one Host, and a valid one. An empty one is refused: RFC 9110 4.2.1 has no http URI
 * without a host. */
static int note_host(struct dp_facts *facts, const uint8_t *at, const uint8_t *end)
{
    size_t name_len;

    if (facts->has_host || !dp_authority_parse(at, end, &name_len)) {
        return DP_EMALFORMED;
    }
    facts->has_host = true;
    facts->host = dp_span_of(facts->data, at, end);
    facts->host_name = dp_span_of(facts->data, at, at + name_len);
    return DP_OK;
}

/* --- field lines ---------------------------------------------------------------------------- */

static int note_field(struct dp_facts *facts, dp_field *field, const uint8_t *value,
                      const uint8_t *end)
{
    switch (field->id) {
    case DP_F_HOST:
        return facts->is_request ? note_host(facts, value, end) : DP_OK;
    case DP_F_CONTENT_LENGTH:
        return note_length(facts, value, end);
    case DP_F_TRANSFER_ENCODING:
        field->flags = DP_FIELD_DROP;
        return note_codings(facts, value, end);
    case DP_F_CONNECTION:
        field->flags = DP_FIELD_DROP;
        return note_options(facts, value, end);
    case DP_F_EXPECT:
        facts->expect_count++;
        facts->expects_continue = fold_is(value, (size_t)(end - value), "100-continue");
        return DP_OK;
    case DP_F_UPGRADE:
        facts->upgrade_count++;
        facts->upgrade = dp_span_of(facts->data, value, end);
        field->flags = DP_FIELD_DROP;
        return DP_OK;
    case DP_F_TE:
        field->flags = DP_FIELD_DROP;
        note_te(facts, value, end);
        return DP_OK;
    case DP_F_MAX_FORWARDS:
        note_max_forwards(facts, value, end);
        return DP_OK;
    case DP_F_FORWARDED:
    case DP_F_X_FORWARDED_FOR:
    case DP_F_X_FORWARDED_PROTO:
    case DP_F_X_FORWARDED_HOST:
    case DP_F_X_FORWARDED_PORT:
        field->flags = DP_FIELD_FORWARDED;
        return DP_OK;
    case DP_F_KEEP_ALIVE:
    case DP_F_PROXY_CONNECTION:
    case DP_F_PROXY:
    case DP_F_HTTP2_SETTINGS:
        field->flags = DP_FIELD_DROP;
        return DP_OK;
    default:
        return DP_OK;
    }
}

/* Reads field lines from at through the empty line, which must be the last of the head.
 *
 * The head is known to end in CR LF CR LF. Neither byte is a token or text, so no loop here passes
 * the end, and a line that starts before the last CR LF ends before it. */
int dp_fields_parse(struct dp_facts *facts, const uint8_t *at, const uint8_t *end,
                    uint32_t max_fields, dp_field *fields)
{
    const uint32_t room = max_fields < DP_MAX_FIELDS ? max_fields : DP_MAX_FIELDS;
    uint32_t count = 0;

    while (*at != '\r') {
        unsigned seen;
        const uint8_t *const name = at;
        at = dp_skip_token(at, end, &seen);
        /* RFC 9112 5.1: no space before the colon. 5.2: a line that starts with a space is a fold,
         * and refused. */
        if (at == name || *at != ':') {
            return DP_EMALFORMED;
        }
        const size_t name_len = (size_t)(at - name);
        at++;
        while (dp_is_blank(*at)) {
            at++;
        }
        const uint8_t *const value = at;
        at = dp_skip_text(at, end);
        if (at[0] != '\r' || at[1] != '\n') {
            return DP_EMALFORMED;
        }
        const uint8_t *value_end = at;
        while (value_end > value && dp_is_blank(value_end[-1])) {
            value_end--;
        }
        at += 2;
        if (count == room) {
            return DP_ETOOBIG;
        }
        dp_field *const field = &fields[count++];
        field->name = dp_span_of(facts->data, name, name + name_len);
        field->value = dp_span_of(facts->data, value, value_end);
        field->id = field_id(name, name_len);
        field->flags = 0;
        if (field->id != DP_F_OTHER) {
            const int result = note_field(facts, field, value, value_end);
            if (result != DP_OK) {
                return result;
            }
        } else if (says_where_from(name, name_len)) {
            field->flags = DP_FIELD_FORWARDED;
        } else if ((seen & DP_CH_UNDERSCORE) != 0 && facts->is_request &&
                   is_lookalike(name, name_len)) {
            field->flags = DP_FIELD_DROP;
        }
    }
    facts->field_count = count;
    if (at + 2 != end) {
        return DP_EMALFORMED;
    }
    if ((facts->options & DP_OPTION_NAME) != 0) {
        drop_named_fields(facts, fields);
    }
    return DP_OK;
}
