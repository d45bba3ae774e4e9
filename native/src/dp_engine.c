/* dp_engine: the turn, and draining. I/O. */
#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "dp_core.h"

/* --- the turn --------------------------------------------------------------------------------- */

static void timer_fired(dp_engine *engine)
{
    uint64_t times;
    (void)!read(engine->timer_fd, &times, sizeof(times));
    engine->next_timer = UINT64_MAX;
    if (engine->accept_again != 0 && engine->now_ms >= engine->accept_again) {
        engine->accept_again = 0;
        if (engine->serving && dp_accept_start(engine) != DP_OK)
            engine->accept_again = engine->now_ms + DP_ACCEPT_PAUSE_MS;
    }
    dp_timer_run(engine);
    dp_chores_run(engine);
    dp_meter_tick(engine);
    dp_buffers_trim(engine, false);
    dp_pipes_trim(engine, false);
    (void)dp_timer_arm(engine, true);
}

/* What epoll says becomes bits of conn->io. All of a batch is marked before any of it is handled:
 * so a pooled connection whose end stands later in the batch is not handed out. */
static dp_conn *mark(const dp_engine *engine, const struct epoll_event *event)
{
    dp_conn *conn = dp_conn_find(engine, event->data.u64);
    if (conn == NULL)
        return NULL;
    if ((event->events & EPOLLIN) != 0)
        conn->io |= DP_IO_READ;
    if ((event->events & EPOLLOUT) != 0)
        conn->io |= DP_IO_WRITE;
    if ((event->events & EPOLLRDHUP) != 0)
        conn->io |= DP_IO_READ | DP_IO_EOF;
    if ((event->events & (EPOLLERR | EPOLLHUP)) != 0)
        conn->io |= DP_IO_READ | DP_IO_BROKEN;
    return conn;
}

/* True: what somebody else waits for is there. */
static bool handle_batch(dp_engine *engine, const struct epoll_event *events, int count)
{
    dp_conn *marked[DP_BATCH_EVENTS];
    bool called = false;
    for (int i = 0; i < count; i++)
        marked[i] = events[i].data.u64 >> 56 == 0 ? mark(engine, &events[i]) : NULL;
    for (int i = 0; i < count; i++) {
        uint64_t key = events[i].data.u64;
        if (key >> 56 == DP_KEY_LISTENER)
            dp_accept_burst(engine, (uint32_t)key);
        else if (key >> 56 == DP_KEY_TIMER)
            timer_fired(engine);
        else if (key >> 56 == DP_KEY_OTHERS)
            called = true;
        else if (marked[i] != NULL && marked[i]->state != DP_S_DEAD)
            dp_conn_handle(engine, marked[i]);
    }
    return called;
}

void dp_ready_run(dp_engine *engine)
{
    for (uint32_t left = engine->ready.count; left > 0 && engine->ready.head != NULL; left--) {
        dp_conn *conn = engine->ready.head;
        dp_list_remove(&engine->ready, conn);
        conn->flags &= (uint8_t)~DP_C_QUEUED;
        dp_conn_handle(engine, conn);
    }
}

static bool handle_round(dp_engine *engine, const struct epoll_event *events, int count)
{
    engine->now_ms = dp_clock_ms();
    dp_view_refresh(engine);
    bool called = handle_batch(engine, events, count);
    dp_ready_run(engine);
    dp_queue_serve(engine);
    dp_conn_collect(engine);
    return called;
}

/* What is left for others and for later, before the caller has its turn, or nothing is to do. */
static int settle(dp_engine *engine)
{
    dp_access_flush(engine);
    if (dp_timer_arm(engine, false) != DP_OK)
        return DP_ESYSTEM;
    int notes = engine->ready.count != 0 ? DP_NOTE_AGAIN : 0;
    if (engine->draining && (engine->movable.count != 0 || engine->move_news))
        notes |= DP_NOTE_MOVABLE;
    if (engine->draining && engine->down_count == 0)
        notes |= DP_NOTE_EMPTY;
    if (engine->event_count != 0)
        notes |= DP_NOTE_EVENTS;
    return notes;
}

int dp_engine_turn(dp_engine *engine, uint32_t max_rounds)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC && engine->sealed);
    struct epoll_event events[DP_BATCH_EVENTS];
    uint64_t until = 0;
    engine->stats->turns++;
    for (uint32_t round = 0; round < max_rounds; round++) {
        int count = epoll_wait(engine->epoll_fd, events, DP_BATCH_EVENTS, 0);
        if (count < 0) {
            if (errno == EINTR)
                continue;
            return DP_ESYSTEM;
        }
        if (count == 0 && engine->ready.count == 0)
            break;
        (void)handle_round(engine, events, count);
        if (until == 0)
            until = engine->now_ms + DP_TURN_MS;
        if (engine->now_ms >= until) /* what is ready is so still, and the descriptor tells */
            break;
    }
    return settle(engine);
}

/* Batches until nothing is ready, or so many: like a turn, but that others are heard after each. */
static int stay_round(dp_engine *engine, int wait_ms, bool *ret_called)
{
    struct epoll_event events[DP_BATCH_EVENTS];
    *ret_called = false;
    for (int round = 0; round < DP_STAY_ROUNDS && !*ret_called; round++) {
        int count = epoll_wait(engine->epoll_fd, events, DP_BATCH_EVENTS, wait_ms);
        wait_ms = 0;
        if (count < 0) /* a signal, which is for others */
            *ret_called = true;
        else if (count == 0 && engine->ready.count == 0)
            break;
        else
            *ret_called = handle_round(engine, events, count);
    }
    engine->stats->turns++;
    return settle(engine);
}

int dp_engine_stay(dp_engine *engine, int others_fd)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC && engine->sealed);
    struct epoll_event others = {.events = EPOLLIN, .data.u64 = (uint64_t)DP_KEY_OTHERS << 56};
    if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD, others_fd, &others) != 0)
        return DP_ESYSTEM;
    engine->now_ms = dp_clock_ms();
    uint64_t until = engine->now_ms + DP_STAY_MS;
    bool called = false;
    int notes = settle(engine);
    while (!called && engine->now_ms < until && (notes & ~DP_NOTE_AGAIN) == 0)
        notes = stay_round(engine, notes == 0 ? -1 : 0, &called);
    if (epoll_ctl(engine->epoll_fd, EPOLL_CTL_DEL, others_fd, &others) != 0)
        return DP_ESYSTEM;
    return notes;
}

/* --- draining --------------------------------------------------------------------------------- */

typedef void (*visit)(dp_engine *engine, dp_conn *conn);

static void each_down(dp_engine *engine, visit each)
{
    for (uint32_t i = 0; i < engine->chunk_count; i++)
        for (uint32_t j = 0; j < DP_CHUNK; j++) {
            dp_conn *conn = &engine->chunks[i][j];
            if (conn->magic == DP_CONN_MAGIC && conn->role == DP_DOWN &&
                (conn->flags & (DP_C_PROBE | DP_C_TURNED_AWAY)) == 0 && conn->state != DP_S_DEAD)
                each(engine, conn);
        }
}

static void visit_first(dp_engine *engine, dp_conn *conn)
{
    (void)engine;
    /* of an earlier drain that was taken back */
    conn->flags &= (uint8_t)~(DP_C_AFTER_REQUEST | DP_C_STAYS);
}

static void visit_flow(dp_engine *engine, dp_conn *conn)
{
    dp_move_notice(engine, conn);
}

static void visit_idle(dp_engine *engine, dp_conn *conn)
{
    if ((conn->state == DP_S_IDLE || conn->state == DP_S_HEAD) && dp_conn_unsent(conn) == 0)
        dp_ready_push(engine, conn);
}

static void visit_reset(dp_engine *engine, dp_conn *conn)
{
    if (conn->state == DP_S_FROZEN || conn->state == DP_S_HELD)
        return;
    dp_flow_cut(engine, conn, DP_OUT_DRAIN_DEADLINE);
}

int dp_engine_drain(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    engine->draining = true;
    engine->closing_idle = false;
    engine->drained = (dp_drain_counts){0};
    engine->now_ms = dp_clock_ms();
    dp_move_begin(engine);
    each_down(engine, visit_first);
    each_down(engine, visit_flow);
    each_down(engine, visit_idle);
    dp_ready_run(engine);
    dp_conn_collect(engine);
    dp_access_flush(engine);
    return DP_OK;
}

int dp_engine_close_idle(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    if (!engine->draining)
        engine->drained = (dp_drain_counts){0};
    engine->draining = true;
    engine->closing_idle = true;
    engine->now_ms = dp_clock_ms();
    dp_move_withdraw(engine);
    each_down(engine, visit_idle);
    dp_ready_run(engine);
    dp_conn_collect(engine);
    dp_access_flush(engine);
    return DP_OK;
}

int dp_engine_reset_all(dp_engine *engine)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    uint64_t before = engine->drained.reset;
    engine->ended_as = &engine->drained.reset;
    dp_move_withdraw(engine);
    each_down(engine, visit_reset);
    engine->ended_as = &engine->drained.finished;
    dp_conn_collect(engine);
    dp_access_flush(engine);
    return (int)(engine->drained.reset - before);
}

int dp_engine_drain_counts(const dp_engine *engine, dp_drain_counts *ret_counts)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    *ret_counts = engine->drained;
    return DP_OK;
}

int dp_route_find(const dp_engine *engine, const uint8_t *data, const dp_request_head *head)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    const dp_route *route = dp_route_lookup(&engine->tables, data, head);
    return route != NULL ? (int)route->order : -1;
}
