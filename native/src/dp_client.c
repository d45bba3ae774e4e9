/* dp_client: who a downstream connection comes from: its peer's address, whether that is a trusted
 * proxy, and the client behind it. Pure but for the connection's own fields.
 *
 * Addresses are 16 bytes; IPv4 stands in its IPv6-mapped form (RFC 4291 2.5.5.2), so that a
 * dual-stack listener's peers match the networks that are written for them. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>

#include "dp_core.h"

/* How many trusted proxies may stand behind each other: beyond that nobody is believed. */
enum { HOPS_MAX = 32, ELEMENT_MAX = 63 };

static const uint8_t MAPPED[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

/* --- addresses -------------------------------------------------------------------------------- */

static bool is_mapped(const uint8_t address[16])
{
    return memcmp(address, MAPPED, sizeof(MAPPED)) == 0;
}

bool dp_address_parse(const char *text, uint8_t ret_address[16])
{
    uint8_t v4[4];
    if (inet_pton(AF_INET, text, v4) == 1) {
        memcpy(ret_address, MAPPED, sizeof(MAPPED));
        memcpy(ret_address + 12, v4, 4);
        return true;
    }
    return inet_pton(AF_INET6, text, ret_address) == 1;
}

/* As inet_ntop(3), which goes through printf: too dear for each request. */
static size_t v4_text(const uint8_t parts[4], char *ret_text)
{
    char *at = ret_text;
    for (int i = 0; i < 4; i++) {
        if (parts[i] >= 100)
            *at++ = (char)('0' + parts[i] / 100);
        if (parts[i] >= 10)
            *at++ = (char)('0' + parts[i] / 10 % 10);
        *at++ = (char)('0' + parts[i] % 10);
        *at++ = '.';
    }
    *--at = '\0';
    return (size_t)(at - ret_text);
}

/* The longest run of zeros, the first of equals, where it is two words or more (RFC 5952 4.2). */
static int longest_run(const uint32_t words[8], int *ret_len)
{
    int best = -1;
    *ret_len = 1;
    for (int i = 0, len = 0; i < 8; i++) {
        len = words[i] == 0 ? len + 1 : 0;
        if (len > *ret_len) {
            *ret_len = len;
            best = i - len + 1;
        }
    }
    return best;
}

static char *put_hex(char *at, uint32_t word)
{
    for (int shift = 12; shift >= 0; shift -= 4)
        if (shift == 0 || word >> shift != 0)
            *at++ = "0123456789abcdef"[word >> shift & 15];
    return at;
}

static size_t v6_text(const uint8_t address[16], char *ret_text)
{
    uint32_t words[8];
    int len;
    char *at = ret_text;
    for (int i = 0; i < 8; i++)
        words[i] = (uint32_t)address[2 * i] << 8 | address[2 * i + 1];
    const int run = longest_run(words, &len);
    for (int i = 0; i < 8; i++) {
        if (i == run) {
            *at++ = ':';
            i += len - 1;
            continue;
        }
        if (i != 0)
            *at++ = ':';
        if (i == 6 && run == 0 && len == 6) /* as inet_ntop: ::192.0.2.1 */
            return (size_t)(at - ret_text) + v4_text(address + 12, at);
        at = put_hex(at, words[i]);
    }
    if (run >= 0 && run + len == 8)
        *at++ = ':';
    *at = '\0';
    return (size_t)(at - ret_text);
}

size_t dp_address_text(const uint8_t address[16], char ret_text[46])
{
    if (is_mapped(address))
        return v4_text(address + 12, ret_text);
    return v6_text(address, ret_text);
}

bool dp_network_make(const char *address, uint32_t bits, dp_network *ret_network)
{
    dp_network network;
    if (!dp_address_parse(address, network.address))
        return false;
    const bool v4 = strchr(address, ':') == NULL;
    if (bits > (v4 ? 32u : 128u))
        return false;
    network.bits = (uint8_t)(v4 ? bits + 96 : bits);
    *ret_network = network;
    return true;
}

bool dp_network_has(const dp_network *network, const uint8_t address[16])
{
    const uint32_t bytes = network->bits / 8;
    const uint32_t rest = network->bits % 8;
    return memcmp(network->address, address, bytes) == 0 &&
           (rest == 0 || (network->address[bytes] ^ address[bytes]) >> (8 - rest) == 0);
}

static bool is_trusted(const dp_listener *listener, const uint8_t address[16])
{
    for (uint32_t i = 0; i < listener->trusted_count; i++)
        if (dp_network_has(&listener->trusted[i], address))
            return true;
    return false;
}

/* --- the connection's ------------------------------------------------------------------------- */

static const uint8_t *client_of(const dp_conn *conn)
{
    return conn->exchange != NULL ? conn->exchange->client : conn->address;
}

void dp_client_begin(dp_conn *conn)
{
    memcpy(conn->exchange->client, conn->address, sizeof(conn->exchange->client));
}

bool dp_client_address(const dp_conn *conn, uint8_t ret_address[16])
{
    static const uint8_t none[16];
    memcpy(ret_address, client_of(conn), 16);
    return memcmp(ret_address, none, sizeof(none)) != 0;
}

size_t dp_client_text(const dp_conn *conn, char ret_text[DP_CLIENT_TEXT])
{
    uint8_t address[16];
    if (dp_client_address(conn, address))
        return dp_address_text(address, ret_text);
    memcpy(ret_text, "unknown", 8);
    return 7;
}

void dp_client_set(const dp_engine *engine, dp_conn *conn, const uint8_t address[16])
{
    memcpy(conn->address, address, sizeof(conn->address));
    conn->trusted = is_trusted(&engine->tables.listeners[conn->listener], address);
}

void dp_client_accepted(const dp_engine *engine, dp_conn *conn, const struct sockaddr_storage *peer)
{
    uint8_t address[16];
    if (peer->ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, peer, sizeof(v4));
        memcpy(address, MAPPED, sizeof(MAPPED));
        memcpy(address + 12, &v4.sin_addr, 4);
    } else if (peer->ss_family == AF_INET6) {
        struct sockaddr_in6 v6;
        memcpy(&v6, peer, sizeof(v6));
        memcpy(address, &v6.sin6_addr, 16);
    } else {
        return; /* of a UNIX socket: it has none */
    }
    dp_client_set(engine, conn, address);
}

bool dp_client_moved(const dp_engine *engine, dp_conn *conn, const uint8_t *text, size_t len)
{
    char copy[DP_CLIENT_TEXT];
    uint8_t address[16];
    if (len >= sizeof(copy))
        return false;
    memcpy(copy, text, len);
    copy[len] = '\0';
    if (dp_address_parse(copy, address))
        dp_client_set(engine, conn, address);
    char told[DP_CLIENT_TEXT];
    return dp_client_text(conn, told) == len && memcmp(told, text, len) == 0;
}

void dp_client_carried(const dp_engine *engine, dp_conn *conn, const dp_record *record)
{
    static const uint8_t none[16] = {0};
    if (memcmp(record->address, none, sizeof(none)) != 0)
        dp_client_set(engine, conn, record->address);
    conn->client_port = record->client_port;
}

void dp_client_named(dp_conn *conn, const dp_moved_bytes *text)
{
    char copy[DP_CLIENT_TEXT];
    uint8_t address[16];
    if (text->len >= sizeof(copy))
        return;
    memcpy(copy, text->data, text->len);
    copy[text->len] = '\0';
    if (dp_address_parse(copy, address))
        memcpy(conn->exchange->client, address, sizeof(address));
}

/* --- behind trusted proxies ------------------------------------------------------------------- */

/* An element of x-forwarded-for: an address, with or without a port (some proxies add it). */
static bool parse_element(const uint8_t *at, const uint8_t *end, uint8_t ret_address[16])
{
    char text[ELEMENT_MAX + 1];
    while (at < end && (*at == ' ' || *at == '\t'))
        at++;
    while (at < end && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    if (at == end || end - at > ELEMENT_MAX)
        return false;
    const uint8_t *const colon = memchr(at, ':', (size_t)(end - at));
    if (*at == '[') {
        const uint8_t *const close = memchr(at, ']', (size_t)(end - at));
        if (close == NULL || (close + 1 < end && close[1] != ':'))
            return false;
        at++;
        end = close;
    } else if (colon != NULL && memchr(colon + 1, ':', (size_t)(end - colon - 1)) == NULL) {
        end = colon; /* one colon: IPv4 and a port */
    }
    memcpy(text, at, (size_t)(end - at));
    text[end - at] = '\0';
    return dp_address_parse(text, ret_address);
}

/* Each proxy appended the peer that it saw. From the right, as long as the one who says so is
 * trusted; the first that is not, or the last there is, is the client. */
void dp_client_walk(const dp_engine *engine, dp_conn *conn, const uint8_t *data,
                    const dp_request_head *head)
{
    const dp_listener *listener = &engine->tables.listeners[conn->listener];
    uint8_t client[16];
    uint8_t next[16];
    uint32_t hops = 0;
    memcpy(client, conn->address, sizeof(client));
    for (uint32_t i = head->field_count; i-- > 0;) {
        const dp_field *field = &head->fields[i];
        if (field->id != DP_F_X_FORWARDED_FOR)
            continue;
        const uint8_t *const start = data + field->value.off;
        const uint8_t *end = start + field->value.len;
        while (end != NULL && hops++ < HOPS_MAX && is_trusted(listener, client)) {
            const uint8_t *const comma = memrchr(start, ',', (size_t)(end - start));
            if (!parse_element(comma != NULL ? comma + 1 : start, end, next)) {
                hops = HOPS_MAX;
                break;
            }
            memcpy(client, next, sizeof(client));
            end = comma;
        }
    }
    memcpy(conn->exchange->client, client, sizeof(client));
}
