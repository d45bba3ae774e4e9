/* dp_head: the heads that go out: requests to an upstream, responses to a client, answers of our
 * own. Pure but for the engine's scratch buffer, where they are written.
 *
 * Fields are copied in runs of untouched lines: the parser proved them well-formed. */
#include <string.h>
#include <time.h>

#include "dp_core.h"
#include "dp_forward.h"
#include "dp_write.h"

enum { COOKIE_LINE_MAX = 384 };

static dp_writer writer_init(dp_engine *engine)
{
    return (dp_writer){.at = engine->head_buffer,
                       .end = engine->head_buffer + engine->head_buffer_size};
}

static size_t written(const dp_engine *engine, const dp_writer *out)
{
    return out->full ? 0 : (size_t)(out->at - engine->head_buffer);
}

/* True if an edit of the route takes this field away, by removing or by setting it. */
bool dp_is_edited(const dp_edit *edits, const uint8_t *name, uint32_t len)
{
    for (const dp_edit *edit = edits; edit != NULL; edit = edit->next)
        if (edit->name.len == len && dp_equal_fold(name, (const uint8_t *)edit->name.data, len))
            return true;
    return false;
}

static void put_edits(dp_writer *out, const dp_edit *edits)
{
    for (const dp_edit *edit = edits; edit != NULL; edit = edit->next)
        dp_put(out, edit->line.data, edit->line.len);
}

/* Copies the fields that keep says yes to, neighbours in one piece. */
static void put_fields(dp_writer *out, const uint8_t *data, const dp_field *fields, uint32_t count,
                       uint32_t head_len, uint32_t dropped_ids, uint16_t dropped_flags,
                       const dp_edit *edits)
{
    uint32_t run = 0; /* where the current run begins; 0: none (a field never starts there) */
    for (uint32_t i = 0; i < count; i++) {
        const dp_field *field = &fields[i];
        bool drop = (field->flags & dropped_flags) != 0 ||
                    (field->id != DP_F_OTHER && (dropped_ids >> field->id & 1) != 0) ||
                    (edits != NULL && dp_is_edited(edits, data + field->name.off, field->name.len));
        if (drop && run != 0) {
            dp_put(out, data + run, field->name.off - run);
            run = 0;
        } else if (!drop && run == 0) {
            run = field->name.off;
        }
    }
    if (run != 0)
        dp_put(out, data + run, head_len - 2 - run);
}

static uint64_t mix(uint64_t value)
{
    value ^= value >> 30; /* splitmix64's finaliser */
    value *= 0xbf58476d1ce4e5b9u;
    value ^= value >> 27;
    value *= 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

void dp_request_id(const dp_engine *engine, char ret_text[DP_REQUEST_ID_LEN])
{
    static const char hex[] = "0123456789abcdef";
    uint64_t low = mix(engine->options.seed_low + engine->request_ids * 0x9e3779b97f4a7c15u);
    uint64_t high = mix(engine->options.seed_high ^ low);
    for (int i = 0; i < 16; i++) {
        ret_text[i] = hex[high >> (60 - 4 * i) & 15];
        ret_text[16 + i] = hex[low >> (60 - 4 * i) & 15];
    }
}

static void put_request_id(dp_writer *out, const dp_engine *engine)
{
    char text[DP_REQUEST_ID_LEN];
    dp_request_id(engine, text);
    dp_put(out, "x-request-id: ", 14);
    dp_put(out, text, sizeof(text));
    dp_put(out, "\r\n", 2);
}

/* A client's own id is kept where it is short and plain, so that it can stand in any log. */
static bool id_is_plain(const uint8_t *id, uint32_t len)
{
    if (len == 0 || len > 128)
        return false;
    for (uint32_t i = 0; i < len; i++) {
        uint8_t c = id[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                     c == '-' || c == '_' || c == '.';
        if (!plain)
            return false;
    }
    return true;
}

const dp_field *dp_head_request_id(const uint8_t *data, const dp_request_head *head)
{
    const dp_field *id = NULL;
    uint32_t ids = 0;
    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        if (field->id == DP_F_X_REQUEST_ID && ids++ == 0)
            id = field;
    }
    bool plain = ids == 1 && id_is_plain(data + id->value.off, id->value.len);
    return plain ? id : NULL;
}

/* A field of ours, unless the route's edits have taken its place. */
void dp_put_own(dp_writer *out, const dp_edit *edits, const char *name, const uint8_t *value,
                size_t len)
{
    size_t name_len = strlen(name);
    if (edits != NULL && dp_is_edited(edits, (const uint8_t *)name, (uint32_t)name_len))
        return;
    dp_put(out, name, name_len);
    dp_put(out, ": ", 2);
    dp_put(out, value, len);
    dp_put(out, "\r\n", 2);
}

size_t dp_head_request(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                       const dp_request_head *head, const dp_route *route)
{
    const dp_edit *edits = route->request_edits;
    dp_writer out = writer_init(engine);
    dp_put(&out, data + head->method_span.off, head->method_span.len);
    dp_put(&out, " ", 1);
    if (head->path.len == 0)
        dp_put(&out, "/", 1);
    dp_put(&out, data + head->path.off, head->path.len);
    dp_put(&out, data + head->query.off, head->query.len);
    dp_put(&out, " HTTP/1.1\r\n", 11);

    const uint32_t forwards = dp_forward_drops(down, data, head);
    uint32_t drops = forwards;
    bool has_id = dp_head_request_id(data, head) != NULL;
    if (!has_id)
        drops |= 1u << DP_F_X_REQUEST_ID;
    if (!head->expects_continue)
        drops |= 1u << DP_F_EXPECT;
    if (head->framing != DP_BODY_CHUNKED || down->exchange->request_keep != DP_CHUNKED_TRAILERS)
        drops |= 1u << DP_F_TRAILER;
    if (head->max_forwards != UINT32_MAX) { /* RFC 9110 7.6.2 */
        drops |= 1u << DP_F_MAX_FORWARDS;
        dp_put_text(&out, "max-forwards: ");
        dp_put_number(&out, head->max_forwards - 1);
        dp_put(&out, "\r\n", 2);
    }
    bool absolute = head->target.off != head->path.off;
    if (absolute && head->host.len != 0) {
        /* RFC 9112 3.2.2: the target's authority replaces Host. */
        drops |= 1u << DP_F_HOST;
        dp_put_own(&out, edits, "host", data + head->host.off, head->host.len);
    } else if (head->host.len == 0) { /* HTTP/1.0 needs none, the HTTP/1.1 that we speak does */
        const char *name = engine->tables.upstreams[route->upstream].name;
        dp_put_own(&out, edits, "host", (const uint8_t *)name, strlen(name));
    }
    put_fields(&out, data, head->fields, head->field_count, head->head_len, drops,
               down->trusted ? DP_FIELD_DROP : DP_FIELD_DROP | DP_FIELD_FORWARDED, edits);
    if (head->framing == DP_BODY_CHUNKED)
        dp_put_text(&out, "transfer-encoding: chunked\r\n");
    if (down->exchange->upgrade != 0) {
        dp_put_text(&out, "connection: upgrade\r\nupgrade: ");
        dp_put(&out, data + head->upgrade.off, head->upgrade.len);
        dp_put(&out, "\r\n", 2);
    }
    if (down->exchange->response_keep == DP_CHUNKED_TRAILERS)
        dp_put_text(&out, "te: trailers\r\nconnection: te\r\n");
    dp_forward_write(&out, down, data, head, forwards, edits);
    if (!has_id && !dp_is_edited(edits, (const uint8_t *)"x-request-id", 12))
        put_request_id(&out, engine);
    put_edits(&out, edits);
    dp_put(&out, "\r\n", 2);
    return written(engine, &out);
}

static void put_status_line(dp_writer *out, const uint8_t *data, const dp_response_head *head)
{
    dp_put(out, "HTTP/1.1 ", 9);
    dp_put_number(out, head->status);
    dp_put(out, " ", 1);
    dp_put(out, data + head->reason.off, head->reason.len);
    dp_put(out, "\r\n", 2);
}

static const char *date_now(dp_engine *engine);

static bool has_date(const dp_response_head *head)
{
    for (uint32_t i = 0; i < head->field_count; i++)
        if (head->fields[i].id == DP_F_DATE)
            return true;
    return false;
}

size_t dp_head_response(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                        const dp_response_head *head)
{
    const dp_exchange *exchange = down->exchange;
    const dp_edit *edits = exchange->route->response_edits;
    dp_writer out = writer_init(engine);
    put_status_line(&out, data, head);
    bool trailers =
        head->framing == DP_BODY_CHUNKED && exchange->response_keep == DP_CHUNKED_TRAILERS;
    put_fields(&out, data, head->fields, head->field_count, head->head_len,
               trailers ? 0 : 1u << DP_F_TRAILER, DP_FIELD_DROP, edits);
    if (head->framing == DP_BODY_CHUNKED && exchange->minor != 0)
        dp_put_text(&out, "transfer-encoding: chunked\r\n");
    if (!has_date(head)) /* RFC 9110 6.6.1: who forwards it adds what is missing */
        dp_put_own(&out, edits, "date", (const uint8_t *)date_now(engine), 29);
    if (!exchange->keep_alive)
        dp_put_text(&out, "connection: close\r\n");
    else if (exchange->minor == 0)
        dp_put_text(&out, "connection: keep-alive\r\n");
    char cookie[COOKIE_LINE_MAX];
    dp_put(&out, cookie, dp_pick_cookie(engine, down, cookie, sizeof(cookie)));
    put_edits(&out, edits);
    dp_put(&out, "\r\n", 2);
    return written(engine, &out);
}

size_t dp_head_switching(dp_engine *engine, const dp_conn *down, const uint8_t *data,
                         const dp_response_head *head)
{
    const dp_edit *edits = down->exchange->route->response_edits;
    dp_writer out = writer_init(engine);
    put_status_line(&out, data, head);
    put_fields(&out, data, head->fields, head->field_count, head->head_len, 1u << DP_F_TRAILER,
               DP_FIELD_DROP, edits);
    dp_put_text(&out, "connection: upgrade\r\nupgrade: ");
    dp_put(&out, data + head->upgrade.off, head->upgrade.len);
    dp_put(&out, "\r\n", 2);
    put_edits(&out, edits);
    dp_put(&out, "\r\n", 2);
    return written(engine, &out);
}

size_t dp_head_interim(dp_engine *engine, const uint8_t *data, const dp_response_head *head)
{
    dp_writer out = writer_init(engine);
    put_status_line(&out, data, head);
    put_fields(&out, data, head->fields, head->field_count, head->head_len,
               1u << DP_F_CONTENT_LENGTH | 1u << DP_F_TRAILER, DP_FIELD_DROP, NULL);
    dp_put(&out, "\r\n", 2);
    return written(engine, &out);
}

/* --- answers of our own ----------------------------------------------------------------------- */

const char *dp_status_reason(uint32_t status)
{
    static const struct {
        uint32_t status;
        const char *reason;
    } reasons[] = {
        {200, "OK"},
        {201, "Created"},
        {202, "Accepted"},
        {204, "No Content"},
        {301, "Moved Permanently"},
        {302, "Found"},
        {303, "See Other"},
        {304, "Not Modified"},
        {307, "Temporary Redirect"},
        {308, "Permanent Redirect"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {410, "Gone"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {417, "Expectation Failed"},
        {421, "Misdirected Request"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < DP_ARRAY_LEN(reasons); i++)
        if (reasons[i].status == status)
            return reasons[i].reason;
    return "";
}

static const struct refusal {
    uint32_t status;
    uint32_t slot;
    const char *text;
} refusals[] = {
    {400, 0, "malformed request\n"},
    {408, 1, "the request took too long\n"},
    {413, 2, "the request body is too large\n"},
    {414, 2, "the request target is too long\n"},
    {417, 2, "unknown expectation\n"},
    {431, 2, "the request head is too large\n"},
    {404, 3, "no route\n"},
    {403, 7, "this client is not allowed\n"},
    {429, 7, "too many requests\n"},
    {421, 3, "this name is not served on this connection\n"},
    {502, 4, "the upstream broke or refused the connection\n"},
    {503, 5, "a limit is reached\n"},
    {504, 6, "the upstream took too long\n"},
    {501, 7, "not implemented\n"},
    {505, 7, "HTTP version not supported\n"},
};

static const struct refusal *refusal_of(uint32_t status)
{
    static const struct refusal other = {0, 7, "error\n"};
    for (size_t i = 0; i < DP_ARRAY_LEN(refusals); i++)
        if (refusals[i].status == status)
            return &refusals[i];
    return &other;
}

const char *dp_status_text(uint32_t status)
{
    return refusal_of(status)->text;
}

size_t dp_status_slot(uint32_t status)
{
    return refusal_of(status)->slot;
}

uint32_t dp_status_of(int result)
{
    switch (result) {
    case DP_ETOOBIG:
        return 431;
    case DP_ETARGET:
        return 414;
    case DP_ECODING:
    case DP_EMETHOD:
        return 501;
    case DP_EEXPECT:
        return 417;
    case DP_EVERSION:
        return 505;
    default:
        return 400;
    }
}

static void two_digits(char *at, uint32_t number)
{
    at[0] = (char)('0' + number / 10 % 10);
    at[1] = (char)('0' + number % 10);
}

/* RFC 9110 5.6.7. Written out, since libc's functions may look for the time zone's file. */
static const char *date_now(dp_engine *engine)
{
    static const char days[] = "ThuFriSatSunMonTueWed";
    static const char months[] = "MarAprMayJunJulAugSepOctNovDecJanFeb";
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    uint64_t second = (uint64_t)now.tv_sec;
    if (second == engine->date_second)
        return engine->date;
    uint64_t day = second / 86400;
    uint64_t rest = second % 86400;
    /* Days from 0000-03-01, in eras of 400 years: the calendar's arithmetic by H. Hinnant. */
    uint64_t shifted = day + 719468;
    uint64_t era = shifted / 146097;
    uint64_t of_era = shifted % 146097;
    uint64_t year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    uint64_t of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    uint64_t month = (5 * of_year + 2) / 153;
    uint64_t of_month = of_year - (153 * month + 2) / 5 + 1;
    uint64_t year = year_of_era + era * 400 + (month >= 10 ? 1 : 0);
    char *text = engine->date;
    memcpy(text, "Thu, 01 Jan 1970 00:00:00 GMT", 30);
    memcpy(text, days + day % 7 * 3, 3);
    two_digits(text + 5, (uint32_t)of_month);
    memcpy(text + 8, months + month * 3, 3);
    two_digits(text + 12, (uint32_t)(year / 100));
    two_digits(text + 14, (uint32_t)(year % 100));
    two_digits(text + 17, (uint32_t)(rest / 3600));
    two_digits(text + 20, (uint32_t)(rest / 60 % 60));
    two_digits(text + 23, (uint32_t)(rest % 60));
    engine->date_second = second;
    return text;
}

size_t dp_head_answer(dp_engine *engine, const dp_answer *answer)
{
    bool bodiless = answer->status == 204 || answer->status == 304; /* RFC 9110 15.3.5, 15.4.5 */
    dp_writer out = writer_init(engine);
    dp_put_text(&out, "HTTP/1.1 ");
    dp_put_number(&out, answer->status);
    dp_put(&out, " ", 1);
    dp_put_text(&out, dp_status_reason(answer->status));
    dp_put(&out, "\r\n", 2);
    dp_put_own(&out, answer->edits, "server", (const uint8_t *)"dataplane", 9);
    dp_put_own(&out, answer->edits, "date", (const uint8_t *)date_now(engine), 29);
    if (!bodiless) {
        if (!dp_is_edited(answer->edits, (const uint8_t *)"content-type", 12))
            dp_put_text(&out, "content-type: text/plain\r\n");
        dp_put_text(&out, "content-length: ");
        dp_put_number(&out, answer->body_len);
        dp_put(&out, "\r\n", 2);
    }
    dp_put(&out, answer->extra, answer->extra_len);
    put_edits(&out, answer->edits);
    if (!answer->keep_alive)
        dp_put_text(&out, "connection: close\r\n");
    else if (answer->minor == 0)
        dp_put_text(&out, "connection: keep-alive\r\n");
    dp_put(&out, "\r\n", 2);
    if (!answer->head_only && !bodiless)
        dp_put(&out, answer->body, answer->body_len);
    return written(engine, &out);
}

size_t dp_head_location(const dp_route *route, const uint8_t *data, const dp_request_head *head,
                        char *ret_line, size_t capacity)
{
    dp_writer out = {.at = (uint8_t *)ret_line, .end = (uint8_t *)ret_line + capacity};
    dp_put_text(&out, "location: ");
    dp_put(&out, route->location.data, route->location.len);
    if (route->prefix_path && head->path.len >= route->path.len) { /* a prefix keeps the rest */
        const uint8_t *rest = data + head->path.off + route->path.len;
        const uint8_t *end = data + head->path.off + head->path.len;
        /* To "/", "/old//elsewhere" must not become "//elsewhere": that names another host. */
        while (route->location.len == 1 && rest < end && *rest == '/')
            rest++;
        dp_put(&out, rest, (size_t)(end - rest));
    }
    dp_put(&out, data + head->query.off, head->query.len);
    dp_put(&out, "\r\n", 2);
    return out.full ? 0 : (size_t)(out.at - (uint8_t *)ret_line);
}
