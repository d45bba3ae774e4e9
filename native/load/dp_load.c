/* A load generator that believes nothing: it checks every answer to its last byte, counts every
 * failure by its kind, and never opens a connection in place of one that broke. One thread, epoll;
 * one JSON object at the end. Exit code 0: nothing failed, 1: something did, 64: usage.
 *
 * Each request carries an x-token that a dp_upstream sends back, and that turns the bodies of both
 * (dp_bench.h): an answer that belongs to another request is noticed, head and body. */
#include "dp_answer.h"
#include "dp_bench.h"
#include "dp_options.h"
#include "dp_request.h"
#include "dp_tally.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    EVENTS = 512,
    OPENING_MAX = 256, /* connects under way at once: no listen queue overflows by our doing */
    GIVE_UP = 1000,    /* failures after which a run that opens new connections ends */
    TICK_MS = 50,      /* how often deadlines are looked at */
    UNSENT_SAMPLES = 1000000,
    LOOPBACK_HOSTS = (1 << 24) - 4,
    TIMER_NS = 25000, /* the shortest time between two looks at what is due */
};

static const uint64_t second_ns = 1000000000U, ms_ns = 1000000U;

/* Where a connection is; an answer is read in BUSY. */
typedef enum {
    UNOPENED,
    CONNECTING,
    READY,  /* open, nothing asked */
    BUSY,   /* asked, the answer is not whole */
    ENDING, /* a connection per request: the answer is whole, the peer's FIN is not here */
    CLOSED,
} phase;

typedef struct conn {
    int fd;
    uint32_t index;
    phase phase;
    answer answer;
    uint64_t since;   /* the request's (or the connect's) start; at a rate, when it was due */
    uint64_t began;   /* when it was sent, or the connect begun: its deadline counts from here */
    uint64_t sent;    /* of the request */
    uint64_t answers; /* on this connection */
    uint32_t held_len;
    char *held; /* an incomplete head or line, DP_HEAD_MAX long, only where there was one */
} conn;

typedef struct load {
    options o;
    expected expected;
    tally t;
    int epoll, timer, signals;
    conn *conns;
    uint32_t *ready; /* a ring of connections that wait to be asked something */
    size_t ready_from, ready_len;
    uint64_t opening, next_to_open;
    uint32_t *closed; /* a ring of connections to open anew */
    size_t closed_from, closed_len;
    request request;
    size_t request_len;
    char *pattern;
    char *buffer;
    bool stopping;
    uint64_t end, in_flight;
    /* at a rate: the first request is due at first_due, and taken is how many were sent */
    uint64_t first_due, taken;
    /* rounds, in the mode idle, and the lines of stdin */
    uint64_t round_left, rounds_asked;
    bool round_runs, stdin_ended;
    char line[64];
    size_t line_len;
} load;

static void stop(load *l)
{
    l->stopping = true;
}

static void let_go(load *l, conn *c)
{
    if (c->phase == CONNECTING)
        l->opening--;
    else if (c->phase != UNOPENED && c->phase != CLOSED)
        l->t.open--;
    if (c->phase == BUSY || c->phase == ENDING || c->phase == CONNECTING)
        l->in_flight--;
    close(c->fd);
    c->fd = -1;
    c->phase = CLOSED;
    c->held_len = 0;
}

/* In the mode idle: one connection less that owes this round an answer. */
static void count_round(load *l)
{
    if (l->o.mode == MODE_IDLE && l->round_left > 0)
        l->round_left--;
}

static void put_closed(load *l, const conn *c)
{
    l->closed[(l->closed_from + l->closed_len) % l->o.connections] = c->index;
    l->closed_len++;
}

static void fail(load *l, conn *c, outcome kind, int error, const char *detail)
{
    dp_tally_failure(&l->t, kind, c->index, c->answers, error != 0 ? strerror(error) : detail);
    bool owed = c->phase == BUSY || c->phase == CONNECTING;
    let_go(l, c);
    if (owed)
        count_round(l);
    if (l->o.mode == MODE_PER_REQUEST && l->t.failed < GIVE_UP)
        return; /* its successor is a new request's connection, opened by the main loop */
    if (l->o.reopen)
        put_closed(l, c);
    if (!l->o.keep_going || (l->o.reopen && l->t.failed >= GIVE_UP))
        stop(l);
}

static void put_ready(load *l, conn *c)
{
    l->ready[(l->ready_from + l->ready_len) % l->o.connections] = c->index;
    l->ready_len++;
}

static conn *take_ready(load *l)
{
    while (l->ready_len > 0) {
        conn *c = &l->conns[l->ready[l->ready_from]];
        l->ready_from = (l->ready_from + 1) % l->o.connections;
        l->ready_len--;
        if (c->phase == READY)
            return c; /* one that broke while it waited is passed over */
    }
    return NULL;
}

/* Writes what is left of the request; false if the connection broke (and was counted). */
static bool flush(load *l, conn *c)
{
    struct iovec pieces[DP_REQUEST_PIECES];
    while (c->sent < l->request_len) {
        int n = dp_request_pieces(&l->request, c->answer.token, c->sent, pieces);
        struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)n};
        ssize_t sent = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            return true;
        if (sent < 0) {
            fail(l, c, RESET, errno, "");
            return false;
        }
        c->sent += (uint64_t)sent;
    }
    return true;
}

static bool enough(const load *l)
{
    return l->stopping || (l->o.requests > 0 && l->t.issued >= l->o.requests);
}

/* When the request with this number is due, at a rate. */
static uint64_t due_at(const load *l, uint64_t number)
{
    uint64_t rate = l->o.rate;
    return l->first_due + number / rate * second_ns + number % rate * second_ns / rate;
}

/* How many requests are due and not sent. */
static uint64_t due_now(const load *l, uint64_t now)
{
    if (l->end != 0 && now >= l->end)
        now = l->end - 1; /* what is due at the very end belongs to no run */
    if (l->first_due == 0 || now < l->first_due)
        return 0;
    uint64_t passed = now - l->first_due;
    uint64_t due = passed / second_ns * l->o.rate + passed % second_ns * l->o.rate / second_ns + 1;
    return due > l->taken ? due - l->taken : 0;
}

static void ask(load *l, conn *c)
{
    l->t.issued++;
    dp_answer_begin(&c->answer, l->t.issued);
    c->sent = 0;
    if (l->o.mode != MODE_PER_REQUEST) {
        c->began = dp_now_ns();
        c->since = l->o.rate > 0 ? due_at(l, l->taken++) : c->began;
        l->in_flight++;
    }
    c->phase = BUSY;
    (void)flush(l, c);
}

/* The connection is open and free: it is asked at once, or waits for its turn. */
static void next_on(load *l, conn *c)
{
    if (l->o.mode == MODE_IDLE || l->o.rate > 0 || enough(l))
        put_ready(l, c);
    else
        ask(l, c);
}

static void on_connected(load *l, conn *c)
{
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    l->opening--;
    l->t.open++;
    l->t.connects++;
    c->phase = READY;
    if (l->o.mode == MODE_PER_REQUEST)
        ask(l, c);
    else if (l->o.mode == MODE_IDLE)
        ask(l, c); /* round 0: each shows once that it works */
    else
        next_on(l, c);
}

static void connect_failed(load *l, conn *c, int error)
{
    fail(l, c, error == ECONNREFUSED ? CONNECT_REFUSED : CONNECT_FAILED, error, "");
}

/* Spreads clients over 127.0.0.0/8, and so over more ports than one address has. */
static void bind_source(const load *l, const conn *c)
{
    int on = 1;
    if (l->o.sources == 0)
        return;
    uint32_t host = (uint32_t)(2 + c->index % l->o.sources * (LOOPBACK_HOSTS / l->o.sources));
    struct sockaddr_in source = {.sin_family = AF_INET,
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + host)};
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (struct sockaddr *)&source, sizeof source) != 0)
        dp_die(1, "cannot bind a source address:", strerror(errno));
}

static void begin_connect(load *l, conn *c)
{
    c->fd = socket(l->o.address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        dp_die(1, "socket:", strerror(errno));
    bind_source(l, c);
    c->phase = CONNECTING;
    c->answers = 0;
    c->began = dp_now_ns();
    c->since = l->o.rate > 0 && l->o.mode == MODE_PER_REQUEST ? due_at(l, l->taken++) : c->began;
    l->opening++;
    l->in_flight++;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, c->fd, &event) != 0)
        dp_die(1, "epoll_ctl:", strerror(errno));
    if (connect(c->fd, (const struct sockaddr *)&l->o.address, l->o.address_len) != 0 &&
        errno != EINPROGRESS)
        connect_failed(l, c, errno);
}

/* ---- answers --------------------------------------------------------------------------------- */

static void on_whole(load *l, conn *c)
{
    outcome result = dp_answer_judge(&l->expected, &c->answer);
    if (result == OK && c->sent < l->request_len)
        result = MALFORMED; /* it came before the request was whole, and is no refusal */
    if (result != OK) {
        fail(l, c, result, 0, "the answer is whole and wrong");
        return;
    }
    if (c->answer.closes && l->o.mode != MODE_PER_REQUEST && !l->o.reopen) {
        fail(l, c, TOLD_TO_CLOSE, 0, "connection: close");
        return;
    }
    dp_tally_answer(&l->t, c->since, &c->answer);
    l->t.bytes_out += l->o.body_bytes;
    c->answers++;
    if (l->o.mode == MODE_PER_REQUEST) {
        c->phase = ENDING; /* still in flight: its end is checked too */
        return;
    }
    if (c->answer.closes) {
        let_go(l, c);
        put_closed(l, c);
        return;
    }
    l->in_flight--;
    c->phase = READY;
    count_round(l);
    next_on(l, c);
}

static void hold(load *l, conn *c, span rest)
{
    c->held_len = 0;
    if (rest.len == 0)
        return;
    if (c->held == NULL)
        c->held = malloc(DP_HEAD_MAX);
    if (c->held == NULL)
        dp_die(1, "no memory for", "a head");
    if (rest.len > DP_HEAD_MAX) {
        fail(l, c, MALFORMED, 0, "a head or line that is too long");
        return;
    }
    memcpy(c->held, rest.at, rest.len);
    c->held_len = (uint32_t)rest.len;
}

/* Goes through what was read. */
static void feed(load *l, conn *c, span data)
{
    while (data.len > 0 && c->phase == BUSY) {
        size_t taken = 0;
        bool whole = false;
        outcome result = dp_answer_take(&l->expected, &c->answer, data, &taken, &whole);
        if (result != OK) {
            fail(l, c, result, 0, dp_outcome_names[result]);
            return;
        }
        if (taken == 0 && !whole)
            break;
        data.at += taken;
        data.len -= taken;
        if (whole && data.len > 0) {
            fail(l, c, SURPLUS, 0, "bytes after the answer");
            return;
        }
        if (whole)
            on_whole(l, c);
    }
    if (c->phase == BUSY)
        hold(l, c, data);
    else if (data.len > 0 && c->phase != CLOSED)
        fail(l, c, SURPLUS, 0, "bytes that nobody asked for");
}

static void on_end(load *l, conn *c)
{
    if (c->phase == BUSY && c->answer.part == A_UNTIL_CLOSE) {
        on_whole(l, c);
        if (c->phase == CLOSED)
            return;
    }
    bool asked_enough = l->o.reopen && c->phase == READY && c->answers > 0;
    if (c->phase == ENDING || asked_enough) {
        let_go(l, c);
        if (asked_enough)
            put_closed(l, c);
        return;
    }
    fail(l, c, END_OF_FILE, 0, c->phase == BUSY ? "in an answer, or before it" : "while idle");
}

static void on_readable(load *l, conn *c, uint32_t events)
{
    bool hung_up = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    while (c->phase == BUSY || c->phase == READY || c->phase == ENDING) {
        size_t held = c->held_len;
        memcpy(l->buffer, c->held_len > 0 ? c->held : "", held);
        ssize_t n = recv(c->fd, l->buffer + held, DP_PIECE_MAX - held, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            fail(l, c, RESET, errno, "");
            return;
        }
        if (n == 0) {
            on_end(l, c);
            return;
        }
        c->held_len = 0;
        feed(l, c, (span){l->buffer, held + (size_t)n});
        /* A short read has drained the socket, unless the peer's FIN came with it. */
        if (held + (size_t)n < DP_PIECE_MAX && !hung_up)
            return;
    }
}

static void on_socket(load *l, conn *c, uint32_t events)
{
    if (c->phase == CONNECTING) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error != 0) {
            connect_failed(l, c, error);
            return;
        }
        if ((events & EPOLLOUT) == 0)
            return;
        if (l->o.mode != MODE_PER_REQUEST)
            l->in_flight--;
        on_connected(l, c);
    } else if (c->phase == BUSY && (events & EPOLLOUT) != 0 && !flush(l, c)) {
        return;
    }
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
        on_readable(l, c, events);
}

/* ---- the run --------------------------------------------------------------------------------- */

static void begin_round(load *l)
{
    size_t all = l->ready_len;
    dp_tally_begin_round(&l->t);
    l->round_runs = true;
    l->round_left = l->t.open;
    for (size_t i = 0; i < all && !l->stopping; i++) {
        conn *c = take_ready(l);
        if (c == NULL)
            break;
        ask(l, c);
    }
}

/* A line of stdin: in the mode idle each is a round; "status" prints how far it is, "stop" ends. */
static void on_line(load *l)
{
    l->line[l->line_len] = '\0';
    if (strcmp(l->line, "stop") == 0)
        stop(l);
    else if (strcmp(l->line, "status") == 0)
        dp_tally_print_status(&l->t);
    else
        l->rounds_asked++;
    l->line_len = 0;
}

static void on_stdin(load *l)
{
    char bytes[256];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof bytes);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    if (n <= 0) {
        /* The end of what we are told is the end of the run, after the rounds already asked. */
        l->stdin_ended = true;
        if (l->o.mode != MODE_IDLE)
            stop(l);
        epoll_ctl(l->epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
        return;
    }
    for (ssize_t i = 0; i < n; i++) {
        if (bytes[i] == '\n')
            on_line(l);
        else if (l->line_len < sizeof l->line - 1)
            l->line[l->line_len++] = bytes[i];
    }
}

static void on_timer(load *l)
{
    uint64_t ticks = 0; /* only a wake-up: what is due is told by the clock */
    ssize_t ignored = read(l->timer, &ticks, sizeof ticks);
    (void)ignored;
}

/* Opens the next connections of the mode with one per request. */
static void issue_connections(load *l, uint64_t due)
{
    for (uint64_t i = 0; i < l->o.connections; i++) {
        /* One per slot; a slot is free when its last connection has ended. */
        conn *c = &l->conns[i];
        if (c->phase != UNOPENED && c->phase != CLOSED)
            continue;
        if (l->stopping || (l->o.rate > 0 && due == 0) ||
            (l->o.requests > 0 && l->t.issued + l->opening >= l->o.requests))
            return;
        due--;
        begin_connect(l, c);
    }
}

static void open_next(load *l)
{
    while (l->next_to_open < l->o.connections && l->opening < OPENING_MAX && !l->stopping)
        begin_connect(l, &l->conns[l->next_to_open++]);
    while (l->closed_len > 0 && l->opening < OPENING_MAX && !l->stopping) {
        conn *c = &l->conns[l->closed[l->closed_from]];
        l->closed_from = (l->closed_from + 1) % l->o.connections;
        l->closed_len--;
        begin_connect(l, c);
    }
}

/* From here on requests are due at the rate; what came before was the opening. */
static void begin_rate(load *l)
{
    uint64_t gap = second_ns / l->o.rate;
    gap = gap < TIMER_NS ? TIMER_NS : gap;
    struct itimerspec every = {
        .it_interval = {.tv_sec = (time_t)(gap / second_ns), .tv_nsec = (long)(gap % second_ns)}};
    every.it_value = every.it_interval;
    if (timerfd_settime(l->timer, 0, &every, NULL) != 0)
        dp_die(1, "timerfd:", strerror(errno));
    l->first_due = l->t.start = l->t.last_answer = l->t.recent_start = dp_now_ns();
    l->end = l->t.start + l->o.ms * ms_ns;
}

/* Asks what is due, and opens what is to be opened. */
static void issue(load *l)
{
    bool all_opened = l->next_to_open == l->o.connections && l->opening == 0;
    if (l->o.rate > 0 && l->first_due == 0 && (all_opened || l->o.mode == MODE_PER_REQUEST))
        begin_rate(l);
    uint64_t due = l->o.rate > 0 ? due_now(l, dp_now_ns()) : 0;
    if (l->o.mode == MODE_PER_REQUEST) {
        issue_connections(l, due);
        return;
    }
    open_next(l);
    for (; l->o.mode == MODE_KEEPALIVE && due > 0 && !enough(l); due--) {
        conn *c = take_ready(l);
        if (c == NULL)
            break;
        ask(l, c);
    }
}

/* What was due before the end and found no free connection is told, with how long it had waited. */
static void count_unsent(load *l)
{
    uint64_t now = dp_now_ns();
    uint64_t end = l->end != 0 && l->end < now ? l->end : now;
    uint64_t left = due_now(l, end);
    bool by_count = l->o.requests > 0 && l->t.issued >= l->o.requests;
    if (left == 0 || by_count)
        return;
    uint64_t step = left / UNSENT_SAMPLES + 1;
    for (uint64_t i = 0; i < left; i += step)
        dp_tally_unsent(&l->t, end - due_at(l, l->taken + i), left - i < step ? left - i : step);
}

static void look_at_deadlines(load *l, uint64_t now)
{
    for (uint64_t i = 0; i < l->o.connections; i++) {
        conn *c = &l->conns[i];
        if ((c->phase == CONNECTING || c->phase == BUSY || c->phase == ENDING) &&
            now - c->began > l->o.timeout_ms * ms_ns)
            fail(l, c, TIMEOUT, 0,
                 c->phase == CONNECTING ? "connecting"
                 : c->phase == ENDING   ? "the peer does not close"
                                        : "no whole answer");
    }
}

/* In the mode idle: rounds one after the other, each told when it is over. */
static void step_rounds(load *l)
{
    if (l->o.mode != MODE_IDLE || l->next_to_open < l->o.connections || l->round_left > 0)
        return;
    if (l->round_runs) {
        dp_tally_print_round(&l->t);
        l->round_runs = false;
    }
    uint64_t wanted = l->o.rounds > l->rounds_asked ? l->o.rounds : l->rounds_asked;
    if (l->stopping)
        return;
    if (l->t.round < wanted)
        begin_round(l);
    else if (l->stdin_ended || l->o.rounds > 0)
        stop(l);
}

static bool finished(load *l)
{
    uint64_t now = dp_now_ns();
    if (l->end != 0 && now >= l->end)
        stop(l);
    if (l->o.mode != MODE_IDLE && l->o.requests > 0 && l->t.issued >= l->o.requests)
        stop(l);
    if (l->o.mode == MODE_KEEPALIVE && l->t.open == 0 && l->opening == 0 &&
        l->next_to_open == l->o.connections && l->closed_len == 0)
        stop(l); /* all broke: nothing is left to ask */
    return l->stopping && l->in_flight == 0;
}

static void run(load *l)
{
    struct epoll_event events[EVENTS];
    uint64_t next_look = 0;
    l->t.start = l->t.last_answer = l->t.round_start = l->t.recent_start = dp_now_ns();
    l->round_runs = true; /* the first round is the opening's */
    l->end = l->t.start + l->o.ms * ms_ns;
    l->round_left = l->o.mode == MODE_IDLE ? l->o.connections : 0;
    issue(l);
    while (!finished(l)) {
        int n = epoll_wait(l->epoll, events, EVENTS, TICK_MS);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            struct signalfd_siginfo ignored;
            if (what == &l->timer)
                on_timer(l);
            else if (what == &l->stdin_ended)
                on_stdin(l);
            else if (what != &l->signals)
                on_socket(l, what, events[i].events);
            else if (read(l->signals, &ignored, sizeof ignored) > 0)
                stop(l);
        }
        issue(l);
        step_rounds(l);
        uint64_t now = dp_now_ns();
        if (now >= next_look) {
            look_at_deadlines(l, now);
            next_look = now + TICK_MS * ms_ns;
            if (l->o.progress && now - l->t.recent_start >= second_ns)
                dp_tally_print_progress(&l->t);
        }
    }
    step_rounds(l);
    if (l->o.rate > 0)
        count_unsent(l);
}

/* ---- start and end --------------------------------------------------------------------------- */

static void watch(load *l, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        dp_die(1, "cannot watch a descriptor:", strerror(errno));
}

/* As many as we may have: where that is too few, socket() will tell. */
static void raise_file_limit(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
}

static void prepare(load *l)
{
    sigset_t ends;
    if (l->o.end_with_parent)
        prctl(PR_SET_PDEATHSIG, SIGTERM);
    raise_file_limit();
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    l->conns = calloc(l->o.connections, sizeof *l->conns);
    l->ready = calloc(l->o.connections, sizeof *l->ready);
    l->closed = calloc(l->o.connections, sizeof *l->closed);
    l->buffer = malloc(DP_PIECE_MAX);
    if (l->epoll < 0 || l->signals < 0 || l->conns == NULL || l->ready == NULL ||
        l->closed == NULL || l->buffer == NULL)
        dp_die(1, "cannot start:", strerror(errno));
    size_t pattern_len = l->o.body_bytes > DP_PIECE_MAX ? (size_t)l->o.body_bytes : DP_PIECE_MAX;
    l->pattern = dp_pattern_new(pattern_len);
    l->expected = (expected){.status = l->o.expect_status,
                             .length = l->o.expect_length,
                             .has_length = l->o.has_expect_length,
                             .no_token = l->o.no_token,
                             .pattern_body = l->o.verify_body,
                             .no_body = strcmp(l->o.method, "HEAD") == 0,
                             .pattern = l->pattern,
                             .body = l->o.expect_body,
                             .mark_header = l->o.mark_header,
                             .sent_body = l->o.body_bytes};
    dp_request_make(&l->request, &l->o, l->pattern);
    l->request_len = dp_request_len(&l->request);
    l->t.tells_progress = l->o.progress;
    l->t.rate = l->o.rate;
    l->t.counts_marks = l->o.mark_header != NULL;
    l->t.tells_marks = l->o.mark_events;
    for (uint64_t i = 0; i < l->o.connections; i++) {
        l->conns[i].index = (uint32_t)i;
        l->conns[i].fd = -1;
    }
    watch(l, l->signals, &l->signals);
    l->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (l->timer < 0)
        dp_die(1, "timerfd:", strerror(errno));
    watch(l, l->timer, &l->timer);
    if (l->o.control || (l->o.mode == MODE_IDLE && l->o.rounds == 0))
        watch(l, STDIN_FILENO, &l->stdin_ended);
}

static int done(load *l)
{
    int code = l->t.failed == 0 ? 0 : 1;
    for (uint64_t i = 0; i < l->o.connections; i++)
        free(l->conns[i].held);
    free(l->conns);
    free(l->ready);
    free(l->closed);
    free(l->buffer);
    free(l->pattern);
    free(l->o.mark_header);
    free(l);
    return code;
}

int main(int argc, char **argv)
{
    load *l = calloc(1, sizeof *l); /* too large for a stack */
    if (l == NULL)
        dp_die(1, "no memory for", "the run");
    dp_options_read(&l->o, argc, argv);
    prepare(l);
    run(l);
    dp_tally_print_report(&l->t, dp_mode_names[l->o.mode], l->o.address_text, l->o.connections);
    return done(l);
}
