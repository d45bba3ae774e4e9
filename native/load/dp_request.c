/* Makes the request of a run. See dp_request.h. */
#include "dp_request.h"

#include "dp_answer.h"
#include "dp_bench.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char last_chunk[] = "\r\n0\r\n\r\n";

/* What a browser sends: with host and the first line about 525 bytes. */
static const char browser_fields[] =
    "user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/126.0.0.0 Safari/537.36\r\n"
    "accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
    "\r\n"
    "accept-language: en-GB,en;q=0.9,de;q=0.7\r\n"
    "accept-encoding: gzip, deflate, br\r\n"
    "cookie: session=4f1c9f0e2b7d4c6a8e13579bdf02468a; theme=dark; consent=1\r\n"
    "referer: http://www.example.com/catalogue/\r\n"
    "cache-control: max-age=0\r\n"
    "upgrade-insecure-requests: 1\r\n";

static void add(request *r, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(request *r, const char *format, ...)
{
    va_list arguments;
    size_t room = sizeof r->head - r->head_len;
    va_start(arguments, format);
    int n = vsnprintf(r->head + r->head_len, room, format, arguments);
    va_end(arguments);
    if (n < 0 || (size_t)n >= room)
        dp_die(DP_USAGE, "the request's head is", "too long");
    r->head_len += (size_t)n;
}

void dp_request_make(request *r, const options *o, const char *pattern)
{
    r->pattern = pattern;
    r->body_len = o->body_bytes;
    r->body_chunked = o->body_chunked;
    r->has_token = !o->no_token;
    add(r, "%s %s HTTP/1.1\r\nhost: %s\r\n", o->method, o->path, o->host);
    if (o->browser)
        add(r, "%s", browser_fields);
    add(r, "%s", o->extra);
    if (o->mode == MODE_PER_REQUEST)
        add(r, "connection: close\r\n");
    if (o->body_chunked)
        add(r, "transfer-encoding: chunked\r\n");
    else if (o->body_bytes > 0)
        add(r, "content-length: %" PRIu64 "\r\n", o->body_bytes);
    if (o->body_chunked)
        snprintf(r->body_pre, sizeof r->body_pre, "%" PRIx64 "\r\n", o->body_bytes);
    r->body_pre_len = strlen(r->body_pre);
    if (r->has_token) {
        add(r, "x-token: ");
        r->token_at = r->head_len;
        add(r, "0000000000000000\r\n");
    }
    add(r, "\r\n");
}

size_t dp_request_len(const request *r)
{
    return r->head_len + r->body_pre_len + r->body_len +
           (r->body_chunked ? sizeof last_chunk - 1 : 0);
}

/* Whoever writes from the shared head next sets its own token. */
static void set_token(request *r, uint64_t token)
{
    static const char digits[] = "0123456789abcdef";
    char *at = r->head + r->token_at;
    for (int i = DP_TOKEN_LEN - 1; i >= 0; i--) {
        at[i] = digits[token & 15U];
        token >>= 4;
    }
}

int dp_request_pieces(request *r, uint64_t token, uint64_t sent,
                      struct iovec ret_pieces[DP_REQUEST_PIECES])
{
    if (r->has_token)
        set_token(r, token);
    size_t turn = r->has_token ? token % DP_PATTERN_PERIOD : 0;
    const span all[DP_REQUEST_PIECES] = {
        {r->head, r->head_len},
        {r->body_pre, r->body_pre_len},
        {r->pattern + turn, r->body_len},
        {last_chunk, r->body_chunked ? sizeof last_chunk - 1 : 0},
    };
    uint64_t skip = sent;
    int n = 0;
    for (size_t i = 0; i < DP_REQUEST_PIECES; i++) {
        size_t gone = skip < all[i].len ? (size_t)skip : all[i].len;
        skip -= gone;
        if (gone < all[i].len)
            ret_pieces[n++] = (struct iovec){.iov_base = (void *)(uintptr_t)(all[i].at + gone),
                                             .iov_len = all[i].len - gone};
    }
    return n;
}
