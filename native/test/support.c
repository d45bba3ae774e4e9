/* support: see the header. */
#include "support.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned checks;
static unsigned failures;

size_t case_len(const struct test_case *test)
{
    return test->len != 0 ? test->len : strlen(test->bytes);
}

/* ROOM bytes between two unreadable pages. */
static uint8_t *guarded_room(void)
{
    static uint8_t *room;

    if (room == NULL) {
        const size_t page = (size_t)sysconf(_SC_PAGESIZE);
        uint8_t *const whole =
            mmap(NULL, ROOM + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (whole == MAP_FAILED || mprotect(whole, page, PROT_NONE) != 0 ||
            mprotect(whole + page + ROOM, page, PROT_NONE) != 0) {
            perror("guard page");
            exit(2);
        }
        room = whole + page;
    }
    return room;
}

uint8_t *place_before_guard(const void *bytes, size_t len)
{
    uint8_t *const at = guarded_room() + ROOM - len;
    memmove(at, bytes, len);
    return at;
}

uint8_t *place_after_guard(const void *bytes, size_t len)
{
    uint8_t *const at = guarded_room();
    memmove(at, bytes, len);
    return at;
}

int head_end_in_steps(const uint8_t *bytes, size_t len, const dp_head_limits *limits, size_t step,
                      uint32_t *ret_len)
{
    uint32_t scanned = 0;

    for (size_t known = 0;; known = known + step < len ? known + step : len) {
        const uint8_t *const data = place_before_guard(bytes, known);
        const int result = dp_head_end(data, known, limits, &scanned, ret_len);
        if (result != DP_NEED_MORE || known == len) {
            return result;
        }
    }
}

const char *result_word(int result)
{
    switch (result) {
    case DP_OK:
        return "ok";
    case DP_NEED_MORE:
        return "more";
    case DP_EMALFORMED:
        return "malformed";
    case DP_ETOOBIG:
        return "too big";
    case DP_ETARGET:
        return "target";
    case DP_EVERSION:
        return "version";
    case DP_ECODING:
        return "coding";
    case DP_EEXPECT:
        return "expect";
    case DP_EMETHOD:
        return "method";
    default:
        return "unknown result";
    }
}

void expect_text(const char *name, const char *section, const char *how, const char *got,
                 const char *expected)
{
    checks++;
    if (strcmp(got, expected) != 0) {
        failures++;
        printf("FAILED %s (%s), %s:\n  expected %s\n  got      %s\n", name, section, how, expected,
               got);
    }
}

void expect(const char *name, bool holds)
{
    checks++;
    if (!holds) {
        failures++;
        printf("FAILED %s\n", name);
    }
}

int finish(const char *program)
{
    printf("%-20s %u checks, %u failed\n", program, checks, failures);
    return failures == 0 && checks > 0 ? 0 : 1;
}
