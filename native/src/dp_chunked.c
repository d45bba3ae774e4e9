/* dp_chunked: the chunked transfer coding (RFC 9112 7.1). Pure: no I/O, no allocation.
 *
 * Checks while it compacts in place. With framing kept, each byte that goes out stands for the same
 * byte of the same call: digits, CR, LF and data pass as they come, extensions do not. So the
 * output never needs room that this call's input did not bring, and nothing is held back here from
 * one call to the next: of the trailer section only whole lines are used, for a name must be known
 * before its line may go out. Only data and trailer lines are moved in bulk; sizes and the rest go
 * byte by byte. */
#include <stdbool.h>
#include <string.h>

#include "dp.h"
#include "dp_chars.h"
#include "dp_trailer.h"

/* Extensions and trailer fields of one body together: 8 KiB is what is usual for a whole head. */
enum { OVERHEAD_MAX = 8 * 1024 };

/* A 64-bit size in hexadecimal; more digits could only be leading zeros. */
enum { SIZE_DIGITS_MAX = 16 };

/* Sizes are added to others: two bits are kept free. */
static const uint64_t SIZE_MAX_CHUNK = UINT64_C(1) << 62;

enum phase {
    PH_SIZE = 0, /* a digit must come; after the first one more may */
    PH_EXT_NAME,
    PH_EXT_VALUE,
    PH_QUOTED,
    PH_QUOTED_PAIR,
    PH_QUOTED_END,
    PH_SIZE_LF,
    PH_DATA,
    PH_DATA_CR,
    PH_DATA_LF,
    PH_TRAILER, /* a trailer field, or the CR of the last line */
    PH_LAST_LF,
    PH_DONE,
    PH_POISONED
};

/* dp_chunked.state holds the phase and how many bytes of the current element came before, as far
 * as that matters: digits of a size, or 1 for a name or value that is not empty. */
enum { PHASE_BITS = 8 };

static inline uint32_t pack(enum phase phase, uint32_t count)
{
    return (uint32_t)phase | count << PHASE_BITS;
}

/* What to do with the byte that was judged. */
enum fate { KEEP, STRIP, REFUSE };

/* A byte of a chunk size, or the one after it. */
static enum fate size_byte(dp_chunked *chunked, uint8_t byte, uint32_t digits)
{
    if ((dp_char_class[byte] & DP_CH_HEX) != 0) {
        if (digits == SIZE_DIGITS_MAX || chunked->left > SIZE_MAX_CHUNK >> 4) {
            return REFUSE;
        }
        chunked->left = chunked->left << 4 | dp_hex_value(byte);
        if (chunked->left > SIZE_MAX_CHUNK) {
            return REFUSE;
        }
        chunked->state = pack(PH_SIZE, digits + 1);
        return KEEP;
    }
    if (digits == 0) {
        return REFUSE;
    }
    if (byte == '\r') {
        chunked->state = pack(PH_SIZE_LF, 0);
        return KEEP;
    }
    if (byte == ';') {
        chunked->state = pack(PH_EXT_NAME, 0);
        return STRIP;
    }
    return REFUSE;
}

/* A byte after ';'. RFC 9112 7.1.1: token [ "=" ( token / quoted-string ) ]. The "bad whitespace"
 * that a recipient may take around them is refused. */
static enum fate extension_byte(dp_chunked *chunked, uint8_t byte, enum phase phase, uint32_t count)
{
    const unsigned class = dp_char_class[byte];

    switch ((int)phase) {
    case PH_EXT_NAME:
    case PH_EXT_VALUE:
        if ((class & DP_CH_TOKEN) != 0) {
            chunked->state = pack(phase, 1);
            return STRIP;
        }
        if (count == 0) {
            if (phase == PH_EXT_VALUE && byte == '"') {
                chunked->state = pack(PH_QUOTED, 0);
                return STRIP;
            }
            return REFUSE;
        }
        if (phase == PH_EXT_NAME && byte == '=') {
            chunked->state = pack(PH_EXT_VALUE, 0);
            return STRIP;
        }
        break;
    case PH_QUOTED: /* RFC 9110 5.6.4 */
        if (byte == '"') {
            chunked->state = pack(PH_QUOTED_END, 0);
            return STRIP;
        }
        if (byte == '\\') {
            chunked->state = pack(PH_QUOTED_PAIR, 0);
            return STRIP;
        }
        return (class & DP_CH_TEXT) != 0 ? STRIP : REFUSE;
    case PH_QUOTED_PAIR:
        chunked->state = pack(PH_QUOTED, 0);
        return (class & DP_CH_TEXT) != 0 ? STRIP : REFUSE;
    default: /* PH_QUOTED_END */
        break;
    }
    if (byte == ';') {
        chunked->state = pack(PH_EXT_NAME, 0);
        return STRIP;
    }
    if (byte == '\r') {
        chunked->state = pack(PH_SIZE_LF, 0);
        return KEEP;
    }
    return REFUSE;
}

/* The field line at data[0..len), as strict as in a head (RFC 9112 7.1.2, 5). DP_OK: its length
 * with CR LF, and that of its name. DP_NEED_MORE: it has not ended, and is right so far. */
static int trailer_line(const uint8_t *data, size_t len, size_t *ret_name, size_t *ret_len)
{
    size_t at = 0;

    while (at < len && dp_is_class(data[at], DP_CH_TOKEN)) {
        at++;
    }
    if (at == len) {
        return DP_NEED_MORE;
    }
    if (at == 0 || data[at] != ':') {
        return DP_EMALFORMED;
    }
    const size_t name_len = at++;
    while (at < len && dp_is_class(data[at], DP_CH_TEXT)) {
        at++;
    }
    if (at < len && data[at] != '\r') {
        return DP_EMALFORMED;
    }
    if (len - at < 2) {
        return DP_NEED_MORE;
    }
    if (data[at + 1] != '\n') {
        return DP_EMALFORMED;
    }
    *ret_name = name_len;
    *ret_len = at + 2;
    return DP_OK;
}

/* Judges one byte of framing: anything but data. */
static enum fate framing_byte(dp_chunked *chunked, uint8_t byte)
{
    const enum phase phase = (enum phase)(chunked->state & ((1u << PHASE_BITS) - 1));
    const uint32_t count = chunked->state >> PHASE_BITS;

    switch (phase) {
    case PH_SIZE:
        return size_byte(chunked, byte, count);
    case PH_EXT_NAME:
    case PH_EXT_VALUE:
    case PH_QUOTED:
    case PH_QUOTED_PAIR:
    case PH_QUOTED_END:
        return extension_byte(chunked, byte, phase, count);
    case PH_SIZE_LF:
        chunked->state = pack(chunked->left > 0 ? PH_DATA : PH_TRAILER, 0);
        return byte == '\n' ? KEEP : REFUSE;
    case PH_DATA_CR:
        chunked->state = pack(PH_DATA_LF, 0);
        return byte == '\r' ? KEEP : REFUSE;
    case PH_DATA_LF:
        chunked->state = pack(PH_SIZE, 0);
        return byte == '\n' ? KEEP : REFUSE;
    case PH_TRAILER: /* the CR of the last line */
        chunked->state = pack(PH_LAST_LF, 0);
        return KEEP;
    case PH_LAST_LF:
        chunked->state = pack(PH_DONE, 0);
        return byte == '\n' ? KEEP : REFUSE;
    case PH_DATA:
    case PH_DONE:
    case PH_POISONED:
        break;
    }
    return REFUSE;
}

static int poison(dp_chunked *chunked, int result)
{
    chunked->state = pack(PH_POISONED, 0);
    return result;
}

/* Takes data as far as it goes, at most what is left of the chunk. */
static void take_data(dp_chunked *state, uint8_t *data, size_t len, size_t *used, size_t *kept)
{
    const size_t rest = len - *used;
    const size_t count = state->left < rest ? (size_t)state->left : rest;

    if (*kept != *used) {
        memmove(data + *kept, data + *used, count);
    }
    *used += count;
    *kept += count;
    state->left -= count;
    state->total += count;
    if (state->left == 0) {
        state->state = PH_DATA_CR;
    }
}

/* Takes a trailer field if all of its line is here. */
static int take_trailer(dp_chunked *state, uint8_t *data, size_t len, int keep, size_t *used,
                        size_t *kept)
{
    uint8_t *const line = data + *used;
    const size_t rest = len - *used;
    const size_t room = OVERHEAD_MAX - state->overhead;
    size_t name_len;
    size_t line_len;

    /* Judged by what the limit has room for, so that the verdict does not depend on the splits. */
    const int result = trailer_line(line, rest < room ? rest : room, &name_len, &line_len);
    if (result != DP_OK) {
        return result == DP_NEED_MORE && rest > room ? DP_ETOOBIG : result;
    }
    if (keep == DP_CHUNKED_TRAILERS && dp_trailer_may_pass(line, name_len)) {
        memmove(data + *kept, line, line_len);
        *kept += line_len;
    }
    *used += line_len;
    state->overhead += (uint32_t)line_len;
    return DP_OK;
}

int dp_chunked_feed(dp_chunked *state, uint8_t *data, size_t len, int keep, size_t *ret_used,
                    size_t *ret_kept)
{
    size_t used = 0;
    size_t kept = 0;

    while (used < len && state->state != PH_DONE) {
        if (state->state == PH_DATA) {
            take_data(state, data, len, &used, &kept);
            continue;
        }
        if (state->state == PH_TRAILER && data[used] != '\r') {
            const int result = take_trailer(state, data, len, keep, &used, &kept);
            if (result == DP_NEED_MORE) {
                break;
            }
            if (result != DP_OK) {
                return poison(state, result);
            }
            continue;
        }
        const uint8_t byte = data[used++];
        switch (framing_byte(state, byte)) {
        case KEEP:
            if (keep != DP_CHUNKED_BARE) {
                data[kept++] = byte;
            }
            break;
        case STRIP:
            if (++state->overhead > OVERHEAD_MAX) {
                return poison(state, DP_ETOOBIG);
            }
            break;
        case REFUSE:
            return poison(state, DP_EMALFORMED);
        }
    }
    if (state->state == PH_POISONED) {
        return DP_EMALFORMED;
    }
    *ret_used = used;
    *ret_kept = kept;
    return state->state == PH_DONE ? DP_OK : DP_NEED_MORE;
}
