/* Whatever bytes come and however they are split, a request head gets one verdict, nothing outside
 * it is read, and one that is taken means the same when written anew from what was found. */
#include <strings.h>

#include "heads.h"

static void check_target(const uint8_t *data, const dp_request_head *head)
{
    hold(head->path.len > 0, "there is a path");
    hold(data[head->path.off] == '/' || head->path.len == 1, "it starts with a slash or is *");
    for (uint32_t i = 0; i < head->target.len; i++) {
        const uint8_t byte = data[head->target.off + i];
        hold(byte > ' ' && byte < 0x7f && byte != '#', "a target has no space, control or #");
    }
    hold(memchr(data + head->path.off, '?', head->path.len) == NULL, "a path has no query");
    hold(head->query.len == 0 || data[head->query.off] == '?', "a query starts with ?");
    hold(head->host_name.len <= head->host.len, "a name is no longer than its host");
    hold(head->host_name.len > 0 || head->minor == 0, "HTTP/1.1 has a host");
    for (uint32_t i = 0; i < head->host.len; i++) {
        hold(strchr("/\\@?#, %", data[head->host.off + i]) == NULL, "a host is only that");
    }
}

static void check_framing(const uint8_t *data, const dp_request_head *head)
{
    unsigned lengths = 0;
    unsigned codings = 0;

    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_span name = head->fields[i].name;
        if (name.len == 14 &&
            strncasecmp((const char *)data + name.off, "content-length", 14) == 0) {
            lengths++;
        }
        if (name.len == 17 &&
            strncasecmp((const char *)data + name.off, "transfer-encoding", 17) == 0) {
            codings++;
        }
    }
    hold(lengths + codings <= 1, "one field frames, at most");
    hold(head->framing == (codings != 0   ? DP_BODY_CHUNKED
                           : lengths != 0 ? DP_BODY_LENGTH
                                          : DP_BODY_NONE),
         "the framing is that field's");
    hold(head->framing != DP_BODY_CHUNKED || head->minor == 1, "no coding in HTTP/1.0");
    hold(head->content_length <= INT64_MAX, "a length has 63 bits");
}

/* Written anew with all fields, it says the same. */
static void check_rewritten(const uint8_t *data, const dp_request_head *head)
{
    static dp_request_head again;
    static uint8_t anew[REWRITTEN_MAX];
    uint32_t scanned = 0;
    uint32_t len = 0;
    size_t at = put(anew, 0, data + head->method_span.off, head->method_span.len);

    at = put(anew, at, " ", 1);
    at = put(anew, at, data + head->target.off, head->target.len);
    at = put(anew, at, head->minor == 1 ? " HTTP/1.1\r\n" : " HTTP/1.0\r\n", 11);
    at = put_fields(anew, at, data, head->fields, head->field_count, true);
    hold(dp_head_end(anew, at, &REWRITTEN_LIMITS, &scanned, &len) == DP_OK && len == at,
         "written anew it is a head");
    hold(dp_request_parse(anew, at, &REWRITTEN_LIMITS, &again) == DP_OK,
         "written anew it is taken");
    hold(again.method == head->method && again.minor == head->minor &&
             again.framing == head->framing && again.content_length == head->content_length &&
             again.keep_alive == head->keep_alive &&
             again.expects_continue == head->expects_continue &&
             again.has_upgrade == head->has_upgrade && again.field_count == head->field_count,
         "written anew it means the same");
    hold(same_bytes(data, head->path, anew, again.path) &&
             same_bytes(data, head->query, anew, again.query) &&
             same_bytes(data, head->host, anew, again.host) &&
             same_bytes(data, head->host_name, anew, again.host_name),
         "written anew it goes to the same place");
    for (uint32_t i = 0; i < head->field_count; i++) {
        hold(again.fields[i].id == head->fields[i].id &&
                 again.fields[i].flags == head->fields[i].flags &&
                 same_bytes(data, head->fields[i].value, anew, again.fields[i].value),
             "written anew its fields are the same");
    }
}

static bool is_dots(const uint8_t *at, size_t len)
{
    return (len == 1 && at[0] == '.') || (len == 2 && at[0] == '.' && at[1] == '.');
}

/* The path in its one form: stable, and without a way up. */
static void check_path(const uint8_t *data, size_t len, const dp_request_head *head)
{
    static uint8_t copy[2048];
    static dp_request_head same;
    size_t again = 0;

    memcpy(copy, data, len);
    same = *head;
    if (dp_request_normalise(copy, &same) != DP_OK) {
        return;
    }
    const uint8_t *const path = copy + same.path.off;
    hold(same.path.len > 0 && same.path.len <= head->path.len, "a form is no longer");
    hold(path[0] == '/' || same.path.len == 1, "a form starts with a slash or is *");
    for (size_t from = 0, at = 0; at <= same.path.len; at++) {
        if (at == same.path.len || path[at] == '/') {
            hold(!is_dots(path + from, at - from), "a form has no dot segment");
            from = at + 1;
        }
    }
    if (path[0] == '/') {
        uint8_t *const once = malloc(same.path.len);
        if (once == NULL) {
            return;
        }
        memcpy(once, path, same.path.len);
        hold(dp_path_normalise(once, same.path.len, &again) == DP_OK && again == same.path.len &&
                 memcmp(once, path, again) == 0,
             "a form is its own form");
        free(once);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static dp_request_head head;
    uint32_t len = 0;
    int result = dp_request_parse(data, size, &FUZZ_LIMITS, &head); /* must stand anything */

    hold(result <= DP_OK, "a parse ends with a verdict");
    if (settled_head_end(data, size, &len) != DP_OK) {
        hold(result != DP_OK, "no head without an end");
        return 0;
    }
    hold(result != DP_OK || len == size, "no head with something after it");
    result = dp_request_parse(data, len, &FUZZ_LIMITS, &head);
    if (result != DP_OK) {
        return 0;
    }
    hold(head.head_len == len, "a head is taken whole");
    hold(inside(head.method_span, len) && inside(head.target, len) && inside(head.host, len) &&
             inside(head.host_name, len) && inside(head.path, len) && inside(head.query, len),
         "all that was found lies in the head");
    check_fields(data, len, head.fields, head.field_count);
    check_target(data, &head);
    check_framing(data, &head);
    check_rewritten(data, &head);
    check_path(data, len, &head);
    return 0;
}
