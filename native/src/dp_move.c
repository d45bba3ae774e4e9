/* dp_move: batches of connections on their way to another process, or from one; and what of them
 * is between requests. I/O: epoll and close alone; Python carries descriptors and bytes. Records:
 * dp_record.h. What moves while bytes flow: dp_flow.c. */
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

static dp_batch *batch_find(dp_engine *engine, uint32_t number, enum dp_state state)
{
    for (size_t i = 0; i < DP_ARRAY_LEN(engine->batches); i++)
        if (engine->batches[i].state == state && engine->batches[i].number == number)
            return &engine->batches[i];
    return NULL;
}

static dp_batch *batch_open(dp_engine *engine, uint32_t number, enum dp_state state)
{
    if (batch_find(engine, number, state) != NULL)
        return NULL;
    for (size_t i = 0; i < DP_ARRAY_LEN(engine->batches); i++) {
        dp_batch *batch = &engine->batches[i];
        if (batch->state != DP_S_FREE)
            continue;
        *batch = (dp_batch){.number = number, .state = (uint8_t)state};
        return batch;
    }
    return NULL;
}

static dp_conn *batch_take(dp_batch *batch)
{
    dp_conn *conn = batch->conns.head;
    if (conn != NULL)
        dp_list_remove(&batch->conns, conn);
    else
        batch->state = DP_S_FREE;
    return conn;
}

/* --- blue ------------------------------------------------------------------------------------- */

void dp_move_offer(dp_engine *engine, dp_conn *conn)
{
    if ((conn->flags & DP_C_MOVABLE) != 0)
        return;
    if ((conn->flags & DP_C_QUEUED) != 0)
        dp_list_remove(&engine->ready, conn);
    conn->flags &= (uint8_t)~DP_C_QUEUED;
    conn->flags |= DP_C_MOVABLE;
    dp_list_append(&engine->movable, conn);
}

static dp_conn *unoffer(dp_engine *engine)
{
    dp_conn *conn = engine->movable.head;
    if (conn == NULL)
        return NULL;
    dp_list_remove(&engine->movable, conn);
    conn->flags &= (uint8_t)~DP_C_MOVABLE;
    return conn;
}

void dp_move_withdraw(dp_engine *engine)
{
    dp_conn *conn;
    while ((conn = unoffer(engine)) != NULL)
        dp_ready_push(engine, conn);
}

void dp_move_begin(dp_engine *engine)
{
    engine->move_at = UINT32_MAX;
    engine->move_news = false;
}

void dp_move_notice(dp_engine *engine, const dp_conn *down)
{
    if (!engine->move_news && !engine->closing_idle && dp_flow_moves(down))
        engine->move_news = true;
}

static void describe(const dp_engine *engine, const dp_conn *conn, dp_record *ret_record,
                     char ret_client[DP_CLIENT_TEXT])
{
    const char *listener = engine->tables.listeners[conn->listener].name;
    uint64_t left = 0;
    if (conn->deadline != 0)
        left = conn->deadline > engine->now_ms ? conn->deadline - engine->now_ms : 1;
    *ret_record = (dp_record){
        .version = 1,
        .kind = DP_MOVED_HTTP,
        .flags = (conn->flags & DP_C_AFTER_REQUEST) != 0 ? DP_MOVED_AFTER : 0,
        .left_ms = (uint32_t)left,
        .frozen_us = conn->frozen_us,
        .listener = {.data = (const uint8_t *)listener, .len = (uint32_t)strlen(listener)},
        .client = {.data = (const uint8_t *)ret_client,
                   .len = (uint32_t)dp_client_text(conn, ret_client)},
        .client_port = conn->client_port,
        .down = {.in = {.data = dp_buffer_start(&conn->in), .len = conn->in.len}}};
}

/* What is being saved. */
typedef struct saving {
    dp_batch *batch;
    uint8_t *records;
    size_t capacity;
    size_t used;
    int *fds;
    uint32_t fd_room;
    uint32_t fd_count;
    uint32_t count;
    uint64_t now_us;
} saving;

static void close_counted(dp_engine *engine, dp_conn *conn)
{
    engine->ended_as = &engine->drained.closed;
    dp_conn_close(engine, conn);
    engine->ended_as = &engine->drained.finished;
}

static void put(saving *to, const dp_record *record, const int *fds, dp_conn *conn)
{
    uint32_t count = dp_record_fds(record);
    dp_record_write(record, to->records + to->used);
    to->used += dp_record_size(record);
    memcpy(to->fds + to->fd_count, fds, count * sizeof(*fds));
    to->fd_count += count;
    to->count++;
    dp_list_append(&to->batch->conns, conn);
}

static void save_idle(dp_engine *engine, saving *to)
{
    while (engine->movable.count != 0 && to->fd_count < to->fd_room) {
        dp_conn *conn = engine->movable.head;
        dp_record record;
        char client[DP_CLIENT_TEXT]; /* record has a look into it */
        conn->frozen_us = to->now_us;
        describe(engine, conn, &record, client);
        size_t size = dp_record_size(&record);
        if (size > to->capacity - to->used && to->count != 0)
            return;
        (void)unoffer(engine);
        if (size > to->capacity) { /* more read ahead than a message carries: it cannot move */
            close_counted(engine, conn);
            continue;
        }
        dp_conn_unwatch(engine, conn);
        put(to, &record, &conn->fd, conn);
        conn->state = DP_S_FROZEN;
    }
}

/* False: the batch is full, and this one is the next's. What would not fit into any batch stays,
 * and flows on until it does. */
static bool save_flow(dp_engine *engine, saving *to, dp_conn *conn)
{
    dp_record record;
    char client[DP_CLIENT_TEXT];
    int fds[DP_MOVED_FDS_MAX];
    conn->frozen_us = to->now_us;
    dp_flow_describe(engine, conn, &record, client, fds);
    if (dp_record_fds(&record) > to->fd_room - to->fd_count ||
        dp_record_size(&record) > to->capacity - to->used)
        return to->count == 0;
    dp_flow_freeze(engine, conn); /* out of the ready queue first: a list has its links, too */
    put(to, &record, fds, conn);
    return true;
}

/* They flow until their turn comes, so they stand in no list: the slab is gone through, and again
 * for as long as there may be more. */
static void save_flows(dp_engine *engine, saving *to)
{
    uint32_t end = engine->chunk_count * DP_CHUNK;
    for (;;) {
        if (engine->move_at >= end) {
            if (!engine->move_news)
                return;
            engine->move_at = 0;
            engine->move_news = false;
        }
        for (; engine->move_at < end; engine->move_at++) {
            dp_conn *conn = &engine->chunks[engine->move_at / DP_CHUNK][engine->move_at % DP_CHUNK];
            if (conn->magic == DP_CONN_MAGIC && dp_flow_moves(conn) && !save_flow(engine, to, conn))
                return;
        }
    }
}

int dp_move_save(dp_engine *engine, uint32_t number, uint32_t version, uint8_t *ret_records,
                 size_t capacity, int *ret_fds, uint32_t max_fds, uint32_t *ret_fd_count,
                 size_t *ret_len)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    *ret_len = 0;
    *ret_fd_count = 0;
    bool flows = version >= 2 && engine->draining && !engine->closing_idle &&
                 (engine->move_news || engine->move_at < engine->chunk_count * DP_CHUNK);
    if ((engine->movable.count == 0 && !flows) || max_fds == 0)
        return 0;
    saving to = {.batch = batch_open(engine, number, DP_S_FROZEN),
                 .records = ret_records,
                 .capacity = capacity,
                 .fds = ret_fds,
                 .fd_room = max_fds,
                 .now_us = dp_clock_us()};
    if (to.batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    save_idle(engine, &to);
    if (flows)
        save_flows(engine, &to);
    if (to.count == 0)
        to.batch->state = DP_S_FREE;
    *ret_len = to.used;
    *ret_fd_count = to.fd_count;
    return (int)to.count;
}

static bool is_flow(const dp_conn *conn)
{
    return conn->exchange != NULL;
}

static void give_away(dp_engine *engine, dp_conn *conn)
{
    engine->stats->moved_out_total++;
    if (!is_flow(conn)) {
        if ((conn->flags & DP_C_AFTER_REQUEST) != 0)
            engine->drained.moved_after_request++;
        else
            engine->drained.moved_idle++;
        dp_conn_forget(engine, conn);
        return;
    }
    if (conn->protocol == DP_TCP)
        engine->drained.moved_tunnel++;
    else
        engine->drained.moved_streaming++;
    dp_flow_forget(engine, conn);
}

static enum dp_outcome outcome_of(uint8_t verdict)
{
    return verdict == DP_DECLINED_DENIED     ? DP_OUT_DENIED
           : verdict == DP_DECLINED_UPSTREAM ? DP_OUT_NO_ENDPOINT
                                             : DP_OUT_NO_ROUTE;
}

/* What is between requests is closed: it can do nothing here. What flows goes on to its end, unless
 * green's rules forbid it: a source that may not come any more, a tunnel whose listener is gone.
 * Those are cut, so that neither side takes what it got for all there was. An endpoint that is gone
 * forbids nothing: names change their addresses by themselves, and the drain's deadline holds. */
static void decline(dp_engine *engine, dp_conn *conn, uint8_t verdict)
{
    bool is_ruled_out = verdict == DP_DECLINED_DENIED ||
                        (conn->protocol == DP_TCP && verdict == DP_DECLINED_LISTENER);
    engine->drained.declined[verdict < DP_DECLINED_COUNT ? verdict : DP_DECLINED_OTHER]++;
    if (!is_flow(conn)) {
        close_counted(engine, conn);
        return;
    }
    conn->flags |= DP_C_STAYS;
    if (!dp_flow_go_on(engine, conn, DP_W_OWN) || !is_ruled_out)
        return;
    engine->ended_as = &engine->drained.reset;
    dp_flow_cut(engine, conn, outcome_of(verdict));
    engine->ended_as = &engine->drained.finished;
}

int dp_move_commit(dp_engine *engine, uint32_t number, const uint8_t *verdicts, size_t count)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    dp_batch *batch = batch_find(engine, number, DP_S_FROZEN);
    if (batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    dp_conn *conn;
    for (size_t i = 0; (conn = batch_take(batch)) != NULL; i++)
        if (i < count && verdicts[i] != 0)
            decline(engine, conn, verdicts[i]);
        else
            give_away(engine, conn);
    dp_conn_collect(engine);
    return DP_OK;
}

int dp_move_take_back(dp_engine *engine, uint32_t number)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    dp_batch *batch = batch_find(engine, number, DP_S_FROZEN);
    if (batch == NULL)
        return DP_ESTATE;
    dp_conn *conn;
    while ((conn = batch_take(batch)) != NULL) {
        if (is_flow(conn)) {
            if (dp_flow_go_on(engine, conn, DP_W_SHARED) && engine->draining)
                dp_move_notice(engine, conn);
            continue;
        }
        conn->state = conn->in.len != 0 ? DP_S_HEAD : DP_S_IDLE;
        conn->scanned = 0;
        conn->looked = 0;
        /* The kernel reports what is there when it is added: no edge is missed. */
        if (dp_conn_watch(engine, conn, DP_W_SHARED) != DP_OK)
            dp_conn_close(engine, conn);
        else
            dp_ready_push(engine, conn);
    }
    return DP_OK;
}

/* --- green ------------------------------------------------------------------------------------ */

/* One between requests: 0, or DP_DECLINED_, and the descriptor is the caller's. */
static int take_idle(dp_engine *engine, const dp_record *record, int fd, dp_conn **ret_conn)
{
    int listener = dp_move_listener(engine, &record->listener, DP_HTTP);
    if (listener < 0)
        return DP_DECLINED_LISTENER;
    dp_conn *conn = dp_conn_new(engine, -1, DP_DOWN);
    if (conn == NULL)
        return DP_DECLINED_NO_ROOM;
    dp_conn_count_down(engine, conn, 1);
    conn->state = DP_S_HELD;
    conn->protocol = DP_HTTP;
    conn->listener = (uint16_t)listener;
    conn->io = DP_IO_WRITE;
    conn->deadline = record->left_ms; /* until it starts */
    conn->frozen_us = record->frozen_us;
    conn->client_port = record->client_port;
    int verdict = 0;
    if (!dp_client_moved(engine, conn, record->client.data, record->client.len)) {
        verdict = DP_DECLINED_OTHER;
    } else if (!dp_limit_allows(engine, conn)) { /* blue says goodbye */
        engine->stats->denied_total++;
        verdict = DP_DECLINED_DENIED;
    } else if (dp_buffer_append(engine, &conn->in, record->down.in.data, record->down.in.len) !=
               DP_OK) {
        verdict = DP_DECLINED_NO_ROOM;
    }
    if (verdict != 0) {
        dp_conn_forget(engine, conn);
        return verdict;
    }
    conn->fd = fd;
    *ret_conn = conn;
    return 0;
}

static int take(dp_engine *engine, const dp_record *record, const int *fds, dp_conn **ret_conn)
{
    if (record->version == 1 && record->kind == DP_MOVED_HTTP)
        return take_idle(engine, record, fds[0], ret_conn);
    if (record->version == 2 &&
        (record->kind == DP_MOVED_TUNNEL || record->kind == DP_MOVED_RESPONSE))
        return dp_flow_take(engine, record, fds, ret_conn);
    return DP_DECLINED_OTHER;
}

/* Whether these are count records with fd_count descriptors. */
static int check(const uint8_t *records, size_t len, uint32_t count, uint32_t fd_count)
{
    size_t at = 0;
    size_t fds = 0;
    for (uint32_t i = 0; i < count; i++) {
        dp_record record;
        size_t size;
        int result = dp_record_read(records + at, len - at, &record, &size);
        if (result != DP_OK)
            return result;
        at += size;
        fds += dp_record_fds(&record);
    }
    return at == len && fds == fd_count ? DP_OK : DP_EMALFORMED;
}

int dp_move_hold(dp_engine *engine, uint32_t number, const uint8_t *records, size_t len,
                 uint32_t count, const int *fds, uint32_t fd_count, uint8_t *ret_verdicts)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    int result = check(records, len, count, fd_count);
    if (result != DP_OK)
        return result;
    dp_batch *batch = batch_open(engine, number, DP_S_HELD);
    if (batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    for (uint32_t i = 0; i < count; i++) {
        dp_record record;
        dp_conn *conn;
        size_t size = 0;
        (void)dp_record_read(records, len, &record, &size);
        uint32_t own = dp_record_fds(&record);
        ret_verdicts[i] = (uint8_t)take(engine, &record, fds, &conn);
        if (ret_verdicts[i] == 0)
            dp_list_append(&batch->conns, conn);
        for (uint32_t j = 0; j < own && ret_verdicts[i] != 0; j++)
            (void)close(fds[j]);
        fds += own;
        records += size;
        len -= size;
    }
    dp_conn_collect(engine);
    return DP_OK;
}

static bool start_idle(dp_engine *engine, dp_conn *conn)
{
    conn->state = conn->in.len != 0 ? DP_S_HEAD : DP_S_IDLE;
    uint64_t left = conn->deadline;
    conn->deadline = 0;
    if (dp_conn_watch(engine, conn, DP_W_SHARED) != DP_OK) {
        dp_conn_close(engine, conn);
        return false;
    }
    dp_limit_arrived(engine, conn);
    dp_timer_set(engine, conn, left != 0 ? left : engine->options.idle_ms);
    if (conn->in.len != 0)
        dp_ready_push(engine, conn);
    return true;
}

int dp_move_start(dp_engine *engine, uint32_t number, uint32_t *ret_stall_us, uint32_t max_stalls)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    dp_batch *batch = batch_find(engine, number, DP_S_HELD);
    if (batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    uint64_t now_us = dp_clock_us();
    uint32_t started = 0;
    dp_conn *conn;
    while ((conn = batch_take(batch)) != NULL) {
        if (!(is_flow(conn) ? dp_flow_start(engine, conn) : start_idle(engine, conn)))
            continue;
        if (started < max_stalls)
            ret_stall_us[started] = (uint32_t)(now_us - conn->frozen_us);
        engine->stats->moved_in_total++;
        started++;
    }
    (void)dp_timer_arm(engine, false);
    return (int)started;
}

int dp_move_drop(dp_engine *engine, uint32_t number)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    dp_batch *batch = batch_find(engine, number, DP_S_HELD);
    if (batch == NULL)
        return DP_ESTATE;
    dp_conn *conn;
    while ((conn = batch_take(batch)) != NULL)
        if (is_flow(conn))
            dp_flow_forget(engine, conn);
        else
            dp_conn_forget(engine, conn);
    dp_conn_collect(engine);
    return DP_OK;
}
