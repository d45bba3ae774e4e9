/* dp_proxy_out: the PROXY protocol's header, versions 1 and 2, for connections to upstreams. I/O:
 * it asks the downstream socket for its two addresses. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "dp_core.h"

static const uint8_t SIGNATURE[12] = "\r\n\r\n\0\r\nQUIT\n";

typedef struct ends {
    int family; /* AF_UNSPEC: not known */
    uint8_t source[16];
    uint8_t destination[16];
    uint16_t source_port;
    uint16_t destination_port;
} ends;

/* IPv4 that came in over an IPv6 socket is IPv4 to whoever reads the header. */
static int take_address(const struct sockaddr_storage *from, uint8_t to[16], uint16_t *port)
{
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    if (from->ss_family == AF_INET) {
        memcpy(&v4, from, sizeof(v4));
        memcpy(to, &v4.sin_addr, 4);
        *port = ntohs(v4.sin_port);
        return AF_INET;
    }
    if (from->ss_family != AF_INET6)
        return AF_UNSPEC;
    memcpy(&v6, from, sizeof(v6));
    *port = ntohs(v6.sin6_port);
    if (memcmp(&v6.sin6_addr, mapped, sizeof(mapped)) == 0) {
        memcpy(to, (const uint8_t *)&v6.sin6_addr + sizeof(mapped), 4);
        return AF_INET;
    }
    memcpy(to, &v6.sin6_addr, 16);
    return AF_INET6;
}

/* IPv4 in its IPv6-mapped form. */
static void map_v4(uint8_t address[16])
{
    uint8_t mapped[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    memcpy(mapped + 12, address, 4);
    memcpy(address, mapped, 16);
}

/* Whom a trusted proxy named by a header of its own is the client, and not the proxy. */
static void name_client(ends *found, const dp_conn *down)
{
    uint8_t peer[16];
    memcpy(peer, found->source, sizeof(peer));
    if (found->family == AF_INET)
        map_v4(peer);
    if (memcmp(peer, down->address, sizeof(peer)) == 0)
        return;
    found->source_port = down->client_port;
    memcpy(found->source, down->address, 16);
    struct in6_addr told;
    memcpy(&told, down->address, sizeof(told));
    if (found->family == AF_INET && IN6_IS_ADDR_V4MAPPED(&told)) {
        memmove(found->source, found->source + 12, 4);
        return;
    }
    if (found->family == AF_INET)
        map_v4(found->destination);
    found->family = AF_INET6;
}

static ends ends_of(const dp_conn *down)
{
    ends found = {.family = AF_UNSPEC};
    struct sockaddr_storage source = {0};
    struct sockaddr_storage destination = {0};
    socklen_t source_len = sizeof(source);
    socklen_t destination_len = sizeof(destination);
    if (down == NULL || getpeername(down->fd, (struct sockaddr *)&source, &source_len) != 0 ||
        getsockname(down->fd, (struct sockaddr *)&destination, &destination_len) != 0)
        return found;
    int family = take_address(&source, found.source, &found.source_port);
    if (take_address(&destination, found.destination, &found.destination_port) == family)
        found.family = family;
    uint8_t client[16];
    if (found.family != AF_UNSPEC && dp_client_address(down, client))
        name_client(&found, down);
    return found;
}

static size_t header_v1(const ends *of, uint8_t *ret_header)
{
    char source[INET6_ADDRSTRLEN];
    char destination[INET6_ADDRSTRLEN];
    char *text = (char *)ret_header;
    int len;
    if (of->family == AF_UNSPEC ||
        inet_ntop(of->family, of->source, source, sizeof(source)) == NULL ||
        inet_ntop(of->family, of->destination, destination, sizeof(destination)) == NULL)
        len = snprintf(text, DP_PROXY_MAX, "PROXY UNKNOWN\r\n");
    else
        len = snprintf(text, DP_PROXY_MAX, "PROXY %s %s %s %u %u\r\n",
                       of->family == AF_INET ? "TCP4" : "TCP6", source, destination,
                       of->source_port, of->destination_port);
    return (size_t)len;
}

static void put16(uint8_t *at, size_t number)
{
    at[0] = (uint8_t)(number >> 8);
    at[1] = (uint8_t)number;
}

static size_t header_v2(const ends *of, bool for_itself, uint8_t *ret_header)
{
    size_t size = of->family == AF_INET ? 4 : of->family == AF_INET6 ? 16 : 0;
    memcpy(ret_header, SIGNATURE, sizeof(SIGNATURE));
    ret_header[12] = for_itself ? 0x20 : 0x21; /* LOCAL or PROXY */
    ret_header[13] = size == 4 ? 0x11 : size == 16 ? 0x21 : 0;
    put16(ret_header + 14, size != 0 ? 2 * size + 4 : 0);
    if (size == 0)
        return 16;
    memcpy(ret_header + 16, of->source, size);
    memcpy(ret_header + 16 + size, of->destination, size);
    put16(ret_header + 16 + 2 * size, of->source_port);
    put16(ret_header + 18 + 2 * size, of->destination_port);
    return 20 + 2 * size;
}

size_t dp_proxy_write(uint32_t version, const dp_conn *down, uint8_t ret_header[DP_PROXY_MAX])
{
    ends of = ends_of(down);
    return version == 1 ? header_v1(&of, ret_header) : header_v2(&of, down == NULL, ret_header);
}
