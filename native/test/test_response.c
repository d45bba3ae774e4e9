/* Response heads: each case whole and byte by byte, at both ends of guarded room. */
#include <stdio.h>
#include <string.h>

#include "dp_http1.h"
#include "support.h"

#define OK "HTTP/1.1 200 OK\r\n"

static const dp_head_limits LIMITS = {.max_bytes = 4096, .max_fields = 8, .max_target = 0};

static const struct test_case CASES[] = {
    {"smallest", "9112 4", "HTTP/1.1 200 OK\r\n\r\n", "200 [OK] 1.1 to-close close", 0},
    {"no reason", "9112 4", "HTTP/1.1 200 \r\n\r\n", "200 [] 1.1 to-close close", 0},
    {"no reason, no space", "9112 4", "HTTP/1.1 200\r\n\r\n", "200 [] 1.1 to-close close", 0},
    {"reason of words", "9112 4", "HTTP/1.1 404 Not \xffound\r\n\r\n",
     "404 [Not \xffound] 1.1 to-close close", 0},
    {"control in reason", "9112 4", "HTTP/1.1 200 O\x01K\r\n\r\n", "malformed", 0},
    {"two spaces", "9112 4", "HTTP/1.1  200 OK\r\n\r\n", "malformed", 0},
    {"two digits", "9112 4", "HTTP/1.1 20 OK\r\n\r\n", "malformed", 0},
    {"four digits", "9112 4", "HTTP/1.1 2000 OK\r\n\r\n", "malformed", 0},
    {"letter in status", "9112 4", "HTTP/1.1 2x0 OK\r\n\r\n", "malformed", 0},
    {"status below", "9110 15", "HTTP/1.1 099 OK\r\n\r\n", "malformed", 0},
    {"status beyond", "9110 15", "HTTP/1.1 600 OK\r\n\r\n", "malformed", 0},
    {"tab after status", "9112 4", "HTTP/1.1 200\tOK\r\n\r\n", "malformed", 0},
    {"only a version", "9112 4", "HTTP/1.1\r\n\r\n", "malformed", 0},
    {"other version", "9112 2.3", "HTTP/2.0 200 OK\r\n\r\n", "version", 0},
    {"not HTTP", "9112 4", "ICY 200 OK\r\n\r\n", "malformed", 0},
    {"version's case", "9112 2.3", "Http/1.1 200 OK\r\n\r\n", "malformed", 0},
    {"bare LF", "9112 2.2", "HTTP/1.1 200 OK\n\n", "malformed", 0},
    {"bare CR", "9112 2.2", OK "X: a\rb\r\n\r\n", "malformed", 0},
    {"NUL", "9110 5.5", OK "X: \0\r\n\r\n", "malformed", sizeof(OK "X: \0\r\n\r\n") - 1},
    {"fold", "9112 5.2", OK "X: a\r\n b\r\n\r\n", "malformed", 0},
    {"space before colon", "9112 5.1", OK "X : a\r\n\r\n", "malformed", 0},
    {"too many fields", "", OK "a:\r\nb:\r\nc:\r\nd:\r\ne:\r\nf:\r\ng:\r\nh:\r\ni:\r\n\r\n",
     "too big", 0},
    {"length", "9112 6.3", OK "Content-Length: 5\r\n\r\n", "200 [OK] 1.1 length=5 keep", 0},
    {"length twice, equal", "9112 6.3", OK "Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
     "malformed", 0},
    {"length twice, differing", "9112 6.3", OK "Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
     "malformed", 0},
    {"length as list", "9112 6.3", OK "Content-Length: 5,5\r\n\r\n", "malformed", 0},
    {"length negative", "9112 6.3", OK "Content-Length: -5\r\n\r\n", "malformed", 0},
    {"chunked", "9112 6.3", OK "Transfer-Encoding: chunked\r\n\r\n",
     "200 [OK] 1.1 chunked keep drop=Transfer-Encoding", 0},
    {"chunked and length", "9112 6.3", OK "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
    {"chunked in HTTP/1.0", "9112 6.1", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
    {"other coding", "9112 6.1", OK "Transfer-Encoding: gzip\r\n\r\n", "coding", 0},
    {"other coding, chunked", "9112 6.1", OK "Transfer-Encoding: gzip, chunked\r\n\r\n", "coding",
     0},
    {"chunked not last", "9112 6.1", OK "Transfer-Encoding: chunked, gzip\r\n\r\n", "malformed", 0},
    {"close", "9112 9.3", OK "Connection: close\r\nContent-Length: 0\r\n\r\n",
     "200 [OK] 1.1 length=0 close drop=Connection", 0},
    {"1.0", "9112 9.3", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
     "200 [OK] 1.0 length=0 close", 0},
    {"1.0 keep-alive", "9112 9.3",
     "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
     "200 [OK] 1.0 length=0 keep drop=Connection", 0},
    {"1.0 keep-alive to close", "9112 9.3", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n",
     "200 [OK] 1.0 to-close close drop=Connection", 0},
    {"named field goes", "9110 7.6.1", OK "Connection: x\r\nX: 1\r\nSet-Cookie: a\r\n\r\n",
     "200 [OK] 1.1 to-close close drop=Connection,X", 0},
    {"set-cookie stays", "9110 7.6.1", OK "Connection: set-cookie\r\nSet-Cookie: a\r\n\r\n",
     "200 [OK] 1.1 to-close close drop=Connection", 0},
    {"continue", "9110 15.2.1", "HTTP/1.1 100 Continue\r\n\r\n", "100 [Continue] 1.1 none keep", 0},
    {"switching", "9110 15.2.2", "HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
     "101 [S] 1.1 none keep drop=Upgrade,Connection", 0},
    {"interim with length", "9110 8.6", "HTTP/1.1 103 E\r\nContent-Length: 1\r\n\r\n", "malformed",
     0},
    {"interim with length zero", "9110 8.6", "HTTP/1.1 103 E\r\nContent-Length: 0\r\n\r\n",
     "103 [E] 1.1 none=0 keep drop=Content-Length", 0},
    {"interim chunked", "9112 6.1", "HTTP/1.1 103 E\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
    {"204", "9112 6.3", "HTTP/1.1 204 N\r\n\r\n", "204 [N] 1.1 none keep", 0},
    {"204 with length zero", "9110 8.6", "HTTP/1.1 204 N\r\nContent-Length: 0\r\n\r\n",
     "204 [N] 1.1 none=0 keep drop=Content-Length", 0},
    {"204 with length", "9110 8.6", "HTTP/1.1 204 N\r\nContent-Length: 5\r\n\r\n",
     "204 [N] 1.1 none=5 close drop=Content-Length", 0},
    {"204 chunked", "9112 6.1", "HTTP/1.1 204 N\r\nTransfer-Encoding: chunked\r\n\r\n",
     "204 [N] 1.1 none close drop=Transfer-Encoding", 0},
    {"304", "9112 6.3", "HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n", "304 [N] 1.1 none=5 keep",
     0},
    {"304 without length", "9112 6.3", "HTTP/1.1 304 N\r\n\r\n", "304 [N] 1.1 none keep", 0},
    {"304 chunked", "9112 6.3", "HTTP/1.1 304 N\r\nTransfer-Encoding: chunked\r\n\r\n",
     "304 [N] 1.1 none keep drop=Transfer-Encoding", 0},
    {"underscores are theirs", "", OK "Content_Length: 5\r\nX_Request_Id: 1\r\n\r\n",
     "200 [OK] 1.1 to-close close", 0},
};

static const struct test_case TO_HEAD[] = {
    {"HEAD with length", "9112 6.3", OK "Content-Length: 5\r\n\r\n", "200 [OK] 1.1 none=5 keep", 0},
    {"HEAD chunked", "9112 6.3", OK "Transfer-Encoding: chunked\r\n\r\n",
     "200 [OK] 1.1 none keep drop=Transfer-Encoding", 0},
    {"HEAD without length", "9112 6.3", "HTTP/1.1 200 OK\r\n\r\n", "200 [OK] 1.1 none keep", 0},
    {"HEAD with both", "9112 6.3", OK "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
     "malformed", 0},
};

static int span_print(char *text, size_t room, const char *before, const uint8_t *data,
                      dp_span span)
{
    return snprintf(text, room, "%s%.*s", before, (int)span.len,
                    (const char *)(const void *)(data + span.off));
}

static void describe(const uint8_t *data, const dp_response_head *head, char *text, size_t room)
{
    static const char *const FRAMING[] = {[DP_BODY_NONE] = "none",
                                          [DP_BODY_LENGTH] = "length",
                                          [DP_BODY_CHUNKED] = "chunked",
                                          [DP_BODY_CLOSE] = "to-close"};
    size_t at = 0;
    bool dropped = false;

    at += (size_t)snprintf(text, room, "%u", head->status);
    at += (size_t)span_print(text + at, room - at, " [", data, head->reason);
    at += (size_t)snprintf(text + at, room - at, "] 1.%u %s", head->minor, FRAMING[head->framing]);
    if (head->content_length != UINT64_MAX) {
        at += (size_t)snprintf(text + at, room - at, "=%llu",
                               (unsigned long long)head->content_length);
    }
    at += (size_t)snprintf(text + at, room - at, head->keep_alive ? " keep" : " close");
    for (uint32_t i = 0; i < head->field_count; i++) {
        if ((head->fields[i].flags & DP_FIELD_DROP) != 0) {
            at += (size_t)span_print(text + at, room - at, dropped ? "," : " drop=", data,
                                     head->fields[i].name);
            dropped = true;
        }
    }
}

static void check(const struct test_case *test, size_t step, bool low, bool to_head)
{
    static dp_response_head head;
    char how[64];
    char got[512];
    uint32_t len = 0;
    const uint8_t *const bytes = (const uint8_t *)test->bytes;
    int result = head_end_in_steps(bytes, case_len(test), &LIMITS, step, &len);

    snprintf(how, sizeof(how), "%s%s", step == 1 ? "byte by byte" : "whole", low ? ", low" : "");
    if (result == DP_OK && len != case_len(test)) {
        snprintf(got, sizeof(got), "ends at %u", len);
    } else if (result == DP_OK) {
        const uint8_t *const data =
            low ? place_after_guard(bytes, len) : place_before_guard(bytes, len);
        memset(&head, 0xa5, sizeof(head));
        result = dp_response_parse(data, len, &LIMITS, to_head, &head);
        if (result == DP_OK) {
            describe(data, &head, got, sizeof(got));
        }
    }
    if (result != DP_OK) {
        snprintf(got, sizeof(got), "%s", result_word(result));
    }
    expect_text(test->name, test->section, how, got, test->expected);
}

/* As in test_request.c: the parser alone stays inside whatever it is given. */
static void parse_anything(const struct test_case *test)
{
    static dp_response_head head;
    static const uint8_t STRANGE[] = {0, '\t', '\n', '\r', ' ', ':', '9', 0x7f, 0xff};
    const size_t len = case_len(test);

    for (size_t cut = 0; cut < len; cut++) {
        const uint8_t *const data = place_before_guard(test->bytes, cut);
        expect("a head cut short is refused",
               dp_response_parse(data, cut, &LIMITS, 0, &head) != DP_OK);
    }
    for (size_t at = 0; at < len; at++) {
        for (size_t i = 0; i < sizeof(STRANGE); i++) {
            uint8_t *const data = place_before_guard(test->bytes, len);
            data[at] = STRANGE[i];
            expect("a verdict", dp_response_parse(data, len, &LIMITS, 0, &head) <= DP_OK);
        }
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check(&CASES[i], ROOM, false, false);
        check(&CASES[i], ROOM, true, false);
        check(&CASES[i], 1, false, false);
        parse_anything(&CASES[i]);
    }
    for (size_t i = 0; i < sizeof(TO_HEAD) / sizeof(TO_HEAD[0]); i++) {
        check(&TO_HEAD[i], ROOM, false, true);
        check(&TO_HEAD[i], 1, false, true);
    }
    return finish("response heads");
}
