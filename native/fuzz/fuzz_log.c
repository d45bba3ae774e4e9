/* Whatever a client sends in whatever field, its line is one line: a JSON object with exactly the
 * fields of the contract, or Apache's; printable, and never longer than a pipe takes whole. */
#include "dp_log.c"

#include "fuzz.h"
#include "lines.h"

/* The input is cut into fields, each with its length before it; 255: there is none. */
static const uint8_t *cut(const uint8_t *at, const uint8_t *end, dp_log_text *ret_text)
{
    if (at == end)
        return at;
    const size_t told = *at++;
    if (told == 255)
        return at;
    const size_t left = (size_t)(end - at);
    /* Long ones come as well, from the input's few bytes. */
    const size_t len = told >= 250 ? left : told < left ? told : left;
    *ret_text = (dp_log_text){.data = at, .len = len};
    return told >= 250 ? at : at + len;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *at = data;
    const uint8_t *const end = data + size;
    dp_log_request request = {.protocol = size % 3 == 0 ? NULL : "HTTP/1.1"};
    dp_log_origin origin = {.app = {.data = (const uint8_t *)"a", .len = 1}, .generation = 1};
    dp_log_end how = {.client = {.data = (const uint8_t *)"::1", .len = 3}, .outcome = "ok"};
    dp_log_clock clock = {0};
    uint64_t numbers[8] = {0};
    uint8_t *const part = malloc(DP_LOG_PART_MAX);
    uint8_t *const line = malloc(DP_LOG_LINE_MAX);

    hold(part != NULL && line != NULL, "there is memory");
    if (size > sizeof(numbers)) {
        memcpy(numbers, data, size < sizeof(numbers) ? size : sizeof(numbers));
    }
    origin.image = origin.app;
    how.wall_us = numbers[0] % UINT64_C(253402300800000000); /* to the year 9999 */
    how.status = (uint32_t)(numbers[1] % 600);
    how.bytes_in = numbers[2];
    how.bytes_out = numbers[3];
    how.body_out = numbers[4];
    how.duration_us = numbers[5];
    how.upstream_us = numbers[6];
    how.retries = (uint32_t)numbers[7];
    at = cut(at, end, &request.method);
    at = cut(at, end, &request.host);
    at = cut(at, end, &request.path);
    at = cut(at, end, &request.query);
    at = cut(at, end, &request.request_id);
    at = cut(at, end, &request.trace_id);
    at = cut(at, end, &request.user_agent);
    at = cut(at, end, &request.referer);
    at = cut(at, end, &how.upstream);
    (void)cut(at, end, &how.endpoint);
    for (int format = DP_LOG_JSON; format <= DP_LOG_COMBINED; format++) {
        const size_t part_len = dp_log_part(format, &request, part);
        hold(part_len <= DP_LOG_PART_MAX, "a part has its bound");
        const size_t len = dp_log_line(format, &origin, &how, part, part_len, &clock, line);
        hold(len <= DP_LOG_LINE_MAX, "a line has its bound");
        hold(memchr(line, '\n', len) == line + len - 1, "a line is one line");
        hold(format == DP_LOG_JSON ? is_json_line(line, len) : is_combined_line(line, len),
             "a line is what its format says");
    }
    free(part);
    free(line);
    return 0;
}
