/* dp_chars: what each byte may be in an HTTP/1.1 message. Pure. */
#ifndef DP_CHARS_H
#define DP_CHARS_H

#include <stdbool.h>
#include <stdint.h>

#include "dp.h"

/* Classes of dp_char_class. LF is in none of them, so a loop over a class stops at any line's end;
 * native/test/test_chars.c rebuilds the table from the grammar and compares. */
enum {
    DP_CH_TOKEN = 0x01,     /* RFC 9110 5.6.2: tchar */
    DP_CH_HEX = 0x02,       /* RFC 5234 B.1: HEXDIG, either case */
    DP_CH_TEXT = 0x04,      /* RFC 9110 5.5: HTAB, SP, VCHAR, obs-text */
    DP_CH_PATH = 0x08,      /* stands for itself in a path; '%' is looked at apart */
    DP_CH_QUERY = 0x10,     /* stands for itself in a query; '%' is looked at apart */
    DP_CH_HOST = 0x20,      /* RFC 3986 2.3: unreserved; see dp_target.c on sub-delims */
    DP_CH_UNDERSCORE = 0x40 /* '_' alone */
};

extern const uint8_t dp_char_class[256];

static inline bool dp_is_class(uint8_t byte, unsigned classes)
{
    return (dp_char_class[byte] & classes) != 0;
}

static inline bool dp_is_blank(uint8_t byte)
{
    return byte == ' ' || byte == '\t';
}

static inline uint8_t dp_lower(uint8_t byte)
{
    return (byte >= 'A' && byte <= 'Z') ? (uint8_t)(byte | 0x20) : byte;
}

static inline dp_span dp_span_of(const uint8_t *data, const uint8_t *from, const uint8_t *to)
{
    return (dp_span){.off = (uint32_t)(from - data), .len = (uint32_t)(to - from)};
}

/* digit is DP_CH_HEX. */
static inline unsigned dp_hex_value(uint8_t digit)
{
    return digit <= '9' ? (unsigned)(digit - '0') : (unsigned)((digit | 0x20) - 'a' + 10);
}

#endif
