/* dp_log: one access log line, as bytes. Pure: no I/O, no allocation, no clock.
 *
 * A line is formatted in two steps, since a request's head is long gone when its exchange ends:
 * dp_log_part writes down what the head gives, escaped; dp_log_line makes the line around it.
 * Lines are ASCII: of what a client sent each byte outside of ' ' to '~', '"' and '\' is escaped.
 */
#ifndef DP_LOG_H
#define DP_LOG_H

#include "dp.h"

/* As long as the kernel takes whole into a pipe, or not at all (pipe(7), PIPE_BUF). */
enum { DP_LOG_LINE_MAX = 4096 };
/* The most that each takes in a line, escaped; what is longer ends in "...". */
enum {
    DP_LOG_METHOD_MAX = 32,
    DP_LOG_HOST_MAX = 272,
    DP_LOG_PATH_MAX = 1536,
    DP_LOG_ID_MAX = 136,
    DP_LOG_AGENT_MAX = 512,
    DP_LOG_REFERER_MAX = 512,
    DP_LOG_NAME_MAX = 128, /* of an upstream, of an app */
    DP_LOG_PART_MAX = 3328 /* all of a request's together, with their names */
};

typedef struct dp_log_text {
    const uint8_t *data; /* NULL: there is none */
    size_t len;
} dp_log_text;

typedef struct dp_log_request { /* what a head gives */
    dp_log_text method;
    dp_log_text host;
    dp_log_text path;
    dp_log_text query; /* with its '?' */
    dp_log_text request_id;
    dp_log_text trace_id;
    dp_log_text user_agent;
    dp_log_text referer;
    const char *protocol; /* "HTTP/1.1", "tcp"; NULL: unknown */
} dp_log_request;

typedef struct dp_log_origin { /* what all lines of an engine share */
    dp_log_text app;
    dp_log_text image;
    uint32_t generation;
} dp_log_origin;

typedef struct dp_log_end { /* how it went */
    uint64_t wall_us;       /* since 1970, UTC */
    dp_log_text client;
    uint32_t status; /* 0: none */
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t body_out; /* of bytes_out, without heads */
    uint64_t duration_us;
    dp_log_text upstream;
    dp_log_text endpoint;
    uint64_t upstream_us; /* 0: no answer came from an upstream */
    uint32_t retries;
    const char *outcome;
} dp_log_end;

typedef struct dp_log_clock { /* the last second's text, kept between lines. All zero: the start */
    uint64_t second;
    char json[20];     /* 2026-11-24T22:15:01, and a NUL */
    char combined[28]; /* 24/Nov/2026:22:15:01 +0000 */
} dp_log_clock;

/* Writes a request's part, at most DP_LOG_PART_MAX bytes, of a DP_LOG_ format. Returns its length.
 * All is borrowed for the call. */
size_t dp_log_part(int format, const dp_log_request *request, uint8_t *ret_part);
/* Writes a whole line, its end included, at most DP_LOG_LINE_MAX bytes. part: as dp_log_part wrote
 * it. Returns its length. All is borrowed for the call. */
size_t dp_log_line(int format, const dp_log_origin *origin, const dp_log_end *end,
                   const uint8_t *part, size_t part_len, dp_log_clock *clock, uint8_t *ret_line);

#endif
