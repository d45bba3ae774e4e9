/* dp_upgrade: protocols of an Upgrade field. Pure. See the header. */
#include "dp_upgrade.h"

#include "dp_chars.h"
#include "dp_http1.h"

static bool is_http(const uint8_t *name, size_t len)
{
    const size_t known = len < 4 ? len : 4;

    return (known >= 2 && dp_equal_fold(name, (const uint8_t *)"h2", 2)) ||
           (known == 4 && dp_equal_fold(name, (const uint8_t *)"http", 4));
}

static const uint8_t *skip_token(const uint8_t *at, const uint8_t *end)
{
    while (at < end && dp_is_class(*at, DP_CH_TOKEN)) {
        at++;
    }
    return at;
}

static const uint8_t *skip_blanks(const uint8_t *at, const uint8_t *end)
{
    while (at < end && dp_is_blank(*at)) {
        at++;
    }
    return at;
}

dp_span dp_upgrade_pick(const uint8_t *data, const uint8_t *at, const uint8_t *end)
{
    dp_span picked = {0, 0};

    while (at < end) {
        const uint8_t *const name = skip_blanks(at, end);
        const uint8_t *stop = skip_token(name, end);
        const size_t name_len = (size_t)(stop - name);
        if (stop < end && *stop == '/') {
            const uint8_t *const version = stop + 1;
            stop = skip_token(version, end);
            if (stop == version) {
                return (dp_span){0, 0};
            }
        }
        at = skip_blanks(stop, end);
        if (name_len == 0 || (at < end && *at != ',')) {
            return (dp_span){0, 0};
        }
        if (picked.len == 0 && !is_http(name, name_len)) {
            picked = dp_span_of(data, name, stop);
        }
        at += at < end;
    }
    return picked;
}

uint32_t dp_upgrade_mark(const uint8_t *data, dp_span protocol)
{
    uint32_t mark = 2166136261u; /* FNV-1a */

    for (uint32_t i = 0; i < protocol.len; i++) {
        mark = (mark ^ dp_lower(data[protocol.off + i])) * 16777619u;
    }
    return mark | 1;
}
