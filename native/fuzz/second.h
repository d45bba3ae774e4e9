/* second: another reader of HTTP/1.1, for the oracle "what we forward parses to the same
 * elsewhere". It shares nothing with the engine's parser: line by line, word by word, no table, no
 * state. It is nowhere stricter than the RFCs, so that it disagrees only where something is wrong.
 */
#ifndef SECOND_H
#define SECOND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

enum { SECOND_FIELDS = 300, SECOND_BODY = 16 * 1024 };
enum second_verdict { SECOND_WHOLE, SECOND_PART, SECOND_BAD };

struct second_text {
    const char *at;
    size_t len;
};

struct second_message {
    struct second_text words[3]; /* of the first line; the third may have spaces */
    struct second_text names[SECOND_FIELDS];
    struct second_text values[SECOND_FIELDS];
    size_t field_count;
    char body[SECOND_BODY];
    size_t body_len;
    size_t used;
    bool to_close; /* an answer that ends with its connection */
};

static inline struct second_text second_cut(const char *from, const char *to)
{
    return (struct second_text){.at = from, .len = (size_t)(to - from)};
}

static inline bool second_is(struct second_text text, const char *word)
{
    return text.len == strlen(word) && strncasecmp(text.at, word, text.len) == 0;
}

static inline bool second_same(struct second_text a, struct second_text b)
{
    return a.len == b.len && memcmp(a.at, b.at, a.len) == 0;
}

/* The line at *at, without CR LF; *at moves behind it. NULL: it has not ended. */
static inline const char *second_line(const char **at, const char *end)
{
    const char *const start = *at;
    const char *const stop = memmem(start, (size_t)(end - start), "\r\n", 2);

    *at = stop == NULL ? end : stop + 2;
    return stop;
}

static inline enum second_verdict second_head(const char **at, const char *end,
                                              struct second_message *ret)
{
    const char *line = *at;
    const char *stop = second_line(at, end);
    size_t word = 0;

    if (stop == NULL) {
        return SECOND_PART;
    }
    for (const char *from = line; word < 3; word++) {
        const char *to = memchr(from, ' ', (size_t)(stop - from));
        if (to == NULL || word == 2) {
            to = stop;
        }
        ret->words[word] = second_cut(from, to);
        from = to < stop ? to + 1 : stop;
    }
    for (ret->field_count = 0;; ret->field_count++) {
        line = *at;
        stop = second_line(at, end);
        if (stop == NULL) {
            return SECOND_PART;
        }
        if (stop == line) {
            return SECOND_WHOLE;
        }
        const char *const colon = memchr(line, ':', (size_t)(stop - line));
        if (colon == NULL || ret->field_count == SECOND_FIELDS) {
            return SECOND_BAD;
        }
        const char *from = colon + 1;
        while (from < stop && (*from == ' ' || *from == '\t')) {
            from++;
        }
        while (stop > from && (stop[-1] == ' ' || stop[-1] == '\t')) {
            stop--;
        }
        ret->names[ret->field_count] = second_cut(line, colon);
        ret->values[ret->field_count] = second_cut(from, stop);
    }
}

static inline bool second_take(struct second_message *ret, const char *from, size_t len)
{
    if (len > sizeof(ret->body) - ret->body_len) {
        return false;
    }
    memcpy(ret->body + ret->body_len, from, len);
    ret->body_len += len;
    return true;
}

static inline enum second_verdict second_chunks(const char **at, const char *end,
                                                struct second_message *ret)
{
    for (;;) {
        const char *line = *at;
        const char *stop = second_line(at, end);
        size_t size = 0;
        if (stop == NULL) {
            return SECOND_PART;
        }
        for (; line < stop && strchr("0123456789abcdefABCDEF", *line) != NULL && *line != '\0';
             line++) {
            const int digit = *line <= '9' ? *line - '0' : (*line | 0x20) - 'a' + 10;
            if (size > SIZE_MAX / 32) {
                return SECOND_PART; /* longer than what there is */
            }
            size = size * 16 + (size_t)digit;
        }
        if (line == *at || (line < stop && *line != ';')) {
            return SECOND_BAD;
        }
        if (size == 0) {
            do { /* trailer fields */
                line = *at;
                stop = second_line(at, end);
            } while (stop != NULL && stop != line);
            return stop == NULL ? SECOND_PART : SECOND_WHOLE;
        }
        if ((size_t)(end - *at) < 2 || (size_t)(end - *at) - 2 < size) {
            return SECOND_PART;
        }
        if (memcmp(*at + size, "\r\n", 2) != 0 || !second_take(ret, *at, size)) {
            return SECOND_BAD;
        }
        *at += size + 2;
    }
}

/* The message at data. asked: NULL for a request, else the method that an answer is to. ended: no
 * byte comes after these. */
static inline enum second_verdict second_read(const char *data, size_t len, const char *asked,
                                              bool ended, struct second_message *ret)
{
    const char *at = data;
    const char *const end = data + len;
    bool chunked = false;
    bool has_length = false;
    size_t length = 0;

    memset(ret->words, 0, sizeof(ret->words));
    ret->field_count = 0;
    ret->body_len = 0;
    ret->to_close = false;
    if (asked == NULL && len >= 2 && memcmp(data, "\r\n", 2) == 0) {
        at += 2;
    }
    enum second_verdict verdict = second_head(&at, end, ret);
    if (verdict != SECOND_WHOLE) {
        return verdict;
    }
    for (size_t i = 0; i < ret->field_count; i++) {
        const struct second_text value = ret->values[i];
        if (second_is(ret->names[i], "content-length")) {
            if (has_length || value.len == 0) {
                return SECOND_BAD;
            }
            has_length = true;
            for (size_t j = 0; j < value.len; j++) {
                if (value.at[j] < '0' || value.at[j] > '9') {
                    return SECOND_BAD;
                }
                length = length > SIZE_MAX / 20 ? SIZE_MAX / 2
                                                : length * 10 + (size_t)(value.at[j] - '0');
            }
        } else if (second_is(ret->names[i], "transfer-encoding")) {
            if (chunked || !second_is(value, "chunked")) {
                return SECOND_BAD;
            }
            chunked = true;
        }
    }
    if (chunked && has_length) {
        return SECOND_BAD;
    }
    if (asked != NULL) {
        const struct second_text status = ret->words[1];
        if (status.len != 3) {
            return SECOND_BAD;
        }
        if (status.at[0] == '1' || memcmp(status.at, "204", 3) == 0 ||
            memcmp(status.at, "304", 3) == 0 || strcmp(asked, "HEAD") == 0) {
            ret->used = (size_t)(at - data);
            return SECOND_WHOLE;
        }
        if (!chunked && !has_length) {
            ret->to_close = true;
            ret->used = len;
            if (!second_take(ret, at, (size_t)(end - at))) {
                return SECOND_BAD;
            }
            return ended ? SECOND_WHOLE : SECOND_PART;
        }
    }
    if (chunked) {
        verdict = second_chunks(&at, end, ret);
        if (verdict != SECOND_WHOLE) {
            return verdict;
        }
    } else if (has_length) {
        if ((size_t)(end - at) < length) {
            return SECOND_PART;
        }
        if (!second_take(ret, at, length)) {
            return SECOND_BAD;
        }
        at += length;
    }
    ret->used = (size_t)(at - data);
    return SECOND_WHOLE;
}

/* RFC 3986 6.2.2 by the letter of 5.2.4, on a path of at most `room` bytes; false: it leads above
 * the root. */
static inline bool second_path(struct second_text path, char *ret_path, size_t *ret_len)
{
    static const char KEPT[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
    static char input[SECOND_BODY];
    size_t len = 0;
    size_t out = 0;

    for (size_t i = 0; i < path.len; i++) {
        unsigned byte = 0;
        if (path.at[i] != '%') {
            input[len++] = path.at[i];
            continue;
        }
        for (size_t j = 1; j <= 2; j++) {
            const char digit = path.at[i + j];
            byte = byte * 16 + (unsigned)(digit <= '9' ? digit - '0' : (digit | 0x20) - 'a' + 10);
        }
        i += 2;
        if (byte != 0 && strchr(KEPT, (int)byte) != NULL) {
            input[len++] = (char)byte;
        } else {
            input[len++] = '%';
            input[len++] = "0123456789ABCDEF"[byte / 16];
            input[len++] = "0123456789ABCDEF"[byte % 16];
        }
    }
    const char *in = input;
    const char *const end = input + len;
    while (in < end) {
        const size_t left = (size_t)(end - in);
        if (left >= 3 && memcmp(in, "/./", 3) == 0) { /* 2B */
            in += 2;
        } else if (left == 2 && memcmp(in, "/.", 2) == 0) {
            ret_path[out++] = '/';
            break;
        } else if (left >= 3 && memcmp(in, "/..", 3) == 0 && (left == 3 || in[3] == '/')) { /* 2C */
            if (out == 0) {
                return false;
            }
            while (ret_path[--out] != '/') {
            }
            in += 3;
            if (left == 3) {
                ret_path[out++] = '/';
            }
        } else { /* 2E */
            do {
                ret_path[out++] = *in++;
            } while (in < end && *in != '/');
        }
    }
    *ret_len = out;
    return true;
}

#endif
