/* dp_source: see the header. */
#include "dp_source.h"

#include <stddef.h>

enum { ROUNDS = 64 };

static const uint64_t COUNT_MASK = ((uint64_t)1 << DP_SOURCE_BITS) - 1;

static uint64_t tag_of(uint64_t key)
{
    uint64_t tag = key & ~COUNT_MASK;
    return tag != 0 ? tag : COUNT_MASK + 1;
}

static _Atomic uint64_t *set_of(const dp_sources *sources, uint64_t key)
{
    return &sources->at[key % (sources->count / DP_SOURCE_WAYS) * DP_SOURCE_WAYS];
}

/* The entry of that tag with something open, from the first on; NULL: there is none. */
static _Atomic uint64_t *find(_Atomic uint64_t *set, uint64_t tag)
{
    for (int i = 0; i < DP_SOURCE_WAYS; i++) {
        uint64_t word = atomic_load(&set[i]);
        if ((word & ~COUNT_MASK) == tag && (word & COUNT_MASK) != 0)
            return &set[i];
    }
    return NULL;
}

/* One less, and never below none: a row may tell of one that its process did not live to add. */
static void sink(_Atomic uint64_t *entry, uint32_t by)
{
    uint64_t word = atomic_load(entry);
    uint64_t next;
    do {
        uint64_t open = word & COUNT_MASK;
        next = open > by ? word - by : 0;
    } while (!atomic_compare_exchange_weak(entry, &word, next));
}

/* Our row has it first, so that it can be given back wherever this process dies. */
static bool put(const dp_sources *sources, _Atomic uint64_t *entry, uint64_t word, uint64_t next)
{
    _Atomic uint32_t *row = &sources->held[entry - sources->at];
    atomic_store_explicit(sources->held - DP_SOURCE_HEAD, 1, memory_order_relaxed);
    (void)atomic_fetch_add(row, 1);
    if (atomic_compare_exchange_strong(entry, &word, next))
        return true;
    (void)atomic_fetch_sub(row, 1);
    return false;
}

/* Takes a free entry for the tag. NULL: somebody else was quicker, or has the tag now. */
static _Atomic uint64_t *settle(const dp_sources *sources, _Atomic uint64_t *set, uint64_t tag,
                                bool *ret_full)
{
    *ret_full = true;
    for (int i = 0; i < DP_SOURCE_WAYS; i++) {
        uint64_t word = atomic_load(&set[i]);
        if ((word & COUNT_MASK) != 0)
            continue;
        *ret_full = false;
        if (!put(sources, &set[i], word, tag | 1))
            return NULL;
        if (find(set, tag) == &set[i])
            return &set[i];
        dp_source_give(sources, &set[i] - sources->at + 1); /* it has an entry before this one */
        return NULL;
    }
    return NULL;
}

int64_t dp_source_take(const dp_sources *sources, uint64_t key, uint32_t max)
{
    if (sources->count == 0 || sources->held == NULL)
        return DP_SOURCE_NONE;
    const uint64_t tag = tag_of(key);
    _Atomic uint64_t *set = set_of(sources, key);
    for (int round = 0; round < ROUNDS; round++) {
        _Atomic uint64_t *entry = find(set, tag);
        bool full = false;
        if (entry == NULL) {
            entry = settle(sources, set, tag, &full);
            if (full)
                return DP_SOURCE_NONE;
        } else {
            uint64_t word = atomic_load(entry);
            uint64_t open = word & COUNT_MASK;
            if ((word & ~COUNT_MASK) != tag || open == 0)
                continue; /* its last connection just ended */
            if (max != 0 && open >= max)
                return DP_SOURCE_FULL;
            if (open == COUNT_MASK)
                return DP_SOURCE_NONE;
            if (!put(sources, entry, word, word + 1))
                continue;
        }
        if (entry != NULL)
            return entry - sources->at + 1;
    }
    return DP_SOURCE_NONE;
}

void dp_source_give(const dp_sources *sources, int64_t place)
{
    if (place <= 0 || sources->held == NULL)
        return;
    sink(&sources->at[place - 1], 1);
    (void)atomic_fetch_sub(&sources->held[place - 1], 1);
}

void dp_source_clear(const dp_sources *sources, _Atomic uint32_t *held)
{
    if (atomic_exchange(held - DP_SOURCE_HEAD, 0) == 0)
        return;
    for (uint32_t i = 0; i < sources->count; i++) {
        if (atomic_load_explicit(&held[i], memory_order_relaxed) == 0)
            continue;
        sink(&sources->at[i], atomic_exchange(&held[i], 0));
    }
}

uint32_t dp_source_open(const dp_sources *sources, uint64_t key)
{
    _Atomic uint64_t *entry = find(set_of(sources, key), tag_of(key));
    return entry != NULL ? (uint32_t)(atomic_load(entry) & COUNT_MASK) : 0;
}
