/* dp_scan: the two loops that most bytes of a head go through. Pure.
 *
 * Vectors: SSE2 is part of every x86-64, so nothing is chosen at run time; AVX2 was not worth a
 * second path, as names and values are mostly shorter than 32 bytes. DP_PORTABLE (or another
 * machine) takes the plain loops, which the tests run as well. */
#ifndef DP_SCAN_H
#define DP_SCAN_H

#include <stddef.h>

#include "dp_chars.h"

#if defined(__SSE2__) && !defined(DP_PORTABLE)
#include <emmintrin.h>
#define DP_VECTORS 1
#else
#define DP_VECTORS 0
#endif

/* The first byte in [at, end) that is not DP_CH_TEXT, or end. */
static inline const uint8_t *dp_skip_text(const uint8_t *at, const uint8_t *end)
{
#if DP_VECTORS
    const __m128i last_control = _mm_set1_epi8(0x1f);
    const __m128i tab = _mm_set1_epi8('\t');
    const __m128i del = _mm_set1_epi8(0x7f);

    while (end - at >= 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        const __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, last_control), bytes);
        const __m128i stop = _mm_or_si128(_mm_andnot_si128(_mm_cmpeq_epi8(bytes, tab), control),
                                          _mm_cmpeq_epi8(bytes, del));
        const unsigned found = (unsigned)_mm_movemask_epi8(stop);
        if (found != 0) {
            return at + __builtin_ctz(found);
        }
        at += 16;
    }
#endif
    while (at < end && dp_is_class(*at, DP_CH_TEXT)) {
        at++;
    }
    return at;
}

/* The first byte from at on that is not DP_CH_TOKEN; end[-1] must not be one. *ret_seen gets the
 * classes of what the vectors did not pass over, which is enough to tell an underscore. */
static inline const uint8_t *dp_skip_token(const uint8_t *at, const uint8_t *end,
                                           unsigned *ret_seen)
{
    unsigned seen = 0;
#if DP_VECTORS
    if (end - at >= 16) {
        const __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
        const __m128i folded = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        const __m128i letter = _mm_and_si128(_mm_cmpgt_epi8(folded, _mm_set1_epi8('a' - 1)),
                                             _mm_cmplt_epi8(folded, _mm_set1_epi8('z' + 1)));
        const __m128i dash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('-'));
        const unsigned other = ~(unsigned)_mm_movemask_epi8(_mm_or_si128(letter, dash)) & 0xffffu;
        at += (other != 0) ? __builtin_ctz(other) : 16;
    }
#else
    (void)end;
#endif
    while (dp_is_class(*at, DP_CH_TOKEN)) {
        seen |= dp_char_class[*at];
        at++;
    }
    *ret_seen = seen;
    return at;
}

#endif
