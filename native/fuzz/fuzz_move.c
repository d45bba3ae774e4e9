/* Records of moved connections: whatever they say, an engine takes them whole or not at all, gives
 * every descriptor back, and what it took it writes again as it was. */
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "dp.h"
#include "fuzz.h"

enum { MOST = 8, ROOM = 64 * 1024, FIXED = 28 };

static dp_engine *make(void)
{
    const dp_engine_options options = {.max_header_bytes = 1024,
                                       .max_headers = 10,
                                       .header_ms = 1000,
                                       .body_idle_ms = 1000,
                                       .idle_ms = 1000,
                                       .tunnel_idle_ms = 1000};
    dp_engine *engine;

    hold(dp_engine_new(&options, NULL, &engine) == DP_OK &&
             dp_listener_add(engine, "web", DP_HTTP, -1) == 0 && dp_engine_seal(engine) == DP_OK,
         "an engine is made");
    return engine;
}

static bool has_little_time(const uint8_t *records, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size;
        uint32_t left_ms;
        memcpy(&size, records, sizeof(size));
        memcpy(&left_ms, records + 16, sizeof(left_ms));
        if (left_ms != 0 && left_ms < 10000) {
            return true;
        }
        records += size;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t again[ROOM];
    static uint32_t batch;
    static dp_engine *engine;
    int fds[MOST];
    int other[MOST];
    int saved[MOST];
    uint8_t declined[1] = {0};
    uint32_t stall[MOST];

    if (engine == NULL) {
        engine = make();
    }
    if (size < 1) {
        return 0;
    }
    const uint32_t count = data[0] % MOST;
    for (uint32_t i = 0; i < count; i++) {
        int pair[2];
        hold(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0, "there are sockets");
        fds[i] = pair[0];
        other[i] = pair[1];
    }
    const int result = dp_move_hold(engine, ++batch, data + 1, size - 1, fds, count, declined);
    hold(result == DP_OK || result == DP_EMALFORMED || result == DP_EVERSION, "a verdict");
    uint32_t taken = 0;
    if (result == DP_OK) {
        for (uint32_t i = 0; i < count; i++) {
            taken += (declined[0] >> i & 1) == 0;
        }
        (void)dp_engine_drain(engine);
        hold(dp_move_start(engine, batch, stall, MOST) == (int)taken, "what was taken starts");
        (void)dp_engine_turn(engine, 4);
        size_t len;
        const int back = dp_move_save(engine, batch, again, sizeof(again), saved, MOST, &len);
        /* One whose time is up after a few ms may be gone by now: the clock is the kernel's. */
        hold(back == (int)taken || has_little_time(data + 1, count), "and can be moved on");
        size_t at = 1;
        size_t to = 0;
        for (uint32_t i = 0; i < count && back == (int)taken; i++) {
            uint32_t record;
            memcpy(&record, data + at, sizeof(record));
            if ((declined[0] >> i & 1) == 0) {
                /* but for its time, and that it waits now */
                hold(memcmp(data + at, again + to, 7) == 0 &&
                         memcmp(data + at + 8, again + to + 8, 2) == 0 &&
                         memcmp(data + at + FIXED, again + to + FIXED, record - FIXED) == 0,
                     "with the same bytes");
                to += record;
            }
            at += record;
        }
        hold(to == len || back != (int)taken, "and no others");
        hold(back == 0 || dp_move_commit(engine, batch, NULL, 0) == DP_OK, "and given away");
    } else {
        for (uint32_t i = 0; i < count; i++) {
            hold(close(fds[i]) == 0, "a refused batch leaves its descriptors alone");
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        char byte;
        hold(recv(other[i], &byte, 1, 0) == 0, "no copy stays open");
        (void)close(other[i]);
    }
    return 0;
}
