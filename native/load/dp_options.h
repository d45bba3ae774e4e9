/* The command line of dp_load. Prints only the usage. */
#ifndef DP_OPTIONS_H
#define DP_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

enum {
    DP_CONNECTIONS_MAX = 50000,
    DP_SECONDS_MAX = 24 * 3600,
    DP_SECONDS_UNTOLD = 3600,
};

typedef enum { MODE_KEEPALIVE, MODE_PER_REQUEST, MODE_IDLE } mode;
extern const char *const dp_mode_names[3];

typedef struct options {
    mode mode;
    struct sockaddr_storage address;
    socklen_t address_len;
    const char *address_text;
    uint64_t connections, requests, seconds, ms, rate, rounds, timeout_ms, sources;
    bool browser, keep_going, control, mark_events, verify_body, body_chunked, no_token;
    bool reopen, progress, end_with_parent;
    const char *method, *path, *host, *expect_body;
    char *mark_header; /* in lower case */
    uint64_t body_bytes, expect_status, expect_length;
    bool has_expect_length;
    char extra[4096]; /* header lines */
} options;

/* Fills in what argv says and what it leaves out; ends the program where it makes no sense. */
void dp_options_read(options *o, int argc, char **argv);

#endif
