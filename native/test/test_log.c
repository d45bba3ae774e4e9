/* Access log lines: what stands in them, and that nothing a client sends can stand there raw. */
#include "dp_log.c"

#include <stdio.h>
#include <stdlib.h>

#include "../fuzz/lines.h"
#include "support.h"

static dp_log_text text(const char *given)
{
    return (dp_log_text){.data = (const uint8_t *)given, .len = strlen(given)};
}

static dp_log_origin origin;
static dp_log_end sample;

static void begin(void)
{
    origin =
        (dp_log_origin){.app = text("billing"), .image = text("0123456789ab"), .generation = 7};
    sample = (dp_log_end){
        .wall_us = UINT64_C(1795558501123456),
        .client = text("127.0.0.1"),
        .status = 200,
        .bytes_in = 100,
        .bytes_out = 1234,
        .body_out = 1000,
        .duration_us = 1234567,
        .upstream = text("api"),
        .endpoint = text("127.0.0.1:9001"),
        .upstream_us = 999,
        .retries = 1,
        .outcome = "ok",
    };
}

/* The line, with a NUL behind it. */
static const char *line_of(int format, const dp_log_request *request)
{
    static char shown[DP_LOG_LINE_MAX + 1];
    dp_log_clock clock = {0};
    /* Of the size that is promised, so that a byte too many is seen. */
    uint8_t *const part = malloc(DP_LOG_PART_MAX);
    uint8_t *const line = malloc(DP_LOG_LINE_MAX);
    if (part == NULL || line == NULL)
        abort();
    const size_t part_len = dp_log_part(format, request, part);
    const size_t len = dp_log_line(format, &origin, &sample, part, part_len, &clock, line);
    memcpy(shown, line, len);
    shown[len] = '\0';
    free(part);
    free(line);
    return shown;
}

static void tells_all_there_is(void)
{
    const dp_log_request request = {
        .method = text("GET"),
        .host = text("billing.example.com"),
        .path = text("/api/"),
        .query = text("?a=b"),
        .protocol = "HTTP/1.1",
        .request_id = text("7f"),
        .trace_id = text("4bf92f3577b34da6a3ce929d0e0e4736"),
        .user_agent = text("curl/8"),
        .referer = text("http://a/"),
    };
    begin();
    expect_text("a line of all", "", "json", line_of(DP_LOG_JSON, &request),
                "{\"time\":\"2026-11-24T22:15:01.123Z\",\"app\":\"billing\",\"generation\":7,"
                "\"image\":\"0123456789ab\",\"client\":\"127.0.0.1\",\"method\":\"GET\","
                "\"host\":\"billing.example.com\",\"path\":\"/api/?a=b\",\"protocol\":\"HTTP/1.1\","
                "\"status\":200,\"bytes_in\":100,\"bytes_out\":1234,\"duration_ms\":1234.567,"
                "\"upstream\":\"api\",\"endpoint\":\"127.0.0.1:9001\",\"upstream_ms\":0.999,"
                "\"retries\":1,\"request_id\":\"7f\","
                "\"trace_id\":\"4bf92f3577b34da6a3ce929d0e0e4736\",\"user_agent\":\"curl/8\","
                "\"referer\":\"http://a/\",\"outcome\":\"ok\"}\n");
    expect_text("a line of all", "", "combined", line_of(DP_LOG_COMBINED, &request),
                "127.0.0.1 - - [24/Nov/2026:22:15:01 +0000] \"GET /api/?a=b HTTP/1.1\" 200 1000 "
                "\"http://a/\" \"curl/8\"\n");
}

static void says_null_for_what_there_is_not(void)
{
    const dp_log_request nothing = {.protocol = NULL};
    begin();
    sample.status = 0;
    sample.upstream_us = 0;
    sample.body_out = 0;
    sample.upstream = sample.endpoint = (dp_log_text){.data = NULL};
    const char *const line = line_of(DP_LOG_JSON, &nothing);
    expect("it is a line", is_json_line((const uint8_t *)line, strlen(line)));
    expect("no method", strstr(line, "\"method\":null,\"host\":null,\"path\":null") != NULL);
    expect("no status", strstr(line, "\"status\":null") != NULL);
    expect("no upstream", strstr(line, "\"upstream\":null,\"endpoint\":null,\"upstream_ms\":null"));
    expect_text("nothing known", "", "combined", line_of(DP_LOG_COMBINED, &nothing),
                "127.0.0.1 - - [24/Nov/2026:22:15:01 +0000] \"-\" - - \"-\" \"-\"\n");
}

enum { PLACES = 8 };
static dp_log_text *place(dp_log_request *request, int which)
{
    dp_log_text *const places[PLACES] = {
        &request->method,     &request->host,     &request->path,       &request->query,
        &request->request_id, &request->trace_id, &request->user_agent, &request->referer,
    };
    return places[which];
}

static bool both_hold(const dp_log_request *request)
{
    const char *line = line_of(DP_LOG_JSON, request);
    const bool json = is_json_line((const uint8_t *)line, strlen(line));
    line = line_of(DP_LOG_COMBINED, request);
    return json && is_combined_line((const uint8_t *)line, strlen(line));
}

/* Each byte in each field, at each place of a word, against an unreadable page. */
static void lets_no_byte_through_raw(void)
{
    begin();
    for (int which = 0; which < PLACES; which++) {
        bool holds = true;
        for (unsigned byte = 0; byte < 256; byte++)
            for (size_t at = 0; at < 17; at++) {
                uint8_t bytes[17];
                dp_log_request request = {.path = text("/"), .method = text("GET")};
                memset(bytes, 'a', sizeof(bytes));
                bytes[at] = (uint8_t)byte;
                *place(&request, which) = (dp_log_text){
                    .data = place_before_guard(bytes, sizeof(bytes)), .len = sizeof(bytes)};
                holds = holds && both_hold(&request);
            }
        expect("each byte in each field", holds);
    }
}

static void stays_a_line_however_much_comes(void)
{
    static const uint8_t hostile[] = {'a', '"', '\\', 0x00, 0x1b, 0x7f, 0xff, '\n'};
    static uint8_t bytes[40000];
    begin();
    origin.app = sample.upstream = sample.endpoint = sample.client =
        (dp_log_text){.data = bytes, .len = sizeof(bytes)};
    origin.generation = UINT32_MAX;
    sample.retries = UINT32_MAX;
    sample.bytes_in = sample.bytes_out = sample.body_out = UINT64_MAX;
    sample.duration_us = sample.upstream_us = UINT64_MAX;
    for (size_t i = 0; i < sizeof(hostile); i++) {
        dp_log_request request = {.protocol = "HTTP/1.1"};
        memset(bytes, hostile[i], sizeof(bytes));
        for (int which = 0; which < PLACES; which++)
            *place(&request, which) = (dp_log_text){.data = bytes, .len = sizeof(bytes)};
        expect("as long as can be", both_hold(&request));
        const char *const line = line_of(DP_LOG_JSON, &request);
        expect("what is cut says so", strstr(line, "...\"") != NULL);
    }
}

static void knows_the_calendar(void)
{
    static const struct {
        uint64_t second;
        const char *shown;
    } days[] = {
        {0, "1970-01-01T00:00:00"},          {951782399, "2000-02-28T23:59:59"},
        {951782400, "2000-02-29T00:00:00"},  {1709164799, "2024-02-28T23:59:59"},
        {1735689599, "2024-12-31T23:59:59"}, {4107542400, "2100-03-01T00:00:00"},
    };
    for (size_t i = 0; i < sizeof(days) / sizeof(days[0]); i++) {
        dp_log_clock clock = {0};
        clock_set(&clock, days[i].second);
        expect_text("a day", "3339 5.6", "json", clock.json, days[i].shown);
    }
}

int main(void)
{
    tells_all_there_is();
    says_null_for_what_there_is_not();
    lets_no_byte_through_raw();
    stays_a_line_however_much_comes();
    knows_the_calendar();
    return finish("log");
}
