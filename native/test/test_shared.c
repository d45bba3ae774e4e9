/* What workers share: a layout that does not fit is refused, counts add up over processes, and a
 * dead one's are given back. */
#include "dp_shared.h"

#include <stdlib.h>
#include <string.h>

#include "support.h"

enum { ENDPOINTS = 8, SEATS = 3, ROOM_BYTES = 8192 };

static _Alignas(64) uint8_t memory[ROOM_BYTES];

static dp_shared_header *lay_out(void)
{
    dp_shared_header *const header = (void *)memory;
    const dp_shared_section sections[4] = {
        {.kind = DP_SHARED_NAMES, .version = 1, .offset = 512, .count = ENDPOINTS, .stride = 8},
        {.kind = DP_SHARED_ENDPOINTS,
         .version = 1,
         .offset = 1024,
         .count = ENDPOINTS,
         .stride = 320},
        {.kind = DP_SHARED_SEATS, .version = 1, .offset = 4096, .count = SEATS, .stride = 8},
        {.kind = DP_SHARED_COUNTS,
         .version = 1,
         .offset = 4224,
         .count = SEATS,
         .stride = 12 * ENDPOINTS},
    };

    memset(memory, 0, sizeof(memory));
    header->magic = DP_SHARED_MAGIC;
    header->version = DP_SHARED_VERSION;
    header->size = sizeof(memory);
    header->section_count = 4;
    memcpy(header->sections, sections, sizeof(sections));
    return header;
}

static dp_shared opened(void)
{
    dp_shared shared;

    expect("it opens", dp_shared_open(&shared, memory, sizeof(memory)) == DP_OK);
    expect("there is a seat", dp_shared_sit(&shared, 1));
    return shared;
}

static void refuses_what_does_not_fit(void)
{
    dp_shared shared;
    dp_shared_header *const header = lay_out();

    expect("too short for a header", dp_shared_open(&shared, memory, 100) == DP_EMALFORMED);
    expect("another length", dp_shared_open(&shared, memory, 8000) == DP_EMALFORMED);
    header->magic = 1;
    expect("another magic", dp_shared_open(&shared, memory, sizeof(memory)) == DP_EVERSION);
    for (uint32_t i = 0; i < 4; i++) {
        static const struct {
            const char *name;
            uint64_t offset;
            uint32_t count;
            uint32_t stride;
        } wrong[] = {
            {"beyond the end", ROOM_BYTES - 8, 8, 320},
            {"beyond all", UINT64_MAX - 7, 8, 320},
            {"in the header", 8, 8, 320},
            {"too many", 1024, UINT32_MAX, UINT32_MAX & ~3u},
            {"none", 1024, 0, 320},
            {"at an odd place", 1025, 8, 320},
        };
        for (size_t j = 0; j < sizeof(wrong) / sizeof(wrong[0]); j++) {
            dp_shared_header *const again = lay_out();
            again->sections[i].offset = wrong[j].offset;
            again->sections[i].count = wrong[j].count;
            again->sections[i].stride = wrong[j].stride;
            expect(wrong[j].name, dp_shared_open(&shared, memory, sizeof(memory)) == DP_EMALFORMED);
        }
        lay_out()->sections[i].kind = 99;
        expect("a section is missing",
               dp_shared_open(&shared, memory, sizeof(memory)) == DP_EVERSION);
    }
}

static void one_record_for_one_key(void)
{
    dp_shared_count *count;
    dp_shared_count *of_other;

    (void)lay_out();
    dp_shared one = opened();
    dp_shared other = opened();
    dp_shared_endpoint *const first = dp_shared_find(&one, "a", 1, &count);
    expect("the same for both", dp_shared_find(&other, "a", 1, &of_other) == first);
    expect("each with its own row", count != of_other);
    expect("another for another", dp_shared_find(&one, "b", 1, &count) != first);
    expect("found again", dp_shared_find(&one, "a", 1, &count) == first);
}

static void a_limit_holds_over_processes(void)
{
    dp_shared_count *mine;
    dp_shared_count *theirs;

    (void)lay_out();
    dp_shared one = opened();
    dp_shared other = opened();
    dp_shared_endpoint *const endpoint = dp_shared_find(&one, "a", 1, &mine);
    (void)dp_shared_find(&other, "a", 1, &theirs);
    expect("room", dp_shared_take(endpoint, mine, 2) && dp_shared_take(endpoint, theirs, 2));
    expect("no room for a third", !dp_shared_take(endpoint, theirs, 2));
    dp_shared_give(endpoint, mine);
    expect("room again", dp_shared_take(endpoint, theirs, 2));
    dp_shared_wait(endpoint, theirs, 1);
    expect("nobody is dead: nothing is given back", !dp_shared_sweep(&one));
    atomic_store(&other.seats[other.seat - 1].state, DP_SEAT_DEAD); /* as the supervisor does */
    expect("a death changes something", dp_shared_sweep(&one));
    expect("all of it is given back",
           atomic_load(&endpoint->open) == 0 && atomic_load(&endpoint->waiting) == 0);
    expect("once", !dp_shared_sweep(&one));
    dp_shared third = opened();
    expect("its seat is free", third.seat == other.seat);
}

static void seats_and_records_end(void)
{
    dp_shared_count *count;
    dp_shared extra;
    char key[2] = "a";

    (void)lay_out();
    dp_shared one = opened();
    dp_shared other = opened();
    dp_shared third = opened();
    expect("it opens", dp_shared_open(&extra, memory, sizeof(memory)) == DP_OK);
    expect("no seat is left",
           !dp_shared_sit(&extra, 9) && dp_shared_find(&extra, "a", 1, &count) == NULL);
    for (unsigned i = 0; i < ENDPOINTS; i++, key[0]++) {
        expect("a record", dp_shared_find(i % 2 ? &one : &other, key, 1, &count) != NULL);
    }
    expect("no record is left", dp_shared_find(&third, "z", 1, &count) == NULL);
    dp_shared_leave(&one);
    dp_shared_endpoint *const again = dp_shared_find(&third, "z", 1, &count);
    expect("one that nobody uses is used again", again != NULL && again->key[0] == 'z');
    expect("others keep theirs", dp_shared_find(&other, "a", 1, &count)->key[0] == 'a');
    expect("a key too long has none",
           dp_shared_find(&third, (const char *)memory, DP_SHARED_KEY_MAX + 1, &count) == NULL);
}

static void latency_follows_peaks(void)
{
    dp_shared_endpoint endpoint = {0};

    expect("nothing is known", dp_latency_now(&endpoint, 1000) == 0);
    dp_latency_add(&endpoint, 1000, 800);
    expect("the first counts whole", dp_latency_now(&endpoint, 1000) == 800);
    dp_latency_add(&endpoint, 1000, 8000);
    expect("a peak counts at once", dp_latency_now(&endpoint, 1000) == 8000);
    dp_latency_add(&endpoint, 1000, 0);
    expect("what is better comes slowly", dp_latency_now(&endpoint, 1000) == 7000);
    expect("time heals", dp_latency_now(&endpoint, 11000) == 3500);
    expect("another's clock may be ahead", dp_latency_now(&endpoint, 999) == 7000);
}

int main(void)
{
    refuses_what_does_not_fit();
    one_record_for_one_key();
    a_limit_holds_over_processes();
    seats_and_records_end();
    latency_follows_peaks();
    return finish("shared");
}
