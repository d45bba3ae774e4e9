/* dp_trace: the fields of W3C Trace Context (https://www.w3.org/TR/trace-context/). Pure. */
#include "dp_core.h"

enum {
    ID_AT = 3, /* version, '-', trace id, '-', parent id, '-', flags */
    ID_LEN = 32,
    PARENT_AT = 36,
    PARENT_LEN = 16,
    FLAGS_AT = 53,
    VALUE_LEN = 55
};

static bool is_hex(const uint8_t *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!((text[i] >= '0' && text[i] <= '9') || (text[i] >= 'a' && text[i] <= 'f')))
            return false;
    return true;
}

static bool is_zero(const uint8_t *text, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (text[i] != '0')
            return false;
    return true;
}

const uint8_t *dp_trace_id(const uint8_t *value, size_t len)
{
    if (len < VALUE_LEN || !is_hex(value, 2) || (value[0] == 'f' && value[1] == 'f'))
        return NULL;
    /* A later version may go on behind a '-'; the first one may not. */
    if (len > VALUE_LEN && (is_zero(value, 2) || value[VALUE_LEN] != '-'))
        return NULL;
    if (value[2] != '-' || value[ID_AT + ID_LEN] != '-' || value[PARENT_AT + PARENT_LEN] != '-')
        return NULL;
    if (!is_hex(value + ID_AT, ID_LEN) || !is_hex(value + PARENT_AT, PARENT_LEN) ||
        !is_hex(value + FLAGS_AT, 2))
        return NULL;
    if (is_zero(value + ID_AT, ID_LEN) || is_zero(value + PARENT_AT, PARENT_LEN))
        return NULL;
    return value + ID_AT;
}

const uint8_t *dp_trace_of(const uint8_t *data, const dp_request_head *head)
{
    const uint8_t *id = NULL;
    uint32_t count = 0;
    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        if (field->id == DP_F_TRACEPARENT && count++ == 0)
            id = dp_trace_id(data + field->value.off, field->value.len);
    }
    return count == 1 ? id : NULL;
}
