/* dp_maglev: consistent choices, as a table that is filled once; and hashing. Pure.
 *
 * Each endpoint has an order of its own over the table's places, drawn from its hash. By turns,
 * each takes the next free place of its order; one with more weight has more turns (Eisenbud et
 * al., "Maglev", NSDI 2016, section 3.4). */
#include <string.h>

#include "dp_balance.h"

enum { FREE = 0xffff };

uint64_t dp_mix(uint64_t value)
{
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return value ^ value >> 31;
}

uint64_t dp_hash(const void *data, size_t len)
{
    const uint8_t *bytes = data;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return dp_mix(hash);
}

static uint64_t turn_left(uint64_t value, unsigned by)
{
    return value << by | value >> (64 - by);
}

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = turn_left(v[1], 13) ^ v[0];
    v[0] = turn_left(v[0], 32);
    v[2] += v[3];
    v[3] = turn_left(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = turn_left(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = turn_left(v[1], 17) ^ v[2];
    v[2] = turn_left(v[2], 32);
}

uint64_t dp_siphash(const uint8_t key[16], const void *data, size_t len)
{
    const uint8_t *bytes = data;
    uint64_t k[2];
    memcpy(k, key, sizeof(k));
    uint64_t v[4] = {k[0] ^ 0x736f6d6570736575u, k[1] ^ 0x646f72616e646f6du,
                     k[0] ^ 0x6c7967656e657261u, k[1] ^ 0x7465646279746573u};
    for (size_t at = 0; at <= len; at += 8) {
        uint64_t word = 0;
        size_t left = len - at;
        if (left >= 8)
            memcpy(&word, bytes + at, 8);
        else {
            if (left != 0)
                memcpy(&word, bytes + at, left);
            word |= (uint64_t)len << 56;
        }
        v[3] ^= word;
        sip_round(v);
        sip_round(v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 4; i++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint32_t dp_maglev_size(uint32_t count)
{
    return count <= 10 ? 1021 : count <= 80 ? 8191 : DP_MAGLEV_MAX;
}

static void take_place(uint16_t *table, uint32_t size, uint64_t hash, uint32_t *next, uint32_t item)
{
    uint32_t offset = (uint32_t)(hash % size);
    uint32_t skip = (uint32_t)((hash >> 32) % (size - 1)) + 1;
    for (;;) {
        uint32_t place = (uint32_t)((offset + (uint64_t)*next * skip) % size);
        ++*next;
        if (table[place] == FREE) {
            table[place] = (uint16_t)item;
            return;
        }
    }
}

void dp_maglev_build(uint16_t *table, uint32_t size, const uint64_t *hashes,
                     const uint32_t *weights, uint32_t count)
{
    uint32_t next[DP_ENDPOINTS_MAX] = {0};
    uint32_t sorted[DP_ENDPOINTS_MAX];
    uint32_t most = 1;
    for (uint32_t i = 0; i < count; i++) {
        uint32_t at = i; /* by hash: the list's order must not matter */
        for (; at > 0 && hashes[sorted[at - 1]] > hashes[i]; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = i;
        if (weights[i] > most)
            most = weights[i];
    }
    for (uint32_t i = 0; i < size; i++)
        table[i] = FREE;
    uint32_t taken = 0;
    for (uint64_t round = 0; taken < size; round++)
        for (uint32_t i = 0; i < count && taken < size; i++) {
            uint32_t item = sorted[i];
            uint64_t turns = weights[item];
            if (turns * (round + 1) / most == turns * round / most)
                continue;
            take_place(table, size, hashes[item], &next[item], item);
            taken++;
        }
}
