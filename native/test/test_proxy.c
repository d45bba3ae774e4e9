/* The PROXY protocol's header, as haproxy's specification has it (2.1 and 2.2), for what a real
 * socket says of its two ends. */
#include "dp_proxy_out.c"

#include <stdio.h>
#include <unistd.h>

#include "support.h"

static char text[2 * DP_PROXY_MAX + 1];

static const char *header_of(uint32_t version, const dp_conn *down)
{
    uint8_t header[DP_PROXY_MAX];
    const size_t len = dp_proxy_write(version, down, header);

    if (version == 1) {
        memcpy(text, header, len);
        text[len] = '\0';
        return text;
    }
    for (size_t i = 0; i < len; i++) {
        snprintf(text + 2 * i, 3, "%02x", header[i]);
    }
    return text;
}

/* A connection between two sockets of a family; false: this host has none. */
static bool connected(int family, const char *listens_at, const char *calls, int *ret_fds,
                      uint16_t *ret_ports)
{
    struct sockaddr_storage address = {.ss_family = (sa_family_t)family};
    socklen_t len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    void *const place = family == AF_INET ? (void *)&((struct sockaddr_in *)&address)->sin_addr
                                          : (void *)&((struct sockaddr_in6 *)&address)->sin6_addr;
    const int listening = socket(family, SOCK_STREAM, 0);
    const int off = 0;

    (void)setsockopt(listening, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
    if (listening < 0 || inet_pton(family, listens_at, place) != 1 ||
        bind(listening, (struct sockaddr *)&address, len) != 0 || listen(listening, 1) != 0 ||
        getsockname(listening, (struct sockaddr *)&address, &len) != 0) {
        return false;
    }
    ret_ports[1] = ntohs(((struct sockaddr_in *)&address)->sin_port);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(ret_ports[1])};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(ret_ports[1])};
    const bool by_v4 = inet_pton(AF_INET, calls, &v4.sin_addr) == 1;
    (void)inet_pton(AF_INET6, calls, &v6.sin6_addr);
    ret_fds[0] = socket(by_v4 ? AF_INET : AF_INET6, SOCK_STREAM, 0);
    if (connect(ret_fds[0], by_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6,
                by_v4 ? sizeof(v4) : sizeof(v6)) != 0) {
        return false;
    }
    ret_fds[1] = accept(listening, NULL, NULL);
    (void)close(listening);
    len = sizeof(address);
    (void)getsockname(ret_fds[0], (struct sockaddr *)&address, &len);
    ret_ports[0] = ntohs(((struct sockaddr_in *)&address)->sin_port);
    return ret_fds[1] >= 0;
}

static void check(const char *name, int family, const char *listens_at, const char *calls,
                  const char *v1, const char *v2)
{
    int fds[2];
    uint16_t ports[2];
    char expected[2 * DP_PROXY_MAX];

    if (!connected(family, listens_at, calls, fds, ports)) {
        return; /* a host without this family */
    }
    const dp_conn down = {.fd = fds[1]};
    snprintf(expected, sizeof(expected), "%s %u %u\r\n", v1, ports[0], ports[1]);
    expect_text(name, "2.1", "version 1", header_of(1, &down), expected);
    snprintf(expected, sizeof(expected), "0d0a0d0a000d0a515549540a%s%04x%04x", v2, ports[0],
             ports[1]);
    expect_text(name, "2.2", "version 2", header_of(2, &down), expected);
    (void)close(fds[0]);
    (void)close(fds[1]);
}

int main(void)
{
    int pair[2];

    check("IPv4", AF_INET, "127.0.0.1", "127.0.0.1", "PROXY TCP4 127.0.0.1 127.0.0.1",
          "2111000c7f0000017f000001");
    check("IPv6", AF_INET6, "::1", "::1", "PROXY TCP6 ::1 ::1",
          "21210024"
          "00000000000000000000000000000001"
          "00000000000000000000000000000001");
    check("IPv4 that came in over IPv6", AF_INET6, "::", "127.0.0.1",
          "PROXY TCP4 127.0.0.1 127.0.0.1", "2111000c7f0000017f000001");
    expect("a UNIX pair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    const dp_conn local = {.fd = pair[0]};
    expect_text("no address", "2.1", "version 1", header_of(1, &local), "PROXY UNKNOWN\r\n");
    expect_text("no address", "2.2", "version 2", header_of(2, &local),
                "0d0a0d0a000d0a515549540a21000000");
    expect_text("for itself", "2.1", "version 1", header_of(1, NULL), "PROXY UNKNOWN\r\n");
    expect_text("for itself", "2.2", "version 2", header_of(2, NULL),
                "0d0a0d0a000d0a515549540a20000000");
    return finish("proxy header");
}
