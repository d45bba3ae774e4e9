/* dp_meter: figures in the stats mapping: plain memory that the engine writes and others read.
 *
 * Counters go on from what they are, over processes of one slot; what is only true now begins at
 * zero. I/O: a look at the CPU clock alone. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "dp_core.h"

enum {
    LINE = 64, /* sections begin at their own cache line */
    CPU_LOOK_MS = 100,
    DECADES = 7 /* of dp_duration_stats: 10 us to 100 s */
};

uint32_t dp_duration_bucket(uint64_t us)
{
    uint64_t value = us > 0 ? us - 1 : 0; /* a bucket's upper bound belongs to it */
    if (value < 10)
        return (uint32_t)value;
    uint64_t step = 1;
    for (uint32_t decade = 0; decade < DECADES; decade++, step *= 10)
        if (value < step * 100)
            return 10 + 90 * decade + (uint32_t)(value / step) - 10;
    return DP_DURATION_BUCKETS - 1;
}

size_t dp_stats_layout(uint32_t upstreams, uint32_t routes, dp_stats_table *ret_table)
{
    const struct {
        uint32_t kind;
        uint32_t count;
        uint32_t stride;
    } wanted[] = {
        {DP_SECTION_DURATION, 1, (uint32_t)sizeof(dp_duration_stats)},
        {DP_SECTION_UPSTREAMS, upstreams, (uint32_t)sizeof(dp_upstream_stats)},
        {DP_SECTION_ROUTES, routes + 1, (uint32_t)sizeof(dp_route_stats)},
    };
    size_t at = DP_STATS_TABLE + sizeof(*ret_table);
    memset(ret_table, 0, sizeof(*ret_table));
    ret_table->magic = DP_STATS_MAGIC;
    ret_table->version = DP_STATS_TABLE_VERSION;
    for (size_t i = 0; i < DP_ARRAY_LEN(wanted); i++) {
        at = (at + LINE - 1) / LINE * LINE;
        ret_table->sections[i] = (dp_stats_section){.kind = wanted[i].kind,
                                                    .count = wanted[i].count,
                                                    .stride = wanted[i].stride,
                                                    .offset = (uint32_t)at};
        ret_table->count++;
        at += (size_t)wanted[i].count * wanted[i].stride;
    }
    return at;
}

_Static_assert(sizeof(dp_stats) <= DP_STATS_TABLE, "the table stands behind dp_stats");

int dp_meter_seal(dp_engine *engine)
{
    const dp_tables *tables = &engine->tables;
    dp_meter *meter = &engine->meter;
    dp_stats_table table;
    size_t size = dp_stats_layout(tables->upstream_count, tables->route_count, &table);
    uint8_t *base;
    if (engine->stats != &engine->own_stats && engine->options.stats_bytes >= size) {
        base = (uint8_t *)engine->stats;
    } else {
        /* Nobody reads them, and counting asks nobody. */
        meter->own = calloc(1, size);
        if (meter->own == NULL)
            return DP_ENOMEM;
        base = meter->own;
    }
    memcpy(base + DP_STATS_TABLE, &table, sizeof(table));
    meter->durations = (void *)(base + table.sections[0].offset);
    meter->upstreams = (void *)(base + table.sections[1].offset);
    meter->routes = (void *)(base + table.sections[2].offset);
    for (uint32_t i = 0; i < tables->upstream_count; i++) {
        meter->upstreams[i].active = 0;
        meter->upstreams[i].up = 1; /* until it is found to be otherwise */
    }
    meter->cpu_before_us = engine->stats->cpu_us_total;
    return DP_OK;
}

void dp_meter_done(dp_engine *engine)
{
    free(engine->meter.own);
}

void dp_meter_tick(dp_engine *engine)
{
    dp_meter *meter = &engine->meter;
    if (engine->now_ms < meter->cpu_at_ms + CPU_LOOK_MS)
        return;
    meter->cpu_at_ms = engine->now_ms;
    struct timespec used;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0)
        engine->stats->cpu_us_total = meter->cpu_before_us + (uint64_t)used.tv_sec * 1000000u +
                                      (uint64_t)used.tv_nsec / 1000u;
}

static dp_upstream_stats *upstream_of(dp_engine *engine, uint32_t slot)
{
    return &engine->meter.upstreams[engine->pools[slot].upstream];
}

void dp_meter_connect(dp_engine *engine, uint32_t slot)
{
    engine->stats->upstream_connects_total++;
    upstream_of(engine, slot)->connects_total++;
}

void dp_meter_connect_failed(dp_engine *engine, uint32_t slot)
{
    engine->stats->upstream_connect_failures_total++;
    upstream_of(engine, slot)->connect_failures_total++;
}

void dp_meter_attached(dp_engine *engine, dp_conn *down, uint32_t slot)
{
    dp_account *account = &down->exchange->account;
    dp_upstream_stats *upstream = upstream_of(engine, slot);
    upstream->active++;
    upstream->requests_total++;
    account->endpoint = slot + 1;
    if (account->attempts < UINT8_MAX)
        account->attempts++;
}

void dp_meter_adopted(dp_engine *engine, uint32_t slot)
{
    upstream_of(engine, slot)->active++;
}

void dp_meter_detached(dp_engine *engine, uint32_t slot)
{
    upstream_of(engine, slot)->active--;
}

void dp_meter_failed(dp_engine *engine, const dp_conn *down)
{
    engine->stats->upstream_failures_total++;
    engine->meter.upstreams[down->exchange->upstream].failures_total++;
}

void dp_meter_up(dp_engine *engine, uint32_t upstream, bool up)
{
    engine->meter.upstreams[upstream].up = up;
}
