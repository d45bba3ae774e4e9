/* lines: is it a line of an access log? A reader of its own, for the tests and the fuzz target. */
#ifndef LINES_H
#define LINES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline const uint8_t *json_string(const uint8_t *at, const uint8_t *end)
{
    if (at >= end || *at++ != '"')
        return NULL;
    while (at < end && *at != '"') {
        if (*at < ' ' || *at > '~')
            return NULL;
        if (*at != '\\') {
            at++;
        } else if (end - at >= 2 && (at[1] == '"' || at[1] == '\\')) {
            at += 2;
        } else if (end - at >= 6 && memcmp(at, "\\u00", 4) == 0) {
            for (int i = 4; i < 6; i++)
                if (strchr("0123456789abcdef", at[i]) == NULL || at[i] == 0)
                    return NULL;
            at += 6;
        } else {
            return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

static inline const uint8_t *json_number(const uint8_t *at, const uint8_t *end)
{
    const uint8_t *const begin = at;
    while (at < end && *at >= '0' && *at <= '9')
        at++;
    if (at == begin || (*begin == '0' && at - begin > 1))
        return NULL;
    if (at < end && *at == '.')
        for (at++; at < end && *at >= '0' && *at <= '9';)
            at++;
    return at;
}

/* The fields of a JSON line, in order: s a string, n a number, S and N may be null. */
static const struct {
    const char *name;
    char kind;
} line_fields[] = {
    {"time", 's'},        {"app", 's'},        {"generation", 'n'}, {"image", 's'},
    {"client", 's'},      {"method", 'S'},     {"host", 'S'},       {"path", 'S'},
    {"protocol", 'S'},    {"status", 'N'},     {"bytes_in", 'n'},   {"bytes_out", 'n'},
    {"duration_ms", 'n'}, {"upstream", 'S'},   {"endpoint", 'S'},   {"upstream_ms", 'N'},
    {"retries", 'n'},     {"request_id", 'S'}, {"trace_id", 'S'},   {"user_agent", 'S'},
    {"referer", 'S'},     {"outcome", 's'},
};

/* One object with all the fields of the contract, in its order, and a line's end. */
static inline bool is_json_line(const uint8_t *line, size_t len)
{
    const uint8_t *at = line;
    const uint8_t *const end = line + len;
    for (size_t i = 0; i < sizeof(line_fields) / sizeof(line_fields[0]); i++) {
        const size_t name = strlen(line_fields[i].name);
        const bool is_text = line_fields[i].kind == 's' || line_fields[i].kind == 'S';
        if (end - at < (ptrdiff_t)name + 8 || *at != (i == 0 ? '{' : ',') || at[1] != '"' ||
            memcmp(at + 2, line_fields[i].name, name) != 0 || at[name + 2] != '"' ||
            at[name + 3] != ':')
            return false;
        at += name + 4;
        if (line_fields[i].kind < 'a' && memcmp(at, "null", 4) == 0)
            at += 4;
        else
            at = is_text ? json_string(at, end) : json_number(at, end);
        if (at == NULL)
            return false;
    }
    return end - at == 2 && at[0] == '}' && at[1] == '\n';
}

/* Printable, with one line's end, and nothing in quotes that ends them early. */
static inline bool is_combined_line(const uint8_t *line, size_t len)
{
    size_t quotes = 0;
    if (len == 0 || line[len - 1] != '\n')
        return false;
    for (size_t i = 0; i + 1 < len; i++) {
        if (line[i] < ' ' || line[i] > '~')
            return false;
        if (line[i] == '\\')
            i++;
        else
            quotes += line[i] == '"';
    }
    return quotes == 6;
}

#endif
