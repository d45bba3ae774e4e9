/* Records of moved connections: written and read again they are what they were, cut anywhere they
 * are refused, and no byte beyond them is looked at. */
#include "dp_record.h"

#include <stdio.h>
#include <string.h>

#include "support.h"

enum { MOST = 1024 };

#define TEXT(literal) {.data = (const uint8_t *)(literal), .len = sizeof(literal) - 1}

static const dp_record idle = {.version = 1,
                               .kind = DP_MOVED_HTTP,
                               .flags = DP_MOVED_AFTER,
                               .left_ms = 500,
                               .frozen_us = UINT64_C(0x0102030405060708),
                               .listener = TEXT("web"),
                               .client = TEXT("127.0.0.1"),
                               .client_port = 0x1234,
                               .down = {.in = TEXT("GET / HT")}};

static const dp_record tunnel = {
    .version = 2,
    .kind = DP_MOVED_TUNNEL,
    .flags = DP_MOVED_UPSTREAM | DP_MOVED_UPGRADED,
    .left_ms = 1,
    .frozen_us = 2,
    .listener = TEXT("web"),
    .client = TEXT("::1"),
    .address = {[15] = 1},
    .client_port = 65535,
    .upstream = TEXT("api"),
    .endpoint = TEXT("[::1]:80"),
    .line = TEXT("\2\0{}rest"),
    .down = {.io = DP_MOVED_AT_EOF, .read_shift = 4, .piped = 262144, .out = TEXT("\0\1\2")},
    .up = {.io = DP_MOVED_SHUT, .read_shift = 3, .in = TEXT("x")},
    .began_us = 3,
    .bytes_in = UINT64_MAX,
    .bytes_out = 5,
    .head_us = 6,
    .head_bytes = 7,
    .status = 101,
    .attempts = 2,
    .outcome = 1,
    .log_format = DP_LOG_JSON};

static const dp_record response = {.version = 2,
                                   .kind = DP_MOVED_RESPONSE,
                                   .flags = DP_MOVED_UPSTREAM | DP_MOVED_KEEP | DP_MOVED_REUSABLE,
                                   .listener = TEXT("web"),
                                   .client = TEXT("unknown"),
                                   .upstream = TEXT("api"),
                                   .endpoint = TEXT("unix:/s"),
                                   .status = 200,
                                   .proxy_protocol = 2,
                                   .framing = DP_BODY_CHUNKED,
                                   .keep = DP_CHUNKED_TRAILERS,
                                   .minor = 1,
                                   .body_left = 9,
                                   .chunked = {.left = 1, .total = 2, .state = 3, .overhead = 4}};

static bool same(const dp_moved_bytes *one, const dp_moved_bytes *other)
{
    return one->len == other->len &&
           (one->len == 0 || memcmp(one->data, other->data, one->len) == 0);
}

static bool same_side(const dp_moved_side *one, const dp_moved_side *other)
{
    return one->io == other->io && one->read_shift == other->read_shift &&
           one->piped == other->piped && same(&one->in, &other->in) && same(&one->out, &other->out);
}

static bool equal(const dp_record *one, const dp_record *other)
{
    return one->version == other->version && one->kind == other->kind &&
           one->flags == other->flags && one->left_ms == other->left_ms &&
           one->frozen_us == other->frozen_us && same(&one->listener, &other->listener) &&
           same(&one->client, &other->client) &&
           memcmp(one->address, other->address, sizeof(one->address)) == 0 &&
           one->client_port == other->client_port && same(&one->upstream, &other->upstream) &&
           same(&one->endpoint, &other->endpoint) && same(&one->line, &other->line) &&
           same_side(&one->down, &other->down) && same_side(&one->up, &other->up) &&
           one->began_us == other->began_us && one->bytes_in == other->bytes_in &&
           one->bytes_out == other->bytes_out && one->head_us == other->head_us &&
           one->head_bytes == other->head_bytes && one->status == other->status &&
           one->attempts == other->attempts && one->outcome == other->outcome &&
           one->log_format == other->log_format && one->proxy_protocol == other->proxy_protocol &&
           one->framing == other->framing && one->keep == other->keep &&
           one->minor == other->minor && one->body_left == other->body_left &&
           one->chunked.left == other->chunked.left && one->chunked.total == other->chunked.total &&
           one->chunked.state == other->chunked.state &&
           one->chunked.overhead == other->chunked.overhead;
}

static void test_there_and_back(const char *name, const dp_record *record, uint32_t fds)
{
    uint8_t bytes[MOST];
    const size_t size = dp_record_size(record);
    dp_record found;
    size_t found_size = 0;

    memset(bytes, 0xaa, sizeof(bytes));
    expect(name, size < sizeof(bytes));
    dp_record_write(record, bytes);
    expect(name, bytes[size] == 0xaa);
    const uint8_t *const placed = place_before_guard(bytes, size);
    expect(name, dp_record_read(placed, size, &found, &found_size) == DP_OK && found_size == size);
    expect(name, equal(&found, record) && dp_record_fds(&found) == fds);
    for (size_t cut = 0; cut < size; cut++) {
        expect(name, dp_record_read(place_before_guard(bytes, cut), cut, &found, &found_size) ==
                         DP_EMALFORMED);
    }
}

/* What a change at one place of a written record makes of it. */
static void test_change(const char *name, const dp_record *record, size_t at, uint8_t value,
                        int expected)
{
    uint8_t bytes[MOST];
    dp_record found;
    size_t size = dp_record_size(record);

    dp_record_write(record, bytes);
    bytes[at] = value;
    expect(name, dp_record_read(place_before_guard(bytes, size), size, &found, &size) == expected);
}

/* The layout is a contract between versions of the code: it is written down here once more. */
static void test_layout_of_version_1(void)
{
    static const uint8_t expected[] = "\x30\0\0\0\1\0\1\1\3\x09\x34\x12\x08\0\0\0\xf4\1\0\0"
                                      "\x08\7\6\5\4\3\2\1"
                                      "web127.0.0.1GET / HT";
    uint8_t bytes[MOST];

    dp_record_write(&idle, bytes);
    expect("layout of version 1", dp_record_size(&idle) == sizeof(expected) - 1 &&
                                      memcmp(bytes, expected, sizeof(expected) - 1) == 0);
}

static void test_layout_of_version_2(void)
{
    static const uint8_t expected[] = "\xb5\0\0\0\2\0\2\6"
                                      "\4\1\4\2\3\0\0\4\0\0\0\0\0\1\0\0\0\2\0\0\0\0\0\0\0"
                                      "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\xff\xff"
                                      "\3\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"
                                      "\5\0\0\0\0\0\0\0\6\0\0\0\7\0\0\0\x65\0\2\1\1\0"
                                      "\0\0\0\0\0\0\0\0\0\0\0"
                                      "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
                                      "\3\0\3\0\3\0\x08\0\x08\0\0\0\0\0\3\0\0\0\1\0\0\0\0\0\0\0"
                                      "web::1api[::1]:80\2\0{}rest\0\1\2x";
    uint8_t bytes[MOST];

    dp_record_write(&tunnel, bytes);
    expect("size of version 2", dp_record_size(&tunnel) == sizeof(expected) - 1);
    expect("layout of version 2", memcmp(bytes + 4, expected + 4, sizeof(expected) - 5) == 0);
}

int main(void)
{
    test_there_and_back("idle", &idle, 1);
    test_there_and_back("tunnel", &tunnel, 4);
    test_there_and_back("response", &response, 2);
    test_layout_of_version_1();
    test_layout_of_version_2();
    test_change("a later version", &tunnel, 4, 3, DP_EVERSION);
    test_change("version 0", &tunnel, 4, 0, DP_EVERSION);
    test_change("a later kind is for others to judge", &response, 6, 9, DP_OK);
    test_change("one descriptor less", &tunnel, 8, 3, DP_EMALFORMED);
    test_change("no second socket, but bytes for it", &tunnel, 7, 0, DP_EMALFORMED);
    test_change("an unknown bit of a side", &tunnel, 9, 4, DP_EMALFORMED);
    test_change("reads larger than a buffer", &tunnel, 10, 16, DP_EMALFORMED);
    test_change("a status of four digits", &response, 84, 4, DP_EMALFORMED);
    test_change("a framing that is none", &response, 89, 4, DP_EMALFORMED);
    test_change("trailers that are none", &response, 90, 3, DP_EMALFORMED);
    test_change("another HTTP", &response, 91, 2, DP_EMALFORMED);
    test_change("more overhead than a body may have", &response, 122, 1, DP_EMALFORMED);
    test_change("a client that breaks a line", &idle, 31, '\n', DP_EMALFORMED);
    test_change("a line's part longer than the line", &tunnel, 167, 7, DP_EMALFORMED);
    return finish("record");
}
