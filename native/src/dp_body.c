/* dp_body: what of some bytes belongs to a body, by any framing. Pure. */
#include "dp_core.h"

dp_body_step dp_body_feed(uint8_t framing, uint64_t *left, dp_chunked *chunked, int keep,
                          uint8_t *data, size_t len)
{
    dp_body_step step = {.used = len, .kept = len};
    switch (framing) {
    case DP_BODY_LENGTH:
        if (step.used > *left)
            step.used = (size_t)*left;
        step.kept = step.used;
        *left -= step.used;
        step.done = *left == 0;
        break;
    case DP_BODY_CHUNKED: {
        int result = dp_chunked_feed(chunked, data, len, keep, &step.used, &step.kept);
        step.done = result == DP_OK;
        if (result < 0)
            step.failure = result;
        break;
    }
    case DP_BODY_CLOSE:
        break;
    default: /* DP_BODY_NONE */
        step = (dp_body_step){.done = true};
        break;
    }
    return step;
}
