/* dp_health: active checks: a connection, or a request and its answer's status, by the interval,
 * for each endpoint. I/O.
 *
 * A probe is an exchange without a downstream. Where workers share, whoever is first at the due
 * time takes the probe by moving that time on; so an endpoint is probed once an interval, however
 * many workers there are, and a worker that dies in a probe is stood in for at the next one. */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

enum { PROBES_AT_ONCE = 64 }; /* started in one turn: others have their turn in between */

static const dp_check *check_of(const dp_engine *engine, uint32_t slot)
{
    return engine->tables.upstreams[engine->pools[slot].upstream].check;
}

static uint64_t draw(dp_engine *engine, uint64_t below)
{
    engine->random += 0x9e3779b97f4a7c15u;
    return dp_mix(engine->random) % below;
}

/* An interval, a tenth more or less: or all would come together for ever. */
static uint64_t jittered(dp_engine *engine, const dp_check *check)
{
    uint64_t tenth = check->interval_ms / 10;
    return check->interval_ms - tenth + draw(engine, 2 * tenth + 1);
}

int dp_health_seal(dp_engine *engine)
{
    uint32_t count = engine->tables.endpoint_count;
    dp_prober *prober = &engine->prober;
    prober->memory = calloc(count * 3u + 1u, sizeof(*prober->memory));
    if (prober->memory == NULL)
        return DP_ENOMEM;
    prober->due.key = prober->memory;
    prober->due.stamp = prober->memory + count;
    prober->due.order = (void *)(prober->memory + 2 * (size_t)count);
    prober->due.place = prober->due.order + count;
    for (uint32_t slot = 0; slot < count; slot++)
        if (engine->pools[slot].check != NULL)
            dp_heap_put(&prober->due, slot,
                        engine->now_ms + draw(engine, check_of(engine, slot)->interval_ms / 10 + 1),
                        0);
    return DP_OK;
}

/* --- verdicts ----------------------------------------------------------------------------------
 */

static void verdict(dp_engine *engine, uint32_t slot, bool well)
{
    const dp_check *check = check_of(engine, slot);
    dp_shared_endpoint *record = engine->pools[slot].check;
    uint32_t health = atomic_load(&record->health);
    uint32_t streak = atomic_load(&record->streak);
    bool against = health == DP_HEALTH_DOWN ? well : !well;
    if (!against && health != DP_HEALTH_UNKNOWN) {
        atomic_store(&record->streak, 0);
        return;
    }
    uint32_t needed = health == DP_HEALTH_DOWN ? check->rise : check->fall;
    if (against && ++streak < needed) {
        atomic_store(&record->streak, streak);
        return;
    }
    if (well && health == DP_HEALTH_DOWN)
        atomic_store(&record->up_since_ms, engine->now_ms);
    atomic_store(&record->streak, 0);
    atomic_store(&record->health, well ? DP_HEALTH_UP : DP_HEALTH_DOWN);
    dp_event_tell(engine, slot, well ? DP_EVENT_UP : DP_EVENT_DOWN);
}

static void finish(dp_engine *engine, dp_conn *probe, bool well)
{
    uint32_t slot = probe->endpoint;
    engine->pools[slot].probe = NULL;
    if (!well)
        engine->stats->probe_failures_total++;
    dp_conn_close(engine, probe);
    verdict(engine, slot, well);
}

/* --- a probe -----------------------------------------------------------------------------------
 */

static bool is_ours(dp_engine *engine, uint32_t slot, uint64_t *ret_next)
{
    dp_shared_endpoint *record = engine->pools[slot].check;
    uint64_t due = atomic_load(&record->probe_at_ms);
    uint64_t next = engine->now_ms + jittered(engine, check_of(engine, slot));
    /* What is far off is another boot's, or nonsense: it must not stop probes. */
    if (due > engine->now_ms && due - engine->now_ms <= 2u * check_of(engine, slot)->interval_ms) {
        *ret_next = due + draw(engine, 4);
        return false;
    }
    *ret_next = next;
    return atomic_compare_exchange_strong(&record->probe_at_ms, &due, next);
}

static int begin_socket(const dp_endpoint *endpoint)
{
    int fd = socket(endpoint->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (connect(fd, (const struct sockaddr *)&endpoint->address, endpoint->address_len) == 0 ||
        errno == EINPROGRESS)
        return fd;
    (void)close(fd);
    return -1;
}

static bool say(dp_engine *engine, dp_conn *probe)
{
    const dp_check *check = check_of(engine, probe->endpoint);
    uint32_t version =
        engine->tables.upstreams[engine->pools[probe->endpoint].upstream].proxy_protocol;
    uint8_t header[DP_PROXY_MAX];
    size_t len = version != 0 ? dp_proxy_header(version, NULL, header) : 0;
    return dp_buffer_append(engine, &probe->out, header, len) == DP_OK &&
           dp_buffer_append(engine, &probe->out, (const uint8_t *)check->request,
                            check->request_len) == DP_OK;
}

static void start(dp_engine *engine, uint32_t slot)
{
    dp_pool *pool = &engine->pools[slot];
    const dp_check *check = check_of(engine, slot);
    engine->stats->probes_total++;
    int fd = begin_socket(pool->endpoint);
    dp_conn *probe = fd >= 0 ? dp_conn_new(engine, fd, DP_PROBER) : NULL;
    if (probe == NULL) {
        if (fd >= 0)
            (void)close(fd); /* our own shortage says nothing about the endpoint */
        else {
            engine->stats->probe_failures_total++;
            verdict(engine, slot, false);
        }
        return;
    }
    probe->endpoint = slot;
    probe->state = DP_S_CONNECTING;
    pool->probe = probe;
    if (dp_conn_watch(engine, probe) != DP_OK || (check->request != NULL && !say(engine, probe))) {
        pool->probe = NULL;
        dp_conn_close(engine, probe);
        return;
    }
    dp_timer_set(engine, probe, check->timeout_ms);
}

void dp_health_run(dp_engine *engine)
{
    dp_heap *due = &engine->prober.due;
    for (int i = 0; i < PROBES_AT_ONCE && due->count != 0; i++) {
        uint32_t slot = due->order[0];
        uint64_t next = engine->now_ms + 1;
        if (due->key[slot] > engine->now_ms)
            return;
        bool ours = engine->pools[slot].probe == NULL && is_ours(engine, slot, &next);
        dp_heap_put(due, slot, next, 0);
        if (ours)
            start(engine, slot);
    }
}

/* 1: well, 0: not, -1: more must come. */
static int judge(dp_engine *engine, dp_conn *probe)
{
    const dp_check *check = check_of(engine, probe->endpoint);
    dp_head_limits limits = {.max_bytes = engine->options.max_header_bytes,
                             .max_fields = engine->options.max_headers};
    while (probe->in.len != 0) {
        const uint8_t *data = probe->in.data + probe->in.off;
        uint32_t scanned = 0;
        uint32_t head_len;
        int result = dp_head_end(data, probe->in.len, &limits, &scanned, &head_len);
        if (result == DP_NEED_MORE)
            return -1;
        if (result != DP_OK ||
            dp_response_parse(data, head_len, &limits, 0, &engine->response) != DP_OK)
            return 0;
        uint32_t status = engine->response.status;
        if (status >= 200)
            return status >= check->status_min && status <= check->status_max;
        dp_buffer_consume(engine, &probe->in, head_len); /* interim */
    }
    return -1;
}

/* As judge; takes in what came. */
static int hear(dp_engine *engine, dp_conn *probe)
{
    while ((probe->io & (DP_IO_READ | DP_IO_EOF | DP_IO_BROKEN)) != 0) {
        ssize_t got = dp_conn_read(engine, probe, engine->read_buffer, DP_READ_MIN);
        if (got == -EAGAIN)
            return -1;
        if (got <= 0 ||
            dp_buffer_append(engine, &probe->in, engine->read_buffer, (size_t)got) != DP_OK)
            return 0;
        int found = judge(engine, probe);
        if (found >= 0)
            return found;
    }
    return -1;
}

void dp_health_handle(dp_engine *engine, dp_conn *probe)
{
    const dp_pool *pool = &engine->pools[probe->endpoint];
    if (probe->state == DP_S_CONNECTING) {
        if ((probe->io & (DP_IO_WRITE | DP_IO_BROKEN | DP_IO_EOF)) == 0)
            return;
        if (dp_socket_connected(probe->fd, pool->endpoint) != DP_OK) {
            finish(engine, probe, false);
            return;
        }
        if (check_of(engine, probe->endpoint)->request == NULL) {
            finish(engine, probe, true);
            return;
        }
        probe->state = DP_S_EXCHANGE;
    }
    if (dp_conn_flush(engine, probe) != 0) {
        finish(engine, probe, false);
        return;
    }
    int found = hear(engine, probe);
    if (found >= 0)
        finish(engine, probe, found == 1);
}

void dp_health_timeout(dp_engine *engine, dp_conn *probe)
{
    finish(engine, probe, false);
}
