/* Where a head ends: the limits, and that the verdict does not depend on how bytes were split. */
#include <string.h>

#include "support.h"

/* max_target + 64 bytes is what a first line may take. */
static const dp_head_limits LIMITS = {.max_bytes = 200, .max_fields = 8, .max_target = 36};

enum { LINE_ROOM = 100 };

/* A first line of line bytes with its CRLF, then one field so that the head has len bytes. */
static size_t make_head(uint8_t *head, size_t line, size_t len)
{
    memset(head, 'x', len);
    memcpy(head, "GET /", 5);
    memcpy(head + line - 2, "\r\n", 2);
    if (len > line + 2) {
        head[line + 1] = ':';
        memcpy(head + len - 4, "\r\n", 2);
    }
    memcpy(head + len - 2, "\r\n", 2);
    return len;
}

static void check(const char *name, const uint8_t *bytes, size_t len, const char *expected)
{
    static const size_t STEPS[] = {1, 2, 3, 7, 16, 33, ROOM};

    for (size_t i = 0; i < sizeof(STEPS) / sizeof(STEPS[0]); i++) {
        uint32_t found = 0;
        const int result = head_end_in_steps(bytes, len, &LIMITS, STEPS[i], &found);
        expect_text(name, "9112 2.2", "in steps", result_word(result), expected);
        expect("nothing is told but with a result", result == DP_OK ? found > 0 : found == 0);
    }
}

static void check_every_split(const uint8_t *bytes, size_t len)
{
    for (size_t cut = 0; cut <= len; cut++) {
        uint32_t scanned = 0;
        uint32_t found = 0;
        int result = dp_head_end(place_before_guard(bytes, cut), cut, &LIMITS, &scanned, &found);
        expect("a part is not a head", cut == len ? result == DP_OK : result == DP_NEED_MORE);
        if (result == DP_NEED_MORE) {
            result = dp_head_end(place_before_guard(bytes, len), len, &LIMITS, &scanned, &found);
        }
        expect("the rest makes it one", result == DP_OK && found == len);
    }
}

int main(void)
{
    uint8_t head[512] = {0};
    size_t len;

    check("nothing yet", head, 0, "more");
    check("two heads", (const uint8_t *)"A\r\n\r\nB\r\n\r\n", 10, "ok");
    check("CR CR LF", (const uint8_t *)"A\r\r\n", 4, "malformed");
    check("LF CR", (const uint8_t *)"A\n\r", 3, "malformed");
    check("CR LF LF", (const uint8_t *)"A\r\n\n", 4, "malformed");
    check("CR LF CR x", (const uint8_t *)"A\r\n\rx", 5, "malformed");
    check("space first", (const uint8_t *)" A\r\n\r\n", 6, "malformed");
    check("colon first", (const uint8_t *)":A\r\n\r\n", 6, "malformed");

    len = make_head(head, 20, LIMITS.max_bytes);
    check("as large as may be", head, len, "ok");
    check_every_split(head, len);
    len = make_head(head, 20, LIMITS.max_bytes + 1);
    check("a byte too large", head, len, "too big");
    head[150] = 0;
    check("malformed before it is too large", head, len, "malformed");
    len = make_head(head, 20, LIMITS.max_bytes + 40);
    head[LIMITS.max_bytes + 20] = 0;
    check("malformed after it is too large", head, len, "too big");
    len = make_head(head, 20, LIMITS.max_bytes + 1);
    check("too large with its end unseen", head, LIMITS.max_bytes, "too big");

    len = make_head(head, LINE_ROOM, 150);
    check("as long a line as may be", head, len, "ok");
    check_every_split(head, len);
    len = make_head(head, LINE_ROOM + 1, 150);
    check("a byte too long a line", head, len, "target");
    check("a byte too long, line unfinished", head, LINE_ROOM + 1, "target");
    check("not too long yet", head, LINE_ROOM, "more");
    head[50] = 1;
    check("malformed before the line is too long", head, len, "malformed");
    len = make_head(head, LINE_ROOM + 20, 150);
    head[LINE_ROOM + 5] = 1;
    check("malformed after the line is too long", head, len, "target");
    len = make_head(head, 20, 150);
    check("a long second line", head, len, "ok");

    {
        const dp_head_limits free_line = {.max_bytes = 200, .max_fields = 8, .max_target = 0};
        uint32_t found = 0;
        len = make_head(head, 190, 192);
        expect("no limit on the first line where none is told",
               head_end_in_steps(head, len, &free_line, 1, &found) == DP_OK && found == len);
    }
    return finish("head ends");
}
