/* dp_trailer: trailer fields. Pure. See the header. */
#include "dp_trailer.h"

#include <string.h>

#include "dp_chars.h"

static bool begins(const uint8_t *name, size_t len, const char *text)
{
    const size_t count = strlen(text);

    if (len < count) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        const uint8_t byte = name[i] == '_' ? '-' : dp_lower(name[i]);
        if (byte != (uint8_t)text[i]) {
            return false;
        }
    }
    return true;
}

bool dp_trailer_may_pass(const uint8_t *name, size_t len)
{
    static const char *const NAMES[] = {
        "age",
        "allow",
        "authentication-info",
        "authorization",
        "cache-control",
        "connection",
        "cookie",
        "cookie2",
        "date",
        "expect",
        "expires",
        "forwarded",
        "from",
        "host",
        "http2-settings",
        "keep-alive",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "prefer",
        "priority",
        "proxy",
        "range",
        "referer",
        "retry-after",
        "server",
        "set-cookie",
        "set-cookie2",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "x-http-method-override",
        "x-real-ip",
        "x-request-id",
    };
    static const char *const PREFIXES[] = {"accept",       "access-control-", "content-",
                                           "if-",          "proxy-",          "sec-",
                                           "x-forwarded-", "x-original-",     "x-rewrite-"};

    if (len == strlen("content-digest") && begins(name, len, "content-digest")) {
        return true; /* RFC 9530 2: often known only at the end */
    }
    for (size_t i = 0; i < sizeof(PREFIXES) / sizeof(PREFIXES[0]); i++) {
        if (begins(name, len, PREFIXES[i])) {
            return false;
        }
    }
    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        if (len == strlen(NAMES[i]) && begins(name, len, NAMES[i])) {
            return false;
        }
    }
    return true;
}
