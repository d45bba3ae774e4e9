/* Whatever clients, upstreams, the clock and a supervisor do to an engine, in any order: it stays
 * in one piece, and once all have left it keeps no connection, no request and no byte, and has
 * counted each request once, told of each by one line, or counted that line as dropped.
 *
 * The input is a play: each byte is an act, some take the next byte as well. Sockets are real, the
 * clock is ours (the linker puts it in the place of the kernel's). */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "dp_core.h"
#include "fuzz.h"

enum { CLIENTS = 4, UPSTREAMS = 6, ACTS = 64, ROOM = 64 * 1024, MOVED_FDS = 24 };

static const char *const requests[] = {
    "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "HEAD /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
    "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "hello",
    "\r\n",
    "\r",
    "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    "GET /own HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /own HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2000\r\n\r\n",
    "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n",
    "GET / HT",
    "TP/1.1\r\nhost: a\r\n\r\n",
    "GET /up HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nearly",
};

static const char *const answers[] = {
    "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
    "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
    "HTTP/1.1 200 OK\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "HTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
    "hello",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "HTTP/1.1 200 OK\r\ncontent-le",
    "ngth: 5\r\n\r\nhello",
    "HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nhello",
    "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nearly",
    "?\r\n\r\n",
    "z",
};

static uint64_t clock_ms = 1000000; /* goes on from play to play, as the engines do */
static bool playing;

int __real_clock_gettime(clockid_t clock, struct timespec *ret_now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_now);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ret_now)
{
    if (!playing) { /* the one who runs this has a clock of its own */
        return __real_clock_gettime(clock, ret_now);
    }
    *ret_now = (struct timespec){.tv_sec = (time_t)(clock_ms / 1000),
                                 .tv_nsec = (long)(clock_ms % 1000) * 1000000};
    return 0;
}

/* The kernel's clock is another: timers go off when ours has come that far. */
enum { PLAYERS = 64 };
static struct {
    int fd;
    uint64_t due;
} timers[PLAYERS];

int __real_timerfd_settime(int fd, int flags, const struct itimerspec *at, struct itimerspec *old);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *at, struct itimerspec *old);
int __wrap_timerfd_settime(int fd, int flags, const struct itimerspec *at, struct itimerspec *old)
{
    size_t i = 0;

    (void)flags;
    (void)old;
    while (timers[i].fd != 0 && timers[i].fd != fd) {
        i++;
    }
    timers[i].fd = fd;
    timers[i].due = (uint64_t)at->it_value.tv_sec * 1000 + (uint64_t)at->it_value.tv_nsec / 1000000;
    return 0;
}

static void pass(uint64_t ms)
{
    const struct itimerspec at_once = {.it_value = {.tv_nsec = 1}};

    clock_ms += ms;
    for (size_t i = 0; i < PLAYERS && timers[i].fd != 0; i++) {
        if (timers[i].due <= clock_ms) {
            timers[i].due = UINT64_MAX; /* until it is armed again */
            (void)__real_timerfd_settime(timers[i].fd, 0, &at_once, NULL);
        }
    }
}

static struct {
    dp_engine *engine;
    const dp_stats *stats;
    int listening[3]; /* http, tcp, and the upstream's */
    int clients[CLIENTS];
    int upstreams[UPSTREAMS];
    uint32_t batch;
    uint8_t which; /* of the engines */
} stage;

static int listen_at(struct sockaddr_in *ret_address)
{
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    socklen_t len = sizeof(*ret_address);

    *ret_address = (struct sockaddr_in){.sin_family = AF_INET};
    ret_address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    hold(fd >= 0 && bind(fd, (struct sockaddr *)ret_address, sizeof(*ret_address)) == 0 &&
             listen(fd, 64) == 0 && getsockname(fd, (struct sockaddr *)ret_address, &len) == 0,
         "a socket can listen");
    return fd;
}

static struct sockaddr_in doors[3];

static void open_doors(void)
{
    for (size_t i = 0; i < 3; i++) {
        stage.listening[i] = listen_at(&doors[i]);
    }
    (void)signal(SIGPIPE, SIG_IGN);
}

enum { MAPPING = 16 * 1024, LINES_KEPT = 4096 };

/* Where lines go: a pipe that takes only a few of them before somebody reads. */
static struct {
    int ends[2];
    uint64_t read;
} logs[PLAYERS];

static void read_lines(size_t which)
{
    static char lines[ROOM];
    ssize_t got;

    while ((got = read(logs[which].ends[0], lines, sizeof(lines))) > 0) {
        hold(lines[got - 1] == '\n', "whole lines come");
        for (ssize_t i = 0; i < got; i++) {
            logs[which].read += lines[i] == '\n';
        }
    }
}

static dp_engine *make(uint8_t options, dp_stats *stats)
{
    dp_engine *engine;
    const dp_engine_options given = {
        .transport = options & 1,
        .max_connections = (options & 2) != 0 ? 2 : 0,
        .max_header_bytes = 1024,
        .max_headers = 10,
        .max_body_bytes = 1000,
        .max_buffer_bytes = (options & 4) != 0 ? 4096 : 0,
        .header_ms = 1000,
        .body_idle_ms = 2000,
        .idle_ms = 5000,
        .tunnel_idle_ms = 3000,
        .tick_ms = 1000,
        .stats_bytes = MAPPING,
        .max_per_source = (options & 16) != 0 ? 3 : 0,
        .max_requests = (options & 16) != 0 ? 1 : 0,
        .request_ms = (options & 16) != 0 ? 1500 : 0,
        .send_ms = (options & 16) != 0 ? 700 : 0,
    };
    hold(dp_engine_new(&given, stats, &engine) == DP_OK, "an engine is made");
    const dp_upstream_options behind = {
        .name = "api",
        .endpoints = 2,
        .balance = (options & 16) != 0 ? DP_P2C : DP_LEAST_REQUEST,
        .connect_timeout_ms = 500,
        .keepalive = 2,
        .sticky = "s",
        .max_connections = (options & 32) != 0 ? 1 : 0,
        .max_waiting = 2,
        .eject_failures = 2,
        .eject_ms = 1000,
        .slow_start_ms = 2000,
        .proxy_protocol = (options & 16) != 0 ? 2 : 0,
    };
    const int upstream = dp_upstream_add(engine, &behind);
    (void)dp_endpoint_add(engine, upstream, "127.0.0.1", ntohs(doors[2].sin_port), 2);
    if ((options & 8) != 0) {
        (void)dp_endpoint_add(engine, upstream, "127.0.0.1", 1, 1); /* refuses */
    }
    (void)dp_listener_add(engine, "web", DP_HTTP, -1);
    (void)dp_listener_add(engine, "raw", DP_TCP, upstream);
    const dp_route_options own = {.path = "/own", .upstream = -1, .status = 200};
    const dp_route_options all = {.path = "/", .upstream = upstream, .request_timeout_ms = 1500};
    (void)dp_route_add(engine, &own);
    const int route = dp_route_add(engine, &all);
    const uint16_t again[] = {404};
    const dp_retry_options retries = {.attempts = 2,
                                      .causes = DP_ON_CONNECT_FAILURE | DP_ON_RESET,
                                      .statuses = again,
                                      .status_count = 1,
                                      .methods = 0xff,
                                      .budget_percent = 50};
    if ((options & 32) != 0) {
        (void)dp_route_retry(engine, route, &retries);
    }
    hold(pipe2(logs[options].ends, O_NONBLOCK) == 0 &&
             fcntl(logs[options].ends[1], F_SETPIPE_SZ, LINES_KEPT) >= 0 &&
             dp_engine_log(engine, (options & 4) != 0 ? DP_LOG_COMBINED : DP_LOG_JSON,
                           logs[options].ends[1], "billing", 1, "0123456789ab") == DP_OK,
         "it has a log");
    const dp_rate_options rate = {.requests = 2, .burst = 4, .header = "x-key", .scope = 1};
    const dp_access_rule nobody = {.denies = 1, .bits = 0, .address = {0}};
    if ((options & 16) != 0) {
        hold(dp_rate_set(engine, -1, &rate) == DP_OK && dp_rate_set(engine, route, &rate) == DP_OK,
             "it has a rate");
        hold(dp_access_set(engine, route, &nobody, 1) == DP_OK, "it has rules");
    }
    hold(dp_engine_seal(engine) == DP_OK, "it is sealed");
    for (int i = 0; i < 2; i++) {
        hold(dp_listener_attach(engine, i, stage.listening[i]) == DP_OK, "it listens");
    }
    return engine;
}

/* Engines are used again, one for each set of options: to make one takes longer than a play. */
static void begin(uint8_t options)
{
    static dp_engine *engines[PLAYERS];
    static uint64_t pages[PLAYERS][MAPPING / sizeof(uint64_t)];
    const uint8_t which = options % PLAYERS;

    playing = true;
    if (engines[which] == NULL) {
        engines[which] = make(which, (dp_stats *)(void *)pages[which]);
    }
    stage.engine = engines[which];
    stage.stats = (const dp_stats *)(const void *)pages[which];
    stage.which = which;
    hold(dp_engine_serve(stage.engine) == DP_OK, "it serves");
    for (size_t i = 0; i < CLIENTS; i++) {
        stage.clients[i] = -1;
    }
    for (size_t i = 0; i < UPSTREAMS; i++) {
        stage.upstreams[i] = -1;
    }
}

static void turn(void)
{
    hold(dp_engine_turn(stage.engine, 8) >= 0, "a turn succeeds");
}

static void leave(int *fd, bool with_reset)
{
    const struct linger linger = {.l_onoff = 1, .l_linger = 0};

    if (*fd < 0) {
        return;
    }
    if (with_reset) {
        (void)setsockopt(*fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    }
    (void)close(*fd);
    *fd = -1;
}

static void come(int *fd, int door)
{
    leave(fd, true); /* with a reset no port is left waiting */
    *fd = socket(AF_INET, SOCK_STREAM, 0);
    hold(*fd >= 0 && connect(*fd, (struct sockaddr *)&doors[door], sizeof(doors[door])) == 0,
         "a client gets in");
}

static void say(int fd, const char *text)
{
    if (fd >= 0) {
        (void)!send(fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL);
    }
}

static void hear(int fd)
{
    static char heard[ROOM];

    if (fd >= 0) {
        (void)!recv(fd, heard, sizeof(heard), MSG_DONTWAIT);
    }
}

/* From this engine to itself: what green would do, it does. */
static void move(unsigned how)
{
    static uint8_t records[ROOM];
    int fds[MOVED_FDS];
    uint8_t verdicts[MOVED_FDS];
    uint32_t fd_count;
    size_t len;
    const uint32_t batch = ++stage.batch;
    const int count = dp_move_save(stage.engine, batch, 1 + batch % 2, records, sizeof(records),
                                   fds, MOVED_FDS, &fd_count, &len);

    if (count <= 0) {
        return;
    }
    if (how == 0) {
        hold(dp_move_take_back(stage.engine, batch) == DP_OK, "a batch is taken back");
        return;
    }
    for (uint32_t i = 0; i < fd_count; i++) {
        fds[i] = dup(fds[i]);
    }
    hold(dp_move_hold(stage.engine, batch, records, len, (uint32_t)count, fds, fd_count,
                      verdicts) == DP_OK,
         "an engine reads what it wrote");
    if (how == 1) {
        hold(dp_move_drop(stage.engine, batch) == DP_OK &&
                 dp_move_take_back(stage.engine, batch) == DP_OK,
             "a batch is dropped");
        return;
    }
    uint32_t stall[MOVED_FDS];
    int taken = 0;
    for (int i = 0; i < count; i++) {
        taken += verdicts[i] == 0; /* where there was memory */
    }
    hold(dp_move_commit(stage.engine, batch, verdicts, (size_t)count) == DP_OK &&
             dp_move_start(stage.engine, batch, stall, MOVED_FDS) == taken,
         "a batch is moved");
}

static bool accept_upstream(void)
{
    for (size_t i = 0; i < UPSTREAMS; i++) {
        if (stage.upstreams[i] < 0) {
            stage.upstreams[i] = accept4(stage.listening[2], NULL, NULL, SOCK_NONBLOCK);
            return stage.upstreams[i] >= 0;
        }
    }
    return false;
}

static void command(unsigned word)
{
    switch (word) {
    case 0:
        (void)dp_engine_drain(stage.engine);
        break;
    case 1:
        (void)dp_engine_serve(stage.engine);
        break;
    case 2:
        (void)dp_engine_close_idle(stage.engine);
        break;
    case 3:
        (void)dp_engine_pause(stage.engine);
        break;
    case 4:
        (void)dp_engine_reset_all(stage.engine);
        break;
    default:
        move(word - 5);
        break;
    }
}

static void act(uint8_t what, uint8_t how)
{
    int *const client = &stage.clients[what % CLIENTS];
    int *const upstream = &stage.upstreams[how / 16 % UPSTREAMS];

    switch (what / CLIENTS % 12) {
    case 0:
        come(client, how % 4 == 3);
        break;
    case 1:
    case 2:
    case 3:
        say(*client, requests[how % 16]);
        break;
    case 4:
        hear(*client);
        if (how % 4 == 0 && *client >= 0) {
            (void)shutdown(*client, SHUT_WR);
        }
        break;
    case 5:
        leave(client, how % 2 != 0);
        break;
    case 6:
        (void)accept_upstream();
        break;
    case 7:
    case 8:
        say(*upstream, answers[how % 16]);
        break;
    case 9:
        hear(*upstream);
        if (how % 4 == 0) {
            leave(upstream, how % 8 != 0);
        }
        break;
    case 10:
        pass((uint64_t)how * how);
        break;
    default:
        command(how % 8);
        break;
    }
    if (what < 128) { /* else together with the next act */
        turn();
    }
}

static void check_figures(const dp_stats *stats)
{
    const uint8_t *const page = (const uint8_t *)stats;
    dp_stats_table table;
    uint64_t answered = 0;
    uint64_t timed = 0;

    (void)dp_stats_layout(1, 2, &table);
    const dp_duration_stats *const durations = (const void *)(page + table.sections[0].offset);
    const dp_upstream_stats *const upstream = (const void *)(page + table.sections[1].offset);
    const dp_route_stats *const routes = (const void *)(page + table.sections[2].offset);
    for (size_t i = 0; i < DP_DURATION_BUCKETS; i++) {
        timed += durations->buckets[i];
    }
    for (size_t i = 0; i < 3; i++) {
        for (size_t j = 0; j < 6; j++) {
            answered += routes[i].answers_total[j];
        }
    }
    hold(answered == stats->requests_total && timed == stats->requests_total,
         "each request has one answer, or none, and took its time");
    hold(upstream->active == 0, "nobody waits for an upstream");
    read_lines(stage.which);
    hold(logs[stage.which].read + stats->log_dropped_total + stats->log_pending ==
             stats->log_lines_total,
         "each line is written, dropped and counted, or waits");
    hold(stats->log_lines_total >= stats->requests_total, "each request has its line");
}

/* Until nothing is left to do, however small its steps are. */
static void rest(void)
{
    int notes;

    do {
        notes = dp_engine_turn(stage.engine, 8);
        hold(notes >= 0, "a turn succeeds");
    } while ((notes & DP_NOTE_AGAIN) != 0);
}

static void end(void)
{
    for (size_t i = 0; i < CLIENTS; i++) {
        leave(&stage.clients[i], true);
    }
    for (size_t i = 0; i < 4; i++) {
        do {
            for (size_t j = 0; j < UPSTREAMS; j++) {
                leave(&stage.upstreams[j], true);
            }
        } while (accept_upstream());
        rest();
        pass(20000); /* beyond each deadline */
    }
    rest();
    (void)dp_engine_serve(stage.engine);
    for (size_t i = 0; i < 8; i++) { /* requests behind each other, whose client may be gone */
        rest();
        pass(70000);
    }
    rest();
    const dp_stats *const stats = stage.stats;
    hold(stats->connections == 0 && stats->requests_active == 0 && stats->tunnels == 0,
         "all clients are forgotten");
    hold(stats->upstream_connections == 0 && stats->upstream_idle == 0,
         "all upstream connections are closed");
    hold(stats->buffer_bytes == 0, "every buffer is empty");
    check_figures(stats);
    hold(atomic_load(&stage.engine->limits.connections->open) == 0 &&
             atomic_load(&stage.engine->limits.requests->open) == 0,
         "nobody is counted any more");
    hold(dp_engine_pause(stage.engine) == DP_OK, "it stops");
    playing = false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (stage.listening[0] == 0) {
        open_doors();
    }
    if (size < 1) {
        return 0;
    }
    begin(data[0]);
    for (size_t at = 1; at + 1 < size && at < 2 * ACTS; at += 2) {
        act(data[at], data[at + 1]);
    }
    end();
    return 0;
}
