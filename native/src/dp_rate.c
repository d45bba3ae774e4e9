/* dp_rate: see the header. */
#include "dp_rate.h"

#include <string.h>

enum { ROUNDS = 64 }; /* each that fails is another worker's that got through */

static const uint64_t SECOND_NS = 1000000000u;

dp_rate dp_rate_of(uint32_t per_second, uint32_t burst)
{
    /* Rounded up: never a token too soon. */
    uint64_t every = (SECOND_NS + per_second - 1) / per_second;
    return (dp_rate){.every_ns = every, .depth_ns = every * (burst != 0 ? burst : 1)};
}

/* --- the table -------------------------------------------------------------------------------- */

static dp_bucket *find(dp_bucket *set, uint64_t key)
{
    for (int i = 0; i < DP_RATE_WAYS; i++)
        if (atomic_load_explicit(&set[i].key, memory_order_acquire) == key)
            return &set[i];
    return NULL;
}

/* The one whose loss changes least: nobody's, or what has been full for the longest. */
static dp_bucket *emptiest(dp_bucket *set, uint64_t *ret_full_at)
{
    dp_bucket *found = NULL;
    for (int i = 0; i < DP_RATE_WAYS; i++) {
        uint64_t full_at = atomic_load_explicit(&set[i].full_at, memory_order_relaxed);
        if (found == NULL || full_at < *ret_full_at) {
            found = &set[i];
            *ret_full_at = full_at;
        }
    }
    return found;
}

/* True: the bucket is the key's, and its first token is taken. */
static bool claim(dp_bucket *set, uint64_t key, const dp_rate *rate, uint64_t now_ns)
{
    uint64_t full_at = 0;
    dp_bucket *bucket = emptiest(set, &full_at);
    uint64_t old = atomic_load(&bucket->key);
    if (!atomic_compare_exchange_strong(&bucket->key, &old, key))
        return false;
    dp_bucket *first = find(set, key);
    if (first != bucket) { /* another worker was as quick: one of the two places is enough */
        uint64_t ours = key;
        (void)atomic_compare_exchange_strong(&bucket->key, &ours, 0);
        return false;
    }
    return atomic_compare_exchange_strong(&bucket->full_at, &full_at, now_ns + rate->every_ns);
}

uint64_t dp_rate_take(const dp_buckets *buckets, const dp_rate *rate, uint64_t key, uint64_t now_ns)
{
    dp_bucket *set = &buckets->at[key % (buckets->count / DP_RATE_WAYS) * DP_RATE_WAYS];
    for (int round = 0; round < ROUNDS; round++) {
        dp_bucket *bucket = find(set, key);
        if (bucket == NULL) {
            if (claim(set, key, rate, now_ns))
                return 0;
            continue;
        }
        uint64_t full_at = atomic_load(&bucket->full_at);
        uint64_t next = (full_at > now_ns ? full_at : now_ns) + rate->every_ns;
        if (next - now_ns > rate->depth_ns)
            return next - now_ns - rate->depth_ns;
        if (atomic_compare_exchange_strong(&bucket->full_at, &full_at, next))
            return 0;
    }
    return rate->every_ns;
}

/* --- keys ------------------------------------------------------------------------------------- */

static uint64_t turn(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static uint64_t read64(const uint8_t *at, size_t len)
{
    uint64_t value = 0;
    for (size_t i = 0; i < len; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static void mix(uint64_t v[4], int rounds)
{
    while (rounds-- > 0) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = turn(v[1], 13) ^ v[0];
        v[3] = turn(v[3], 16) ^ v[2];
        v[0] = turn(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = turn(v[1], 17) ^ v[2];
        v[3] = turn(v[3], 21) ^ v[0];
        v[2] = turn(v[2], 32);
    }
}

static void take_word(uint64_t v[4], uint64_t word)
{
    v[3] ^= word;
    mix(v, 2);
    v[0] ^= word;
}

uint64_t dp_rate_key(const uint8_t seed[16], const void *data, size_t len)
{
    const uint8_t *at = data;
    const uint64_t low = read64(seed, 8);
    const uint64_t high = read64(seed + 8, 8);
    uint64_t v[4] = {low ^ 0x736f6d6570736575u, high ^ 0x646f72616e646f6du,
                     low ^ 0x6c7967656e657261u, high ^ 0x7465646279746573u};
    for (size_t i = 0; i < len / 8; i++)
        take_word(v, read64(at + 8 * i, 8));
    take_word(v, read64(at + len / 8 * 8, len % 8) | (uint64_t)len << 56);
    v[2] ^= 0xff;
    mix(v, 4);
    uint64_t hash = v[0] ^ v[1] ^ v[2] ^ v[3];
    return hash != 0 ? hash : 1;
}
