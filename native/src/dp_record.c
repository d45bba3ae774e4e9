/* dp_record: a moved connection as bytes. Pure. See the header. */
#include "dp_record.h"

#include <string.h>

#include "dp_log.h"

enum {
    BEGIN = 8, /* what all versions begin with */
    FIXED_1 = 28,
    FIXED_2 = 150,
    CLIENT_MAX = 46,
    READ_SHIFT_MAX = 15,     /* the reader bounds it by what its own reads take */
    OVERHEAD_MAX = 8 * 1024, /* of a chunked body, as dp_chunked bounds it */
    STATUS_LAST = 599
};

/* --- one walk for both directions ------------------------------------------------------------- */

/* Goes over a record's fields in their order and, as asked, writes them down or reads them. So what
 * is read is what was written, by construction. */
typedef struct walk {
    uint8_t *to;         /* writing */
    const uint8_t *from; /* reading */
} walk;

static uint64_t number(walk *at, uint64_t value, size_t size)
{
    uint64_t found = 0;
    if (at->to != NULL) {
        for (size_t i = 0; i < size; i++)
            *at->to++ = (uint8_t)(value >> 8 * i);
        return value;
    }
    for (size_t i = 0; i < size; i++)
        found |= (uint64_t)*at->from++ << 8 * i;
    return found;
}

static void walk8(walk *at, uint8_t *value)
{
    *value = (uint8_t)number(at, *value, 1);
}

static void walk16(walk *at, uint16_t *value)
{
    *value = (uint16_t)number(at, *value, 2);
}

static void walk32(walk *at, uint32_t *value)
{
    *value = (uint32_t)number(at, *value, 4);
}

static void walk64(walk *at, uint64_t *value)
{
    *value = number(at, *value, 8);
}

static void walk_length(walk *at, dp_moved_bytes *bytes, size_t size)
{
    bytes->len = (uint32_t)number(at, bytes->len, size);
}

static void walk_bytes(walk *at, dp_moved_bytes *bytes)
{
    if (at->to != NULL) {
        if (bytes->len != 0)
            memcpy(at->to, bytes->data, bytes->len);
        at->to += bytes->len;
        return;
    }
    bytes->data = at->from;
    at->from += bytes->len;
}

/* --- version 1 -------------------------------------------------------------------------------- */

static void fixed_1(walk *at, dp_record *record)
{
    walk_length(at, &record->listener, 1);
    walk_length(at, &record->client, 1);
    walk16(at, &record->client_port);
    walk_length(at, &record->down.in, 4);
    walk32(at, &record->left_ms);
    walk64(at, &record->frozen_us);
}

/* --- version 2 -------------------------------------------------------------------------------- */

static void fixed_2(walk *at, dp_record *record, uint8_t *fds)
{
    walk8(at, fds);
    walk8(at, &record->down.io);
    walk8(at, &record->down.read_shift);
    walk8(at, &record->up.io);
    walk8(at, &record->up.read_shift);
    walk32(at, &record->down.piped);
    walk32(at, &record->up.piped);
    walk32(at, &record->left_ms);
    walk64(at, &record->frozen_us);
    for (size_t i = 0; i < sizeof(record->address); i++)
        walk8(at, &record->address[i]);
    walk16(at, &record->client_port);
    walk64(at, &record->began_us);
    walk64(at, &record->bytes_in);
    walk64(at, &record->bytes_out);
    walk32(at, &record->head_us);
    walk32(at, &record->head_bytes);
    walk16(at, &record->status);
    walk8(at, &record->attempts);
    walk8(at, &record->outcome);
    walk8(at, &record->log_format);
    walk8(at, &record->proxy_protocol);
    walk8(at, &record->framing);
    walk8(at, &record->keep);
    walk8(at, &record->minor);
    walk64(at, &record->body_left);
    walk64(at, &record->chunked.left);
    walk64(at, &record->chunked.total);
    walk32(at, &record->chunked.state);
    walk32(at, &record->chunked.overhead);
    walk_length(at, &record->listener, 2);
    walk_length(at, &record->client, 2);
    walk_length(at, &record->upstream, 2);
    walk_length(at, &record->endpoint, 2);
    walk_length(at, &record->line, 2);
    walk_length(at, &record->down.in, 4);
    walk_length(at, &record->down.out, 4);
    walk_length(at, &record->up.in, 4);
    walk_length(at, &record->up.out, 4);
}

/* The parts of any length, in their order. */
static void parts(walk *at, dp_record *record)
{
    dp_moved_bytes *const all[] = {&record->listener, &record->client, &record->upstream,
                                   &record->endpoint, &record->line,   &record->down.in,
                                   &record->down.out, &record->up.in,  &record->up.out};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        walk_bytes(at, all[i]);
}

static size_t parts_size(const dp_record *record)
{
    return (size_t)record->listener.len + record->client.len + record->upstream.len +
           record->endpoint.len + record->line.len + record->down.in.len + record->down.out.len +
           record->up.in.len + record->up.out.len;
}

/* --- writing ---------------------------------------------------------------------------------- */

uint32_t dp_record_fds(const dp_record *record)
{
    const bool second = (record->flags & DP_MOVED_UPSTREAM) != 0;
    if (record->version == 1)
        return 1;
    return 1u + (record->down.piped != 0 ? 2u : 0u) + (second ? 1u : 0u) +
           (record->up.piped != 0 ? 2u : 0u);
}

size_t dp_record_size(const dp_record *record)
{
    return (record->version == 1 ? (size_t)FIXED_1 : (size_t)FIXED_2) + parts_size(record);
}

void dp_record_write(const dp_record *record, uint8_t *ret_bytes)
{
    dp_record copy = *record;
    walk at = {.to = ret_bytes};
    uint8_t fds = (uint8_t)dp_record_fds(record);
    (void)number(&at, dp_record_size(record), 4);
    walk16(&at, &copy.version);
    walk8(&at, &copy.kind);
    walk8(&at, &copy.flags);
    if (copy.version == 1)
        fixed_1(&at, &copy);
    else
        fixed_2(&at, &copy, &fds);
    parts(&at, &copy);
}

/* --- reading ---------------------------------------------------------------------------------- */

/* It will stand in a field's value, and in a log line. */
static bool is_plain(const dp_moved_bytes *text)
{
    for (uint32_t i = 0; i < text->len; i++)
        if (text->data[i] <= ' ' || text->data[i] >= 0x7f)
            return false;
    return true;
}

/* As dp_log_part wrote it: its first piece's length stands in front. */
static bool is_part(const dp_moved_bytes *line)
{
    return line->len == 0 ||
           (line->len >= 2 && line->len <= DP_LOG_PART_MAX &&
            ((uint32_t)line->data[0] | (uint32_t)line->data[1] << 8) <= line->len - 2);
}

static bool is_side(const dp_moved_side *side)
{
    return (side->io & ~(DP_MOVED_AT_EOF | DP_MOVED_SHUT)) == 0 &&
           side->read_shift <= READ_SHIFT_MAX;
}

static bool is_sound(const dp_record *record)
{
    const bool second = (record->flags & DP_MOVED_UPSTREAM) != 0;
    if (record->client.len > CLIENT_MAX || !is_plain(&record->client))
        return false;
    if (record->version == 1)
        return true;
    const bool alone = record->up.piped == 0 && record->up.in.len == 0 && record->up.out.len == 0;
    return is_side(&record->down) && is_side(&record->up) && (second || alone) &&
           record->endpoint.len <= DP_MOVED_TEXT_MAX && is_part(&record->line) &&
           record->framing <= DP_BODY_CLOSE && record->keep <= DP_CHUNKED_TRAILERS &&
           record->minor <= 1 && record->status <= STATUS_LAST &&
           record->chunked.overhead <= OVERHEAD_MAX;
}

int dp_record_read(const uint8_t *data, size_t len, dp_record *ret_record, size_t *ret_size)
{
    walk at = {.from = data};
    uint8_t fds = 1;
    memset(ret_record, 0, sizeof(*ret_record));
    if (len < BEGIN)
        return DP_EMALFORMED;
    const size_t size = (size_t)number(&at, 0, 4);
    walk16(&at, &ret_record->version);
    walk8(&at, &ret_record->kind);
    walk8(&at, &ret_record->flags);
    if (size > len || size < BEGIN)
        return DP_EMALFORMED;
    if (ret_record->version != 1 && ret_record->version != 2)
        return DP_EVERSION;
    if (size < (ret_record->version == 1 ? (size_t)FIXED_1 : (size_t)FIXED_2))
        return DP_EMALFORMED;
    if (ret_record->version == 1)
        fixed_1(&at, ret_record);
    else
        fixed_2(&at, ret_record, &fds);
    if (size != dp_record_size(ret_record))
        return DP_EMALFORMED;
    parts(&at, ret_record);
    if (fds != dp_record_fds(ret_record) || !is_sound(ret_record))
        return DP_EMALFORMED;
    *ret_size = size;
    return DP_OK;
}
