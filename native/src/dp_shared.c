/* dp_shared: see the header. Pure: it works on the mapping that it is given. */
#include "dp_shared.h"

#include <string.h>

#include "dp.h"
#include "dp_balance.h"

enum { LATENCY_FADES_MS = 10000, TAKING_ROUNDS = 1000000 };

/* --- opening ---------------------------------------------------------------------------------- */

static bool section_fits(const dp_shared_section *section, size_t len, size_t stride)
{
    if (section->version != 1 || section->count == 0 || section->stride < stride ||
        section->offset % 8 != 0 || section->stride % 4 != 0)
        return false;
    uint64_t size = (uint64_t)section->count * section->stride;
    return section->offset >= sizeof(dp_shared_header) && size <= len &&
           section->offset <= len - size;
}

static const dp_shared_section *section_of(const dp_shared_header *header, uint32_t kind)
{
    for (uint32_t i = 0; i < header->section_count && i < DP_SHARED_SECTIONS; i++)
        if (header->sections[i].kind == kind)
            return &header->sections[i];
    return NULL;
}

/* What counts requests and connections of sources; without it each worker counts for itself. */
static void open_limits(dp_shared *shared, const dp_shared_header *header, uint8_t *base,
                        size_t len)
{
    const dp_shared_section *buckets = section_of(header, DP_SHARED_BUCKETS);
    const dp_shared_section *sources = section_of(header, DP_SHARED_SOURCES);
    const dp_shared_section *held = section_of(header, DP_SHARED_HELD);
    if (buckets != NULL && section_fits(buckets, len, sizeof(dp_bucket)) &&
        buckets->stride == sizeof(dp_bucket) && buckets->count >= DP_RATE_WAYS)
        shared->buckets = (dp_buckets){.at = (void *)(base + buckets->offset),
                                       .count = buckets->count / DP_RATE_WAYS * DP_RATE_WAYS};
    if (sources == NULL || held == NULL || !section_fits(sources, len, sizeof(uint64_t)) ||
        !section_fits(held, len, sizeof(uint32_t)) || sources->stride != sizeof(uint64_t) ||
        sources->count % DP_SOURCE_WAYS != 0 || held->count != shared->seat_count ||
        held->stride / sizeof(uint32_t) != sources->count + DP_SOURCE_HEAD)
        return;
    shared->sources.at = (void *)(base + sources->offset);
    shared->sources.count = sources->count;
    shared->held = base + held->offset;
}

int dp_shared_open(dp_shared *shared, void *base, size_t len)
{
    *shared = (dp_shared){0};
    if (len < sizeof(dp_shared_header))
        return DP_EMALFORMED;
    dp_shared_header *mapped = base;
    dp_shared_header header; /* our own copy: what is checked is what is used */
    memcpy(&header, mapped, sizeof(header));
    if (header.magic != DP_SHARED_MAGIC || header.version != DP_SHARED_VERSION)
        return DP_EVERSION;
    const dp_shared_section *names = section_of(&header, DP_SHARED_NAMES);
    const dp_shared_section *endpoints = section_of(&header, DP_SHARED_ENDPOINTS);
    const dp_shared_section *seats = section_of(&header, DP_SHARED_SEATS);
    const dp_shared_section *counts = section_of(&header, DP_SHARED_COUNTS);
    if (names == NULL || endpoints == NULL || seats == NULL || counts == NULL)
        return DP_EVERSION;
    if (header.size != len || !section_fits(names, len, sizeof(uint64_t)) ||
        !section_fits(endpoints, len, sizeof(dp_shared_endpoint)) ||
        !section_fits(seats, len, sizeof(dp_shared_seat)) ||
        !section_fits(counts, len, sizeof(dp_shared_count)) ||
        endpoints->stride != sizeof(dp_shared_endpoint) || names->stride != sizeof(uint64_t) ||
        seats->stride != sizeof(dp_shared_seat) || names->count != endpoints->count ||
        seats->count != counts->count ||
        counts->stride / sizeof(dp_shared_count) < endpoints->count)
        return DP_EMALFORMED;
    uint8_t *bytes = base;
    shared->header = mapped;
    shared->names = (void *)(bytes + names->offset);
    shared->endpoints = (void *)(bytes + endpoints->offset);
    shared->endpoint_count = endpoints->count;
    shared->seats = (void *)(bytes + seats->offset);
    shared->counts = bytes + counts->offset;
    shared->seat_count = seats->count;
    shared->count_stride = counts->stride;
    open_limits(shared, &header, bytes, len);
    return DP_OK;
}

/* --- seats ------------------------------------------------------------------------------------ */

static dp_shared_count *row_of(const dp_shared *shared, uint32_t seat)
{
    return (void *)(shared->counts + (size_t)seat * shared->count_stride);
}

/* How many names are in use: they are filled from the front. */
static uint32_t names_used(const dp_shared *shared)
{
    uint32_t used = 0;
    while (used < shared->endpoint_count && atomic_load(&shared->names[used]) != 0)
        used++;
    return used;
}

static _Atomic uint32_t *held_by(const dp_shared *shared, uint32_t seat)
{
    const size_t words = (size_t)shared->sources.count + DP_SOURCE_HEAD;
    _Atomic uint32_t *row = (void *)(shared->held + seat * words * sizeof(uint32_t));
    return row + DP_SOURCE_HEAD;
}

static void give_back(const dp_shared *shared, uint32_t seat)
{
    if (shared->sources.count != 0)
        dp_source_clear(&shared->sources, held_by(shared, seat));
    dp_shared_count *row = row_of(shared, seat);
    uint32_t used = names_used(shared);
    for (uint32_t i = 0; i < used; i++) {
        if (atomic_load(&row[i].attached) == 0)
            continue;
        (void)atomic_fetch_sub(&shared->endpoints[i].open, atomic_exchange(&row[i].open, 0));
        (void)atomic_fetch_sub(&shared->endpoints[i].waiting, atomic_exchange(&row[i].waiting, 0));
        atomic_store(&row[i].attached, 0);
    }
}

bool dp_shared_sweep(dp_shared *shared)
{
    bool changed = false;
    for (uint32_t i = 0; shared->header != NULL && i < shared->seat_count; i++) {
        uint32_t state = DP_SEAT_DEAD;
        if (atomic_load_explicit(&shared->seats[i].state, memory_order_relaxed) != DP_SEAT_DEAD ||
            !atomic_compare_exchange_strong(&shared->seats[i].state, &state, DP_SEAT_CLEARING))
            continue;
        give_back(shared, i);
        atomic_store(&shared->seats[i].pid, 0);
        atomic_store(&shared->seats[i].state, DP_SEAT_FREE);
        changed = true;
    }
    if (changed)
        (void)atomic_fetch_add(&shared->header->epoch, 1);
    return changed;
}

bool dp_shared_sit(dp_shared *shared, uint32_t pid)
{
    (void)dp_shared_sweep(shared);
    for (uint32_t i = 0; i < shared->seat_count; i++) {
        uint32_t state = DP_SEAT_FREE;
        if (!atomic_compare_exchange_strong(&shared->seats[i].state, &state, DP_SEAT_TAKEN))
            continue;
        atomic_store(&shared->seats[i].pid, pid);
        shared->seat = i + 1;
        if (shared->sources.count != 0)
            shared->sources.held = held_by(shared, i);
        (void)atomic_fetch_add(&shared->header->epoch, 1);
        return true;
    }
    return false;
}

bool dp_shared_alone(const dp_shared *shared)
{
    for (uint32_t i = 0; i < shared->seat_count; i++)
        if (i + 1 != shared->seat &&
            atomic_load_explicit(&shared->seats[i].state, memory_order_relaxed) != DP_SEAT_FREE)
            return false;
    return true;
}

void dp_shared_leave(dp_shared *shared)
{
    if (shared->seat == 0)
        return;
    atomic_store(&shared->seats[shared->seat - 1].state, DP_SEAT_DEAD);
    shared->seat = 0;
    shared->sources.held = NULL;
    (void)dp_shared_sweep(shared);
}

/* --- records ---------------------------------------------------------------------------------- */

static bool is_attached(const dp_shared *shared, uint32_t record)
{
    for (uint32_t i = 0; i < shared->seat_count; i++)
        if (atomic_load_explicit(&shared->seats[i].state, memory_order_relaxed) != DP_SEAT_FREE &&
            atomic_load(&row_of(shared, i)[record].attached) != 0)
            return true;
    return false;
}

static bool is_used_by_others(const dp_shared *shared, uint32_t record)
{
    for (uint32_t i = 0; i < shared->seat_count; i++)
        if (i + 1 != shared->seat && atomic_load(&shared->seats[i].state) == DP_SEAT_TAKEN &&
            atomic_load(&row_of(shared, i)[record].attached) != 0)
            return true;
    return false;
}

bool dp_shared_others_find_well(const dp_shared *shared, const char *key, size_t len)
{
    uint32_t used = shared->header != NULL ? names_used(shared) : 0;
    for (uint32_t i = 0; i < used; i++) {
        const dp_shared_endpoint *endpoint = &shared->endpoints[i];
        if (atomic_load(&endpoint->state) != DP_RECORD_READY || endpoint->key_len < len ||
            memcmp(endpoint->key, key, len) != 0 || !is_used_by_others(shared, i))
            continue;
        uint32_t health = atomic_load(&endpoint->health);
        /* Where nothing is checked, what traffic says. */
        if (health == DP_HEALTH_UP ||
            (health == DP_HEALTH_UNKNOWN && atomic_load(&endpoint->answers) != 0 &&
             atomic_load(&endpoint->failures) == 0))
            return true;
    }
    return false;
}

/* Attaches us to a record that is still the key's. */
static bool attach(const dp_shared *shared, uint32_t record, const char *key, size_t len)
{
    dp_shared_endpoint *endpoint = &shared->endpoints[record];
    dp_shared_count *count = &row_of(shared, shared->seat - 1)[record];
    atomic_store(&count->attached, 1);
    if (atomic_load(&endpoint->state) == DP_RECORD_READY && endpoint->key_len == len &&
        memcmp(endpoint->key, key, len) == 0)
        return true;
    atomic_store(&count->attached, 0);
    return false;
}

/* Makes the record the key's, where it is nobody's. */
static bool take(const dp_shared *shared, uint32_t record, uint64_t hash, const char *key,
                 size_t len)
{
    dp_shared_endpoint *endpoint = &shared->endpoints[record];
    uint32_t state = atomic_load(&endpoint->state);
    if (state == DP_RECORD_TAKING ||
        !atomic_compare_exchange_strong(&endpoint->state, &state, DP_RECORD_TAKING))
        return false;
    if (is_attached(shared, record)) {
        atomic_store(&endpoint->state, state);
        return false;
    }
    size_t fixed = offsetof(dp_shared_endpoint, key_len);
    memset((uint8_t *)endpoint + fixed, 0, sizeof(*endpoint) - fixed);
    endpoint->key_len = (uint32_t)len;
    memcpy(endpoint->key, key, len);
    atomic_store(&shared->names[record], hash);
    atomic_store(&endpoint->state, DP_RECORD_READY);
    return true;
}

/* Until it is no longer being taken: a moment, unless its taker died in it. */
static uint32_t settled_state(const dp_shared_endpoint *endpoint)
{
    uint32_t state = atomic_load(&endpoint->state);
    for (uint32_t i = 0; i < TAKING_ROUNDS && state == DP_RECORD_TAKING; i++)
        state = atomic_load(&endpoint->state);
    return state;
}

static uint32_t record_of(const dp_shared *shared, const char *key, size_t len)
{
    uint64_t hash = dp_hash(key, len) | 1; /* 0 is nobody's */
    uint32_t i = 0;
    /* All take the first that is free, so that two who make the same one meet there. */
    while (i < shared->endpoint_count) {
        uint64_t name = atomic_load_explicit(&shared->names[i], memory_order_relaxed);
        if (name != 0 && name != hash) {
            i++;
            continue;
        }
        uint32_t state = settled_state(&shared->endpoints[i]);
        if (state == DP_RECORD_FREE && !take(shared, i, hash, key, len))
            continue; /* another was quicker: perhaps with the same key */
        if (state != DP_RECORD_TAKING && attach(shared, i, key, len))
            return i;
        i++;
    }
    for (i = 0; i < shared->endpoint_count; i++)
        if (take(shared, i, hash, key, len) && attach(shared, i, key, len))
            return i;
    return shared->endpoint_count;
}

dp_shared_endpoint *dp_shared_find(dp_shared *shared, const char *key, size_t len,
                                   dp_shared_count **ret_count)
{
    if (shared->seat == 0 || len > DP_SHARED_KEY_MAX)
        return NULL;
    uint32_t record = record_of(shared, key, len);
    if (record == shared->endpoint_count)
        return NULL;
    *ret_count = &row_of(shared, shared->seat - 1)[record];
    return &shared->endpoints[record];
}

/* --- counts ----------------------------------------------------------------------------------- */

bool dp_shared_take(dp_shared_endpoint *endpoint, dp_shared_count *count, uint32_t max)
{
    (void)atomic_fetch_add(&count->open, 1);
    if (atomic_fetch_add(&endpoint->open, 1) < max || max == 0)
        return true;
    dp_shared_give(endpoint, count);
    return false;
}

void dp_shared_give(dp_shared_endpoint *endpoint, dp_shared_count *count)
{
    (void)atomic_fetch_sub(&endpoint->open, 1);
    (void)atomic_fetch_sub(&count->open, 1);
}

void dp_shared_wait(dp_shared_endpoint *endpoint, dp_shared_count *count, int by)
{
    if (by > 0) {
        (void)atomic_fetch_add(&count->waiting, 1);
        (void)atomic_fetch_add(&endpoint->waiting, 1);
    } else {
        (void)atomic_fetch_sub(&endpoint->waiting, 1);
        (void)atomic_fetch_sub(&count->waiting, 1);
    }
}

/* --- latency ---------------------------------------------------------------------------------- */

/* Two workers may write at once: then one of two figures is lost, and nothing else. */
static uint64_t faded(const dp_shared_endpoint *endpoint, uint64_t now_ms)
{
    uint64_t average = atomic_load_explicit(&endpoint->latency_us, memory_order_relaxed);
    uint32_t since =
        (uint32_t)now_ms - atomic_load_explicit(&endpoint->latency_at_ms, memory_order_relaxed);
    if (since > UINT32_MAX / 2) /* another's clock is a moment ahead */
        since = 0;
    return average * LATENCY_FADES_MS / (LATENCY_FADES_MS + since);
}

uint32_t dp_latency_now(const dp_shared_endpoint *endpoint, uint64_t now_ms)
{
    return (uint32_t)faded(endpoint, now_ms);
}

void dp_latency_add(dp_shared_endpoint *endpoint, uint64_t now_ms, uint64_t took_us)
{
    uint64_t took = took_us < UINT32_MAX ? took_us : UINT32_MAX;
    uint64_t average = faded(endpoint, now_ms);
    /* A peak counts at once; what is better has to prove itself over an eighth of the way. */
    uint64_t next = took >= average ? took : average - (average - took) / 8;
    atomic_store_explicit(&endpoint->latency_us, next != 0 ? (uint32_t)next : 1,
                          memory_order_relaxed);
    atomic_store_explicit(&endpoint->latency_at_ms, (uint32_t)now_ms, memory_order_relaxed);
}
