/* fuzz: what the targets share. Each is a libFuzzer target; fuzz_main.c runs them with gcc alone.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Ends the program if the invariant does not hold. */
static inline void hold(bool holds, const char *invariant)
{
    if (!holds) {
        fprintf(stderr, "broken: %s\n", invariant);
        abort();
    }
}

/* A place to split at that depends on the input alone, so that a saved one fails again. */
static inline size_t split_of(const uint8_t *data, size_t size)
{
    uint32_t hash = 2166136261u; /* FNV-1a */

    for (size_t i = 0; i < size; i++) {
        hash = (hash ^ data[i]) * 16777619u;
    }
    return size == 0 ? 0 : hash % size;
}

#endif
