/* dp_upgrade: what an Upgrade field names (RFC 9110 7.8). Pure: no I/O, no allocation, no state. */
#ifndef DP_UPGRADE_H
#define DP_UPGRADE_H

#include <stdbool.h>

#include "dp.h"

/* The first protocol of the list at [at, end) that is not HTTP itself: a tunnel to another HTTP
 * would carry requests past every rule of this proxy (h2c is the known way). An empty span where
 * the list is malformed or has none. Borrowed for the call. */
dp_span dp_upgrade_pick(const uint8_t *data, const uint8_t *at, const uint8_t *end);

/* A number for a protocol's name and version, without case; never 0. */
uint32_t dp_upgrade_mark(const uint8_t *data, dp_span protocol);

#endif
