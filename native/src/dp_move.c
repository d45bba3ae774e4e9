/* dp_move: saving connections for another process and taking them in. I/O: epoll and close alone;
 * Python carries descriptors and bytes.
 *
 * A record, little-endian, version 1 (documented in ARCHITECTURE.md, "Moving"):
 *   u32 length of the whole record    u16 version    u8 kind (1: http between requests)
 *   u8 flags (1: its last exchange ended during the drain)
 *   u8 listener name length    u8 client text length    u16 zero
 *   u32 bytes already read     u32 ms left to its deadline, 0: none
 *   u64 when it was frozen, CLOCK_MONOTONIC in us
 *   listener name, client text, bytes already read */
#include <string.h>
#include <unistd.h>

#include "dp_core.h"

enum { RECORD_FIXED = 28, KIND_HTTP = 1, FLAG_AFTER_REQUEST = 1 };

static void put16(uint8_t *at, uint32_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static void put32(uint8_t *at, uint32_t value)
{
    put16(at, value & 0xffff);
    put16(at + 2, value >> 16);
}

static uint32_t get16(const uint8_t *at)
{
    return (uint32_t)at[0] | (uint32_t)at[1] << 8;
}

static uint32_t get32(const uint8_t *at)
{
    return get16(at) | get16(at + 2) << 16;
}

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

static size_t record_size(const dp_engine *engine, const dp_conn *conn)
{
    char client[DP_CLIENT_TEXT];
    return RECORD_FIXED + strlen(engine->tables.listeners[conn->listener].name) +
           dp_client_text(conn, client) + conn->in.len;
}

static void record_write(const dp_engine *engine, const dp_conn *conn, uint8_t *at)
{
    const char *listener = engine->tables.listeners[conn->listener].name;
    size_t name_len = strlen(listener);
    char client[DP_CLIENT_TEXT];
    size_t client_len = dp_client_text(conn, client);
    uint64_t left = 0;
    if (conn->deadline != 0)
        left = conn->deadline > engine->now_ms ? conn->deadline - engine->now_ms : 1;
    put32(at, (uint32_t)record_size(engine, conn));
    put16(at + 4, DP_MOVE_VERSION);
    at[6] = KIND_HTTP;
    at[7] = (conn->flags & DP_C_AFTER_REQUEST) != 0 ? FLAG_AFTER_REQUEST : 0;
    at[8] = (uint8_t)name_len;
    at[9] = (uint8_t)client_len;
    put16(at + 10, 0);
    put32(at + 12, conn->in.len);
    put32(at + 16, (uint32_t)left);
    put32(at + 20, (uint32_t)conn->frozen_us);
    put32(at + 24, (uint32_t)(conn->frozen_us >> 32));
    at += RECORD_FIXED;
    memcpy(at, listener, name_len);
    memcpy(at + name_len, client, client_len);
    if (conn->in.len != 0)
        memcpy(at + name_len + client_len, conn->in.data + conn->in.off, conn->in.len);
}

int dp_move_save(dp_engine *engine, uint32_t number, uint8_t *ret_records, size_t capacity,
                 int *ret_fds, uint32_t max_fds, size_t *ret_len)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    *ret_len = 0;
    if (engine->movable.count == 0 || max_fds == 0)
        return 0;
    dp_batch *batch = batch_open(engine, number, DP_S_FROZEN);
    if (batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    uint64_t now_us = dp_clock_us();
    uint32_t count = 0;
    size_t used = 0;
    while (engine->movable.count != 0 && count < max_fds) {
        dp_conn *conn = engine->movable.head;
        size_t size = record_size(engine, conn);
        if (size > capacity - used && count != 0)
            break;
        (void)unoffer(engine);
        if (size > capacity) { /* more read ahead than a message carries: it cannot move */
            engine->ended_as = &engine->drained.closed;
            dp_conn_close(engine, conn);
            engine->ended_as = &engine->drained.finished;
            continue;
        }
        dp_conn_unwatch(engine, conn);
        conn->frozen_us = now_us;
        record_write(engine, conn, ret_records + used);
        conn->state = DP_S_FROZEN;
        dp_list_append(&batch->conns, conn);
        ret_fds[count++] = conn->fd;
        used += size;
    }
    if (count == 0)
        batch->state = DP_S_FREE;
    *ret_len = used;
    return (int)count;
}

int dp_move_commit(dp_engine *engine, uint32_t number, const uint8_t *declined, size_t declined_len)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    dp_batch *batch = batch_find(engine, number, DP_S_FROZEN);
    if (batch == NULL)
        return DP_ESTATE;
    dp_conn *conn;
    for (size_t i = 0; (conn = batch_take(batch)) != NULL; i++) {
        if (i / 8 < declined_len && (declined[i / 8] >> (i % 8) & 1) != 0) {
            engine->ended_as = &engine->drained.closed;
            dp_conn_close(engine, conn);
            engine->ended_as = &engine->drained.finished;
            continue;
        }
        if ((conn->flags & DP_C_AFTER_REQUEST) != 0)
            engine->drained.moved_after_request++;
        else
            engine->drained.moved_idle++;
        engine->stats->moved_out_total++;
        dp_conn_forget(engine, conn);
    }
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

static int listener_named(const dp_engine *engine, const uint8_t *name, size_t len)
{
    for (uint32_t i = 0; i < engine->tables.listener_count; i++) {
        const dp_listener *listener = &engine->tables.listeners[i];
        if (strlen(listener->name) == len && memcmp(listener->name, name, len) == 0 &&
            listener->protocol == DP_HTTP)
            return (int)i;
    }
    return -1;
}

/* The size of the record at `at`, checked against what is left; 0: broken. */
static size_t record_check(const uint8_t *at, size_t left)
{
    if (left < RECORD_FIXED)
        return 0;
    size_t size = get32(at);
    size_t parts = RECORD_FIXED + (size_t)at[8] + at[9] + get32(at + 12);
    if (size != parts || size > left || at[9] > DP_CLIENT_TEXT)
        return 0;
    const uint8_t *client = at + RECORD_FIXED + at[8];
    for (uint8_t i = 0; i < at[9]; i++) /* it will stand in a field's value */
        if (client[i] <= ' ' || client[i] >= 0x7f)
            return 0;
    return size;
}

static bool record_take(dp_engine *engine, dp_batch *batch, const uint8_t *at, int fd)
{
    if (at[6] != KIND_HTTP)
        return false;
    int listener = listener_named(engine, at + RECORD_FIXED, at[8]);
    if (listener < 0)
        return false;
    dp_conn *conn = dp_conn_new(engine, fd, DP_DOWN);
    if (conn == NULL)
        return false;
    dp_conn_count_down(engine, conn, 1);
    conn->state = DP_S_HELD;
    conn->protocol = DP_HTTP;
    conn->listener = (uint16_t)listener;
    conn->io = DP_IO_WRITE;
    conn->deadline = get32(at + 16); /* ms left, until it starts */
    conn->frozen_us = get32(at + 20) | (uint64_t)get32(at + 24) << 32;
    bool known = dp_client_moved(engine, conn, at + RECORD_FIXED + at[8], at[9]);
    if (!known || !dp_limit_allows(engine, conn)) { /* blue says goodbye */
        engine->stats->denied_total += known;
        conn->fd = -1;
        dp_conn_forget(engine, conn);
        return false;
    }
    if (dp_buffer_append(engine, &conn->in, at + RECORD_FIXED + at[8] + at[9], get32(at + 12)) !=
        DP_OK) {
        /* declined: hold closes this copy, blue says goodbye on its own */
        conn->fd = -1;
        dp_conn_forget(engine, conn);
        return false;
    }
    dp_list_append(&batch->conns, conn);
    return true;
}

int dp_move_hold(dp_engine *engine, uint32_t number, const uint8_t *records, size_t len,
                 const int *fds, uint32_t count, uint8_t *ret_declined)
{
    DP_CHECK(engine->magic == DP_ENGINE_MAGIC);
    size_t at = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t size = record_check(records + at, len - at);
        if (size == 0)
            return DP_EMALFORMED;
        if (get16(records + at + 4) != DP_MOVE_VERSION)
            return DP_EVERSION;
        at += size;
    }
    if (at != len)
        return DP_EMALFORMED;
    dp_batch *batch = batch_open(engine, number, DP_S_HELD);
    if (batch == NULL)
        return DP_ESTATE;
    engine->now_ms = dp_clock_ms();
    memset(ret_declined, 0, (count + 7) / 8);
    at = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (!record_take(engine, batch, records + at, fds[i])) {
            ret_declined[i / 8] |= (uint8_t)(1u << (i % 8));
            (void)close(fds[i]);
        }
        at += get32(records + at);
    }
    return DP_OK;
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
        conn->state = conn->in.len != 0 ? DP_S_HEAD : DP_S_IDLE;
        uint64_t left = conn->deadline;
        conn->deadline = 0;
        if (dp_conn_watch(engine, conn, DP_W_SHARED) != DP_OK) {
            dp_conn_close(engine, conn);
            continue;
        }
        dp_limit_arrived(engine, conn);
        dp_timer_set(engine, conn, left != 0 ? left : engine->options.idle_ms);
        if (conn->in.len != 0)
            dp_ready_push(engine, conn);
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
        dp_conn_forget(engine, conn);
    dp_conn_collect(engine);
    return DP_OK;
}
