/* Chunked bodies: each case whole, byte by byte and split at every place, with and without its
 * framing kept. */
#include <stdio.h>
#include <string.h>

#include "support.h"

struct chunked_case {
    const char *name;
    const char *section;
    const char *bytes;
    const char *kept;    /* with framing; or the word for a refusal */
    const char *bare;    /* the data alone; NULL: a refusal */
    const char *after;   /* what is left beyond the body; NULL: the body is not complete */
    const char *trailed; /* with framing and trailers, where that is not `kept` */
};

static const struct chunked_case CASES[] = {
    {"two chunks", "9112 7.1", "4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n",
     "4\r\nWiki\r\n5\r\npedia\r\n0\r\n\r\n", "Wikipedia", "", NULL},
    {"no data", "9112 7.1", "0\r\n\r\n", "0\r\n\r\n", "", "", NULL},
    {"what follows is left", "9112 7.1", "1\r\na\r\n0\r\n\r\nGET /", "1\r\na\r\n0\r\n\r\n", "a",
     "GET /", NULL},
    {"hex, either case", "9112 7.1", "00a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n",
     "00a\r\n0123456789\r\nA\r\n0123456789\r\n000\r\n\r\n", "01234567890123456789", "", NULL},
    {"line ends in data", "9112 7.1", "4\r\n\r\n\r\n\r\n0\r\n\r\n", "4\r\n\r\n\r\n\r\n0\r\n\r\n",
     "\r\n\r\n", "", NULL},
    {"unfinished data", "9112 8", "5\r\nabc", "5\r\nabc", "abc", NULL, NULL},
    {"unfinished size", "9112 8", "1f", "1f", "", NULL, NULL},
    {"unfinished end", "9112 8", "0\r\n\r", "0\r\n\r", "", NULL, NULL},
    {"16 digits", "", "0000000000000001\r\na\r\n0\r\n\r\n", "0000000000000001\r\na\r\n0\r\n\r\n",
     "a", "", NULL},
    {"17 digits", "", "00000000000000001\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"largest", "9112 7.1", "4000000000000000\r\na", "4000000000000000\r\na", "a", NULL, NULL},
    {"too large", "9112 7.1", "4000000000000001\r\na", "malformed", NULL, NULL, NULL},
    {"overflow", "9112 7.1", "ffffffffffffffff\r\na", "malformed", NULL, NULL, NULL},
    {"overflow wraps", "9112 7.1", "10000000000000001\r\na", "malformed", NULL, NULL, NULL},
    {"no size", "9112 7.1", "\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"sign", "9112 7.1", "+1\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"negative", "9112 7.1", "-1\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"prefix", "9112 7.1", "0x1\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"not hex", "9112 7.1", "g\r\n", "malformed", NULL, NULL, NULL},
    {"space before size", "9112 7.1", " 1\r\na\r\n", "malformed", NULL, NULL, NULL},
    {"space after size", "9112 7.1", "1 \r\na\r\n", "malformed", NULL, NULL, NULL},
    {"bare LF after size", "9112 2.2", "1\na\r\n", "malformed", NULL, NULL, NULL},
    {"bare CR after size", "9112 2.2", "1\ra", "malformed", NULL, NULL, NULL},
    {"bare LF after data", "9112 7.1", "1\r\na\n", "malformed", NULL, NULL, NULL},
    {"CR alone after data", "9112 7.1", "1\r\na\r0", "malformed", NULL, NULL, NULL},
    {"data too long", "9112 7.1", "1\r\nab\r\n", "malformed", NULL, NULL, NULL},
    {"data too short", "9112 7.1", "3\r\na\r\n0\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"bare LF at end", "9112 7.1", "0\r\n\n", "malformed", NULL, NULL, NULL},
    {"bare CR at end", "9112 7.1", "0\r\n\rG", "malformed", NULL, NULL, NULL},
    {"control byte for size", "9112 7.1", "1\r\na\r\n\x01", "malformed", NULL, NULL, NULL},
    {"extension", "9112 7.1.1", "1;a\r\nx\r\n0;b=c\r\n\r\n", "1\r\nx\r\n0\r\n\r\n", "x", "", NULL},
    {"extensions", "9112 7.1.1", "1;a;b=c;d=\"e;\\\"\r\n\"\r\nx\r\n", "malformed", NULL, NULL,
     NULL},
    {"extension, quoted", "9112 7.1.1", "1;a;b=c;d=\"e;\\\" \t\xff\"\r\nx\r\n0\r\n\r\n",
     "1\r\nx\r\n0\r\n\r\n", "x", "", NULL},
    {"extension, nothing quoted", "9112 7.1.1", "1;a=\"\";b\r\nx\r\n0\r\n\r\n",
     "1\r\nx\r\n0\r\n\r\n", "x", "", NULL},
    {"extension without name", "9112 7.1.1", "1;\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension without name, two", "9112 7.1.1", "1;;a\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension without value", "9112 7.1.1", "1;a=\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, two values", "9112 7.1.1", "1;a=b=c\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, more after quotes", "9112 7.1.1", "1;a=\"b\"c\r\nx\r\n", "malformed", NULL, NULL,
     NULL},
    {"extension, quotes inside", "9112 7.1.1", "1;a=b\"c\"\r\nx\r\n", "malformed", NULL, NULL,
     NULL},
    {"extension, space before", "9112 7.1.1", "1 ;a\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, space after", "9112 7.1.1", "1; a\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, space around =", "9112 7.1.1", "1;a =b\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, bare LF", "9112 7.1.1", "1;a\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, LF quoted", "9112 7.1.1", "1;a=\"\n\"\r\nx\r\n", "malformed", NULL, NULL, NULL},
    {"extension, LF in a pair", "9112 7.1.1", "1;a=\"\\\n\"\r\nx\r\n", "malformed", NULL, NULL,
     NULL},
    {"trailer", "9112 7.1.2", "1\r\nx\r\n0\r\nA: b\r\nC:\t d \r\n\r\nZ", "1\r\nx\r\n0\r\n\r\n", "x",
     "Z", "1\r\nx\r\n0\r\nA: b\r\nC:\t d \r\n\r\n"},
    {"trailer, empty value", "9112 7.1.2", "0\r\nA:\r\n\r\n", "0\r\n\r\n", "", "",
     "0\r\nA:\r\n\r\n"},
    {"trailers that may and may not", "9110 6.5.1",
     "1;x=y\r\nx\r\n0;z\r\nhost: b\r\nX-A: 1\r\nContent_Length: 5\r\nContent-Digest: c\r\nTE: "
     "x\r\n\r\n",
     "1\r\nx\r\n0\r\n\r\n", "x", "", "1\r\nx\r\n0\r\nX-A: 1\r\nContent-Digest: c\r\n\r\n"},
    {"trailer that frames", "9110 6.5.1", "0\r\nContent-Length: 5\r\n\r\n", "0\r\n\r\n", "", "",
     NULL},
    {"trailer, fold", "9112 5.2", "0\r\nA: b\r\n c\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer, no colon", "9112 5", "0\r\nAb\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer, empty name", "9112 5", "0\r\n: b\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer, space before colon", "9112 5.1", "0\r\nA : b\r\n\r\n", "malformed", NULL, NULL,
     NULL},
    {"trailer, bare LF", "9112 2.2", "0\r\nA: b\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer, bare CR", "9112 2.2", "0\r\nA: b\rc\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer, control", "9110 5.5", "0\r\nA: \x01\r\n\r\n", "malformed", NULL, NULL, NULL},
    {"trailer unfinished", "9112 8", "0\r\nA: b\r\n", "0\r\n", "", NULL, "0\r\nA: b\r\n"},
    {"trailer's line unfinished", "9112 8", "0\r\nA: b\r", "0\r\n", "", NULL, NULL},
};

/* Feeds bytes in two parts, or in parts of step, each placed against the guard, and gathers what
 * is kept. */
static int feed(const uint8_t *bytes, size_t len, size_t first, size_t step, int keep,
                char *ret_kept, size_t *ret_after)
{
    dp_chunked state = {0};
    size_t at = 0;
    size_t seen = first < len ? first : len;
    int result;

    *ret_kept = '\0';
    *ret_after = 0;
    for (;;) {
        const size_t count = seen - at;
        size_t used = 0;
        size_t kept = 0;
        uint8_t *const data = place_before_guard(bytes + at, count);
        result = dp_chunked_feed(&state, data, count, keep, &used, &kept);
        if (result >= 0) {
            expect("no more is kept than was used", kept <= used && used <= count);
            strncat(ret_kept, (const char *)data, kept);
            at += used;
        }
        if (result != DP_NEED_MORE || seen == len) {
            break;
        }
        seen = step < len - seen ? seen + step : len;
    }
    *ret_after = len - at;
    if (result < 0) {
        size_t used = 77;
        size_t kept = 77;
        uint8_t *const data = place_before_guard("0", 1);
        expect("poison stays",
               dp_chunked_feed(&state, data, 1, keep, &used, &kept) == DP_EMALFORMED &&
                   used == 77 && kept == 77);
    }
    return result;
}

static void check(const struct chunked_case *test, size_t first, size_t step)
{
    char kept[512];
    size_t after;
    char how[64];
    const uint8_t *const bytes = (const uint8_t *)test->bytes;
    const size_t len = strlen(test->bytes);
    const int wanted = test->bare == NULL    ? DP_EMALFORMED
                       : test->after == NULL ? DP_NEED_MORE
                                             : DP_OK;

    for (int keep = DP_CHUNKED_BARE; keep <= DP_CHUNKED_TRAILERS; keep++) {
        const int result = feed(bytes, len, first, step, keep, kept, &after);
        const char *const framed =
            keep == DP_CHUNKED_TRAILERS && test->trailed != NULL ? test->trailed : test->kept;
        snprintf(how, sizeof(how), "%zu, then %zu, keeping %d", first, step, keep);
        expect_text(test->name, test->section, how, result_word(result), result_word(wanted));
        if (result < 0 || wanted < 0) {
            continue;
        }
        expect_text(test->name, test->section, how, kept, keep == 0 ? test->bare : framed);
        if (test->after != NULL) {
            expect_text(test->name, test->section, how, test->bytes + len - after, test->after);
        }
    }
}

/* A body whose extensions or trailer fields take overhead bytes in all. */
static int feed_overhead(size_t overhead, size_t in_trailer, size_t step)
{
    static char body[20000];
    static char kept[20000];
    size_t after;
    char *at = body;
    size_t extension = overhead - in_trailer;

    while (extension > 0) { /* in chunks of at most 1000 */
        const size_t count = extension < 1000 ? extension : 1000;
        at += snprintf(at, 8, "1;");
        memset(at, 'e', count - 1);
        at += count - 1;
        at += snprintf(at, 8, "\r\nx\r\n");
        extension -= count;
    }
    at += snprintf(at, 8, "0\r\n");
    if (in_trailer > 0) {
        at += snprintf(at, 8, "A:");
        memset(at, 't', in_trailer - 4);
        at += in_trailer - 4;
        at += snprintf(at, 8, "\r\n");
    }
    at += snprintf(at, 8, "\r\n");
    return feed((const uint8_t *)body, (size_t)(at - body), step, step, DP_CHUNKED_TRAILERS, kept,
                &after);
}

static void check_bulk(void)
{
    static uint8_t body[40000];
    static uint8_t wanted[40000];
    dp_chunked state = {0};
    size_t used = 0;
    size_t kept = 0;
    size_t len = (size_t)snprintf((char *)body, 16, "7530;x=y\r\n"); /* 30,000 */

    for (size_t i = 0; i < 30000; i++) {
        wanted[i] = body[len++] = (uint8_t)(i * 7);
    }
    memcpy(body + len, "\r\n0\r\n\r\n", 7);
    len += 7;
    uint8_t *const data = place_before_guard(body, len);
    expect("bulk data is moved whole",
           dp_chunked_feed(&state, data, len, 0, &used, &kept) == DP_OK && used == len &&
               kept == 30000 && memcmp(data, wanted, kept) == 0);
    expect("the end stays the end",
           dp_chunked_feed(&state, data, 3, 0, &used, &kept) == DP_OK && used == 0 && kept == 0);
}

int main(void)
{
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check(&CASES[i], ROOM, ROOM);
        check(&CASES[i], 1, 1);
        for (size_t cut = 0; cut <= strlen(CASES[i].bytes); cut++) {
            check(&CASES[i], cut, ROOM);
        }
    }
    for (size_t step = 1; step <= ROOM; step = step == 1 ? 997 : step == 997 ? ROOM : ROOM + 1) {
        expect("extensions at their bound", feed_overhead(8192, 0, step) == DP_OK);
        expect("extensions beyond it", feed_overhead(8193, 0, step) == DP_ETOOBIG);
        expect("trailers at the bound", feed_overhead(8192, 8192, step) == DP_OK);
        expect("trailers beyond it", feed_overhead(8193, 8193, step) == DP_ETOOBIG);
        expect("both at the bound", feed_overhead(8192, 100, step) == DP_OK);
        expect("both beyond it", feed_overhead(8193, 100, step) == DP_ETOOBIG);
    }
    check_bulk();
    return finish("chunked bodies");
}
