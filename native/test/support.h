/* support: what the tests of the pure modules share. Inputs lie against unreadable pages, so one
 * byte read too far ends the program. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"

enum { ROOM = 64 * 1024 }; /* of one placed input */

/* One line of a table: what comes in, and one line of text for what must come of it. */
struct test_case {
    const char *name;
    const char *section; /* of an RFC: "9112 3.2", or "" for a rule of our own */
    const char *bytes;
    const char *expected;
    size_t len; /* 0: up to the first NUL */
};

size_t case_len(const struct test_case *test);

/* A copy whose last byte is followed by an unreadable page. Valid until the next call. */
uint8_t *place_before_guard(const void *bytes, size_t len);
/* A copy whose first byte follows an unreadable page. Valid until the next call. */
uint8_t *place_after_guard(const void *bytes, size_t len);

/* What dp_head_end makes of bytes that come step at a time, each time placed against the guard. */
int head_end_in_steps(const uint8_t *bytes, size_t len, const dp_head_limits *limits, size_t step,
                      uint32_t *ret_len);

const char *result_word(int result);

/* Counts, and complains if the two differ. */
void expect_text(const char *name, const char *section, const char *how, const char *got,
                 const char *expected);
void expect(const char *name, bool holds);

/* Prints the count; the exit code of main. */
int finish(const char *program);

#endif
