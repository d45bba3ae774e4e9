/* heads: what the fuzz targets of request and response heads share. */
#ifndef HEADS_H
#define HEADS_H

#include <string.h>

#include "dp.h"
#include "fuzz.h"

/* Small, so that the limits are met often. */
static const dp_head_limits FUZZ_LIMITS = {.max_bytes = 2048, .max_fields = 24, .max_target = 256};

/* The verdict on data, and that it is the same byte by byte and in two parts. */
static inline int settled_head_end(const uint8_t *data, size_t size, uint32_t *ret_len)
{
    uint32_t scanned = 0;
    uint32_t len = 0;
    const int whole = dp_head_end(data, size, &FUZZ_LIMITS, &scanned, &len);
    hold(whole != DP_OK || (len >= 4 && len <= size && len <= FUZZ_LIMITS.max_bytes),
         "a head ends inside what came, and inside its limit");
    hold(whole != DP_NEED_MORE || (scanned <= size && scanned + 1 >= size),
         "all is looked at but a CR at the end");

    scanned = 0;
    int result = DP_NEED_MORE;
    uint32_t stepped = 0;
    for (size_t known = 0; known <= size && result == DP_NEED_MORE; known++) {
        result = dp_head_end(data, known, &FUZZ_LIMITS, &scanned, &stepped);
    }
    hold(result == whole && stepped == len, "byte by byte, the same end");

    /* The first part is a copy of its own size: a sanitizer sees the byte after it. */
    const size_t split = split_of(data, size);
    uint8_t *const part = malloc(split + 1);
    if (part == NULL) {
        return whole;
    }
    memcpy(part + 1, data, split);
    scanned = 0;
    stepped = 0;
    result = dp_head_end(part + 1, split, &FUZZ_LIMITS, &scanned, &stepped);
    free(part);
    if (result == DP_NEED_MORE) {
        result = dp_head_end(data, size, &FUZZ_LIMITS, &scanned, &stepped);
    }
    hold(result == whole && stepped == len, "in two parts, the same end");
    if (whole == DP_OK) {
        *ret_len = len;
    }
    return whole;
}

static inline bool inside(dp_span span, size_t len)
{
    return span.off <= len && span.len <= len - span.off;
}

static inline bool same_bytes(const uint8_t *a, dp_span in_a, const uint8_t *b, dp_span in_b)
{
    return in_a.len == in_b.len && memcmp(a + in_a.off, b + in_b.off, in_a.len) == 0;
}

static inline void check_fields(const uint8_t *data, size_t len, const dp_field *fields,
                                uint32_t count)
{
    hold(count <= FUZZ_LIMITS.max_fields, "no more fields than allowed");
    for (uint32_t i = 0; i < count; i++) {
        hold(inside(fields[i].name, len) && inside(fields[i].value, len), "fields lie in the head");
        hold(fields[i].name.len > 0, "a field has a name");
        for (uint32_t j = 0; j < fields[i].name.len; j++) {
            const uint8_t byte = data[fields[i].name.off + j];
            hold(byte > ' ' && byte < 0x7f && byte != ':', "a name has no space, colon or control");
        }
        for (uint32_t j = 0; j < fields[i].value.len; j++) {
            const uint8_t byte = data[fields[i].value.off + j];
            const bool edge = j == 0 || j == fields[i].value.len - 1;
            hold((byte >= ' ' && byte != 0x7f) || byte == '\t', "a value has no control");
            hold(!edge || (byte != ' ' && byte != '\t'), "a value is trimmed");
        }
    }
}

static inline size_t put(uint8_t *to, size_t at, const void *bytes, size_t len)
{
    memcpy(to + at, bytes, len);
    return at + len;
}

/* Field lines that are not dropped, as a proxy would write them, and the empty line. */
static inline size_t put_fields(uint8_t *to, size_t at, const uint8_t *data, const dp_field *fields,
                                uint32_t count, bool all)
{
    for (uint32_t i = 0; i < count; i++) {
        if (!all && (fields[i].flags & DP_FIELD_DROP) != 0) {
            continue;
        }
        at = put(to, at, data + fields[i].name.off, fields[i].name.len);
        at = put(to, at, ": ", 2);
        at = put(to, at, data + fields[i].value.off, fields[i].value.len);
        at = put(to, at, "\r\n", 2);
    }
    return put(to, at, "\r\n", 2);
}

/* put_fields adds at most a space to each field. */
enum { REWRITTEN_MAX = 2048 + 24 + 64 };
static const dp_head_limits REWRITTEN_LIMITS = {
    .max_bytes = REWRITTEN_MAX, .max_fields = 24, .max_target = 256};

#endif
