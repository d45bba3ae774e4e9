/* The wheel: nothing fires before its time, nothing is forgotten, and late is late by little. */
#include "dp_timer.c"

#include <stdlib.h>
#include <string.h>

#include "support.h"

uint64_t dp_chores_due(const dp_engine *engine)
{
    (void)engine;
    return UINT64_MAX;
}

enum { CONNS = 400, SLACK_MS = 2 * DP_WHEEL_MS };

static dp_engine engine;
static dp_conn conns[CONNS];
static uint64_t wanted[CONNS]; /* 0: nothing may fire */
static unsigned early;
static unsigned late;
static unsigned unasked;
static unsigned fired;
static bool closes_others; /* a timeout may end other connections, in its own slot too */

void dp_conn_timeout(dp_engine *owner, dp_conn *conn)
{
    size_t i = (size_t)(conn - conns);
    fired++;
    unasked += wanted[i] == 0;
    early += owner->now_ms < wanted[i];
    late += owner->now_ms > wanted[i] + SLACK_MS + owner->options.tick_ms;
    wanted[i] = 0;
    if (closes_others) {
        size_t other = (i + 1) % CONNS;
        dp_timer_cancel(&conns[other]);
        wanted[other] = 0;
    }
}

static void start(uint64_t now)
{
    memset(&engine, 0, sizeof(engine));
    memset(conns, 0, sizeof(conns));
    memset(wanted, 0, sizeof(wanted));
    early = late = unasked = fired = 0;
    closes_others = false;
    engine.stats = &engine.own_stats;
    engine.now_ms = now;
    engine.wheel_tick = now / DP_WHEEL_MS;
    engine.next_timer = UINT64_MAX;
}

static void set(size_t i, uint64_t after_ms)
{
    dp_timer_set(&engine, &conns[i], after_ms);
    wanted[i] = after_ms == 0 ? 0 : engine.now_ms + after_ms;
}

static void run_at(uint64_t now)
{
    engine.now_ms = now;
    dp_timer_run(&engine);
}

/* The step by which time passes is told in tick_ms, which is how late a timer may be for that. */
static void at_random(uint64_t step_max, bool cancels)
{
    start(123456789);
    closes_others = cancels;
    engine.options.tick_ms = (uint32_t)step_max;
    srand(7);
    uint64_t now = engine.now_ms;
    for (int round = 0; round < 20000; round++) {
        now += (uint64_t)rand() % step_max + 1;
        run_at(now);
        for (int j = 0; j < 3; j++) {
            static const uint64_t after[] = {1,    15,    16,    17,    100,
                                             1000, 16000, 17000, 60000, 3600000};
            set((size_t)rand() % CONNS, after[rand() % 10] + (uint64_t)rand() % 20);
        }
        size_t i = (size_t)rand() % CONNS;
        if (rand() % 2 != 0) {
            dp_timer_cancel(&conns[i]);
            wanted[i] = 0;
        } else {
            set(i, 0);
        }
    }
    unsigned before = fired;
    for (int i = 0; i < 4000; i++)
        run_at(now += 1000);
    unsigned left = 0;
    for (size_t i = 0; i < CONNS; i++)
        left += wanted[i] != 0;
    expect("some fired", before > 100);
    expect("none early", early == 0);
    expect("none unasked", unasked == 0);
    expect("none forgotten", left == 0);
}

static void later_deadlines_only_move(void)
{
    start(1000);
    set(0, 100);
    for (uint64_t now = 1000; now < 50000; now += 50) {
        run_at(now);
        set(0, 100);
    }
    expect("a deadline that moves on does not fire", fired == 0);
    run_at(49950 + 100 + SLACK_MS);
    expect("and fires at last", fired == 1 && late == 0);
}

static void earlier_deadlines_count(void)
{
    start(1000);
    set(0, 10000);
    set(0, 50);
    run_at(1050 + SLACK_MS);
    expect("an earlier deadline takes the place of a later one", fired == 1 && late == 0);
}

static void a_long_stop_is_survived(void)
{
    start(1000000);
    for (size_t i = 0; i < CONNS; i++)
        set(i, 1 + i * 300);
    uint64_t now = 1000000 + 60000; /* asleep for many turns of the wheel */
    engine.options.tick_ms = 60000;
    run_at(now);
    expect("what was due has fired", fired == 200);
    engine.options.tick_ms = 0;
    late = 0;
    for (; fired < CONNS && now < 1000000 + 200000; now += 10)
        run_at(now);
    expect("all the others fired", fired == CONNS);
    expect("in time", late == 0 && early == 0);
}

static void the_timer_is_armed_for_the_first(void)
{
    start(1000);
    engine.timer_fd = timerfd_create(CLOCK_MONOTONIC, 0);
    set(0, 5000);
    set(1, 200);
    expect("arm", dp_timer_arm(&engine, false) == DP_OK);
    expect("the earliest counts",
           engine.next_timer >= 1200 && engine.next_timer <= 1200 + SLACK_MS);
    set(2, 3000);
    expect("arm", dp_timer_arm(&engine, false) == DP_OK);
    expect("a later one changes nothing", engine.next_timer <= 1200 + SLACK_MS);
    start(1000);
    expect("nothing to arm for", dp_timer_arm(&engine, true) == DP_OK);
    expect("nothing is armed", engine.next_timer == UINT64_MAX);
}

int main(void)
{
    at_random(5, false);
    at_random(40, false);
    at_random(3000, false);
    at_random(40000, false);
    at_random(40, true);
    later_deadlines_only_move();
    earlier_deadlines_count();
    a_long_stop_is_survived();
    the_timer_is_armed_for_the_first();
    return finish("timer");
}
