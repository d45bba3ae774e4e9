/* dp_acl: which sources may come, by networks. Pure. */
#ifndef DP_ACL_H
#define DP_ACL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"

typedef struct dp_ip { /* of 16 bytes; IPv4 in its mapped form, ::ffff:0:0/96 (RFC 4291 2.5.5.2) */
    uint64_t high;
    uint64_t low;
} dp_ip;

typedef struct dp_ip_range { /* both are in it */
    dp_ip first;
    dp_ip last;
} dp_ip_range;

typedef struct dp_ip_set { /* in order, apart from each other */
    dp_ip_range *ranges;
    uint32_t count;
} dp_ip_set;

/* A network of IPv6 is one of IPv6 addresses alone: ::/0 has no IPv4 address in it. So each kind of
 * address has its own sets: [0] IPv4, [1] IPv6. */
typedef struct dp_acl {
    dp_ip_set allow[2];
    dp_ip_set deny[2];
    bool allows_some; /* it says who may come: nobody else may */
} dp_acl;

dp_ip dp_ip_of(const uint8_t address[16]);
bool dp_ip_is_v4(dp_ip ip);

/* How many bytes dp_acl_make needs for so many rules. */
size_t dp_acl_bytes(uint32_t count);
/* memory is borrowed for as long as the list is used. DP_EINVAL: a prefix that is too long. */
int dp_acl_make(dp_acl *acl, const dp_access_rule *rules, uint32_t count, void *memory);
/* What is denied may not come, whatever allows it. Where nothing is allowed by name, all are. The
 * cost grows with the logarithm of the number of rules. */
bool dp_acl_allows(const dp_acl *acl, dp_ip ip);

#endif
