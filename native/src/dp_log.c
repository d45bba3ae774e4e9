/* dp_log: access log lines. Pure. See the header. */
#include "dp_log.h"

#include <stdbool.h>
#include <string.h>

enum {
    PART_HEAD = 2, /* the length of a part's first piece, little-endian */
    ESCAPE_MAX = 6 /* \u001b */
};

typedef struct writer {
    uint8_t *at;
    uint8_t *end;
} writer;

/* Callers leave room: the bounds of the header add up to less than a line. */
static void put(writer *out, const void *data, size_t len)
{
    if (len == 0 || (size_t)(out->end - out->at) < len)
        return;
    memcpy(out->at, data, len);
    out->at += len;
}

static void put_text(writer *out, const char *text)
{
    put(out, text, strlen(text));
}

static void put_number(writer *out, uint64_t number)
{
    char digits[20];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    put(out, digits + at, sizeof(digits) - at);
}

/* Microseconds as milliseconds with three places. */
static void put_ms(writer *out, uint64_t us)
{
    const char places[4] = {'.', (char)('0' + us % 1000 / 100), (char)('0' + us % 100 / 10),
                            (char)('0' + us % 10)};
    put_number(out, us / 1000);
    put(out, places, sizeof(places));
}

/* --- escaping --------------------------------------------------------------------------------- */

static const uint64_t ONES = UINT64_C(0x0101010101010101);

/* True if all eight bytes stand for themselves. A borrow between bytes only makes a clean one look
 * unclean, and then each is looked at alone. */
static bool are_clean(uint64_t bytes)
{
    const uint64_t high = ONES * 0x80;
    uint64_t quote = bytes ^ ONES * '"';
    uint64_t backslash = bytes ^ ONES * '\\';
    uint64_t del = bytes ^ ONES * 0x7f;
    uint64_t found =
        bytes | (bytes - ONES * 0x20) | (quote - ONES) | (backslash - ONES) | (del - ONES);
    return (found & high) == 0;
}

static bool is_clean(uint8_t byte)
{
    return byte >= ' ' && byte < 0x7f && byte != '"' && byte != '\\';
}

static size_t escape(int format, uint8_t byte, uint8_t escaped[ESCAPE_MAX])
{
    static const char hex[] = "0123456789abcdef";
    escaped[0] = '\\';
    if (byte == '"' || byte == '\\') {
        escaped[1] = byte;
        return 2;
    }
    size_t at = 1;
    if (format == DP_LOG_JSON) {
        memcpy(escaped + at, "u00", 3);
        at += 3;
    } else {
        escaped[at++] = 'x';
    }
    escaped[at++] = (uint8_t)hex[byte >> 4];
    escaped[at++] = (uint8_t)hex[byte & 15];
    return at;
}

/* Appends text escaped, until *left bytes are used; "..." then takes the last three. */
static void put_escaped(writer *out, int format, dp_log_text text, size_t *left)
{
    size_t i = 0;
    if (*left == 0)
        return;
    while (i < text.len) {
        uint8_t escaped[ESCAPE_MAX];
        size_t len = 1;
        uint64_t eight;
        if (text.len - i >= sizeof(eight) && *left >= sizeof(eight) + 3) {
            memcpy(&eight, text.data + i, sizeof(eight));
            if (are_clean(eight)) {
                put(out, &eight, sizeof(eight));
                i += sizeof(eight);
                *left -= sizeof(eight);
                continue;
            }
        }
        if (is_clean(text.data[i]))
            escaped[0] = text.data[i];
        else
            len = escape(format, text.data[i], escaped);
        if (len + 3 > *left) {
            put(out, "...", 3);
            *left = 0;
            return;
        }
        put(out, escaped, len);
        *left -= len;
        i++;
    }
}

/* "text", or null where there is none. */
static void put_json(writer *out, dp_log_text text, size_t max)
{
    if (text.data == NULL) {
        put(out, "null", 4);
        return;
    }
    put(out, "\"", 1);
    put_escaped(out, DP_LOG_JSON, text, &max);
    put(out, "\"", 1);
}

static dp_log_text text_of(const char *text)
{
    return (dp_log_text){.data = (const uint8_t *)text, .len = text != NULL ? strlen(text) : 0};
}

/* --- a request's part ------------------------------------------------------------------------- */

static void part_json(writer *out, const dp_log_request *request, uint8_t *ret_length)
{
    const uint8_t *begin = out->at;
    size_t path_left = DP_LOG_PATH_MAX;
    put_text(out, ",\"method\":");
    put_json(out, request->method, DP_LOG_METHOD_MAX);
    put_text(out, ",\"host\":");
    put_json(out, request->host, DP_LOG_HOST_MAX);
    put_text(out, ",\"path\":");
    if (request->path.data == NULL) {
        put(out, "null", 4);
    } else {
        put(out, "\"", 1);
        put_escaped(out, DP_LOG_JSON, request->path, &path_left);
        put_escaped(out, DP_LOG_JSON, request->query, &path_left);
        put(out, "\"", 1);
    }
    put_text(out, ",\"protocol\":");
    put_json(out, text_of(request->protocol), DP_LOG_METHOD_MAX);
    size_t len = (size_t)(out->at - begin);
    ret_length[0] = (uint8_t)len;
    ret_length[1] = (uint8_t)(len >> 8);
    put_text(out, ",\"request_id\":");
    put_json(out, request->request_id, DP_LOG_ID_MAX);
    put_text(out, ",\"trace_id\":");
    put_json(out, request->trace_id, DP_LOG_ID_MAX);
    put_text(out, ",\"user_agent\":");
    put_json(out, request->user_agent, DP_LOG_AGENT_MAX);
    put_text(out, ",\"referer\":");
    put_json(out, request->referer, DP_LOG_REFERER_MAX);
}

static void put_combined(writer *out, dp_log_text text, size_t max)
{
    if (text.data == NULL || text.len == 0)
        put(out, "-", 1);
    else
        put_escaped(out, DP_LOG_COMBINED, text, &max);
}

static void part_combined(writer *out, const dp_log_request *request, uint8_t *ret_length)
{
    const uint8_t *begin = out->at;
    size_t path_left = DP_LOG_PATH_MAX;
    put(out, "\"", 1);
    if (request->method.data != NULL && request->path.data != NULL) {
        put_combined(out, request->method, DP_LOG_METHOD_MAX);
        put(out, " ", 1);
        put_escaped(out, DP_LOG_COMBINED, request->path, &path_left);
        put_escaped(out, DP_LOG_COMBINED, request->query, &path_left);
        put(out, " ", 1);
    }
    put_combined(out, text_of(request->protocol), DP_LOG_METHOD_MAX);
    put(out, "\" ", 2);
    size_t len = (size_t)(out->at - begin);
    ret_length[0] = (uint8_t)len;
    ret_length[1] = (uint8_t)(len >> 8);
    put_text(out, " \"");
    put_combined(out, request->referer, DP_LOG_REFERER_MAX);
    put_text(out, "\" \"");
    put_combined(out, request->user_agent, DP_LOG_AGENT_MAX);
    put(out, "\"", 1);
}

size_t dp_log_part(int format, const dp_log_request *request, uint8_t *ret_part)
{
    writer out = {.at = ret_part + PART_HEAD, .end = ret_part + DP_LOG_PART_MAX};
    if (format == DP_LOG_JSON)
        part_json(&out, request, ret_part);
    else
        part_combined(&out, request, ret_part);
    return (size_t)(out.at - ret_part);
}

/* --- time ------------------------------------------------------------------------------------- */

static void two_digits(char *at, uint64_t number)
{
    at[0] = (char)('0' + number / 10 % 10);
    at[1] = (char)('0' + number % 10);
}

static void four_digits(char *at, uint64_t number)
{
    two_digits(at, number / 100);
    two_digits(at + 2, number);
}

/* Written out, since libc's functions may look for the time zone's file. */
static void clock_set(dp_log_clock *clock, uint64_t second)
{
    static const char months[] = "MarAprMayJunJulAugSepOctNovDecJanFeb";
    /* Days from 0000-03-01, in eras of 400 years: the calendar's arithmetic by H. Hinnant. */
    uint64_t shifted = second / 86400 + 719468;
    uint64_t rest = second % 86400;
    uint64_t era = shifted / 146097;
    uint64_t of_era = shifted % 146097;
    uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month = (5 * of_year + 2) / 153; /* from March */
    uint64_t day = of_year - (153 * month + 2) / 5 + 1;
    uint64_t year = year_of_era + era * 400 + (month >= 10 ? 1 : 0);

    memcpy(clock->json, "0000-00-00T00:00:00", sizeof(clock->json));
    four_digits(clock->json, year);
    two_digits(clock->json + 5, month < 10 ? month + 3 : month - 9);
    two_digits(clock->json + 8, day);
    two_digits(clock->json + 11, rest / 3600);
    two_digits(clock->json + 14, rest / 60 % 60);
    two_digits(clock->json + 17, rest % 60);
    memcpy(clock->combined, "00/Mar/0000:00:00:00 +0000", 27);
    two_digits(clock->combined, day);
    memcpy(clock->combined + 3, months + month * 3, 3);
    four_digits(clock->combined + 7, year);
    memcpy(clock->combined + 12, clock->json + 11, 8);
    clock->second = second;
}

/* --- a line ----------------------------------------------------------------------------------- */

static void line_json(writer *out, const dp_log_origin *origin, const dp_log_end *end,
                      const dp_log_clock *clock, dp_log_text first, dp_log_text second)
{
    const uint64_t ms = end->wall_us / 1000 % 1000;
    const char places[3] = {(char)('0' + ms / 100), (char)('0' + ms / 10 % 10),
                            (char)('0' + ms % 10)};
    put_text(out, "{\"time\":\"");
    put(out, clock->json, sizeof(clock->json) - 1);
    put(out, ".", 1);
    put(out, places, sizeof(places));
    put_text(out, "Z\",\"app\":");
    put_json(out, origin->app, DP_LOG_NAME_MAX);
    put_text(out, ",\"generation\":");
    put_number(out, origin->generation);
    put_text(out, ",\"image\":");
    put_json(out, origin->image, DP_LOG_METHOD_MAX);
    put_text(out, ",\"client\":");
    put_json(out, end->client, DP_LOG_NAME_MAX);
    put(out, first.data, first.len);
    put_text(out, ",\"status\":");
    if (end->status != 0)
        put_number(out, end->status);
    else
        put(out, "null", 4);
    put_text(out, ",\"bytes_in\":");
    put_number(out, end->bytes_in);
    put_text(out, ",\"bytes_out\":");
    put_number(out, end->bytes_out);
    put_text(out, ",\"duration_ms\":");
    put_ms(out, end->duration_us);
    put_text(out, ",\"upstream\":");
    put_json(out, end->upstream, DP_LOG_NAME_MAX);
    put_text(out, ",\"endpoint\":");
    put_json(out, end->endpoint, DP_LOG_NAME_MAX);
    put_text(out, ",\"upstream_ms\":");
    if (end->upstream_us != 0)
        put_ms(out, end->upstream_us);
    else
        put(out, "null", 4);
    put_text(out, ",\"retries\":");
    put_number(out, end->retries);
    put(out, second.data, second.len);
    put_text(out, ",\"outcome\":");
    put_json(out, text_of(end->outcome), DP_LOG_METHOD_MAX);
    put(out, "}\n", 2);
}

/* Apache's: host ident user [time] "request" status bytes "referer" "user agent". */
static void line_combined(writer *out, const dp_log_end *end, const dp_log_clock *clock,
                          dp_log_text first, dp_log_text second)
{
    put_combined(out, end->client, DP_LOG_NAME_MAX);
    put_text(out, " - - [");
    put(out, clock->combined, 26);
    put_text(out, "] ");
    put(out, first.data, first.len);
    if (end->status != 0)
        put_number(out, end->status);
    else
        put(out, "-", 1);
    put(out, " ", 1);
    if (end->body_out != 0)
        put_number(out, end->body_out);
    else
        put(out, "-", 1);
    put(out, second.data, second.len);
    put(out, "\n", 1);
}

size_t dp_log_line(int format, const dp_log_origin *origin, const dp_log_end *end,
                   const uint8_t *part, size_t part_len, dp_log_clock *clock, uint8_t *ret_line)
{
    writer out = {.at = ret_line, .end = ret_line + DP_LOG_LINE_MAX};
    size_t first_len = (size_t)part[0] | (size_t)part[1] << 8;
    dp_log_text first = {.data = part + PART_HEAD, .len = first_len};
    dp_log_text second = {.data = part + PART_HEAD + first_len,
                          .len = part_len - PART_HEAD - first_len};
    if (end->wall_us / 1000000 != clock->second || clock->json[0] == '\0')
        clock_set(clock, end->wall_us / 1000000);
    if (format == DP_LOG_JSON)
        line_json(&out, origin, end, clock, first, second);
    else
        line_combined(&out, end, clock, first, second);
    return (size_t)(out.at - ret_line);
}
