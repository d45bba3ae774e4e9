/* What the load generator and the upstream server share. See dp_bench.h. */
#include "dp_bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>

static const char alphabet[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_";

char *dp_pattern_new(size_t len)
{
    size_t size = len + DP_PATTERN_PERIOD;
    char *pattern = malloc(size);
    if (pattern == NULL)
        dp_die(1, "no memory for", "the body");
    for (size_t i = 0; i < size; i++)
        pattern[i] = alphabet[i % DP_PATTERN_PERIOD];
    return pattern;
}

static int digit_of(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool dp_parse_number(const char *text, size_t len, unsigned base, uint64_t max, uint64_t *ret_value)
{
    uint64_t value = 0;
    if (len == 0)
        return false;
    for (size_t i = 0; i < len; i++) {
        int digit = digit_of(text[i]);
        if (digit < 0 || (unsigned)digit >= base)
            return false;
        if (value > (UINT64_MAX - (unsigned)digit) / base)
            return false;
        value = value * base + (unsigned)digit;
    }
    if (value > max)
        return false;
    *ret_value = value;
    return true;
}

static bool parse_unix(const char *path, struct sockaddr_storage *ret_address, socklen_t *ret_len)
{
    struct sockaddr_un *un = (struct sockaddr_un *)ret_address;
    size_t len = strlen(path);
    if (len == 0 || len >= sizeof un->sun_path)
        return false;
    memset(ret_address, 0, sizeof *ret_address);
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, len);
    *ret_len = sizeof *un;
    return true;
}

bool dp_parse_address(const char *text, struct sockaddr_storage *ret_address, socklen_t *ret_len)
{
    if (strncmp(text, "unix:", 5) == 0)
        return parse_unix(text + 5, ret_address, ret_len);
    const char *colon = strrchr(text, ':');
    char host[64];
    uint64_t port = 0;
    if (colon == NULL || !dp_parse_number(colon + 1, strlen(colon + 1), 10, 65535, &port))
        return false;
    bool v6 = text[0] == '[';
    const char *from = v6 ? text + 1 : text;
    const char *end = v6 ? colon - 1 : colon;
    if (end <= from || (v6 && *end != ']') || (size_t)(end - from) >= sizeof host)
        return false;
    memcpy(host, from, (size_t)(end - from));
    host[end - from] = '\0';
    struct sockaddr_storage found;
    memset(&found, 0, sizeof found);
    if (v6) {
        struct sockaddr_in6 *six = (struct sockaddr_in6 *)&found;
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        if (inet_pton(AF_INET6, host, &six->sin6_addr) != 1)
            return false;
        *ret_len = sizeof *six;
    } else {
        struct sockaddr_in *four = (struct sockaddr_in *)&found;
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        if (inet_pton(AF_INET, host, &four->sin_addr) != 1)
            return false;
        *ret_len = sizeof *four;
    }
    *ret_address = found;
    return true;
}

uint64_t dp_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

bool dp_name_is(const char *a, size_t len, const char *b)
{
    size_t i = 0;
    for (; i < len && b[i] != '\0'; i++) {
        char c = a[i];
        if (c >= 'A' && c <= 'Z')
            c = (char)(c - 'A' + 'a');
        if (c != b[i])
            return false;
    }
    return i == len && b[i] == '\0';
}

void dp_die(int code, const char *what, const char *detail)
{
    fprintf(stderr, "%s: %s %s\n", program_invocation_short_name, what, detail);
    exit(code);
}
