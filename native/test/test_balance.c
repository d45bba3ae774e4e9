/* Which endpoint is next: turns, weights, load, room, and what was tried already. */
#include "dp_balance.h"

#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { MANY = DP_ENDPOINTS_MAX };

static const dp_tried untried = {0};

/* A balancer with these weights, in memory that ends with what it asked for. */
static dp_balancer made(int kind, const uint32_t *weights, uint32_t count, uint64_t seed)
{
    static void *memory;
    dp_balancer balancer;

    free(memory);
    memory = calloc(1, dp_balancer_bytes(count));
    dp_balancer_init(&balancer, kind, count, seed, memory);
    for (uint32_t i = 0; i < count; i++) {
        dp_balancer_weigh(&balancer, i, weights[i] * DP_WEIGHT_ONE);
    }
    return balancer;
}

static const char *turns(dp_balancer *balancer, unsigned count)
{
    static char text[128];

    for (unsigned i = 0; i < count; i++) {
        const int item = dp_balancer_next(balancer, &untried);
        text[i] = item < 0 ? '-' : (char)('a' + item);
    }
    text[count] = '\0';
    return text;
}

static dp_tried tried_of(const char *items)
{
    dp_tried tried = {0};

    for (; *items != '\0'; items++) {
        dp_tried_add(&tried, (uint32_t)(*items - 'a'));
    }
    return tried;
}

static void takes_turns(void)
{
    static const uint32_t equal[3] = {1, 1, 1};
    dp_balancer balancer = made(DP_ROUND_ROBIN, equal, 3, 1);

    expect_text("a round begins where the seed says", "", "turns", turns(&balancer, 7), "bcabcab");
    dp_balancer_weigh(&balancer, 0, 0);
    expect_text("one that is out has no turn", "", "turns", turns(&balancer, 4), "cbcb");
    dp_balancer_weigh(&balancer, 0, DP_WEIGHT_ONE);
    const char *const back = turns(&balancer, 6);
    unsigned its = 0;
    for (size_t i = 0; i < 6; i++) {
        its += back[i] == 'a';
    }
    expect("one that is back has its turns, not those it missed", its == 2);
    const dp_tried all = tried_of("abc");
    expect("none is left", dp_balancer_next(&balancer, &all) == -1);
}

static void spreads_weights(void)
{
    static const uint32_t weights[3] = {5, 1, 1};
    dp_balancer balancer = made(DP_ROUND_ROBIN, weights, 3, 0);
    const char *const order = turns(&balancer, 70);
    unsigned counts[3] = {0};
    unsigned run = 0;
    unsigned longest = 0;

    for (size_t i = 0; i < 70; i++) {
        counts[order[i] - 'a']++;
        run = order[i] == 'a' ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    expect("shares are the weights'", counts[0] == 50 && counts[1] == 10 && counts[2] == 10);
    expect("and spread: the heavy one has no long run", longest <= 5);
}

static void picks_the_least_busy(void)
{
    static const uint32_t weights[4] = {1, 1, 1, 2};
    dp_balancer balancer = made(DP_LEAST_REQUEST, weights, 4, 0);

    for (uint32_t i = 0; i < 3; i++) {
        dp_balancer_begin(&balancer, i);
    }
    expect("the idle one", dp_balancer_next(&balancer, &untried) == 3);
    dp_balancer_begin(&balancer, 3);
    expect("the one with half the load for its weight", dp_balancer_next(&balancer, &untried) == 3);
    dp_balancer_begin(&balancer, 3);
    dp_balancer_end(&balancer, 1);
    expect("the one that became idle", dp_balancer_next(&balancer, &untried) == 1);
    const dp_tried tried = tried_of("b");
    expect("but not where it was tried", dp_balancer_next(&balancer, &tried) != 1);
    for (uint32_t i = 0; i < 4; i++) {
        while (balancer.active[i] != 0) {
            dp_balancer_end(&balancer, i);
        }
    }
    unsigned counts[4] = {0};
    for (unsigned i = 0; i < 50; i++) {
        counts[dp_balancer_next(&balancer, &untried)]++;
    }
    expect("idle ones share by weight", counts[3] >= 19 && counts[3] <= 21 && counts[1] >= 9);
}

static void passes_over_what_is_full(void)
{
    static const uint32_t equal[3] = {1, 1, 1};
    dp_balancer balancer = made(DP_ROUND_ROBIN, equal, 3, 0);

    dp_balancer_fill(&balancer, 1, true);
    expect_text("what is full has no turn", "", "turns", turns(&balancer, 4), "acac");
    dp_balancer_fill(&balancer, 0, true);
    dp_balancer_fill(&balancer, 2, true);
    expect("all are full", dp_balancer_next(&balancer, &untried) == -1 && balancer.usable == 3 &&
                               balancer.open_count == 0);
    dp_balancer_fill(&balancer, 1, false);
    expect_text("the one with room", "", "turns", turns(&balancer, 3), "bbb");
    expect("drawn, too", dp_balancer_any(&balancer, &untried) == 1);
}

static void draws_by_weight(void)
{
    static const uint32_t weights[3] = {1, 0, 3};
    dp_balancer balancer = made(DP_P2C, weights, 3, 7);
    unsigned counts[3] = {0};

    for (unsigned i = 0; i < 4000; i++) {
        counts[dp_balancer_any(&balancer, &untried)]++;
    }
    expect("one without weight is never drawn", counts[1] == 0);
    expect("the others by their weights", counts[0] > 850 && counts[0] < 1150);
    const dp_tried tried = tried_of("c");
    expect("never one that was tried", dp_balancer_any(&balancer, &tried) == 0);
    const dp_tried both = tried_of("ca");
    expect("none is left", dp_balancer_any(&balancer, &both) == -1);
}

static void knows_as_many_as_there_may_be(void)
{
    static uint32_t weights[MANY];
    static unsigned counts[MANY];
    bool equal = true;

    for (uint32_t i = 0; i < MANY; i++) {
        weights[i] = DP_WEIGHT_MAX;
    }
    dp_balancer balancer = made(DP_ROUND_ROBIN, weights, MANY, 999);
    for (unsigned i = 0; i < 3 * MANY; i++) {
        counts[dp_balancer_next(&balancer, &untried)]++;
    }
    for (uint32_t i = 0; i < MANY; i++) {
        equal = equal && counts[i] == 3;
    }
    expect("each endpoint three times in three rounds", equal);
    balancer.clock = ((uint64_t)1 << 62) + 1; /* centuries later */
    for (uint32_t i = 0; i < MANY; i++) {
        balancer.heap.stamp[i] += (uint64_t)1 << 62;
        counts[i] = 0;
    }
    for (unsigned i = 0; i < 2 * MANY; i++) {
        counts[dp_balancer_next(&balancer, &untried)]++;
    }
    for (uint32_t i = 0; i < MANY; i++) {
        equal = equal && counts[i] >= 1 && counts[i] <= 3;
    }
    expect("and when its clock begins anew", equal && balancer.clock < (uint64_t)1 << 61);
}

static void remembers_a_few_tries(void)
{
    dp_tried tried = {0};

    for (uint32_t i = 0; i < 2 * DP_TRIED_MAX; i++) {
        dp_tried_add(&tried, i / 2);
    }
    expect("each once", tried.count == DP_TRIED_MAX && dp_tried_has(&tried, DP_TRIED_MAX - 1));
    dp_tried_add(&tried, 999);
    expect("and no more than there is room for", !dp_tried_has(&tried, 999));
}

static void keeps_a_heap_in_order(void)
{
    static uint32_t order[64];
    static uint32_t place[64];
    static uint64_t key[64];
    static uint64_t stamp[64];
    dp_heap heap = {.order = order, .place = place, .key = key, .stamp = stamp};
    uint64_t random = 1;
    bool least = true;

    for (unsigned i = 0; i < 20000; i++) {
        random = dp_mix(random + 1);
        const uint32_t item = random % 64;
        if (random >> 8 & 1) {
            dp_heap_put(&heap, item, random >> 16 & 15, random >> 20 & 15);
        } else {
            dp_heap_take(&heap, item);
        }
        const int found = dp_heap_least(&heap, &untried);
        for (uint32_t j = 0; j < 64; j++) {
            if (dp_heap_has(&heap, j) &&
                (key[j] < key[found] || (key[j] == key[found] && stamp[j] < stamp[found]))) {
                least = false;
            }
        }
    }
    expect("the least is on top, whatever was put and taken", least);
}

int main(void)
{
    takes_turns();
    spreads_weights();
    picks_the_least_busy();
    passes_over_what_is_full();
    draws_by_weight();
    knows_as_many_as_there_may_be();
    remembers_a_few_tries();
    keeps_a_heap_in_order();
    return finish("balance");
}
