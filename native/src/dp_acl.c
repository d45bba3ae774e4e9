/* dp_acl: see the header. Rules become ranges, sorted and joined; a look is a binary search. */
#include "dp_acl.h"

#include <stdlib.h>

enum { V4_BITS = 96, ALL_BITS = 128 };

static const uint64_t V4_LOW = 0xffff00000000u; /* of ::ffff:0:0 */

/* --- addresses -------------------------------------------------------------------------------- */

static uint64_t read64(const uint8_t *at)
{
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | at[i];
    return value;
}

dp_ip dp_ip_of(const uint8_t address[16])
{
    return (dp_ip){.high = read64(address), .low = read64(address + 8)};
}

bool dp_ip_is_v4(dp_ip ip)
{
    return ip.high == 0 && ip.low >> 32 == V4_LOW >> 32;
}

static int compare(dp_ip one, dp_ip other)
{
    if (one.high != other.high)
        return one.high < other.high ? -1 : 1;
    return one.low < other.low ? -1 : one.low > other.low;
}

static dp_ip_range range_of(const dp_access_rule *rule)
{
    dp_ip ip = dp_ip_of(rule->address);
    uint64_t high = rule->bits >= 64 ? 0 : UINT64_MAX >> rule->bits;
    uint64_t low = UINT64_MAX;
    if (rule->bits > 64)
        low = rule->bits == ALL_BITS ? 0 : UINT64_MAX >> (rule->bits - 64);
    return (dp_ip_range){.first = {.high = ip.high & ~high, .low = ip.low & ~low},
                         .last = {.high = ip.high | high, .low = ip.low | low}};
}

/* --- making ----------------------------------------------------------------------------------- */

static int by_first(const void *left, const void *right)
{
    const dp_ip_range *one = left;
    const dp_ip_range *other = right;
    return compare(one->first, other->first);
}

/* Prefixes are one within the other or apart: what begins inside ends inside, too. */
static void settle(dp_ip_set *set)
{
    uint32_t kept = 0;
    if (set->count != 0)
        qsort(set->ranges, set->count, sizeof(*set->ranges), by_first);
    for (uint32_t i = 0; i < set->count; i++) {
        dp_ip_range *last = kept != 0 ? &set->ranges[kept - 1] : NULL;
        if (last == NULL || compare(set->ranges[i].first, last->last) > 0)
            set->ranges[kept++] = set->ranges[i];
        else if (compare(set->ranges[i].last, last->last) > 0)
            last->last = set->ranges[i].last;
    }
    set->count = kept;
}

size_t dp_acl_bytes(uint32_t count)
{
    return (size_t)count * sizeof(dp_ip_range);
}

static bool is_for(const dp_access_rule *rule, bool denies, bool v6)
{
    bool is_v4 = rule->bits >= V4_BITS && dp_ip_is_v4(dp_ip_of(rule->address));
    return (rule->denies != 0) == denies && is_v4 != v6;
}

int dp_acl_make(dp_acl *acl, const dp_access_rule *rules, uint32_t count, void *memory)
{
    dp_ip_range *free_range = memory;
    *acl = (dp_acl){0};
    for (uint32_t i = 0; i < count; i++) {
        if (rules[i].bits > ALL_BITS)
            return DP_EINVAL;
        acl->allows_some = acl->allows_some || rules[i].denies == 0;
    }
    for (int kind = 0; kind < 4; kind++) {
        bool denies = kind >= 2;
        bool v6 = kind % 2 == 1;
        dp_ip_set *set = denies ? &acl->deny[v6] : &acl->allow[v6];
        set->ranges = free_range;
        for (uint32_t i = 0; i < count; i++)
            if (is_for(&rules[i], denies, v6))
                set->ranges[set->count++] = range_of(&rules[i]);
        free_range += set->count;
        settle(set);
    }
    return DP_OK;
}

/* --- looking ---------------------------------------------------------------------------------- */

/* Without a branch that depends on the address: nobody could foresee it. */
static bool is_not_after(dp_ip one, dp_ip other)
{
    return (one.high < other.high) | ((one.high == other.high) & (one.low <= other.low));
}

static bool has(const dp_ip_set *set, dp_ip ip)
{
    const dp_ip_range *at = set->ranges;
    uint32_t left = set->count;
    if (left == 0)
        return false;
    while (left > 1) { /* the last that begins at or before it is at or behind `at` */
        uint32_t half = left / 2;
        at += is_not_after(at[half].first, ip) ? half : 0;
        left -= half;
    }
    return is_not_after(at->first, ip) && is_not_after(ip, at->last);
}

bool dp_acl_allows(const dp_acl *acl, dp_ip ip)
{
    const int kind = dp_ip_is_v4(ip) ? 0 : 1;
    if (has(&acl->deny[kind], ip))
        return false;
    return !acl->allows_some || has(&acl->allow[kind], ip);
}
