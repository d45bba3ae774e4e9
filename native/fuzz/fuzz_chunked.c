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
static void feed(const uint8_t *data, size_t size, size_t first, size_t step, int framing,
                 struct outcome *ret_outcome)
{
    dp_chunked state = {0};
    size_t count = first < size ? first : size;

    *ret_outcome = (struct outcome){.result = DP_NEED_MORE};
    for (;;) {
        size_t used = 0;
        size_t kept = 0;
        uint8_t *const part = malloc(count + 1); /* from 1 on, so that count may be 0 */
        if (part == NULL) {
            abort();
        }
        memcpy(part + 1, data + ret_outcome->used, count);
        ret_outcome->result = dp_chunked_feed(&state, part + 1, count, framing, &used, &kept);
        if (ret_outcome->result >= DP_OK) {
            hold(kept <= used && used <= count, "no more is kept than came");
            hold(ret_outcome->result == DP_OK || used == count, "all is used until the end");
            memcpy(ret_outcome->bytes + ret_outcome->kept, part + 1, kept);
            ret_outcome->kept += kept;
            ret_outcome->used += used;
        }
        free(part);
        if (ret_outcome->result != DP_NEED_MORE || ret_outcome->used == size) {
            return;
        }
        count = step < size - ret_outcome->used ? step : size - ret_outcome->used;
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
    static struct outcome framed;
    static struct outcome bare;
    static struct outcome other;

    if (size > ROOM) {
        return 0;
    }
    feed(data, size, size, size, 1, &framed);
    feed(data, size, size, size, 0, &bare);
    hold(framed.result == bare.result, "the verdict does not depend on what is kept");
    for (int framing = 0; framing < 2; framing++) {
        feed(data, size, split_of(data, size), ROOM, framing, &other);
        check_same(framing ? &framed : &bare, &other);
        feed(data, size, 1, 1 + split_of(data, size) % 5, framing, &other);
        check_same(framing ? &framed : &bare, &other);
    }
    if (framed.result != DP_OK) {
        return 0;
    }
    feed(framed.bytes, framed.kept, ROOM, ROOM, 1, &other);
    hold(other.result == DP_OK && other.used == framed.kept && other.kept == framed.kept &&
             memcmp(other.bytes, framed.bytes, framed.kept) == 0,
         "what is kept is a body, and all of it needed");
    feed(framed.bytes, framed.kept, ROOM, ROOM, 0, &other);
    hold(other.result == DP_OK && other.kept == bare.kept &&
             memcmp(other.bytes, bare.bytes, bare.kept) == 0,
         "of the same data");
    return 0;
}
