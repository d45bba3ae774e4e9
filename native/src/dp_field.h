/* dp_field: the field lines of a head, and what they say together (RFC 9110 5, RFC 9112 5). Pure:
 * no I/O, no allocation, no state. */
#ifndef DP_FIELD_H
#define DP_FIELD_H

#include <stdbool.h>

#include "dp.h"

enum { DP_CODING_CHUNKED = 1, DP_CODING_OTHER = 2 };
enum { DP_OPTION_CLOSE = 1, DP_OPTION_KEEP_ALIVE = 2, DP_OPTION_NAME = 4, DP_OPTION_UPGRADE = 8 };

/* What the fields of one head say together. */
struct dp_facts {
    const uint8_t *data;
    bool is_request;
    uint32_t minor;
    uint32_t field_count;
    bool has_length;
    uint64_t content_length;
    uint32_t codings; /* DP_CODING_ bits */
    uint32_t options; /* DP_OPTION_ bits */
    uint32_t option_count;
    uint32_t expect_count;
    bool expects_continue;
    uint32_t upgrade_count;
    dp_span upgrade; /* the last one's value */
    bool takes_trailers;
    uint32_t max_forwards; /* plus 1; 0: none, or none that counts */
    bool has_host;
    dp_span host;
    dp_span host_name;
};

/* Reads field lines from at through the empty line, which must end at end. The head at facts->data
 * is known to end in CR LF CR LF, and at is the start of one of its lines. facts has data,
 * is_request and minor set, and zeros; the rest is filled in. fields has room for max_fields.
 * DP_OK, DP_EMALFORMED, or DP_ETOOBIG for too many fields or Connection options. Borrowed for the
 * call. */
DP_MUST_CHECK int dp_fields_parse(struct dp_facts *facts, const uint8_t *at, const uint8_t *end,
                                  uint32_t max_fields, dp_field *fields);

#endif
