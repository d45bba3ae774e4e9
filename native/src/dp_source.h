/* dp_source: how many connections are open from one source, over all workers of an app. Pure.
 *
 * A table of fixed size that all workers share, in sets; an entry is one word, so that its owner
 * and its count change together: the source's hash above, the count below. What is 0 is free. Where
 * a set is full of sources with open connections, one more is not counted: it is let in, and the
 * app's own limit holds it. Each worker has a row of its own with what it added, so that a dead
 * one's share can be given back. */
#ifndef DP_SOURCE_H
#define DP_SOURCE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    DP_SOURCE_WAYS = 8,
    DP_SOURCE_BITS = 24, /* of the count */
    DP_SOURCE_HEAD = 16  /* words before a row: the first is 1 once the row was written to */
};

typedef struct dp_sources {
    _Atomic uint64_t *at;
    _Atomic uint32_t *held; /* our row, behind its head; NULL: there is no seat */
    uint32_t count;         /* a multiple of DP_SOURCE_WAYS */
} dp_sources;

enum { DP_SOURCE_NONE = 0, DP_SOURCE_FULL = -1 };

/* Counts one more of key's: its place, to be given back, above 0. DP_SOURCE_FULL: there are max
 * already (0: no limit). DP_SOURCE_NONE: it is not counted. */
int64_t dp_source_take(const dp_sources *sources, uint64_t key, uint32_t max);
void dp_source_give(const dp_sources *sources, int64_t place);
/* Gives back all that a row holds. One that was never written to is not read either: its pages
 * would take memory from then on. */
void dp_source_clear(const dp_sources *sources, _Atomic uint32_t *held);
uint32_t dp_source_open(const dp_sources *sources, uint64_t key);

#endif
