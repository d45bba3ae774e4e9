/* dp_target: request targets (RFC 9112 3.2) and authorities (RFC 3986 3.2). Pure: no I/O, no
 * allocation, no state. */
#ifndef DP_TARGET_H
#define DP_TARGET_H

#include <stdbool.h>
#include <stddef.h>

#include "dp.h"

/* True if [host, end) is host [ ":" port ]. *ret_name_len is where the name ends; an IPv6 literal
 * keeps its brackets. Otherwise *ret_name_len is untouched. Borrowed for the call. */
DP_MUST_CHECK bool dp_authority_parse(const uint8_t *host, const uint8_t *end,
                                      size_t *ret_name_len);

/* Reads the target at at, which lies in a head at data that ends in CR LF; ret_head->method is
 * set. DP_OK: path, query, host and host_name are set (the last two empty unless the target has an
 * authority), and *ret_end is the byte after the target. Otherwise DP_EMALFORMED, and ret_head is
 * scratch. Borrowed for the call. */
DP_MUST_CHECK int dp_target_parse(const uint8_t *data, const uint8_t *at, dp_request_head *ret_head,
                                  const uint8_t **ret_end);

#endif
