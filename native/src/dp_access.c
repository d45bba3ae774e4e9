/* dp_access: access log lines on their way from an exchange's end to the log writer's pipe. I/O:
 * the pipe alone, which never makes a turn wait.
 *
 * Lines are gathered in blocks that the kernel takes whole or not at all (pipe(7), PIPE_BUF): so
 * lines of several workers never mix in one pipe, and a killed worker leaves no half of one. What
 * a full pipe does not take waits here, and what there is no room for is dropped and counted. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "dp_core.h"
#include "dp_log.h"

_Static_assert(DP_LOG_LINE_MAX <= PIPE_BUF, "a line goes into a pipe whole");

enum {
    BLOCKS = 128, /* that wait for the pipe; 512 KiB, of which only what is used takes memory */
    IMAGE_MAX = 12
};

typedef struct block {
    uint32_t len;
    uint32_t lines;
} block;

struct dp_access {
    int format;
    int fd;
    char app[DP_NAME_MAX + 1];
    char image[IMAGE_MAX + 1];
    dp_log_origin origin;
    dp_log_clock clock;
    uint64_t offset_us; /* from the monotonic clock to the time of day */
    uint64_t offset_at; /* the second when that was looked at */
    uint32_t first;     /* block that is written next */
    uint32_t count;     /* blocks in use; the last one is being filled */
    block blocks[BLOCKS];
    uint8_t data[BLOCKS][DP_LOG_LINE_MAX];
};

/* --- building --------------------------------------------------------------------------------- */

static dp_log_text text_of(const char *text)
{
    return (dp_log_text){.data = (const uint8_t *)text, .len = strlen(text)};
}

int dp_engine_log(dp_engine *engine, int format, int fd, const char *app, uint32_t generation,
                  const char *image)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed || engine->access != NULL)
        return DP_ESTATE;
    if ((format != DP_LOG_JSON && format != DP_LOG_COMBINED) || fd < 0 ||
        strlen(app) > DP_NAME_MAX || strlen(image) > IMAGE_MAX)
        return DP_EINVAL;
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || ((flags & O_NONBLOCK) == 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0))
        return DP_ESYSTEM;
    dp_access *access = calloc(1, sizeof(*access));
    if (access == NULL)
        return DP_ENOMEM;
    access->format = format;
    access->fd = fd;
    memcpy(access->app, app, strlen(app));
    memcpy(access->image, image, strlen(image));
    access->origin = (dp_log_origin){
        .app = text_of(access->app), .image = text_of(access->image), .generation = generation};
    engine->access = access;
    /* What an earlier process of this slot had not written is lost with it. */
    engine->stats->log_dropped_total += engine->stats->log_pending;
    engine->stats->log_pending = 0;
    return DP_OK;
}

int dp_access_format(const dp_engine *engine)
{
    return engine->access != NULL ? engine->access->format : DP_LOG_NONE;
}

void dp_access_done(dp_engine *engine)
{
    if (engine->access == NULL)
        return;
    dp_access_flush(engine);
    free(engine->access);
    engine->access = NULL;
}

/* --- a request's part ------------------------------------------------------------------------- */

static dp_log_text text_at(const uint8_t *data, dp_span span)
{
    return (dp_log_text){.data = data + span.off, .len = span.len};
}

static void take_fields(dp_log_request *request, const uint8_t *data, const dp_request_head *head)
{
    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        if (field->id != DP_F_OTHER)
            continue;
        const uint8_t *name = data + field->name.off;
        if (field->name.len == 10 && dp_equal_fold(name, (const uint8_t *)"user-agent", 10))
            request->user_agent = text_at(data, field->value);
        else if (field->name.len == 7 && dp_equal_fold(name, (const uint8_t *)"referer", 7))
            request->referer = text_at(data, field->value);
    }
}

void dp_access_begin(dp_engine *engine, dp_conn *down, const uint8_t *data)
{
    dp_account *account = &down->exchange->account;
    dp_log_request request = {.protocol = NULL};
    uint8_t part[DP_LOG_PART_MAX];
    char own_id[DP_REQUEST_ID_LEN];
    dp_request_id(engine, own_id);
    request.request_id = (dp_log_text){.data = (uint8_t *)own_id, .len = sizeof(own_id)};
    if (data != NULL) {
        const dp_request_head *head = &engine->request;
        request.method = text_at(data, head->method_span);
        if (head->host.len != 0)
            request.host = text_at(data, head->host);
        request.path = head->path.len != 0 ? text_at(data, head->path) : text_of("/");
        request.query = text_at(data, head->query);
        request.protocol = head->minor == 0 ? "HTTP/1.0" : "HTTP/1.1";
        request.trace_id.data = dp_trace_of(data, head);
        request.trace_id.len = request.trace_id.data != NULL ? 32 : 0;
        const dp_field *id = dp_head_request_id(data, head);
        if (id != NULL)
            request.request_id = text_at(data, id->value);
        take_fields(&request, data, head);
    }
    size_t len = dp_log_part(engine->access->format, &request, part);
    /* Beyond the engine's memory the line has to do without. */
    if (dp_buffer_append(engine, &account->line, part, len) != DP_OK)
        dp_buffer_free(engine, &account->line);
}

/* --- lines ------------------------------------------------------------------------------------ */

static uint64_t wall_us(dp_access *access, uint64_t now_us)
{
    if (now_us / 1000000 != access->offset_at) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        access->offset_us =
            (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u - dp_clock_us();
        access->offset_at = now_us / 1000000;
    }
    return now_us + access->offset_us;
}

static block *last_block(dp_access *access)
{
    return &access->blocks[(access->first + access->count - 1) % BLOCKS];
}

static uint8_t *block_data(dp_access *access, const block *of)
{
    return access->data[of - access->blocks];
}

static void append(dp_engine *engine, const uint8_t *line, size_t len)
{
    dp_access *access = engine->access;
    engine->stats->log_lines_total++;
    if (access->count == 0 || last_block(access)->len + len > DP_LOG_LINE_MAX) {
        if (access->count == BLOCKS)
            dp_access_flush(engine);
        if (access->count == BLOCKS) {
            engine->stats->log_dropped_total++;
            return;
        }
        access->count++;
        *last_block(access) = (block){0};
    }
    block *into = last_block(access);
    memcpy(block_data(access, into) + into->len, line, len);
    into->len += (uint32_t)len;
    into->lines++;
    engine->stats->log_pending++;
}

void dp_access_line(dp_engine *engine, dp_conn *down, uint64_t now_us)
{
    dp_access *access = engine->access;
    const dp_exchange *exchange = down->exchange;
    dp_account *account = &down->exchange->account;
    uint8_t line[DP_LOG_LINE_MAX];
    uint8_t part[DP_LOG_PART_MAX];
    char client[DP_CLIENT_TEXT];
    const size_t client_len = dp_client_text(down, client);
    const uint8_t *known = account->line.data + account->line.off;
    size_t known_len = account->line.len;
    if (known_len == 0) {
        dp_log_request request = {.protocol = down->protocol == DP_TCP ? "tcp" : NULL};
        known_len = dp_log_part(access->format, &request, part);
        known = part;
    }
    dp_log_end end = {
        .wall_us = wall_us(access, now_us),
        .client = {.data = (const uint8_t *)client, .len = (uint32_t)client_len},
        .status = account->status,
        .bytes_in = account->bytes_in,
        .bytes_out = account->bytes_out,
        .body_out =
            account->bytes_out > account->head_bytes ? account->bytes_out - account->head_bytes : 0,
        .duration_us = now_us - account->began_us,
        .upstream_us = account->head_us,
        .retries = account->attempts > 1 ? account->attempts - 1u : 0,
        .outcome = dp_outcome_word(account->outcome),
    };
    int upstream = down->protocol == DP_TCP  ? exchange->upstream
                   : exchange->route != NULL ? exchange->route->upstream
                   : account->endpoint != 0  ? engine->pools[account->endpoint - 1].upstream
                                             : -1; /* it was moved here without its route */
    if (upstream >= 0)
        end.upstream = text_of(engine->tables.upstreams[upstream].name);
    if (account->endpoint != 0) {
        const dp_endpoint *endpoint = engine->pools[account->endpoint - 1].endpoint;
        end.endpoint =
            (dp_log_text){.data = (const uint8_t *)endpoint->name, .len = endpoint->name_len};
    }
    size_t len =
        dp_log_line(access->format, &access->origin, &end, known, known_len, &access->clock, line);
    dp_buffer_free(engine, &account->line);
    append(engine, line, len);
}

void dp_access_flush(dp_engine *engine)
{
    dp_access *access = engine->access;
    while (access != NULL && access->count != 0) {
        block *out = &access->blocks[access->first];
        uint8_t *data = block_data(access, out);
        ssize_t put = write(access->fd, data, out->len);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (put > 0 && (size_t)put < out->len) { /* no pipe, then */
            memmove(data, data + put, out->len - (size_t)put);
            out->len -= (uint32_t)put;
            continue;
        }
        if (put <= 0) /* nobody will ever read it */
            engine->stats->log_dropped_total += out->lines;
        engine->stats->log_pending -= out->lines;
        access->first = (access->first + 1) % BLOCKS;
        access->count--;
    }
}
