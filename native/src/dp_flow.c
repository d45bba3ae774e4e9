/* dp_flow: connections that change process while bytes flow: tunnels of both kinds, and responses
 * whose head has gone out. I/O: epoll and close alone.
 *
 * Both sockets go, what was read and what is not written yet, and where bytes are in a pipe both of
 * its ends: they stay in the kernel, however many they are, and nothing has to be copied or to fit
 * anywhere. The user's pipe memory is counted by user, not by process, so a pipe that moves costs
 * nothing more. What a request still waits for (its body, its response's head, a connection) is
 * waited for here; then it flows, and moves.
 *
 * Listeners, upstreams and endpoints go by their names: green's tables may differ. What is counted
 * in the app's shared memory is counted by green with the record that it holds and by blue until
 * the commit: for that moment twice, never not at all. */
#include <string.h>

#include "dp_core.h"

static bool is_tunnel(const dp_conn *down)
{
    return down->protocol == DP_TCP;
}

static uint64_t *gauge_of(dp_engine *engine, const dp_conn *down)
{
    return is_tunnel(down) ? &engine->stats->tunnels : &engine->stats->requests_active;
}

/* --- blue ------------------------------------------------------------------------------------- */

bool dp_flow_moves(const dp_conn *down)
{
    const dp_exchange *exchange = down->exchange;
    const dp_conn *up = down->peer;
    if (down->role != DP_DOWN || exchange == NULL ||
        (down->flags & (DP_C_PROBE | DP_C_TURNED_AWAY | DP_C_STAYS)) != 0)
        return false;
    if (down->state == DP_S_TUNNEL)
        return up != NULL && up->state == DP_S_EXCHANGE;
    if (down->state != DP_S_EXCHANGE || !exchange->head_sent || !exchange->request_done)
        return false;
    if (up == NULL)
        return exchange->response_done;
    return up->state == DP_S_EXCHANGE && dp_conn_unsent(up) == 0;
}

static dp_moved_bytes text_of(const char *text)
{
    return (dp_moved_bytes){.data = (const uint8_t *)text, .len = (uint32_t)strlen(text)};
}

static dp_moved_bytes bytes_of(const dp_buffer *buffer)
{
    return (dp_moved_bytes){.data = dp_buffer_start(buffer), .len = buffer->len};
}

static void describe_side(const dp_conn *conn, dp_moved_side *ret_side, int **fds)
{
    ret_side->io = (uint8_t)(((conn->io & DP_IO_AT_EOF) != 0 ? DP_MOVED_AT_EOF : 0) |
                             ((conn->io & DP_IO_SHUT) != 0 ? DP_MOVED_SHUT : 0));
    ret_side->read_shift = conn->read_shift;
    ret_side->in = bytes_of(&conn->in);
    ret_side->out = bytes_of(&conn->out);
    *(*fds)++ = conn->fd;
    if (conn->pipe == NULL)
        return;
    ret_side->piped = conn->pipe->held;
    *(*fds)++ = conn->pipe->read_fd;
    *(*fds)++ = conn->pipe->write_fd;
}

static void describe_account(const dp_engine *engine, const dp_account *account, dp_record *record)
{
    record->began_us = account->began_us;
    record->bytes_in = account->bytes_in;
    record->bytes_out = account->bytes_out;
    record->head_us = account->head_us;
    record->head_bytes = account->head_bytes;
    record->status = account->status;
    record->attempts = account->attempts;
    record->outcome = account->outcome;
    record->log_format = (uint8_t)dp_access_format(engine);
    record->line = bytes_of(&account->line);
    if (account->endpoint == 0)
        return;
    const dp_pool *pool = &engine->pools[account->endpoint - 1];
    const dp_upstream *upstream = &engine->tables.upstreams[pool->upstream];
    record->upstream = text_of(upstream->name);
    record->endpoint = (dp_moved_bytes){.data = (const uint8_t *)pool->endpoint->name,
                                        .len = pool->endpoint->name_len};
    record->proxy_protocol = (uint8_t)upstream->proxy_protocol;
}

static void describe_response(const dp_exchange *exchange, dp_record *record)
{
    record->flags |= (uint8_t)((exchange->response_done ? DP_MOVED_DONE : 0) |
                               (exchange->keep_alive ? DP_MOVED_KEEP : 0) |
                               (exchange->may_send ? 0 : DP_MOVED_TOLD) |
                               (exchange->reusable ? DP_MOVED_REUSABLE : 0));
    record->framing = exchange->response_framing;
    record->keep = exchange->response_keep;
    record->minor = exchange->minor;
    record->body_left = exchange->response_left;
    record->chunked = exchange->response_chunked;
}

void dp_flow_describe(const dp_engine *engine, const dp_conn *down, dp_record *ret_record,
                      char ret_client[DP_CLIENT_TEXT], int ret_fds[DP_MOVED_FDS_MAX])
{
    const dp_listener *listener = &engine->tables.listeners[down->listener];
    *ret_record = (dp_record){.version = 2,
                              .kind = is_tunnel(down) ? DP_MOVED_TUNNEL : DP_MOVED_RESPONSE,
                              .left_ms = 1,
                              .frozen_us = down->frozen_us,
                              .listener = text_of(listener->name),
                              .client_port = down->client_port};
    ret_record->client = (dp_moved_bytes){.data = (const uint8_t *)ret_client,
                                          .len = (uint32_t)dp_client_text(down, ret_client)};
    memcpy(ret_record->address, down->address, sizeof(ret_record->address));
    if (down->deadline == 0)
        ret_record->left_ms = 0;
    else if (down->deadline > engine->now_ms)
        ret_record->left_ms = (uint32_t)(down->deadline - engine->now_ms);
    if ((down->counted & DP_COUNTED_REQUEST) != 0)
        ret_record->flags |= DP_MOVED_COUNTED;
    describe_account(engine, &down->exchange->account, ret_record);
    if (is_tunnel(down))
        ret_record->flags |= listener->protocol == DP_HTTP ? DP_MOVED_UPGRADED : 0;
    else
        describe_response(down->exchange, ret_record);
    describe_side(down, &ret_record->down, &ret_fds);
    if (down->peer != NULL) {
        ret_record->flags |= DP_MOVED_UPSTREAM;
        describe_side(down->peer, &ret_record->up, &ret_fds);
    }
}

void dp_flow_freeze(dp_engine *engine, dp_conn *down)
{
    if ((down->flags & DP_C_QUEUED) != 0)
        dp_list_remove(&engine->ready, down);
    if (down->peer != NULL && (down->peer->flags & DP_C_QUEUED) != 0)
        dp_list_remove(&engine->ready, down->peer);
    down->flags &= (uint8_t)~DP_C_QUEUED;
    dp_conn_unwatch(engine, down);
    if (down->peer != NULL) {
        dp_gather_end(down->peer); /* the socket keeps that wish, and whoever gets it knows none */
        down->peer->flags &= (uint8_t)~DP_C_QUEUED;
        dp_timer_cancel(down->peer); /* of its connecting: firing would have it watched again */
        dp_conn_unwatch(engine, down->peer);
    }
    down->state = DP_S_FROZEN;
}

/* --- both ------------------------------------------------------------------------------------- */

void dp_flow_forget(dp_engine *engine, dp_conn *down)
{
    if (down->state == DP_S_FROZEN)
        --*gauge_of(engine, down);
    if (down->peer != NULL)
        dp_upstream_release(engine, down->peer, false);
    dp_conn_forget(engine, down);
}

void dp_flow_cut(dp_engine *engine, dp_conn *down, enum dp_outcome outcome)
{
    if (down->state == DP_S_EXCHANGE) {
        dp_exchange_blame(down, outcome);
        dp_exchange_over(engine, down, false);
    }
    if (down->state == DP_S_TUNNEL) {
        dp_tunnel_over(engine, down, outcome);
        if (down->peer != NULL) {
            engine->stats->tunnels--;
            dp_conn_abortive(down->peer); /* what it got is not all there was */
        }
    }
    if (down->peer != NULL)
        dp_upstream_release(engine, down->peer, false);
    dp_queue_leave(engine, down);
    dp_conn_reset(engine, down);
}

bool dp_flow_go_on(dp_engine *engine, dp_conn *down, enum dp_watch as)
{
    down->state = is_tunnel(down) ? DP_S_TUNNEL : DP_S_EXCHANGE;
    /* The kernel reports what is there when it is added: no edge is missed. */
    if (dp_conn_watch(engine, down, as) != DP_OK ||
        (down->peer != NULL && dp_conn_watch(engine, down->peer, as) != DP_OK)) {
        dp_flow_cut(engine, down, DP_OUT_LIMIT);
        return false;
    }
    dp_ready_push(engine, down);
    return true;
}

/* --- green ------------------------------------------------------------------------------------ */

static bool is_named(const dp_moved_bytes *bytes, const char *name, size_t len)
{
    return bytes->len == len && memcmp(bytes->data, name, len) == 0;
}

int dp_move_listener(const dp_engine *engine, const dp_moved_bytes *name, int protocol)
{
    for (uint32_t i = 0; i < engine->tables.listener_count; i++) {
        const dp_listener *listener = &engine->tables.listeners[i];
        if (listener->protocol == protocol &&
            is_named(name, listener->name, strlen(listener->name)))
            return (int)i;
    }
    return -1;
}

static const dp_endpoint *endpoint_of(const dp_upstream *upstream, const dp_moved_bytes *name)
{
    for (uint32_t i = 0; i < upstream->endpoint_count; i++)
        if (is_named(name, upstream->endpoints[i].name, upstream->endpoints[i].name_len))
            return &upstream->endpoints[i];
    return NULL;
}

/* Where the record's upstream connection belongs. An upstream of another name may have the endpoint
 * where there is none of its own name: it was renamed. */
static const dp_endpoint *find_endpoint(const dp_engine *engine, const dp_record *record)
{
    const dp_endpoint *elsewhere = NULL;
    if (record->endpoint.len == 0)
        return NULL;
    for (uint32_t i = 0; i < engine->tables.upstream_count; i++) {
        const dp_upstream *upstream = &engine->tables.upstreams[i];
        const dp_endpoint *found = endpoint_of(upstream, &record->endpoint);
        if (is_named(&record->upstream, upstream->name, strlen(upstream->name)))
            return found;
        if (elsewhere == NULL)
            elsewhere = found;
    }
    return elsewhere;
}

static bool take_bytes(dp_engine *engine, dp_buffer *buffer, const dp_moved_bytes *bytes)
{
    return dp_buffer_append(engine, buffer, bytes->data, bytes->len) == DP_OK;
}

/* All but descriptors: those come last, when nothing can fail any more. */
static bool take_side(dp_engine *engine, dp_conn *conn, const dp_moved_side *side)
{
    conn->io = (uint8_t)(DP_IO_READ | DP_IO_WRITE |
                         ((side->io & DP_MOVED_AT_EOF) != 0 ? DP_IO_AT_EOF : 0) |
                         ((side->io & DP_MOVED_SHUT) != 0 ? DP_IO_SHUT : 0));
    if ((conn->io & DP_IO_AT_EOF) != 0)
        conn->io &= (uint8_t)~DP_IO_READ;
    conn->read_shift =
        side->read_shift < DP_SPLICE_SHIFT_MAX ? side->read_shift : DP_SPLICE_SHIFT_MAX;
    return take_bytes(engine, &conn->in, &side->in) && take_bytes(engine, &conn->out, &side->out) &&
           (side->piped == 0 || dp_pipe_adopt(engine, conn, side->piped));
}

static void take_account(dp_engine *engine, dp_account *account, const dp_record *record)
{
    uint64_t now_us = dp_clock_us();
    bool is_past = record->began_us != 0 && record->began_us <= now_us;
    account->began_us = is_past ? record->began_us : now_us;
    account->bytes_in = record->bytes_in;
    account->bytes_out = record->bytes_out;
    account->head_us = record->head_us;
    account->head_bytes = record->head_bytes;
    account->status = record->status;
    account->attempts = record->attempts;
    account->outcome = record->outcome < DP_OUT_COUNT ? record->outcome : DP_OUT_UNKNOWN;
    /* Written in another format, or no memory: the line has to do without. */
    if (record->log_format == dp_access_format(engine))
        (void)take_bytes(engine, &account->line, &record->line);
}

static void take_response(dp_exchange *exchange, const dp_record *record, bool same_proxy)
{
    exchange->response_framing = record->framing;
    exchange->response_keep = record->keep;
    exchange->response_left = record->body_left;
    exchange->response_chunked = record->chunked;
    exchange->minor = record->minor;
    exchange->request_done = true;
    exchange->head_sent = true;
    exchange->response_done = (record->flags & DP_MOVED_DONE) != 0;
    exchange->keep_alive = (record->flags & DP_MOVED_KEEP) != 0;
    exchange->may_send = (record->flags & DP_MOVED_TOLD) == 0;
    /* One that began with a PROXY header speaks for one client, and is not to come among others. */
    exchange->reusable = (record->flags & DP_MOVED_REUSABLE) != 0 && same_proxy;
}

/* Fills in what flows. 0, or DP_DECLINED_; down is the caller's to undo. */
static int take_flow(dp_engine *engine, dp_conn *down, const dp_record *record)
{
    bool second = (record->flags & DP_MOVED_UPSTREAM) != 0;
    const dp_endpoint *endpoint = find_endpoint(engine, record);
    if (second && endpoint == NULL)
        return DP_DECLINED_UPSTREAM;
    if (!dp_exchange_open(engine, down))
        return DP_DECLINED_NO_ROOM;
    dp_client_named(down, &record->client);
    if (!dp_limit_allows_client(engine, down)) {
        engine->stats->denied_total++;
        return DP_DECLINED_DENIED;
    }
    dp_exchange *exchange = down->exchange;
    take_account(engine, &exchange->account, record);
    bool same_proxy = true;
    if (endpoint != NULL) {
        const dp_upstream *upstream =
            &engine->tables.upstreams[engine->pools[endpoint->slot].upstream];
        exchange->upstream = engine->pools[endpoint->slot].upstream;
        exchange->account.endpoint = endpoint->slot + 1;
        same_proxy = record->proxy_protocol == upstream->proxy_protocol;
    }
    if (record->kind == DP_MOVED_RESPONSE)
        take_response(exchange, record, same_proxy);
    dp_conn *up = second ? dp_upstream_adopt(engine, down, endpoint->slot) : NULL;
    if ((second && up == NULL) || !take_side(engine, down, &record->down) ||
        (up != NULL && !take_side(engine, up, &record->up)))
        return DP_DECLINED_NO_ROOM;
    if ((record->flags & DP_MOVED_COUNTED) != 0)
        dp_limit_request_moved(engine, down);
    return 0;
}

static void give_fds(dp_conn *conn, const int **fds)
{
    conn->fd = *(*fds)++;
    if (conn->pipe == NULL)
        return;
    conn->pipe->read_fd = *(*fds)++;
    conn->pipe->write_fd = *(*fds)++;
}

int dp_flow_take(dp_engine *engine, const dp_record *record, const int *fds, dp_conn **ret_down)
{
    bool raw = record->kind == DP_MOVED_TUNNEL && (record->flags & DP_MOVED_UPGRADED) == 0;
    bool second = (record->flags & DP_MOVED_UPSTREAM) != 0;
    if ((record->kind == DP_MOVED_TUNNEL && !second) ||
        (record->kind == DP_MOVED_RESPONSE && !second && (record->flags & DP_MOVED_DONE) == 0))
        return DP_DECLINED_OTHER;
    int listener = dp_move_listener(engine, &record->listener, raw ? DP_TCP : DP_HTTP);
    if (listener < 0)
        return DP_DECLINED_LISTENER;
    dp_conn *down = dp_conn_new(engine, -1, DP_DOWN);
    if (down == NULL)
        return DP_DECLINED_NO_ROOM;
    dp_conn_count_down(engine, down, 1);
    down->state = DP_S_HELD;
    down->protocol = record->kind == DP_MOVED_TUNNEL ? DP_TCP : DP_HTTP;
    down->listener = (uint16_t)listener;
    down->deadline = record->left_ms; /* until it starts */
    down->frozen_us = record->frozen_us;
    dp_client_carried(engine, down, record);
    int verdict = take_flow(engine, down, record);
    if (verdict != 0) {
        if (down->state != DP_S_DEAD)
            dp_flow_forget(engine, down);
        return verdict;
    }
    give_fds(down, &fds);
    if (down->peer != NULL)
        give_fds(down->peer, &fds);
    *ret_down = down;
    return 0;
}

bool dp_flow_start(dp_engine *engine, dp_conn *down)
{
    uint64_t left = down->deadline;
    uint64_t usual = engine->options.body_idle_ms;
    if (is_tunnel(down))
        usual = engine->options.tunnel_idle_ms;
    down->deadline = 0;
    ++*gauge_of(engine, down);
    dp_limit_arrived(engine, down);
    if (!dp_flow_go_on(engine, down, DP_W_SHARED))
        return false;
    /* What a response waits for may have longer than this: for a client that is slow to read. */
    bool is_longer = is_tunnel(down) && usual != 0 && left > usual;
    dp_timer_set(engine, down, left != 0 && !is_longer ? left : usual);
    return true;
}
