/* Who may come: what the sorted ranges say is what the rules say one by one. */
#include "dp_acl.h"

#include <string.h>

#include "support.h"

enum { RULES = 300, LOOKS = 4000 };

static uint64_t seed = 88172645463325252u;

static uint64_t draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static bool matches(const dp_access_rule *rule, const uint8_t address[16])
{
    for (unsigned bit = 0; bit < rule->bits; bit++)
        if (((rule->address[bit / 8] ^ address[bit / 8]) >> (7 - bit % 8) & 1) != 0)
            return false;
    /* A network of IPv6 has no IPv4 address in it. */
    return rule->bits >= 96 || !dp_ip_is_v4(dp_ip_of(address));
}

/* The definition, one rule after another. */
static bool allows(const dp_access_rule *rules, uint32_t count, const uint8_t address[16])
{
    bool some = false;
    bool allowed = false;
    for (uint32_t i = 0; i < count; i++) {
        if (rules[i].denies != 0 && matches(&rules[i], address))
            return false;
        some = some || rules[i].denies == 0;
        allowed = allowed || (rules[i].denies == 0 && matches(&rules[i], address));
    }
    return !some || allowed;
}

/* Few different bytes, so that networks lie in each other and addresses hit them. */
static void draw_address(uint8_t address[16], bool v4)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    for (int i = 0; i < 16; i++)
        address[i] = (uint8_t)(draw() % 3 == 0 ? draw() : draw() % 2);
    if (v4)
        memcpy(address, mapped, sizeof(mapped));
}

static void agrees_with_the_rules_one_by_one(void)
{
    static dp_access_rule drawn[RULES];
    for (uint32_t count = 0; count <= RULES; count = count * 2 + 1) {
        for (uint32_t i = 0; i < count; i++) {
            bool v4 = draw() % 2 == 0;
            draw_address(drawn[i].address, v4);
            drawn[i].bits = (uint8_t)(v4 ? 96 + draw() % 33 : draw() % 129);
            drawn[i].denies = draw() % 2 == 0;
        }
        /* Both against unreadable pages. */
        dp_acl acl;
        const dp_access_rule *rules =
            (const void *)place_before_guard(drawn, count * sizeof(*drawn));
        static _Alignas(16) uint8_t memory[RULES * sizeof(dp_ip_range)];
        expect("it is made", dp_acl_make(&acl, rules, count, memory) == DP_OK);
        bool same = true;
        for (int look = 0; look < LOOKS; look++) {
            uint8_t address[16];
            draw_address(address, draw() % 2 == 0);
            if (count != 0 && draw() % 2 == 0) { /* at a network's edge */
                memcpy(address, drawn[draw() % count].address, sizeof(address));
                address[15] ^= (uint8_t)(draw() % 2);
            }
            same = same && dp_acl_allows(&acl, dp_ip_of(address)) == allows(drawn, count, address);
        }
        expect("it says what its rules say", same);
    }
}

static void keeps_the_kinds_of_addresses_apart(void)
{
    const uint8_t v4[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1};
    const uint8_t v6[16] = {0x20, 0x01, 0x0d, 0xb8};
    dp_acl acl;
    uint8_t memory[64];
    dp_access_rule rule = {.bits = 0};
    expect("::/0", dp_acl_make(&acl, &rule, 1, memory) == DP_OK);
    expect("has every IPv6 address", dp_acl_allows(&acl, dp_ip_of(v6)));
    expect("and no IPv4 address", !dp_acl_allows(&acl, dp_ip_of(v4)));
    memcpy(rule.address, v4, 12);
    rule.bits = 96;
    expect("0.0.0.0/0", dp_acl_make(&acl, &rule, 1, memory) == DP_OK);
    expect("has no IPv6 address", !dp_acl_allows(&acl, dp_ip_of(v6)));
    expect("and every IPv4 address", dp_acl_allows(&acl, dp_ip_of(v4)));
    rule.bits = 129;
    expect("a prefix too long", dp_acl_make(&acl, &rule, 1, memory) == DP_EINVAL);
    expect("no rule: all may come", dp_acl_make(&acl, NULL, 0, memory) == DP_OK);
    expect("all", dp_acl_allows(&acl, dp_ip_of(v4)) && dp_acl_allows(&acl, dp_ip_of(v6)));
}

int main(void)
{
    agrees_with_the_rules_one_by_one();
    keeps_the_kinds_of_addresses_apart();
    return finish("acl");
}
