/* dp_rate: how many requests may come from one source, or with one key. Pure.
 *
 * A bucket is one number: the time at which it will be full again (GCRA, ITU-T I.371 A). It lives
 * in a table of fixed size that all workers of an app share; a key that is new takes the place of
 * the bucket in its set that is full again, or nearest to it. Keys are hashes with a secret seed,
 * so nobody can choose who shares a set with them. */
#ifndef DP_RATE_H
#define DP_RATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DP_RATE_WAYS = 8,            /* buckets of a set: 128 bytes, two cache lines */
    DP_RATE_PER_SECOND = 1000000 /* at most: the time between two is then a microsecond */
};

typedef struct dp_bucket {
    _Atomic uint64_t key;     /* 0: free */
    _Atomic uint64_t full_at; /* ns of CLOCK_MONOTONIC */
} dp_bucket;

typedef struct dp_buckets {
    dp_bucket *at;
    uint32_t count; /* a multiple of DP_RATE_WAYS */
} dp_buckets;

typedef struct dp_rate {
    uint64_t every_ns; /* one token comes so often */
    uint64_t depth_ns; /* and so long until an empty bucket is full */
} dp_rate;

/* per_second 1 to DP_RATE_PER_SECOND; burst: how many may come at once, at least one. */
dp_rate dp_rate_of(uint32_t per_second, uint32_t burst);

/* 0: it may come, and is counted. Else the ns after which the next may. In any time t at most
 * burst + t * per_second come through, as long as the bucket keeps its place; workers that meet a
 * new key in the same instant may let one each through beside that. */
uint64_t dp_rate_take(const dp_buckets *buckets, const dp_rate *rate, uint64_t key,
                      uint64_t now_ns);

/* SipHash-2-4 (Aumasson, Bernstein 2012) of data, never 0. */
uint64_t dp_rate_key(const uint8_t seed[16], const void *data, size_t len);

#endif
