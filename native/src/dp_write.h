/* dp_write: text into a buffer of fixed size. What does not fit makes it full, and all of it void.
 */
#ifndef DP_WRITE_H
#define DP_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct dp_writer {
    uint8_t *at;
    uint8_t *end;
    bool full;
} dp_writer;

static inline void dp_put(dp_writer *out, const void *data, size_t len)
{
    if (len == 0)
        return;
    if ((size_t)(out->end - out->at) < len) {
        out->full = true;
        return;
    }
    memcpy(out->at, data, len);
    out->at += len;
}

static inline void dp_put_text(dp_writer *out, const char *text)
{
    dp_put(out, text, strlen(text));
}

static inline void dp_put_number(dp_writer *out, uint64_t number)
{
    char digits[20];
    size_t at = sizeof(digits);
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    dp_put(out, digits + at, sizeof(digits) - at);
}

#endif
