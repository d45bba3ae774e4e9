/* dp_build: an engine from nothing: its memory and descriptors, its tables from the builder's
 * calls, and the seal that makes them read-only. I/O: epoll and timer descriptors alone. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "dp_core.h"

enum {
    ARENA_SIZE = 64 << 20, /* address space; only what is used takes memory */
    SYS_MSEAL = 462,
    HEAD_SLACK = 32 * 1024 /* what our own fields may add to a head */
};

/* --- arena ------------------------------------------------------------------------------------ */

void *dp_arena_take(dp_arena *arena, size_t size)
{
    size_t aligned = (size + 15) & ~(size_t)15;
    if (aligned < size || aligned > arena->size - arena->used)
        return NULL;
    void *at = arena->base + arena->used;
    arena->used += aligned;
    return at;
}

char *dp_arena_text(dp_arena *arena, const char *text, size_t len)
{
    char *copy = dp_arena_take(arena, len + 1);
    if (copy != NULL && len != 0)
        memcpy(copy, text, len);
    return copy;
}

static int text_copy(dp_engine *engine, const char *text, size_t len, dp_text *ret_text)
{
    char *copy = dp_arena_text(&engine->arena, text, len);
    if (copy == NULL)
        return DP_ENOMEM;
    *ret_text = (dp_text){.data = copy, .len = (uint32_t)len};
    return DP_OK;
}

/* --- facts ------------------------------------------------------------------------------------ */

uint32_t dp_abi(void)
{
    return DP_ABI;
}

const char *dp_result_text(int result)
{
    switch (result) {
    case DP_OK:
        return "ok";
    case DP_NEED_MORE:
        return "more bytes are needed";
    case DP_EMALFORMED:
        return "malformed";
    case DP_ETOOBIG:
        return "beyond a limit";
    case DP_ENOMEM:
        return "out of memory";
    case DP_ESTATE:
        return "not in this state";
    case DP_EINVAL:
        return "bad argument";
    case DP_ESYSTEM:
        return "a system call failed";
    case DP_EVERSION:
        return "unknown version";
    case DP_ETARGET:
        return "the request target is too long";
    case DP_ECODING:
        return "unknown transfer coding";
    case DP_EEXPECT:
        return "unknown expectation";
    case DP_EGONE:
        return "not here any more";
    case DP_EMETHOD:
        return "method not served";
    default:
        return "unknown result";
    }
}

/* --- building --------------------------------------------------------------------------------- */

static bool options_are_sound(const dp_engine_options *options)
{
    return options->max_headers >= 1 && options->max_headers <= DP_MAX_FIELDS &&
           options->max_header_bytes >= 1024 && options->max_header_bytes <= DP_READ_MAX &&
           options->transport <= DP_TRANSPORT_TRICKLE;
}

static int make_memory(dp_engine *engine)
{
    void *arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        return DP_ENOMEM;
    engine->arena = (dp_arena){.base = arena, .size = ARENA_SIZE};
    void *buffer = mmap(NULL, DP_READ_MAX, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (buffer == MAP_FAILED)
        return DP_ENOMEM;
    engine->read_buffer = buffer;
    dp_tables *tables = &engine->tables;
    tables->listeners = dp_arena_take(&engine->arena, DP_LISTENERS_MAX * sizeof(dp_listener));
    tables->upstreams = dp_arena_take(&engine->arena, DP_UPSTREAMS_MAX * sizeof(dp_upstream));
    tables->routes = dp_arena_take(&engine->arena, DP_ROUTES_MAX * sizeof(dp_route *));
    tables->by_order = dp_arena_take(&engine->arena, DP_ROUTES_MAX * sizeof(dp_route *));
    return DP_OK;
}

static int make_descriptors(dp_engine *engine)
{
    engine->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    engine->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (engine->epoll_fd < 0 || engine->timer_fd < 0)
        return DP_ESYSTEM;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)DP_KEY_TIMER << 56};
    if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, engine->timer_fd, &event) != 0)
        return DP_ESYSTEM;
    return DP_OK;
}

int dp_engine_new(const dp_engine_options *options, dp_stats *stats, dp_engine **ret_engine)
{
    if (!options_are_sound(options))
        return DP_EINVAL;
    dp_engine *engine = calloc(1, sizeof(*engine));
    if (engine == NULL)
        return DP_ENOMEM;
    engine->magic = DP_ENGINE_MAGIC;
    engine->options = *options;
    engine->epoll_fd = -1;
    engine->timer_fd = -1;
    engine->transport =
        options->transport == DP_TRANSPORT_TRICKLE ? &dp_transport_trickle : &dp_transport_plain;
    engine->stats = stats != NULL ? stats : &engine->own_stats;
    engine->ended_as = &engine->drained.finished;
    engine->now_ms = dp_clock_ms();
    engine->wheel_tick = engine->now_ms / DP_WHEEL_MS;
    engine->next_timer = UINT64_MAX;
    engine->look_ms = UINT64_MAX;
    engine->room_ms = UINT64_MAX;
    int result = make_memory(engine);
    if (result == DP_OK)
        result = make_descriptors(engine);
    if (result != DP_OK) {
        dp_engine_free(engine);
        return result;
    }
    /* Gauges are this process's; counters go on. */
    engine->stats->magic = DP_STATS_MAGIC;
    engine->stats->version = DP_STATS_VERSION;
    engine->stats->connections = 0;
    engine->stats->requests_active = 0;
    engine->stats->upstream_connections = 0;
    engine->stats->upstream_idle = 0;
    engine->stats->buffer_bytes = 0;
    engine->stats->tunnels = 0;
    engine->stats->waiting = 0;
    engine->stats->pipes = 0;
    *ret_engine = engine;
    return DP_OK;
}

static void free_connections(dp_engine *engine)
{
    for (uint32_t i = 0; i < engine->chunk_count; i++) {
        dp_conn *chunk = engine->chunks[i];
        for (uint32_t j = 0; j < DP_CHUNK; j++) {
            dp_conn *conn = &chunk[j];
            if (conn->magic == DP_CONN_MAGIC && conn->state != DP_S_DEAD) {
                (void)close(conn->fd);
                dp_buffer_free(engine, &conn->in);
                dp_conn_drop_unsent(engine, conn);
                dp_exchange_close(engine, conn);
            }
        }
        free(chunk);
    }
    free(engine->chunks);
    for (uint32_t i = 0; i < engine->exchange_chunk_count; i++)
        free(engine->exchange_chunks[i]);
    free(engine->exchange_chunks);
}

void dp_engine_free(dp_engine *engine)
{
    if (engine == NULL)
        return;
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    (void)dp_engine_pause(engine);
    dp_access_done(engine);
    engine->stats = &engine->own_stats; /* the caller's page may be gone already */
    free_connections(engine);
    dp_buffers_trim(engine, true);
    dp_pipes_trim(engine, true);
    if (engine->epoll_fd >= 0)
        (void)close(engine->epoll_fd);
    if (engine->timer_fd >= 0)
        (void)close(engine->timer_fd);
    if (engine->read_buffer != NULL)
        (void)munmap(engine->read_buffer, DP_READ_MAX);
    /* Where mseal took hold this fails, and the process's end does it. */
    if (engine->arena.base != NULL)
        (void)munmap(engine->arena.base, ARENA_SIZE);
    free(engine->head_buffer);
    free(engine->pools);
    dp_view_free(engine);
    dp_meter_done(engine);
    dp_limit_free(engine);
    engine->magic = 0;
    free(engine);
}

static int check_name(const char *name)
{
    size_t len = strlen(name);
    return len >= 1 && len <= DP_NAME_MAX ? DP_OK : DP_EINVAL;
}

int dp_listener_add(dp_engine *engine, const char *name, int protocol, int upstream)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    bool upstream_ok = protocol == DP_HTTP
                           ? upstream < 0
                           : upstream >= 0 && (uint32_t)upstream < engine->tables.upstream_count;
    if (check_name(name) != DP_OK || (protocol != DP_HTTP && protocol != DP_TCP) || !upstream_ok)
        return DP_EINVAL;
    if (engine->tables.listener_count == DP_LISTENERS_MAX)
        return DP_ETOOBIG;
    dp_listener *listener = &engine->tables.listeners[engine->tables.listener_count];
    memcpy(listener->name, name, strlen(name) + 1);
    listener->protocol = protocol;
    listener->upstream = upstream;
    return (int)engine->tables.listener_count++;
}

static dp_listener *listener_at(dp_engine *engine, int index)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed || index < 0 || (uint32_t)index >= engine->tables.listener_count)
        return NULL;
    return &engine->tables.listeners[index];
}

int dp_listener_expect_proxy(dp_engine *engine, int index)
{
    dp_listener *listener = listener_at(engine, index);
    if (listener == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    listener->expects_proxy = true;
    return DP_OK;
}

int dp_listener_trust(dp_engine *engine, int index, const char *address, uint32_t bits)
{
    dp_listener *listener = listener_at(engine, index);
    if (listener == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    if (listener->trusted == NULL)
        listener->trusted = dp_arena_take(&engine->arena, DP_TRUSTED_MAX * sizeof(dp_network));
    if (listener->trusted == NULL)
        return DP_ENOMEM;
    if (listener->trusted_count == DP_TRUSTED_MAX)
        return DP_ETOOBIG;
    if (!dp_network_make(address, bits, &listener->trusted[listener->trusted_count]))
        return DP_EINVAL;
    listener->trusted_count++;
    return DP_OK;
}

/* In the form that requests' paths are brought into, or it would never match. */
static int path_copy(dp_engine *engine, const char *path, dp_text *ret_text)
{
    size_t len = strlen(path);
    char *copy = dp_arena_text(&engine->arena, path, len);
    if (copy == NULL)
        return DP_ENOMEM;
    if (dp_path_normalise((uint8_t *)copy, len, &len) != DP_OK)
        return DP_EINVAL;
    *ret_text = (dp_text){.data = copy, .len = (uint32_t)len};
    return DP_OK;
}

static int route_texts(dp_engine *engine, const dp_route_options *options, dp_route *route)
{
    int result = DP_OK;
    if (options->host != NULL) {
        const char *host = options->host;
        route->wildcard_host = host[0] == '*';
        host += route->wildcard_host; /* "*.example.com" is kept as ".example.com" */
        if (host[0] == '\0' || (route->wildcard_host && host[0] != '.'))
            return DP_EINVAL;
        result = text_copy(engine, host, strlen(host), &route->host);
    }
    if (result == DP_OK && options->path != NULL) {
        result = path_copy(engine, options->path, &route->path);
        if (result == DP_OK)
            route->prefix_path = route->path.data[route->path.len - 1] == '/';
    }
    if (result == DP_OK && options->location != NULL)
        result = text_copy(engine, options->location, strlen(options->location), &route->location);
    if (result == DP_OK && options->body_len != 0)
        result = text_copy(engine, (const char *)options->body, options->body_len, &route->body);
    return result;
}

int dp_route_add(dp_engine *engine, const dp_route_options *options)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    if (options->upstream >= 0 ? (uint32_t)options->upstream >= engine->tables.upstream_count ||
                                     options->request_timeout_ms == 0
                               : options->status < 200 || options->status > 599)
        return DP_EINVAL;
    dp_tables *tables = &engine->tables;
    if (tables->route_count == DP_ROUTES_MAX)
        return DP_ETOOBIG;
    dp_route *route = dp_arena_take(&engine->arena, sizeof(*route));
    if (route == NULL)
        return DP_ENOMEM;
    route->any_host = options->host == NULL;
    route->any_path = options->path == NULL;
    route->methods = options->methods;
    route->upstream = options->upstream;
    route->request_timeout_ms = options->request_timeout_ms;
    route->status = options->status;
    route->order = tables->route_count;
    int result = route_texts(engine, options, route);
    if (result != DP_OK)
        return result;
    tables->routes[tables->route_count] = route;
    tables->by_order[tables->route_count] = route;
    return (int)tables->route_count++;
}

static dp_route *route_at(dp_engine *engine, int index)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed || index < 0 || (uint32_t)index >= engine->tables.route_count)
        return NULL;
    return engine->tables.by_order[index];
}

int dp_route_match_header(dp_engine *engine, int index, const char *name, const char *value)
{
    dp_route *route = route_at(engine, index);
    if (route == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    dp_header_match *match = dp_arena_take(&engine->arena, sizeof(*match));
    if (match == NULL || text_copy(engine, name, strlen(name), &match->name) != DP_OK ||
        text_copy(engine, value, strlen(value), &match->value) != DP_OK)
        return DP_ENOMEM;
    match->next = route->headers;
    route->headers = match;
    return DP_OK;
}

static int edit_line(dp_engine *engine, const char *name, const char *value, dp_text *ret_line)
{
    size_t name_len = strlen(name);
    size_t value_len = strlen(value);
    char *line = dp_arena_take(&engine->arena, name_len + value_len + 5);
    if (line == NULL)
        return DP_ENOMEM;
    memcpy(line, name, name_len);
    memcpy(line + name_len, ": ", 2);
    memcpy(line + name_len + 2, value, value_len);
    memcpy(line + name_len + 2 + value_len, "\r\n", 2);
    *ret_line = (dp_text){.data = line, .len = (uint32_t)(name_len + value_len + 4)};
    return DP_OK;
}

/* Nothing that would end a line early may stand in what we generate. */
static bool is_clean(const char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 && *text != '\t')
            return false;
    return true;
}

int dp_route_edit(dp_engine *engine, int index, int kind, const char *name, const char *value)
{
    dp_route *route = route_at(engine, index);
    if (route == NULL)
        return engine->sealed ? DP_ESTATE : DP_EINVAL;
    bool sets = kind == DP_EDIT_REQUEST_SET || kind == DP_EDIT_RESPONSE_SET;
    bool request = kind == DP_EDIT_REQUEST_SET || kind == DP_EDIT_REQUEST_REMOVE;
    if (kind < DP_EDIT_REQUEST_SET || kind > DP_EDIT_RESPONSE_REMOVE || name[0] == '\0' ||
        !is_clean(name) || (sets && (value == NULL || !is_clean(value))))
        return DP_EINVAL;
    dp_edit *edit = dp_arena_take(&engine->arena, sizeof(*edit));
    if (edit == NULL || text_copy(engine, name, strlen(name), &edit->name) != DP_OK ||
        (sets && edit_line(engine, name, value, &edit->line) != DP_OK))
        return DP_ENOMEM;
    const dp_edit **list = request ? &route->request_edits : &route->response_edits;
    edit->next = *list;
    *list = edit;
    return DP_OK;
}

static size_t edits_size(const dp_edit *edits)
{
    size_t size = 0;
    for (; edits != NULL; edits = edits->next)
        size += edits->line.len;
    return size;
}

static int make_live_state(dp_engine *engine)
{
    const dp_tables *tables = &engine->tables;
    size_t most = 0;
    for (uint32_t i = 0; i < tables->route_count; i++) {
        const dp_route *route = tables->routes[i];
        size_t size = edits_size(route->request_edits) + edits_size(route->response_edits) +
                      route->body.len + route->location.len;
        if (size > most)
            most = size;
    }
    engine->head_buffer_size = engine->options.max_header_bytes + HEAD_SLACK + most;
    engine->head_buffer = malloc(engine->head_buffer_size);
    engine->pools = calloc(tables->endpoint_count + 1u, sizeof(*engine->pools));
    if (engine->head_buffer == NULL || engine->pools == NULL)
        return DP_ENOMEM;
    int result = dp_limit_seal(engine);
    if (result == DP_OK)
        result = dp_tell_seal(engine);
    if (result == DP_OK)
        result = dp_view_seal(engine);
    return result == DP_OK ? dp_meter_seal(engine) : result;
}

int dp_engine_seal(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (engine->sealed)
        return DP_ESTATE;
    int result = make_live_state(engine);
    if (result != DP_OK)
        return result;
    dp_tables *tables = &engine->tables;
    dp_route_sort(tables->routes, tables->route_count);
    void *memory =
        dp_arena_take(&engine->arena, dp_route_index_size(tables->routes, tables->route_count));
    if (memory == NULL)
        return DP_ENOMEM;
    dp_route_index_build(tables, memory);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = (engine->arena.used + page - 1) / page * page;
    if (mprotect(engine->arena.base, size, PROT_READ) != 0)
        return DP_ESYSTEM;
    /* Linux 6.10 can also forbid to undo that; older kernels say ENOSYS, and the worker's
     * seccomp filter has no mprotect that matters. */
    (void)syscall(SYS_MSEAL, engine->arena.base, size, 0);
    engine->sealed = true;
    return dp_timer_arm(engine, true);
}
