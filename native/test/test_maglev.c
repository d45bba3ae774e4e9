/* Consistent choices: fair shares, the same wherever an endpoint stands in the list, and few keys
 * that move; and the hashes. */
#include <stdlib.h>
#include <string.h>

#include "dp_balance.h"
#include "support.h"

enum { SIZE = 8191, COUNT = 20 };

static uint16_t one[DP_MAGLEV_MAX];
static uint16_t other[DP_MAGLEV_MAX];
static uint64_t hashes[DP_ENDPOINTS_MAX];
static uint32_t weights[DP_ENDPOINTS_MAX];

static void prepare(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        hashes[i] = dp_mix(i + 1);
        weights[i] = 1;
    }
}

static void shares_are_fair(void)
{
    unsigned counts[COUNT] = {0};
    bool fair = true;

    prepare(COUNT);
    weights[3] = 3;
    dp_maglev_build(one, SIZE, hashes, weights, COUNT);
    for (uint32_t i = 0; i < SIZE; i++) {
        counts[one[i]]++;
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        const unsigned share = SIZE / (COUNT + 2) * weights[i];
        fair = fair && counts[i] + 5 >= share && counts[i] <= share + share / 20 + 5;
    }
    expect("each has its share, by weight", fair);
}

static void order_does_not_matter(void)
{
    bool same = true;

    prepare(COUNT);
    dp_maglev_build(one, SIZE, hashes, weights, COUNT);
    for (uint32_t i = 0; i < COUNT / 2; i++) {
        const uint64_t kept = hashes[i];
        hashes[i] = hashes[COUNT - 1 - i];
        hashes[COUNT - 1 - i] = kept;
    }
    dp_maglev_build(other, SIZE, hashes, weights, COUNT);
    for (uint32_t i = 0; i < SIZE; i++) {
        same = same && one[i] == COUNT - 1 - other[i];
    }
    expect("the same endpoint, wherever it stands in the list", same);
}

static void few_keys_move(void)
{
    unsigned moved = 0;

    prepare(COUNT);
    dp_maglev_build(one, SIZE, hashes, weights, COUNT);
    dp_maglev_build(other, SIZE, hashes, weights, COUNT - 1);
    for (uint32_t i = 0; i < SIZE; i++) {
        moved += one[i] != COUNT - 1 && one[i] != other[i];
    }
    expect("when one goes, hardly a key of the others moves", moved < SIZE / 20);
}

static void only_keys_of_the_missing_move(void)
{
    static dp_tried none;
    static uint8_t memory[64 * COUNT];
    dp_balancer balancer;
    unsigned moved = 0;
    unsigned spread[COUNT] = {0};

    prepare(COUNT);
    dp_maglev_build(one, SIZE, hashes, weights, COUNT);
    dp_balancer_init(&balancer, DP_MAGLEV, COUNT, 0, memory);
    balancer.maglev = one;
    balancer.maglev_size = SIZE;
    for (uint32_t i = 0; i < COUNT; i++) {
        dp_balancer_weigh(&balancer, i, i == 7 ? 0 : DP_WEIGHT_ONE);
    }
    for (uint64_t key = 0; key < 20000; key++) {
        const uint64_t hash = dp_mix(key);
        const uint16_t home = one[hash % SIZE];
        const int got = dp_balancer_keyed(&balancer, hash, &none);
        moved += home != 7 && got != home;
        if (home == 7) {
            spread[got]++;
        }
    }
    bool even = spread[7] == 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        even = even && (i == 7 || spread[i] > 20);
    }
    expect("while one is out, nobody else's key moves", moved == 0);
    expect("and its own spread over all others", even);
    for (uint32_t i = 1; i < COUNT; i++) {
        dp_balancer_weigh(&balancer, i, 0);
    }
    expect("the last one left takes them all", dp_balancer_keyed(&balancer, 12345, &none) == 0);
    dp_balancer_weigh(&balancer, 0, 0);
    expect("none is left", dp_balancer_keyed(&balancer, 12345, &none) == -1);
}

static void the_largest_is_filled(void)
{
    static bool seen[DP_ENDPOINTS_MAX];
    uint32_t count = 0;

    prepare(DP_ENDPOINTS_MAX);
    dp_maglev_build(one, dp_maglev_size(DP_ENDPOINTS_MAX), hashes, weights, DP_ENDPOINTS_MAX);
    for (uint32_t i = 0; i < DP_MAGLEV_MAX; i++) {
        count += !seen[one[i]];
        seen[one[i]] = true;
    }
    expect("a thousand endpoints each have places", count == DP_ENDPOINTS_MAX);
}

/* The vectors of the paper's authors: key 00..0f, input 00, 00 01, ... */
static void siphash_is_the_one_that_is_known(void)
{
    uint8_t key[16];
    uint8_t input[15];

    for (uint8_t i = 0; i < 16; i++) {
        key[i] = i;
    }
    for (uint8_t i = 0; i < 15; i++) {
        input[i] = i;
    }
    expect("15 bytes", dp_siphash(key, input, 15) == 0xa129ca6149be45e5u);
    expect("none", dp_siphash(key, input, 0) == 0x726fdb47dd0e0e31u);
    expect("eight", dp_siphash(key, input, 8) == 0x93f5f5799a932462u);
}

int main(void)
{
    shares_are_fair();
    order_does_not_matter();
    few_keys_move();
    only_keys_of_the_missing_move();
    the_largest_is_filled();
    siphash_is_the_one_that_is_known();
    return finish("maglev");
}
