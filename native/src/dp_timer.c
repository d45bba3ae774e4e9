/* dp_timer: deadlines in one wheel, one timerfd. I/O: the timerfd alone.
 *
 * A deadline that moves later is only written down; the wheel finds that out when the old one
 * fires. So a connection in steady use costs no list operation per request. */
#include <errno.h>
#include <sys/timerfd.h>
#include <time.h>

#include "dp_core.h"

uint64_t dp_clock_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

uint64_t dp_clock_ms(void)
{
    return dp_clock_us() / 1000u;
}

static void wheel_link(dp_engine *engine, dp_conn *conn)
{
    /* Beyond the horizon it goes into the last slot, and from there further. */
    uint64_t tick = conn->deadline / DP_WHEEL_MS + 1;
    if (tick < engine->wheel_tick)
        tick = engine->wheel_tick;
    if (tick >= engine->wheel_tick + DP_WHEEL_SLOTS)
        tick = engine->wheel_tick + DP_WHEEL_SLOTS - 1;
    size_t slot = tick % DP_WHEEL_SLOTS;
    conn->linked = (uint32_t)tick;
    conn->timer_next = engine->wheel[slot];
    if (conn->timer_next != NULL)
        conn->timer_next->timer_at = &conn->timer_next;
    conn->timer_at = &engine->wheel[slot];
    engine->wheel[slot] = conn;
    engine->wheel_bits[slot / 64] |= (uint64_t)1 << (slot % 64);
}

void dp_timer_cancel(dp_conn *conn)
{
    conn->deadline = 0;
    if (conn->timer_at == NULL)
        return;
    *conn->timer_at = conn->timer_next;
    if (conn->timer_next != NULL)
        conn->timer_next->timer_at = conn->timer_at;
    conn->timer_at = NULL;
    conn->timer_next = NULL;
}

void dp_timer_set(dp_engine *engine, dp_conn *conn, uint64_t after_ms)
{
    if (after_ms == 0) {
        conn->deadline = 0; /* stays linked; firing finds nothing to do */
        return;
    }
    uint64_t deadline = engine->now_ms + after_ms;
    conn->deadline = deadline;
    if (conn->timer_at != NULL) {
        /* Low words alone: a machine may run for longer than they count, no deadline does. */
        if ((int32_t)(conn->linked - (uint32_t)(deadline / DP_WHEEL_MS + 1)) <= 0)
            return;
        dp_timer_cancel(conn);
        conn->deadline = deadline;
    }
    wheel_link(engine, conn);
}

void dp_timer_run(dp_engine *engine)
{
    uint64_t now_tick = engine->now_ms / DP_WHEEL_MS;
    /* After a long stop (a laptop's sleep, SIGSTOP) each slot once is all of them. */
    if (now_tick >= engine->wheel_tick + DP_WHEEL_SLOTS)
        engine->wheel_tick = now_tick - DP_WHEEL_SLOTS + 1;
    for (; engine->wheel_tick <= now_tick; engine->wheel_tick++) {
        size_t slot = engine->wheel_tick % DP_WHEEL_SLOTS;
        dp_conn *conn = engine->wheel[slot];
        engine->wheel[slot] = NULL;
        engine->wheel_bits[slot / 64] &= ~((uint64_t)1 << (slot % 64));
        /* The chain is cut off first: what is linked anew below must not be met again here. */
        dp_conn *chain = conn;
        if (chain != NULL)
            chain->timer_at = &chain;
        while ((conn = chain) != NULL) {
            uint64_t deadline = conn->deadline;
            dp_timer_cancel(conn);
            conn->deadline = deadline;
            if (conn->watch == DP_W_NONE && conn->state == DP_S_EXCHANGE)
                dp_conn_watch_late(engine, conn);
            if (deadline == 0)
                continue;
            if (deadline > engine->now_ms) {
                engine->wheel_tick++; /* relative to what is still to come */
                wheel_link(engine, conn);
                engine->wheel_tick--;
            } else {
                conn->deadline = 0;
                dp_conn_timeout(engine, conn);
            }
        }
    }
}

static uint64_t wheel_next(const dp_engine *engine)
{
    for (uint64_t ahead = 0; ahead < DP_WHEEL_SLOTS;) {
        uint64_t tick = engine->wheel_tick + ahead;
        size_t slot = tick % DP_WHEEL_SLOTS;
        uint64_t bits = engine->wheel_bits[slot / 64] >> (slot % 64);
        if (bits != 0)
            return (tick + (uint64_t)__builtin_ctzll(bits)) * DP_WHEEL_MS;
        ahead += 64 - slot % 64;
    }
    return UINT64_MAX;
}

int dp_timer_arm(dp_engine *engine, bool force)
{
    uint64_t next = wheel_next(engine);
    if (engine->options.tick_ms != 0 && next > engine->now_ms + engine->options.tick_ms)
        next = force ? engine->now_ms + engine->options.tick_ms : engine->next_timer;
    if (engine->accept_again != 0 && next > engine->accept_again)
        next = engine->accept_again;
    uint64_t chores = dp_chores_due(engine);
    if (next > chores)
        next = chores > engine->now_ms ? chores : engine->now_ms + 1;
    if (!force && next >= engine->next_timer)
        return DP_OK;
    engine->next_timer = next;
    if (next == UINT64_MAX)
        return DP_OK;
    struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(next / 1000), .tv_nsec = (long)(next % 1000) * 1000000}};
    if (timerfd_settime(engine->timer_fd, TFD_TIMER_ABSTIME, &at, NULL) != 0)
        return DP_ESYSTEM;
    return DP_OK;
}
