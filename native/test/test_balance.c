/* Which endpoint is next: turns, load, and what was tried already. */
#include "dp_balance.c"

#include <string.h>

#include "support.h"

static uint64_t *mask(const char *tried)
{
    static uint64_t bits[DP_ENDPOINTS_MAX / 64];
    memset(bits, 0, sizeof(bits));
    for (size_t i = 0; tried[i] != '\0'; i++)
        if (tried[i] == 'x')
            bits[i / 64] |= (uint64_t)1 << (i % 64);
    return bits;
}

static void picks_in_turns(void)
{
    static const uint32_t active[3] = {9, 0, 5};
    uint32_t rotor = 1;
    expect("a round starts at the rotor",
           dp_balance_pick(DP_ROUND_ROBIN, active, 3, mask(""), &rotor) == 1);
    expect("goes on", dp_balance_pick(DP_ROUND_ROBIN, active, 3, mask(""), &rotor) == 2);
    expect("and begins anew", dp_balance_pick(DP_ROUND_ROBIN, active, 3, mask(""), &rotor) == 0);
    expect("passes over what was tried",
           dp_balance_pick(DP_ROUND_ROBIN, active, 3, mask(".x."), &rotor) == 2);
    expect("none is left", dp_balance_pick(DP_ROUND_ROBIN, active, 3, mask("xxx"), &rotor) == -1);
    expect("a rotor stays in range where nothing was picked", rotor < 3);
}

static void picks_the_least_busy(void)
{
    static const uint32_t active[4] = {2, 1, 1, 3};
    uint32_t rotor = 0;
    expect("the least", dp_balance_pick(DP_LEAST_REQUEST, active, 4, mask(""), &rotor) == 1);
    expect("of two, the one after the last pick",
           dp_balance_pick(DP_LEAST_REQUEST, active, 4, mask(""), &rotor) == 2);
    expect("and back", dp_balance_pick(DP_LEAST_REQUEST, active, 4, mask(""), &rotor) == 1);
    expect("tried ones do not count, however idle",
           dp_balance_pick(DP_LEAST_REQUEST, active, 4, mask(".xx."), &rotor) == 0);
    expect("none is left",
           dp_balance_pick(DP_LEAST_REQUEST, active, 4, mask("xxxx"), &rotor) == -1);
}

static void knows_as_many_as_there_may_be(void)
{
    static uint32_t active[DP_ENDPOINTS_MAX];
    uint64_t tried[DP_ENDPOINTS_MAX / 64] = {0};
    uint32_t rotor = 200;
    bool each_once = true;
    for (uint32_t i = 0; i < DP_ENDPOINTS_MAX; i++) {
        int index = dp_balance_pick(DP_LEAST_REQUEST, active, DP_ENDPOINTS_MAX, tried, &rotor);
        each_once = each_once && index == (int)((200 + i) % DP_ENDPOINTS_MAX);
        tried[index / 64] |= (uint64_t)1 << (index % 64);
    }
    expect("each endpoint once", each_once);
    expect("then none",
           dp_balance_pick(DP_ROUND_ROBIN, active, DP_ENDPOINTS_MAX, tried, &rotor) == -1);
}

int main(void)
{
    picks_in_turns();
    picks_the_least_busy();
    knows_as_many_as_there_may_be();
    return finish("balance");
}
