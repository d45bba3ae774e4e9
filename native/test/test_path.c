/* Paths in their one form: each case at both ends of guarded room, then once more, which changes
 * nothing. tests/conformance/paths.py has the larger table. */
#include <stdio.h>
#include <string.h>

#include "dp_path.h"
#include "support.h"

static const struct test_case CASES[] = {
    {"plain", "3986 6.2.2", "/a/b.c/", "/a/b.c/", 0},
    {"root", "3986 6.2.2", "/", "/", 0},
    {"unreserved", "3986 6.2.2.2", "/%41%7a%30%2D%2e%5F%7E", "/Az0-._~", 0},
    {"reserved", "3986 6.2.2.1", "/%2f%3f%23%c3%bc%20%25", "/%2F%3F%23%C3%BC%20%25", 0},
    {"decoded once", "3986 2.4", "/%252e%252E%2541", "/%252e%252E%2541", 0},
    {"here", "3986 5.2.4", "/./a/./", "/a/", 0},
    {"here at end", "3986 5.2.4", "/a/.", "/a/", 0},
    {"up", "3986 5.2.4", "/a/b/../../c", "/c", 0},
    {"up at end", "3986 5.2.4", "/a/b/..", "/a/", 0},
    {"up encoded", "3986 6.2.2.3", "/a/%2e%2E/b/.%2e/c", "/c", 0},
    {"up over an empty segment", "3986 5.2.4", "/a//../b", "/a/b", 0},
    {"empty segments", "3986 3.3", "//a///b//", "//a///b//", 0},
    {"three dots", "3986 3.3", "/.../..a/a../.a/a./%2e%2e%2e", "/.../..a/a../.a/a./...", 0},
    {"above the root", "", "/..", "malformed", 0},
    {"above the root, later", "", "/a/../..", "malformed", 0},
    {"above the root, encoded", "", "/%2e%2e/a", "malformed", 0},
    {"up beside an encoded slash", "", "/a/..%2fb", "malformed", 0},
    {"up behind an encoded slash", "", "/a%2F..", "malformed", 0},
    {"up behind an encoded slash, encoded", "", "/a%2f%2e%2E/b", "malformed", 0},
    {"here beside an encoded backslash", "", "/.%5cb", "malformed", 0},
    {"up with parameters", "", "/a/..;b/c", "malformed", 0},
    {"here with encoded parameters", "", "/a/.%3b/c", "malformed", 0},
    {"dots in parameters", "", "/a;../b;.", "/a;../b;.", 0},
    {"names with parameters", "", "/..a;b/c;d", "/..a;b/c;d", 0},
    {"NUL", "", "/%00", "malformed", 0},
    {"line feed", "", "/a%0a", "malformed", 0},
    {"DEL", "", "/%7f", "malformed", 0},
    {"half an encoding", "3986 2.1", "/%2", "malformed", 0},
    {"not an encoding", "3986 2.1", "/%2g", "malformed", 0},
    {"no slash", "", "a", "malformed", 0},
};

static void check(const struct test_case *test, bool low)
{
    char got[256];
    size_t len = 0;
    const size_t given = case_len(test);
    uint8_t *const data =
        low ? place_after_guard(test->bytes, given) : place_before_guard(test->bytes, given);
    const int result = dp_path_normalise(data, given, &len);

    if (result != DP_OK) {
        snprintf(got, sizeof(got), "%s", result_word(result));
    } else {
        snprintf(got, sizeof(got), "%.*s", (int)len, (const char *)data);
        expect("no longer than it was", len <= given);
        size_t again = 0;
        uint8_t *const twice = place_before_guard(got, len);
        expect("its form is its form", dp_path_normalise(twice, len, &again) == DP_OK &&
                                           again == len && memcmp(twice, got, len) == 0);
    }
    expect_text(test->name, test->section, low ? "low" : "", got, test->expected);
    expect("a plain one is in its form", !dp_path_is_plain((const uint8_t *)test->bytes, given) ||
                                             test->bytes[0] != '/' ||
                                             strcmp(test->bytes, got) == 0);
}

int main(void)
{
    for (size_t i = 0; i < sizeof(CASES) / sizeof(CASES[0]); i++) {
        check(&CASES[i], false);
        check(&CASES[i], true);
    }
    return finish("paths");
}
