/* traceparent: which values name a trace. */
#include "dp_trace.c"

#include <string.h>

#include "support.h"

#define ID     "4bf92f3577b34da6a3ce929d0e0e4736"
#define PARENT "00f067aa0ba902b7"

static const struct {
    const char *name;
    const char *value;
    bool valid;
} cases[] = {
    {"as it should be", "00-" ID "-" PARENT "-01", true},
    {"other flags", "00-" ID "-" PARENT "-ff", true},
    {"a later version", "cc-" ID "-" PARENT "-01", true},
    {"a later version with more", "cc-" ID "-" PARENT "-01-what-comes", true},
    {"a later version with more, glued", "cc-" ID "-" PARENT "-01.what", false},
    {"this version with more", "00-" ID "-" PARENT "-01-what", false},
    {"the version that cannot be", "ff-" ID "-" PARENT "-01", false},
    {"upper case", "00-4BF92F3577B34DA6A3CE929D0E0E4736-" PARENT "-01", false},
    {"no digits", "00-4bf92f3577b34da6a3ce929d0e0e473g-" PARENT "-01", false},
    {"no trace", "00-00000000000000000000000000000000-" PARENT "-01", false},
    {"no parent", "00-" ID "-0000000000000000-01", false},
    {"no flags", "00-" ID "-" PARENT "-", false},
    {"flags of one digit", "00-" ID "-" PARENT "-1", false},
    {"flags that are none", "00-" ID "-" PARENT "-0x", false},
    {"no dash", "00_" ID "-" PARENT "-01", false},
    {"no dash behind the trace", "00-" ID "." PARENT "-01", false},
    {"no dash behind the parent", "00-" ID "-" PARENT ".01", false},
    {"a version of one digit", "0-" ID "-" PARENT "-01", false},
    {"nothing", "", false},
};

static void judges_values(void)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const size_t len = strlen(cases[i].value);
        const uint8_t *const value = place_before_guard(cases[i].value, len);
        const uint8_t *const id = dp_trace_id(value, len);
        expect(cases[i].name, (id != NULL) == cases[i].valid && (id == NULL || id == value + 3));
    }
}

static void takes_one_alone(void)
{
    static const char valid[] = "00-" ID "-" PARENT "-01";
    static dp_request_head head;
    const uint8_t *const data = (const uint8_t *)valid;
    const dp_field field = {.value = {.off = 0, .len = sizeof(valid) - 1}, .id = DP_F_TRACEPARENT};
    expect("none", dp_trace_of(data, &head) == NULL);
    head.fields[0] = field;
    head.field_count = 1;
    expect("one", dp_trace_of(data, &head) == data + 3);
    head.fields[1] = field;
    head.field_count = 2;
    expect("two are none", dp_trace_of(data, &head) == NULL);
}

int main(void)
{
    judges_values();
    takes_one_alone();
    return finish("trace");
}
