/* Records of moved connections: whatever they say, an engine takes them whole or not at all, gives
 * every descriptor back, and what it took and nobody touched it writes again as it was. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dp_core.h"
#include "fuzz.h"

enum { MOST = 8, FDS = MOST * DP_MOVED_FDS_MAX, ROOM = 1024 * 1024 };

static dp_engine *make(void)
{
    const dp_engine_options options = {.max_header_bytes = 1024,
                                       .max_headers = 10,
                                       .header_ms = 1000,
                                       .body_idle_ms = 1000,
                                       .idle_ms = 1000,
                                       .tunnel_idle_ms = 1000,
                                       .max_requests = 100,
                                       .max_per_source = 100};
    const dp_upstream_options api = {.name = "api",
                                     .endpoints = 1,
                                     .connect_timeout_ms = 1000,
                                     .max_connections = 100,
                                     .max_waiting = 10,
                                     .balance = DP_ROUND_ROBIN,
                                     .keepalive = 0};
    dp_engine *engine;

    hold(dp_engine_new(&options, NULL, &engine) == DP_OK && dp_upstream_add(engine, &api) == 0 &&
             dp_endpoint_add(engine, 0, "127.0.0.1", 1, 1) == 0 &&
             dp_listener_add(engine, "web", DP_HTTP, -1) == 0 &&
             dp_listener_add(engine, "raw", DP_TCP, 0) == 1 && dp_engine_seal(engine) == DP_OK,
         "an engine is made");
    return engine;
}

/* What the records say; -1: no batch that is understood whole. */
static int read_all(const uint8_t *data, size_t len, uint32_t count, dp_record *ret_records)
{
    int fds = 0;

    for (uint32_t i = 0; i < count; i++) {
        size_t size;
        if (dp_record_read(data, len, &ret_records[i], &size) != DP_OK) {
            return -1;
        }
        static uint8_t again[ROOM];
        hold(dp_record_size(&ret_records[i]) == size && size <= ROOM, "its size is what it has");
        dp_record_write(&ret_records[i], again);
        hold(memcmp(again, data, size) == 0, "what was read is written as it was");
        fds += (int)dp_record_fds(&ret_records[i]);
        data += size;
        len -= size;
    }
    return len == 0 ? fds : -1;
}

/* Ends of sockets that never have anything to read and, where a record has a pipe, real pipes. */
static void open_fds(const dp_record *records, uint32_t count, int *fds, int *others)
{
    int at = 0;

    for (uint32_t i = 0; i < count; i++) {
        const dp_moved_side *const sides[2] = {&records[i].down, &records[i].up};
        for (int j = 0;
             j < (records[i].flags & DP_MOVED_UPSTREAM && records[i].version != 1 ? 2 : 1); j++) {
            int pair[2];
            hold(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "sockets");
            fds[at] = pair[0];
            others[at++] = pair[1];
            if (sides[j]->piped == 0 || records[i].version == 1) {
                continue;
            }
            hold(pipe2(pair, O_NONBLOCK) == 0, "a pipe");
            others[at] = -1;
            fds[at++] = pair[0];
            others[at] = -1;
            fds[at++] = pair[1];
        }
    }
}

static void none_is_left(const int *others, int count)
{
    for (int i = 0; i < count; i++) {
        char bytes[4096];
        ssize_t got;
        if (others[i] < 0) {
            continue;
        }
        do {
            got = recv(others[i], bytes, sizeof(bytes), 0);
        } while (got > 0);
        hold(got == 0 || (got < 0 && recv(others[i], bytes, 1, 0) == 0), "no copy stays open");
        (void)close(others[i]);
    }
}

/* How many descriptors this process has: a pipe tells nobody that it was left open. */
static int next_fd(void)
{
    const int fd = dup(0);

    hold(fd >= 0 && close(fd) == 0, "a descriptor");
    return fd;
}

static bool may_be_over(const dp_record *record)
{
    /* What flows may have come to its end; of the others time alone decides, the kernel's. */
    return record->version != 1 || (record->left_ms != 0 && record->left_ms < 10000);
}

/* Moves on what is still there: what was between requests, with the same bytes. */
static void move_on(dp_engine *engine, uint32_t batch, const dp_record *records, uint32_t count,
                    const uint8_t *verdicts, bool takes_back)
{
    static uint8_t again[ROOM];
    dp_record now[MOST];
    int saved[FDS];
    uint32_t fd_count;
    size_t len;
    uint32_t at = 0;

    (void)dp_engine_drain(engine);
    (void)dp_engine_turn(engine, 4);
    const int back =
        dp_move_save(engine, batch, 2, again, sizeof(again), saved, FDS, &fd_count, &len);
    hold(back >= 0 && read_all(again, len, (uint32_t)back, now) == (int)fd_count,
         "what is saved can be read");
    for (uint32_t i = 0; i < count; i++) {
        if (verdicts[i] != 0) {
            continue;
        }
        if (may_be_over(&records[i])) {
            at = MOST;
        }
        if (at >= MOST) {
            break;
        }
        hold(at < (uint32_t)back && now[at].client.len == records[i].client.len &&
                 memcmp(now[at].client.data, records[i].client.data, now[at].client.len) == 0 &&
                 now[at].down.in.len == records[i].down.in.len &&
                 (now[at].down.in.len == 0 ||
                  memcmp(now[at].down.in.data, records[i].down.in.data, now[at].down.in.len) == 0),
             "and moves on as it came");
        at++;
    }
    if (takes_back) {
        hold(back == 0 || dp_move_take_back(engine, batch) == DP_OK, "or goes on here");
        (void)dp_engine_turn(engine, 4);
    } else {
        hold(back == 0 || dp_move_commit(engine, batch, NULL, 0) == DP_OK, "and is given away");
    }
    (void)dp_engine_reset_all(engine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint32_t batch;
    static dp_engine *engine;
    dp_record records[MOST];
    int fds[FDS];
    int others[FDS];
    uint8_t verdicts[MOST] = {0};
    uint32_t stall[MOST];

    if (engine == NULL) {
        engine = make();
    }
    if (size < 1) {
        return 0;
    }
    const int first = next_fd();
    const uint32_t count = data[0] % MOST;
    const int known = read_all(data + 1, size - 1, count, records);
    if (known < 0) {
        const int result =
            dp_move_hold(engine, ++batch, data + 1, size - 1, count, fds, 0, verdicts);
        hold(result == DP_EMALFORMED || result == DP_EVERSION, "a verdict");
        return 0;
    }
    open_fds(records, count, fds, others);
    hold(dp_move_hold(engine, batch + 1, data + 1, size - 1, count, fds, (uint32_t)known + 1,
                      verdicts) == DP_EMALFORMED,
         "one descriptor too many is noticed");
    hold(dp_move_hold(engine, ++batch, data + 1, size - 1, count, fds, (uint32_t)known, verdicts) ==
             DP_OK,
         "what can be read is taken or declined");
    uint32_t taken = 0;
    for (uint32_t i = 0; i < count; i++) {
        hold(verdicts[i] < DP_DECLINED_COUNT, "with a reason");
        taken += verdicts[i] == 0;
    }
    if (data[0] / MOST % 4 == 0) {
        hold(dp_move_drop(engine, batch) == DP_OK, "what is held can be dropped");
    } else {
        hold(dp_move_start(engine, batch, stall, MOST) == (int)taken, "what was taken starts");
        if (data[0] / MOST % 4 == 1) {
            (void)dp_engine_turn(engine, 4);
            (void)dp_engine_reset_all(engine);
        } else {
            move_on(engine, batch, records, count, verdicts, data[0] / MOST % 4 == 2);
        }
    }
    (void)dp_engine_turn(engine, 1);
    dp_pipes_trim(engine, true); /* those that are kept for the next use */
    none_is_left(others, known);
    hold(dp_engine_serve(engine) == DP_OK && next_fd() == first, "no descriptor is left");
    return 0;
}
