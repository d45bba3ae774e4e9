/* Whatever bytes come and however they are split, a PROXY header gets one verdict, nothing outside
 * it is read, and what it tells is told again by one written anew. */
#include <arpa/inet.h>
#include <string.h>

#include "dp.h"
#include "fuzz.h"

static void check_rewritten(const dp_proxy_header *header)
{
    char text[128];
    char source[INET6_ADDRSTRLEN];
    char destination[INET6_ADDRSTRLEN];
    dp_proxy_header again;
    const int family = header->family == 4 ? AF_INET : AF_INET6;

    hold(inet_ntop(family, header->source, source, sizeof(source)) != NULL &&
             inet_ntop(family, header->destination, destination, sizeof(destination)) != NULL,
         "an address can be shown");
    const int len = snprintf(text, sizeof(text), "PROXY TCP%u %s %s %u %u\r\n", header->family,
                             source, destination, header->source_port, header->destination_port);
    hold(dp_proxy_parse((const uint8_t *)text, (size_t)len, &again) == DP_OK,
         "written anew it is taken");
    hold(again.header_len == (uint32_t)len && again.family == header->family &&
             memcmp(again.source, header->source, sizeof(again.source)) == 0 &&
             memcmp(again.destination, header->destination, sizeof(again.destination)) == 0 &&
             again.source_port == header->source_port &&
             again.destination_port == header->destination_port,
         "written anew it says the same");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    dp_proxy_header header = {0};
    dp_proxy_header other;
    int grown = DP_NEED_MORE;
    const int whole = dp_proxy_parse(data, size, &header);

    for (size_t known = 0; known <= size && grown == DP_NEED_MORE; known++) {
        uint8_t *const part =
            malloc(known + 1); /* of its own size: a sanitizer sees what is after */
        if (part == NULL) {
            return 0;
        }
        memcpy(part + 1, data, known);
        grown = dp_proxy_parse(part + 1, known, &other);
        free(part);
        hold(grown != DP_OK || other.header_len == known, "a header is taken at its last byte");
    }
    hold(grown == whole, "as it grows, the same verdict");
    if (whole != DP_OK) {
        return 0;
    }
    hold(header.header_len <= size && header.header_len <= 4096, "a header ends inside what came");
    hold(memcmp(&header, &other, sizeof(header)) == 0, "as it grows, the same header");
    hold(header.family == 0 || header.family == 4 || header.family == 6, "a family is known");
    if (header.family != 0) {
        check_rewritten(&header);
    }
    return 0;
}
