/* dp_path: the one form of a request's path. Pure: no I/O, no allocation, no state.
 *
 * A path is routed and forwarded in the same form, so that no upstream can find another resource
 * in it than the route was chosen for. The form is that of RFC 3986 6.2.2, on the path alone (a
 * query passes as it came):
 *
 *   1. a percent-encoded unreserved byte (letters, digits, '-', '.', '_', '~') stands for itself;
 *   2. every other encoding stays, with upper-case digits: %2f is %2F and never '/', %252e is
 *      itself, for nothing is decoded twice;
 *   3. "." and ".." segments are resolved (RFC 3986 5.2.4); empty segments stay.
 *
 * Refused, since readers differ: a ".." above the root; an encoded control byte (%00 to %1F, %7F);
 * and a "." or ".." that only some readers see: beside %2F, %5C or '\', or before ';' ("..;a"). */
#ifndef DP_PATH_H
#define DP_PATH_H

#include <stdbool.h>
#include <stddef.h>

#include "dp.h"

/* True if path[0..len) has its one form for certain: no '%', and no segment that begins with a
 * dot. Borrowed for the call. */
bool dp_path_is_plain(const uint8_t *path, size_t len);

#endif
