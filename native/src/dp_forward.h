/* dp_forward: the fields by which proxies tell where a request came from, and what else of it goes
 * on beside its fields. */
#ifndef DP_FORWARD_H
#define DP_FORWARD_H

#include "dp_core.h"
#include "dp_write.h"

/* Which fields of the client's do not go on as they came, as bits of their ids. DP_FIELD_FORWARDED
 * ones beside these go on only if the peer is trusted. */
uint32_t dp_forward_drops(const dp_conn *down, const uint8_t *data, const dp_request_head *head);

/* Writes ours in their place, unless the route's edits do. drops: as told above. */
void dp_forward_write(dp_writer *out, const dp_conn *down, const uint8_t *data,
                      const dp_request_head *head, uint32_t drops, const dp_edit *edits);

/* Chooses, by the route and the head, which trailers and which upgrade pass. */
void dp_forward_choose(dp_exchange *exchange, const uint8_t *data, const dp_request_head *head);

/* dp_head's: a field of ours, unless the route's edits have taken its place. */
void dp_put_own(dp_writer *out, const dp_edit *edits, const char *name, const uint8_t *value,
                size_t len);
bool dp_is_edited(const dp_edit *edits, const uint8_t *name, uint32_t len);

#endif
