/* What the load generator and the upstream server share: the clock, checked numbers and addresses,
 * and the bytes that bodies are made of. Does no I/O on the network. */
#ifndef DP_BENCH_H
#define DP_BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
    /* A body's byte i is pattern[(token % period) + i]: so an answer that belongs to another
     * request differs from its first byte on. */
    DP_PATTERN_PERIOD = 64,
    DP_BODY_MAX = 1024 * 1024 * 1024,
    DP_USAGE = 64, /* exit code of a usage error */
};

/* The pattern, len + DP_PATTERN_PERIOD bytes of it; owned by the caller, freed by free(). Ends the
 * program when there is no memory. */
char *dp_pattern_new(size_t len);

/* Reads a whole number in the base; false, with *ret_value untouched, if anything else is in text
 * or it is over max. */
bool dp_parse_number(const char *text, size_t len, unsigned base, uint64_t max,
                     uint64_t *ret_value);

/* Reads 127.0.0.1:80, [::1]:80 or unix:/path; false for anything else. */
bool dp_parse_address(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_len);

/* CLOCK_MONOTONIC in nanoseconds: the same clock as Python's time.monotonic_ns(). */
uint64_t dp_now_ns(void);

/* Whether the two names are equal, letter case aside; b is in lower case. */
bool dp_name_is(const char *a, size_t len, const char *b);

/* Says what is wrong on stderr and exits. */
_Noreturn void dp_die(int code, const char *what, const char *detail);

#endif
