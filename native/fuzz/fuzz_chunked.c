/* However a chunked body is split, the verdict and what is kept are the same; and what is kept with
 * its framing is a chunked body itself, of the same data, from which nothing more is taken away. */
#include <string.h>

#include "dp.h"
#include "fuzz.h"

enum { ROOM = 8192 };

struct outcome {
    int result;
    size_t used;
    size_t kept;
    uint8_t bytes[ROOM];
};

/* In parts: the first of `first` bytes, the others of `step`. Each is a copy of its own size. */
static void feed(const uint8_t *data, size_t size, size_t first, size_t step, int keep,
                 struct outcome *ret_outcome)
{
    dp_chunked state = {0};
    size_t seen = first < size ? first : size;

    *ret_outcome = (struct outcome){.result = DP_NEED_MORE};
    for (;;) {
        const size_t count = seen - ret_outcome->used;
        size_t used = 0;
        size_t kept = 0;
        uint8_t *const part = malloc(count + 1); /* from 1 on, so that count may be 0 */
        if (part == NULL) {
            abort();
        }
        memcpy(part + 1, data + ret_outcome->used, count);
        ret_outcome->result = dp_chunked_feed(&state, part + 1, count, keep, &used, &kept);
        if (ret_outcome->result >= DP_OK) {
            hold(kept <= used && used <= count, "no more is kept than came");
            hold(used == count || ret_outcome->result == DP_OK || count - used <= 8192,
                 "all is used but a trailer field");
            memcpy(ret_outcome->bytes + ret_outcome->kept, part + 1, kept);
            ret_outcome->kept += kept;
            ret_outcome->used += used;
        }
        free(part);
        if (ret_outcome->result != DP_NEED_MORE || seen == size) {
            return;
        }
        seen = step < size - seen ? seen + step : size;
    }
}

static void check_same(const struct outcome *a, const struct outcome *b)
{
    hold(a->result == b->result, "split, the same verdict");
    if (a->result >= DP_OK) {
        hold(a->used == b->used && a->kept == b->kept && memcmp(a->bytes, b->bytes, a->kept) == 0,
             "split, the same is kept");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct outcome whole[3]; /* by DP_CHUNKED_ */
    static struct outcome other;
    const struct outcome *const bare = &whole[DP_CHUNKED_BARE];

    if (size > ROOM) {
        return 0;
    }
    for (int keep = 0; keep < 3; keep++) {
        feed(data, size, size, size, keep, &whole[keep]);
        hold(whole[keep].result == bare->result, "the verdict does not depend on what is kept");
        feed(data, size, split_of(data, size), ROOM, keep, &other);
        check_same(&whole[keep], &other);
        feed(data, size, 1, 1 + split_of(data, size) % 5, keep, &other);
        check_same(&whole[keep], &other);
    }
    if (bare->result != DP_OK) {
        return 0;
    }
    for (int keep = DP_CHUNKED_FRAMED; keep <= DP_CHUNKED_TRAILERS; keep++) {
        const struct outcome *const framed = &whole[keep];
        feed(framed->bytes, framed->kept, ROOM, ROOM, keep, &other);
        hold(other.result == DP_OK && other.used == framed->kept && other.kept == framed->kept &&
                 memcmp(other.bytes, framed->bytes, framed->kept) == 0,
             "what is kept is a body, and all of it needed");
        feed(framed->bytes, framed->kept, ROOM, ROOM, DP_CHUNKED_BARE, &other);
        hold(other.result == DP_OK && other.kept == bare->kept &&
                 memcmp(other.bytes, bare->bytes, bare->kept) == 0,
             "of the same data");
    }
    return 0;
}
