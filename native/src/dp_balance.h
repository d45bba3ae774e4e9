/* dp_balance: which endpoint is next. Pure, and at most O(log n) a request.
 *
 * A balancer knows the endpoints of one upstream by their index. Each has a weight: 0 takes it out
 * of the choice (down, ejected), a smaller one lets it start slowly. What is full is passed over
 * until it has room again. Who has been tried for this request is named by the caller. */
#ifndef DP_BALANCE_H
#define DP_BALANCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DP_ENDPOINTS_MAX = 1000, /* of one upstream: an index fits the maglev table's 16 bits */
    DP_WEIGHT_MAX = 256,     /* as configured */
    DP_WEIGHT_ONE = 100,     /* a balancer's weights are hundredths, for the slow start */
    DP_TRIED_MAX = 8,        /* endpoints that one request is tried at, at most */
    DP_MAGLEV_MAX = 65537    /* prime; a hundredfold of the endpoints keeps shares within 1 % */
};

/* The endpoints that a request was tried at. */
typedef struct dp_tried {
    uint16_t item[DP_TRIED_MAX];
    uint16_t count;
} dp_tried;

bool dp_tried_has(const dp_tried *tried, uint32_t item);
void dp_tried_add(dp_tried *tried, uint32_t item); /* once; nothing happens when it is full */

/* Items in the order of (key, stamp), least first, each at most once. */
typedef struct dp_heap {
    uint32_t *order; /* items, as a heap */
    uint32_t *place; /* by item: where it stands in order, plus 1; 0: not there */
    uint64_t *key;
    uint64_t *stamp;
    uint32_t count;
} dp_heap;

void dp_heap_put(dp_heap *heap, uint32_t item, uint64_t key, uint64_t stamp);
void dp_heap_take(dp_heap *heap, uint32_t item);
bool dp_heap_has(const dp_heap *heap, uint32_t item);
/* The least that was not tried, or -1. Looks at no more than 2 * tried + 1 of them. */
int dp_heap_least(const dp_heap *heap, const dp_tried *tried);

typedef struct dp_balancer {
    int kind; /* DP_ROUND_ROBIN and so on */
    uint32_t size;
    dp_heap heap;     /* those that may be chosen: by load, then by virtual time */
    uint32_t *weight; /* 0: out */
    uint32_t *active; /* exchanges and tunnels */
    bool *full;
    uint32_t *open; /* those with a weight that are not full, in any order */
    uint32_t *open_place;
    uint32_t open_count;
    uint32_t usable; /* those with a weight */
    uint64_t clock;  /* virtual time: that of the last pick */
    uint64_t random;
    /* p2c: those with a weight, and the sum of weights up to each. */
    uint32_t *drawn;
    uint32_t *drawn_sum;
    uint32_t drawn_count;
    bool drawn_stale;
    const uint16_t *maglev;
    uint32_t maglev_size;
} dp_balancer;

/* All of a balancer's memory, cut out of one piece of dp_balancer_bytes(size), zeroed. Every
 * endpoint is out at first. seed: where its rounds begin. */
size_t dp_balancer_bytes(uint32_t size);
void dp_balancer_init(dp_balancer *balancer, int kind, uint32_t size, uint64_t seed, void *memory);
void dp_balancer_weigh(dp_balancer *balancer, uint32_t item, uint32_t weight);
void dp_balancer_fill(dp_balancer *balancer, uint32_t item, bool full);
void dp_balancer_begin(dp_balancer *balancer, uint32_t item); /* one exchange more */
void dp_balancer_end(dp_balancer *balancer, uint32_t item);

/* Each gives an index, or -1 where all that have room were tried. */
int dp_balancer_next(dp_balancer *balancer, const dp_tried *tried); /* the heap's */
int dp_balancer_keyed(const dp_balancer *balancer, uint64_t hash, const dp_tried *tried);
int dp_balancer_any(dp_balancer *balancer, const dp_tried *tried); /* one at random, by weight */
bool dp_balancer_takes(const dp_balancer *balancer, uint32_t item, const dp_tried *tried);

/* --- dp_maglev: the table of consistent choices ------------------------------------------------
 */

/* Fills table[0..size) with the indices of count endpoints, in shares by weight. Where an endpoint
 * stands depends on its hash alone, not on its place in the list. size: prime, > count. */
void dp_maglev_build(uint16_t *table, uint32_t size, const uint64_t *hashes,
                     const uint32_t *weights, uint32_t count);
uint32_t dp_maglev_size(uint32_t count); /* the prime for so many endpoints */

/* --- hashing -----------------------------------------------------------------------------------
 */

uint64_t dp_mix(uint64_t value);                /* a permutation of 64 bits */
uint64_t dp_hash(const void *data, size_t len); /* FNV-1a, mixed: never of secret use */
uint64_t dp_siphash(const uint8_t key[16], const void *data, size_t len); /* SipHash-2-4 */

#endif
