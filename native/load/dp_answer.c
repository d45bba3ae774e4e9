/* Reads answers strictly and judges them. See dp_answer.h. */
#include "dp_answer.h"

#include "dp_bench.h"

#include <string.h>

const char *const dp_outcome_names[OUTCOMES] = {
    [OK] = "ok",
    [CONNECT_REFUSED] = "connect_refused",
    [CONNECT_FAILED] = "connect_failed",
    [RESET] = "reset",
    [END_OF_FILE] = "eof",
    [TIMEOUT] = "timeout",
    [BAD_STATUS] = "bad_status",
    [BAD_TOKEN] = "bad_token",
    [BAD_LENGTH] = "bad_length",
    [BAD_BODY] = "bad_body",
    [MALFORMED] = "malformed",
    [SURPLUS] = "surplus",
    [TOLD_TO_CLOSE] = "told_to_close",
};

typedef struct head {
    uint64_t status;
    uint64_t length;
    bool has_length, chunked, closes, has_token, token_ok, altered;
    span mark;
} head;

void dp_answer_begin(answer *a, uint64_t token)
{
    a->part = A_HEAD;
    a->closes = false;
    a->token = token;
    a->left = a->seen = 0;
    a->mark_len = 0;
}

static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static outcome read_field(const expected *e, const answer *a, head *h, span name, span value)
{
    if (dp_name_is(name.at, name.len, "content-length")) {
        if (h->has_length || !dp_parse_number(value.at, value.len, 10, UINT64_MAX, &h->length))
            return MALFORMED;
        h->has_length = true;
    } else if (dp_name_is(name.at, name.len, "transfer-encoding")) {
        if (h->chunked || !dp_name_is(value.at, value.len, "chunked"))
            return MALFORMED;
        h->chunked = true;
    } else if (dp_name_is(name.at, name.len, "connection")) {
        h->closes = h->closes || dp_name_is(value.at, value.len, "close");
    } else if (dp_name_is(name.at, name.len, "x-token")) {
        uint64_t token = 0;
        if (h->has_token)
            return BAD_TOKEN;
        h->has_token = true;
        h->token_ok = value.len == DP_TOKEN_LEN &&
                      dp_parse_number(value.at, value.len, 16, UINT64_MAX, &token) &&
                      token == a->token;
    } else if (dp_name_is(name.at, name.len, "x-body")) {
        h->altered = !dp_name_is(value.at, value.len, "intact");
    } else if (dp_name_is(name.at, name.len, "x-received")) {
        uint64_t received = 0;
        if (!dp_parse_number(value.at, value.len, 10, UINT64_MAX, &received) ||
            received != e->sent_body)
            h->altered = true;
    } else if (e->mark_header != NULL && dp_name_is(name.at, name.len, e->mark_header)) {
        h->mark = value;
    }
    return OK;
}

/* One line of the head, without its CR LF. */
static outcome read_line(const expected *e, const answer *a, head *h, const char *line, size_t len)
{
    size_t colon = 0;
    while (colon < len && line[colon] != '\0' && is_name_byte(line[colon]))
        colon++;
    if (colon == 0 || colon == len || line[colon] != ':')
        return MALFORMED;
    for (size_t i = colon; i < len; i++)
        if (((unsigned char)line[i] < ' ' && line[i] != '\t') || line[i] == 127)
            return MALFORMED;
    size_t from = colon + 1;
    while (from < len && (line[from] == ' ' || line[from] == '\t'))
        from++;
    while (len > from && (line[len - 1] == ' ' || line[len - 1] == '\t'))
        len--;
    return read_field(e, a, h, (span){line, colon}, (span){line + from, len - from});
}

/* A whole head, with the empty line. */
static outcome read_head(const expected *e, const answer *a, head *h, const char *data, size_t len)
{
    if (len < 17 || memcmp(data, "HTTP/1.1 ", 9) != 0 || data[12] != ' ' ||
        !dp_parse_number(data + 9, 3, 10, 599, &h->status) || h->status < 100)
        return MALFORMED;
    const char *end = data + len - 2;
    const char *eol = memchr(data, '\n', len);
    if (eol[-1] != '\r' || memchr(data, '\0', len) != NULL)
        return MALFORMED;
    for (const char *line = eol + 1; line < end; line = eol + 1) {
        eol = memchr(line, '\n', (size_t)(end - line));
        if (eol == NULL || eol == line || eol[-1] != '\r')
            return MALFORMED;
        outcome result = read_line(e, a, h, line, (size_t)(eol - 1 - line));
        if (result != OK)
            return result;
    }
    return h->has_length && h->chunked ? MALFORMED : OK;
}

/* Whether the head is that of the answer we asked for; sets how its body is read. */
static outcome judge_head(const expected *e, answer *a, const head *h)
{
    a->status = (uint16_t)h->status;
    bool bodiless = h->status == 204 || h->status == 304 || e->no_body;
    if (e->status != DP_ANY_STATUS && h->status != e->status)
        return BAD_STATUS;
    if (!e->no_token && (!h->has_token || !h->token_ok))
        return BAD_TOKEN;
    if (h->altered)
        return BAD_BODY;
    a->closes = h->closes;
    a->left = 0;
    if (bodiless) {
        a->part = A_LENGTH;
    } else if (h->chunked) {
        a->part = A_SIZE;
    } else if (h->has_length) {
        a->part = A_LENGTH;
        a->left = h->length;
        if (e->has_length && h->length != e->length)
            return BAD_LENGTH;
    } else {
        a->part = A_UNTIL_CLOSE;
        a->closes = true;
    }
    if (h->mark.len <= sizeof a->mark) {
        memcpy(a->mark, h->mark.at, h->mark.len);
        a->mark_len = h->mark.len;
    }
    return OK;
}

static outcome body_bytes(const expected *e, answer *a, const char *data, size_t len)
{
    uint64_t from = a->seen;
    a->seen += len;
    if (e->body != NULL) {
        size_t prefix = strlen(e->body);
        if (from < prefix) {
            size_t part = prefix - (size_t)from < len ? prefix - (size_t)from : len;
            if (memcmp(data, e->body + from, part) != 0)
                return BAD_BODY;
        }
    }
    if (!e->pattern_body)
        return OK;
    while (len > 0) {
        size_t turn = (size_t)((a->token + from) % DP_PATTERN_PERIOD);
        size_t part = len < DP_PIECE_MAX ? len : DP_PIECE_MAX;
        if (memcmp(data, e->pattern + turn, part) != 0)
            return BAD_BODY;
        data += part;
        len -= part;
        from += part;
    }
    return OK;
}

outcome dp_answer_judge(const expected *e, const answer *a)
{
    if (e->has_length && !e->no_body && a->seen != e->length)
        return BAD_LENGTH;
    if (e->body != NULL && a->seen < strlen(e->body))
        return BAD_BODY;
    return OK;
}

static outcome on_head(const expected *e, answer *a, span data, size_t *ret_taken)
{
    head h = {.mark = {"", 0}};
    const char *end = memmem(data.at, data.len, "\r\n\r\n", 4);
    if (end == NULL)
        return data.len >= DP_HEAD_MAX ? MALFORMED : OK;
    size_t len = (size_t)(end + 4 - data.at);
    outcome result = read_head(e, a, &h, data.at, len);
    if (result != OK)
        return result;
    *ret_taken = len;
    if (h.status < 200)
        return h.status == 101 ? MALFORMED : OK; /* an interim answer: the real one follows */
    return judge_head(e, a, &h);
}

/* A chunk's size line or a trailer's line. */
static outcome on_chunk_line(answer *a, span data, size_t *ret_taken, bool *ret_whole)
{
    const char *eol = memchr(data.at, '\n', data.len);
    if (eol == NULL)
        return data.len >= DP_HEAD_MAX ? MALFORMED : OK;
    if (eol == data.at || eol[-1] != '\r')
        return MALFORMED;
    size_t len = (size_t)(eol - 1 - data.at);
    *ret_taken = len + 2;
    if (a->part == A_TRAILER) {
        *ret_whole = len == 0;
        return OK;
    }
    if (a->part == A_DATA_END) {
        a->part = A_SIZE;
        return len == 0 ? OK : MALFORMED;
    }
    const char *extension = memchr(data.at, ';', len);
    size_t digits = extension == NULL ? len : (size_t)(extension - data.at);
    if (!dp_parse_number(data.at, digits, 16, DP_BODY_MAX, &a->left))
        return MALFORMED;
    a->part = a->left > 0 ? A_DATA : A_TRAILER;
    return OK;
}

outcome dp_answer_take(const expected *e, answer *a, span data, size_t *ret_taken, bool *ret_whole)
{
    outcome result = OK;
    switch (a->part) {
    case A_HEAD:
        result = on_head(e, a, data, ret_taken);
        *ret_whole = result == OK && a->part == A_LENGTH && a->left == 0;
        return result;
    case A_LENGTH:
    case A_DATA:
        *ret_taken = data.len < a->left ? data.len : (size_t)a->left;
        a->left -= *ret_taken;
        result = body_bytes(e, a, data.at, *ret_taken);
        if (a->left == 0 && a->part == A_LENGTH)
            *ret_whole = true;
        else if (a->left == 0)
            a->part = A_DATA_END;
        return result;
    case A_UNTIL_CLOSE:
        *ret_taken = data.len;
        return body_bytes(e, a, data.at, data.len);
    case A_SIZE:
    case A_DATA_END:
    case A_TRAILER:
        return on_chunk_line(a, data, ret_taken, ret_whole);
    }
    return MALFORMED;
}
