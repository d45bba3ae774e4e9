/* dp_balance: which endpoint is next. Pure. */
#include "dp_core.h"

int dp_balance_pick(int balance, const uint32_t *active, uint32_t count, const uint64_t *tried,
                    uint32_t *rotor)
{
    int best = -1;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t index = (*rotor + i) % count;
        if ((tried[index / 64] >> (index % 64) & 1) != 0)
            continue;
        if (balance == DP_ROUND_ROBIN) {
            best = (int)index;
            break;
        }
        /* Ties go to the one after the last pick, so that idle endpoints share the work. */
        if (best < 0 || active[index] < active[best])
            best = (int)index;
    }
    if (best >= 0)
        *rotor = ((uint32_t)best + 1) % count;
    return best;
}
