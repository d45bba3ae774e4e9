/* The stats mapping: where durations count, and where sections stand. */
#include "dp_meter.c"

#include "support.h"

/* A bucket's upper bound, as whoever reads the mapping reckons it. */
static uint64_t upper_bound(uint32_t bucket)
{
    uint64_t step = 1;
    if (bucket < 10)
        return bucket + 1;
    for (uint32_t decade = 0; decade < (bucket - 10) / 90; decade++)
        step *= 10;
    return ((bucket - 10) % 90 + 11) * step;
}

static void counts_each_duration_where_it_belongs(void)
{
    bool up_to = true;
    bool above = true;
    for (uint32_t bucket = 0; bucket < DP_DURATION_BUCKETS - 1; bucket++) {
        up_to = up_to && dp_duration_bucket(upper_bound(bucket)) == bucket;
        above = above && dp_duration_bucket(upper_bound(bucket) + 1) == bucket + 1;
    }
    expect("a bound belongs to the bucket below it", up_to);
    expect("what is above it to the next", above);
    expect("nothing took no time", dp_duration_bucket(0) == 0);
    expect("100 s are the last bound", upper_bound(DP_DURATION_BUCKETS - 2) == 100000000);
    expect("what is beyond has a bucket",
           dp_duration_bucket(UINT64_MAX) == DP_DURATION_BUCKETS - 1);
}

static void lays_sections_out_apart(void)
{
    static const uint32_t counts[][2] = {{0, 0}, {1, 1}, {3, 1000}, {1024, 4096}};
    for (size_t i = 0; i < DP_ARRAY_LEN(counts); i++) {
        dp_stats_table table;
        const size_t size = dp_stats_layout(counts[i][0], counts[i][1], &table);
        size_t free_from = DP_STATS_TABLE + sizeof(table);
        bool apart = table.count == 3;
        for (uint32_t j = 0; j < table.count; j++) {
            const dp_stats_section *const section = &table.sections[j];
            apart = apart && section->offset >= free_from && section->offset % LINE == 0;
            free_from = section->offset + (size_t)section->count * section->stride;
        }
        expect("sections do not overlap", apart && free_from == size);
        expect("a route more: none", table.sections[2].count == counts[i][1] + 1);
    }
}

int main(void)
{
    counts_each_duration_where_it_belongs();
    lays_sections_out_apart();
    return finish("meter");
}
