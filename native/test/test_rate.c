/* Rates: in no stretch of time do more come through than the burst and what the rate gives, and who
 * keeps below both is never refused. SipHash as its authors' table has it. */
#include "dp_rate.h"

#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

enum { COUNT = 64, EVENTS = 2000 };

static const uint64_t SECOND = 1000000000u;

static _Alignas(64) dp_bucket table[COUNT];
static const dp_buckets buckets = {.at = table, .count = COUNT};
static uint64_t seed = 88172645463325252u;

static uint64_t draw(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void never_more_than_burst_and_rate(void)
{
    static const uint32_t rates[][2] = {{1, 0},  {1, 1},     {3, 2},
                                        {7, 50}, {1000, 10}, {999983, 1000}};
    static uint64_t through[EVENTS];
    for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
        const uint32_t per_second = rates[i][0];
        const uint32_t burst = rates[i][1] != 0 ? rates[i][1] : 1;
        const dp_rate rate = dp_rate_of(per_second, rates[i][1]);
        uint64_t now = SECOND;
        uint32_t count = 0;
        bool told_right = true;
        memset(table, 0, sizeof(table));
        for (int event = 0; event < EVENTS; event++) {
            now += draw() % 5 == 0 ? draw() % (rate.depth_ns * 2) : draw() % rate.every_ns;
            uint64_t wait = dp_rate_take(&buckets, &rate, 7, now);
            if (wait == 0) {
                through[count++] = now;
                continue;
            }
            /* A moment sooner it would not do, and then it does. */
            dp_bucket before[COUNT];
            memcpy(before, table, sizeof(table));
            told_right = told_right && dp_rate_take(&buckets, &rate, 7, now + wait - 1) == 1 &&
                         dp_rate_take(&buckets, &rate, 7, now + wait) == 0;
            memcpy(table, before, sizeof(table));
        }
        bool holds = true;
        for (uint32_t from = 0; from < count; from++)
            for (uint32_t to = from; to < count; to++) {
                uint64_t stretch = through[to] - through[from];
                /* through <= burst + rate * t, in whole numbers */
                uint64_t more = to - from + 1 > burst ? to - from + 1 - burst : 0;
                holds = holds && more * SECOND <= stretch * per_second;
            }
        expect("never more than burst and rate", holds);
        expect("many came through", count > 10);
        expect("how long to wait is told right", told_right);
    }
}

static void who_keeps_to_it_is_never_refused(void)
{
    const dp_rate rate = dp_rate_of(10, 5);
    bool admitted = true;
    memset(table, 0, sizeof(table));
    for (uint64_t i = 0; i < 5; i++)
        admitted = admitted && dp_rate_take(&buckets, &rate, 7, SECOND) == 0;
    for (uint64_t i = 1; i < 100; i++)
        admitted = admitted && dp_rate_take(&buckets, &rate, 7, SECOND + i * SECOND / 10) == 0;
    expect("a burst, and then the rate", admitted);
    expect("another key has its own",
           dp_rate_take(&buckets, &rate, 8, SECOND + 99 * SECOND / 10) == 0);
}

static void the_emptiest_gives_way(void)
{
    const dp_buckets one_set = {.at = table, .count = DP_RATE_WAYS};
    const dp_rate rate = dp_rate_of(1, 2);
    memset(table, 0, sizeof(table));
    for (uint64_t key = 1; key <= DP_RATE_WAYS; key++) /* the later, the longer to wait */
        expect("it comes", dp_rate_take(&one_set, &rate, key, key * SECOND) == 0);
    uint64_t now = DP_RATE_WAYS * SECOND;
    expect("once more", dp_rate_take(&one_set, &rate, DP_RATE_WAYS, now) == 0);
    expect("a new one has a place", dp_rate_take(&one_set, &rate, 100, now) == 0);
    bool kept = false;
    bool gone = true;
    for (int i = 0; i < DP_RATE_WAYS; i++) {
        kept = kept || atomic_load(&table[i].key) == DP_RATE_WAYS;
        gone = gone && atomic_load(&table[i].key) != 1;
    }
    expect("the one that was full is gone", gone);
    expect("the empty one is still held to its rate",
           kept && dp_rate_take(&one_set, &rate, DP_RATE_WAYS, now) != 0);
}

/* Many processes, one key, one moment: what comes through is the burst, and no more than one for
 * each process that met the new key in the same instant. */
static void holds_over_processes(void)
{
    enum { PROCESSES = 8, TRIES = 20000, BURST = 1000 };
    struct page {
        _Alignas(64) dp_bucket table[COUNT];
        _Atomic uint32_t through;
    } *page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    const dp_rate rate = dp_rate_of(1, BURST);
    expect("there is a page", page != MAP_FAILED);
    for (int i = 0; i < PROCESSES; i++) {
        if (fork() != 0)
            continue;
        const dp_buckets shared = {.at = page->table, .count = COUNT};
        for (int j = 0; j < TRIES; j++)
            if (dp_rate_take(&shared, &rate, 7, SECOND) == 0)
                (void)atomic_fetch_add(&page->through, 1);
        _exit(0);
    }
    while (wait(NULL) > 0)
        continue;
    uint32_t through = atomic_load(&page->through);
    expect("the burst, over all processes", through >= BURST && through < BURST + PROCESSES);
    (void)munmap(page, sizeof(*page));
}

static void hashes_as_its_authors_say(void)
{
    /* Appendix A of the SipHash paper: the bytes 0 to 14, key 0 to 15. */
    uint8_t key[16];
    uint8_t data[15];
    for (uint8_t i = 0; i < 16; i++)
        key[i] = i;
    for (uint8_t i = 0; i < 15; i++)
        data[i] = i;
    const uint8_t *placed = place_before_guard(data, sizeof(data));
    expect("the paper's value", dp_rate_key(key, placed, sizeof(data)) == 0xa129ca6149be45e5u);
    expect("of nothing", dp_rate_key(key, placed, 0) == 0x726fdb47dd0e0e31u);
}

int main(void)
{
    never_more_than_burst_and_rate();
    who_keeps_to_it_is_never_refused();
    the_emptiest_gives_way();
    holds_over_processes();
    hashes_as_its_authors_say();
    return finish("rate");
}
