/* dp_proxy_v: PROXY protocol headers, version 1 and 2 (haproxy.org, "The PROXY protocol", 2.1 and
 * 2.2). Pure: no I/O, no allocation, no state. Strict, for whoever may send one decides who the
 * client is: one byte out of place refuses the connection. */
#include <arpa/inet.h>
#include <stdbool.h>
#include <string.h>

#include "dp.h"

enum {
    V1_MAX = 107, /* with CR LF: "worst case" of 2.1 */
    V2_FIXED = 16,
    V2_MAX = 4096, /* in all; certificates in TLVs are the largest there are */
    PORT_MAX = 65535
};

static const uint8_t SIGNATURE[12] = {0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d,
                                      0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a};

static uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] << 8 | at[1]);
}

/* --- version 1 -------------------------------------------------------------------------------- */

/* The word at *at, which ends before `stop`, as text. */
static bool take_word(const uint8_t **at, const uint8_t *end, char stop, char *ret_text,
                      size_t capacity)
{
    size_t len = 0;
    while (*at < end && **at != (uint8_t)stop) {
        if (len + 1 == capacity)
            return false;
        ret_text[len++] = (char)*(*at)++;
    }
    ret_text[len] = '\0';
    return len != 0 && (*at)++ < end;
}

static bool take_port(const uint8_t **at, const uint8_t *end, char stop, uint16_t *ret_port)
{
    char text[6];
    uint32_t port = 0;
    if (!take_word(at, end, stop, text, sizeof(text)) || (text[0] == '0' && text[1] != '\0'))
        return false;
    for (const char *digit = text; *digit != '\0'; digit++) {
        if (*digit < '0' || *digit > '9')
            return false;
        port = port * 10 + (uint32_t)(*digit - '0');
    }
    if (port > PORT_MAX)
        return false;
    *ret_port = (uint16_t)port;
    return true;
}

/* at is behind "PROXY ", end behind CR LF. */
static int judge_v1(const uint8_t *at, const uint8_t *end, dp_proxy_header *ret_header)
{
    static const char UNKNOWN[] = "UNKNOWN";
    const size_t len = (size_t)(end - at);
    char source[46];
    char destination[46];

    if (len >= sizeof(UNKNOWN) && memcmp(at, UNKNOWN, sizeof(UNKNOWN) - 1) == 0 &&
        (at[sizeof(UNKNOWN) - 1] == ' ' || at[sizeof(UNKNOWN) - 1] == '\r')) {
        return DP_OK; /* what follows is to be ignored */
    }
    if (len < 5 || memcmp(at, "TCP", 3) != 0 || (at[3] != '4' && at[3] != '6') || at[4] != ' ')
        return DP_EMALFORMED;
    const int family = at[3] == '4' ? AF_INET : AF_INET6;
    at += 5;
    if (!take_word(&at, end, ' ', source, sizeof(source)) ||
        !take_word(&at, end, ' ', destination, sizeof(destination)) ||
        inet_pton(family, source, ret_header->source) != 1 ||
        inet_pton(family, destination, ret_header->destination) != 1 ||
        !take_port(&at, end, ' ', &ret_header->source_port) ||
        !take_port(&at, end, '\r', &ret_header->destination_port) || end - at != 1)
        return DP_EMALFORMED;
    ret_header->family = family == AF_INET ? 4 : 6;
    return DP_OK;
}

static int parse_v1(const uint8_t *data, size_t len, dp_proxy_header *ret_header)
{
    static const char START[] = "PROXY ";
    const size_t known = len < V1_MAX ? len : V1_MAX;

    for (size_t at = 0; at < known; at++) {
        if (at < sizeof(START) - 1) {
            if (data[at] != (uint8_t)START[at])
                return DP_EMALFORMED;
        } else if (data[at] == '\n') {
            if (data[at - 1] != '\r')
                return DP_EMALFORMED;
            ret_header->header_len = (uint32_t)at + 1;
            return judge_v1(data + sizeof(START) - 1, data + at + 1, ret_header);
        } else if (data[at - 1] == '\r' ||
                   (data[at] != '\r' && (data[at] < ' ' || data[at] > '~'))) {
            return DP_EMALFORMED;
        }
    }
    return len >= V1_MAX ? DP_ETOOBIG : DP_NEED_MORE;
}

/* --- version 2 -------------------------------------------------------------------------------- */

/* 2.2.7: type, length, value; each must end where the header does, or another begins. */
static bool are_tlvs(const uint8_t *at, size_t len)
{
    while (len >= 3) {
        const size_t size = 3u + get16(at + 1);
        if (size > len)
            return false;
        at += size;
        len -= size;
    }
    return len == 0;
}

static int judge_v2(const uint8_t *data, size_t len, dp_proxy_header *ret_header)
{
    const uint8_t *at = data + V2_FIXED;
    size_t addresses;

    switch (data[13]) {
    case 0x00: /* unspecified */
        addresses = 0;
        break;
    case 0x11: /* TCP over IPv4 */
        addresses = 12;
        break;
    case 0x21: /* TCP over IPv6 */
        addresses = 36;
        break;
    case 0x31: /* a UNIX stream: there is no address to show */
        addresses = 216;
        break;
    default:
        return DP_EMALFORMED;
    }
    if (len < addresses || !are_tlvs(at + addresses, len - addresses))
        return DP_EMALFORMED;
    if (data[13] != 0x11 && data[13] != 0x21)
        return DP_OK;
    const size_t size = data[13] == 0x11 ? 4 : 16;
    ret_header->family = data[13] == 0x11 ? 4 : 6;
    memcpy(ret_header->source, at, size);
    memcpy(ret_header->destination, at + size, size);
    ret_header->source_port = get16(at + 2 * size);
    ret_header->destination_port = get16(at + 2 * size + 2);
    return DP_OK;
}

static int parse_v2(const uint8_t *data, size_t len, dp_proxy_header *ret_header)
{
    const size_t known = len < sizeof(SIGNATURE) ? len : sizeof(SIGNATURE);

    if (memcmp(data, SIGNATURE, known) != 0)
        return DP_EMALFORMED;
    if (len > 12 && data[12] != 0x20 && data[12] != 0x21) /* version 2, LOCAL or PROXY */
        return DP_EMALFORMED;
    if (len < V2_FIXED)
        return DP_NEED_MORE;
    const size_t rest = get16(data + 14);
    if (V2_FIXED + rest > V2_MAX)
        return DP_ETOOBIG;
    if (len < V2_FIXED + rest)
        return DP_NEED_MORE;
    ret_header->header_len = (uint32_t)(V2_FIXED + rest);
    if (data[12] == 0x20) /* LOCAL: the sender's own connection; all else is to be skipped */
        return DP_OK;
    return judge_v2(data, rest, ret_header);
}

int dp_proxy_parse(const uint8_t *data, size_t len, dp_proxy_header *ret_header)
{
    dp_proxy_header header = {0};

    if (len == 0)
        return DP_NEED_MORE;
    const int result =
        data[0] == SIGNATURE[0] ? parse_v2(data, len, &header) : parse_v1(data, len, &header);
    if (result == DP_OK)
        *ret_header = header;
    return result;
}
