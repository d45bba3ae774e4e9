/* dp_http1: HTTP/1.1 message heads (RFC 9110, RFC 9112). Pure: no I/O, no allocation, no state.
 * The public part stands in dp.h; here is what only the engine needs. */
#ifndef DP_HTTP1_H
#define DP_HTTP1_H

#include "dp.h"

/* Fields that the engine treats by name. The id is found by length and one comparison. */
enum dp_field_id {
    DP_F_OTHER = 0,
    DP_F_HOST,
    DP_F_CONNECTION,
    DP_F_CONTENT_LENGTH,
    DP_F_TRANSFER_ENCODING,
    DP_F_TE,
    DP_F_TRAILER,
    DP_F_UPGRADE,
    DP_F_KEEP_ALIVE,
    DP_F_PROXY_CONNECTION,
    DP_F_PROXY, /* httpoxy: never forwarded */
    DP_F_EXPECT,
    DP_F_DATE,
    DP_F_SERVER,
    DP_F_FORWARDED,
    DP_F_X_FORWARDED_FOR,
    DP_F_X_FORWARDED_PROTO,
    DP_F_X_FORWARDED_HOST,
    DP_F_X_FORWARDED_PORT,
    DP_F_X_REQUEST_ID,
    DP_F_TRACEPARENT,
    DP_F_HTTP2_SETTINGS,
    DP_F_MAX_FORWARDS,
    DP_F_COUNT
};

/* Methods that routes can name: bit n of dp_request_head.method. */
enum {
    DP_M_GET = 1u << 0,
    DP_M_HEAD = 1u << 1,
    DP_M_POST = 1u << 2,
    DP_M_PUT = 1u << 3,
    DP_M_DELETE = 1u << 4,
    DP_M_OPTIONS = 1u << 5,
    DP_M_PATCH = 1u << 6,
    DP_M_TRACE = 1u << 7,
    DP_M_CONNECT = 1u << 8
};

/* True if a and b are equal but for ASCII case. */
int dp_equal_fold(const uint8_t *a, const uint8_t *b, size_t len);

#endif
