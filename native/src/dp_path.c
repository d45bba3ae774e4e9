/* dp_path: the one form of a request's path. Pure. See the header. */
#include "dp_path.h"

#include <string.h>

#include "dp_chars.h"

bool dp_path_is_plain(const uint8_t *path, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (path[i] == '%' || (path[i] == '.' && i > 0 && path[i - 1] == '/')) {
            return false;
        }
    }
    return true;
}

/* RFC 3986 2.3 */
static bool is_unreserved(unsigned byte)
{
    return dp_is_class((uint8_t)byte, DP_CH_HOST);
}

/* What a segment may be to a reader. */
struct look {
    unsigned dots; /* of the part since the last separator */
    bool other;    /* that part has more than dots */
    bool parted;   /* there was a separator that only some readers see */
    bool hidden;   /* a part that ended at one is "." or ".." */
};

static bool is_dots(const struct look *look)
{
    return !look->other && (look->dots == 1 || look->dots == 2);
}

static void look_at(struct look *look, unsigned byte)
{
    if (byte == '.') {
        look->dots++;
    } else if (byte == '/' || byte == '\\' || byte == ';') { /* '/' was encoded */
        look->hidden |= is_dots(look);
        look->parted = true;
        look->dots = 0;
        look->other = byte == ';'; /* a parameter goes on to the next slash */
    } else {
        look->other = true;
    }
}

/* Copies the segment at path[*at..len) to path[*to..], in its form. */
static int copy_segment(uint8_t *path, size_t len, size_t *at, size_t *to, struct look *ret_look)
{
    static const char DIGITS[] = "0123456789ABCDEF";

    *ret_look = (struct look){0};
    while (*at < len && path[*at] != '/') {
        unsigned byte = path[(*at)++];
        if (byte != '%') {
            path[(*to)++] = (uint8_t)byte;
            look_at(ret_look, byte);
            continue;
        }
        if (len - *at < 2 || !dp_is_class(path[*at], DP_CH_HEX) ||
            !dp_is_class(path[*at + 1], DP_CH_HEX)) {
            return DP_EMALFORMED;
        }
        byte = dp_hex_value(path[*at]) << 4 | dp_hex_value(path[*at + 1]);
        *at += 2;
        if (byte < 0x20 || byte == 0x7f) {
            return DP_EMALFORMED;
        }
        look_at(ret_look, byte);
        if (is_unreserved(byte)) {
            path[(*to)++] = (uint8_t)byte;
        } else {
            path[(*to)++] = '%';
            path[(*to)++] = (uint8_t)DIGITS[byte >> 4];
            path[(*to)++] = (uint8_t)DIGITS[byte & 15];
        }
    }
    return DP_OK;
}

/* Output never overtakes input: an encoding is as long or shorter in its form, and what a dot
 * segment takes away is not written again. */
int dp_path_normalise(uint8_t *path, size_t len, size_t *ret_len)
{
    size_t at = 0;
    size_t to = 0;

    if (len == 0 || path[0] != '/') {
        return DP_EMALFORMED;
    }
    while (at < len) {
        struct look look;
        size_t slash = to;
        at++;
        path[to++] = '/';
        const int result = copy_segment(path, len, &at, &to, &look);
        if (result != DP_OK) {
            return result;
        }
        if (look.hidden || (look.parted && is_dots(&look))) {
            return DP_EMALFORMED;
        }
        if (!is_dots(&look)) {
            continue;
        }
        if (look.dots == 2) {
            if (slash == 0) {
                return DP_EMALFORMED;
            }
            do {
                slash--;
            } while (path[slash] != '/');
        }
        to = slash;
        if (at == len) { /* the last one leaves its directory */
            path[to++] = '/';
        }
    }
    *ret_len = to;
    return DP_OK;
}

int dp_request_normalise(uint8_t *data, dp_request_head *head)
{
    size_t len;

    if (head->path_is_plain) {
        return DP_OK;
    }
    const int result = dp_path_normalise(data + head->path.off, head->path.len, &len);
    if (result == DP_OK) {
        head->path.len = (uint32_t)len;
        head->path_is_plain = 1;
    }
    return result;
}
