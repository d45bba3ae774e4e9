/* dp_trailer: which trailer fields may go on (RFC 9110 6.5.1). Pure: no I/O, no allocation. */
#ifndef DP_TRAILER_H
#define DP_TRAILER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* False for a name that frames, routes, authenticates, modifies a request, controls a response or
 * describes its content: whoever merges trailers into the head must not find one. Spelt with '_'
 * for '-' it is the same name. Borrowed for the call. */
bool dp_trailer_may_pass(const uint8_t *name, size_t len);

#endif
