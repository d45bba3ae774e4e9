/* Whatever bytes come and however they are split, a response head gets one verdict, nothing outside
 * it is read, and one that is taken means the same when written anew from what was found. */
#include "heads.h"

static void check_framing(const dp_response_head *head, bool to_head)
{
    const bool bodiless =
        to_head || head->status < 200 || head->status == 204 || head->status == 304;

    hold(head->status >= 100 && head->status <= 599, "a status has a class");
    hold(bodiless == (head->framing == DP_BODY_NONE), "a body comes where it may");
    hold(head->framing != DP_BODY_CLOSE || !head->keep_alive, "a close ends the connection");
    hold(head->framing != DP_BODY_CHUNKED || head->minor == 1, "no coding in HTTP/1.0");
    hold(head->framing != DP_BODY_LENGTH || head->content_length <= INT64_MAX,
         "a length is told and has 63 bits");
}

static void check_rewritten(const uint8_t *data, const dp_response_head *head, bool to_head)
{
    static dp_response_head again;
    static uint8_t anew[REWRITTEN_MAX];
    uint32_t scanned = 0;
    uint32_t len = 0;
    char line[32];
    const int line_len = snprintf(line, sizeof(line), "HTTP/1.%u %u ", head->minor, head->status);
    size_t at = put(anew, 0, line, (size_t)line_len);

    at = put(anew, at, data + head->reason.off, head->reason.len);
    at = put(anew, at, "\r\n", 2);
    at = put_fields(anew, at, data, head->fields, head->field_count, true);
    hold(dp_head_end(anew, at, &REWRITTEN_LIMITS, &scanned, &len) == DP_OK && len == at,
         "written anew it is a head");
    hold(dp_response_parse(anew, at, &REWRITTEN_LIMITS, to_head, &again) == DP_OK,
         "written anew it is taken");
    hold(again.status == head->status && again.minor == head->minor &&
             again.framing == head->framing && again.content_length == head->content_length &&
             again.keep_alive == head->keep_alive && again.field_count == head->field_count,
         "written anew it means the same");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static dp_response_head head;
    uint32_t len = 0;
    int result = dp_response_parse(data, size, &FUZZ_LIMITS, 0, &head); /* must stand anything */

    hold(result <= DP_OK, "a parse ends with a verdict");
    if (settled_head_end(data, size, &len) != DP_OK) {
        hold(result != DP_OK, "no head without an end");
        return 0;
    }
    hold(result != DP_OK || len == size, "no head with something after it");
    for (int to_head = 0; to_head < 2; to_head++) {
        result = dp_response_parse(data, len, &FUZZ_LIMITS, to_head, &head);
        if (result != DP_OK) {
            continue;
        }
        hold(head.head_len == len, "a head is taken whole");
        hold(inside(head.reason, len), "the reason lies in the head");
        check_fields(data, len, head.fields, head.field_count);
        check_framing(&head, to_head != 0);
        check_rewritten(data, &head, to_head != 0);
    }
    return 0;
}
