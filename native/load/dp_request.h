/* The request that a run sends again and again: made once, then only its token changes. No I/O. */
#ifndef DP_REQUEST_H
#define DP_REQUEST_H

#include "dp_options.h"

#include <stddef.h>
#include <sys/uio.h>

enum { DP_TEMPLATE_MAX = 64 * 1024, DP_REQUEST_PIECES = 4 };

typedef struct request {
    char head[DP_TEMPLATE_MAX];
    size_t head_len, token_at;
    bool has_token;
    char body_pre[32]; /* a chunk-size line */
    size_t body_pre_len, body_len;
    bool body_chunked;
    const char *pattern; /* borrowed: what bodies are made of (dp_bench.h) */
} request;

/* Makes it as the options say; ends the program where a head gets too long. */
void dp_request_make(request *r, const options *o, const char *pattern);

/* Bytes of the whole request. */
size_t dp_request_len(const request *r);

/* The request with this token from byte sent on, as pieces that hold until the next call; returns
 * how many there are, 0 at its end. */
int dp_request_pieces(request *r, uint64_t token, uint64_t sent,
                      struct iovec ret_pieces[DP_REQUEST_PIECES]);

#endif
