/* Connections of a source: the limit holds over processes, a dead one's share is given back, and a
 * full set counts no more but turns nobody away. */
#include "dp_source.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

enum { COUNT = 64 };

static _Atomic uint64_t table[COUNT];
static _Atomic uint32_t rows[2][DP_SOURCE_HEAD + COUNT];

static dp_sources of_process(int process)
{
    return (dp_sources){.at = table, .held = rows[process] + DP_SOURCE_HEAD, .count = COUNT};
}

static void clean(void)
{
    for (int i = 0; i < COUNT; i++)
        atomic_store(&table[i], 0);
    for (int i = 0; i < DP_SOURCE_HEAD + COUNT; i++) {
        atomic_store(&rows[0][i], 0);
        atomic_store(&rows[1][i], 0);
    }
}

static void a_limit_holds_over_processes(void)
{
    const uint64_t key = 0x123456789abcdef0u;
    const dp_sources one = of_process(0);
    const dp_sources other = of_process(1);
    clean();
    int64_t first = dp_source_take(&one, key, 2);
    expect("room for two", first > 0 && dp_source_take(&other, key, 2) > 0);
    expect("and no more", dp_source_take(&other, key, 2) == DP_SOURCE_FULL);
    expect("another source has its own", dp_source_take(&one, ~key, 2) > 0);
    expect("what moves in is never refused", dp_source_take(&one, key, 0) > 0);
    expect("all are counted", dp_source_open(&one, key) == 3);
    dp_source_clear(&one, one.held);
    expect("a dead one's share is given back", dp_source_open(&other, key) == 1);
    dp_source_clear(&one, one.held);
    expect("once", dp_source_open(&other, key) == 1);
    expect("there is room again", dp_source_take(&other, key, 2) > 0);
    dp_source_give(&one, DP_SOURCE_NONE);
}

static void a_full_set_turns_nobody_away(void)
{
    const dp_sources one = of_process(0);
    int64_t places[DP_SOURCE_WAYS];
    clean();
    for (uint64_t i = 0; i < DP_SOURCE_WAYS; i++) {
        places[i] = dp_source_take(&one, (i + 1) << DP_SOURCE_BITS, 1);
        expect("a place in the set", places[i] > 0);
    }
    expect("one more is not counted",
           dp_source_take(&one, (uint64_t)99 << DP_SOURCE_BITS, 1) == DP_SOURCE_NONE);
    dp_source_give(&one, places[3]);
    expect("until one ends", dp_source_take(&one, (uint64_t)99 << DP_SOURCE_BITS, 1) > 0);
    expect("nobody's row is below nothing", atomic_load(&one.held[places[3] - 1]) == 1);
}

static uint64_t sum_of(_Atomic uint64_t *entries)
{
    uint64_t sum = 0;
    for (int i = 0; i < COUNT; i++)
        sum += atomic_load(&entries[i]) & (((uint64_t)1 << DP_SOURCE_BITS) - 1);
    return sum;
}

/* Processes that take and give at once, some of which die with what they hold. */
static void nothing_is_left_when_all_have_gone(void)
{
    enum { PROCESSES = 8, ROUNDS = 5000, KEYS = 6, MAX = 3 };
    struct page {
        _Atomic uint64_t table[COUNT];
        _Atomic uint32_t rows[PROCESSES][DP_SOURCE_HEAD + COUNT];
        _Atomic uint32_t beyond;
    } *page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    expect("there is a page", page != MAP_FAILED);
    for (uint32_t i = 0; i < PROCESSES; i++) {
        if (fork() != 0)
            continue;
        const dp_sources mine = {
            .at = page->table, .held = page->rows[i] + DP_SOURCE_HEAD, .count = COUNT};
        for (uint64_t j = 0; j < ROUNDS; j++) {
            const uint64_t key = (j % KEYS + 1) << 40;
            int64_t place = dp_source_take(&mine, key, MAX);
            if (dp_source_open(&mine, key) > MAX)
                (void)atomic_fetch_add(&page->beyond, 1);
            dp_source_give(&mine, place);
        }
        (void)dp_source_take(&mine, (uint64_t)99 << 40, 0); /* and dies with it */
        _exit(0);
    }
    while (wait(NULL) > 0)
        continue;
    const dp_sources all = {
        .at = page->table, .held = page->rows[0] + DP_SOURCE_HEAD, .count = COUNT};
    expect("never beyond the limit", atomic_load(&page->beyond) == 0);
    expect("the dead still hold theirs", sum_of(page->table) == PROCESSES);
    for (uint32_t i = 0; i < PROCESSES; i++)
        dp_source_clear(&all, page->rows[i] + DP_SOURCE_HEAD);
    expect("and give it all back", sum_of(page->table) == 0);
    (void)munmap(page, sizeof(*page));
}

static void without_a_table_nothing_is_counted(void)
{
    const dp_sources none = {0};
    expect("not counted", dp_source_take(&none, 1, 1) == DP_SOURCE_NONE);
    dp_source_give(&none, 1);
}

int main(void)
{
    a_limit_holds_over_processes();
    a_full_set_turns_nobody_away();
    nothing_is_left_when_all_have_gone();
    without_a_table_nothing_is_counted();
    return finish("source");
}
