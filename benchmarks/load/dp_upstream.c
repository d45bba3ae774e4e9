/* An upstream server for tests and benchmarks: one thread, epoll, HTTP/1.1, unlimited keep-alive.
 * It answers fast and exactly, or wrongly in exactly the way it is asked to. Never use it to serve
 * anybody: it has no deadlines and no limits but those of its buffers.
 *
 *   /b/N  N bytes with content-length      /c/N  N bytes chunked      /u/N  N bytes until close
 *   /fault/KIND  see fault_names           /stats  counters as JSON
 *   /head  the request's head as it came   anything else: as /b/128
 *
 * A request's x-token comes back in the answer, and turns its body (see dp_bench.h). */
#include "dp_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
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
#include <time.h>
#include <unistd.h>

enum {
    IN_MAX = 64 * 1024, /* a request head must fit */
    PRE_MAX = 1024,     /* our own head, or a chunk's size line */
    TOKEN_MAX = 64,
    MARK_MAX = 64,
    CHUNK = 16 * 1024, /* of a chunked body; it and SLICE are whole periods of the pattern */
    SLICE = 1024 * 1024,
    EVENTS = 256,
};

typedef enum { IN_HEAD, IN_LENGTH, IN_CHUNK_SIZE, IN_CHUNK_DATA, IN_CHUNK_END, IN_TRAILER } phase;

typedef enum {
    FAULT_NONE,
    FAULT_RESET,
    FAULT_MID_RESET,
    FAULT_SHORT,
    FAULT_GARBAGE,
    FAULT_NEVER,
    FAULT_TOKEN,
    FAULT_LENGTH,
    FAULT_BODY,
    FAULT_SURPLUS,
    FAULT_STATUS,
} fault;

static const char *const fault_names[] = {
    [FAULT_NONE] = "none",       [FAULT_RESET] = "reset",     [FAULT_MID_RESET] = "mid-reset",
    [FAULT_SHORT] = "short",     [FAULT_GARBAGE] = "garbage", [FAULT_NEVER] = "never",
    [FAULT_TOKEN] = "token",     [FAULT_LENGTH] = "length",   [FAULT_BODY] = "body",
    [FAULT_SURPLUS] = "surplus", [FAULT_STATUS] = "status",
};

typedef enum { FRAME_LENGTH, FRAME_CHUNKED, FRAME_CLOSE } framing;

typedef struct conn {
    int fd;
    bool waits_to_write;
    bool close_after; /* answered: close once all is written */
    bool reset_after; /* the same, with a RST */
    bool silent;      /* the fault "never": read and say nothing */
    /* the request */
    phase phase;
    uint64_t in_left; /* of the body, or of the chunk */
    uint64_t received;
    bool has_body;
    bool altered;
    bool wants_close;
    bool is_head;
    char path[64];
    char token[TOKEN_MAX + 1];
    size_t turn; /* the body starts at this offset of the pattern */
    size_t line; /* length of the chunk size line or trailer line so far */
    /* the answer */
    char pre[PRE_MAX];
    size_t pre_len, pre_sent;
    const char *body;
    size_t body_len; /* still to write of this slice */
    uint64_t later;  /* bytes of the body in later slices */
    bool chunked;
    const char *post;
    size_t post_len;
    size_t in_len;
    char in[IN_MAX];
} conn;

typedef struct server {
    int epoll;
    int listener;
    int signals;
    const char *mark;
    bool never_close;
    char *pattern;
    char seen[IN_MAX]; /* the head of the last request for /head */
    size_t seen_len;
    fault fault;
    uint64_t fault_at;
    char date[40];
    time_t date_of;
    uint64_t accepts, open, requests, received, faults;
    bool ended;
} server;

static void conn_close(server *s, conn *c, bool reset)
{
    if (reset) {
        struct linger hard = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    }
    close(c->fd);
    s->open--;
    free(c);
}

/* The next slice of the body. Slices are whole periods long, so each starts at the same offset. */
static void next_slice(server *s, conn *c)
{
    size_t most = c->chunked ? CHUNK : SLICE;
    size_t size = c->later < most ? (size_t)c->later : most;
    c->later -= size;
    c->body = s->pattern + c->turn;
    c->body_len = size;
    if (!c->chunked)
        return;
    c->pre_len = (size_t)snprintf(c->pre, sizeof c->pre, "%zx\r\n", size);
    c->pre_sent = 0;
    c->post = c->later == 0 ? "\r\n0\r\n\r\n" : "\r\n";
    c->post_len = strlen(c->post);
}

/* What was written comes off the front of pre, body and post, in that order. */
static void written(conn *c, size_t n)
{
    size_t part = c->pre_len - c->pre_sent;
    part = n < part ? n : part;
    c->pre_sent += part;
    n -= part;
    part = n < c->body_len ? n : c->body_len;
    c->body += part;
    c->body_len -= part;
    n -= part;
    c->post += n;
    c->post_len -= n;
}

static bool nothing_to_write(const conn *c)
{
    return c->pre_sent == c->pre_len && c->body_len == 0 && c->post_len == 0;
}

static void want_write(server *s, conn *c, bool wanted)
{
    if (c->waits_to_write == wanted)
        return;
    /* While an answer is stuck nothing more is read: a slow reader is slowed, not buffered for. */
    struct epoll_event event = {.events = wanted ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    epoll_ctl(s->epoll, EPOLL_CTL_MOD, c->fd, &event);
    c->waits_to_write = wanted;
}

/* Writes what there is; false if the connection is gone (freed). */
static bool flush(server *s, conn *c)
{
    while (!nothing_to_write(c) || c->later > 0) {
        if (nothing_to_write(c))
            next_slice(s, c);
        /* sendmsg does not write through these; iovec has no const. */
        struct iovec parts[3] = {
            {.iov_base = c->pre + c->pre_sent, .iov_len = c->pre_len - c->pre_sent},
            {.iov_base = (void *)(uintptr_t)c->body, .iov_len = c->body_len},
            {.iov_base = (void *)(uintptr_t)c->post, .iov_len = c->post_len},
        };
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
        ssize_t n = sendmsg(c->fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            want_write(s, c, true);
            return true;
        }
        if (n < 0) {
            conn_close(s, c, false);
            return false;
        }
        written(c, (size_t)n);
    }
    if (c->close_after || c->reset_after) {
        conn_close(s, c, c->reset_after);
        return false;
    }
    want_write(s, c, false);
    return true;
}

static const char *date_now(server *s)
{
    time_t now = time(NULL);
    if (now != s->date_of) {
        struct tm parts;
        gmtime_r(&now, &parts);
        strftime(s->date, sizeof s->date, "%a, %d %b %Y %H:%M:%S GMT", &parts);
        s->date_of = now;
    }
    return s->date;
}

static void append(conn *c, const char *name, const char *value)
{
    int n = snprintf(c->pre + c->pre_len, sizeof c->pre - c->pre_len, "%s: %s\r\n", name, value);
    c->pre_len += (size_t)n;
    if (c->pre_len >= sizeof c->pre)
        dp_die(1, "an answer's head is too long at", name);
}

/* Seven fields, as a plain server sends; the token, the mark and the body's fate come on top. */
static void answer_head(server *s, conn *c, int status, framing how, uint64_t length)
{
    char number[32];
    c->pre_len = (size_t)snprintf(c->pre, sizeof c->pre, "HTTP/1.1 %d %s\r\n", status,
                                  status == 200 ? "OK" : "Wrong");
    c->pre_sent = 0;
    append(c, "server", "dp-upstream");
    append(c, "date", date_now(s));
    append(c, "content-type", "application/octet-stream");
    append(c, "last-modified", "Sat, 01 Aug 2026 12:00:00 GMT");
    append(c, "etag", "\"5f1d2c3b-80\"");
    append(c, "cache-control", "max-age=0, no-cache");
    if (how == FRAME_LENGTH) {
        snprintf(number, sizeof number, "%" PRIu64, length);
        append(c, "content-length", number);
    } else if (how == FRAME_CHUNKED) {
        append(c, "transfer-encoding", "chunked");
    }
    if (c->close_after)
        append(c, "connection", "close");
    if (c->token[0] != '\0')
        append(c, "x-token", c->token);
    if (s->mark != NULL)
        append(c, "x-upstream", s->mark);
    if (c->has_body) {
        snprintf(number, sizeof number, "%" PRIu64, c->received);
        append(c, "x-received", number);
        if (c->token[0] != '\0')
            append(c, "x-body", c->altered ? "altered" : "intact");
    }
    memcpy(c->pre + c->pre_len, "\r\n", 2);
    c->pre_len += 2;
}

static void answer_body(server *s, conn *c, framing how, uint64_t length)
{
    c->close_after = c->wants_close || how == FRAME_CLOSE;
    answer_head(s, c, 200, how, length);
    if (c->is_head)
        return;
    c->later = length;
    c->chunked = how == FRAME_CHUNKED;
    if (!c->chunked) {
        next_slice(s, c); /* at once: a small answer is one call */
    } else if (length == 0) {
        c->post = "0\r\n\r\n";
        c->post_len = 5;
    }
}

static void answer_text(server *s, conn *c, const char *text)
{
    size_t len = strlen(text);
    c->close_after = c->wants_close;
    answer_head(s, c, 200, FRAME_LENGTH, len);
    memcpy(c->pre + c->pre_len, text, len);
    c->pre_len += len;
}

static void answer_stats(server *s, conn *c)
{
    char text[256];
    snprintf(text, sizeof text,
             "{\"accepts\": %" PRIu64 ", \"open\": %" PRIu64 ", \"requests\": %" PRIu64
             ", \"received_bytes\": %" PRIu64 ", \"faults\": %" PRIu64 "}\n",
             s->accepts, s->open, s->requests, s->received, s->faults);
    answer_text(s, c, text);
}

/* The head that was asked with; nobody else asks for it before it is written. */
static void answer_seen(server *s, conn *c)
{
    c->close_after = c->wants_close;
    answer_head(s, c, 200, FRAME_LENGTH, s->seen_len);
    c->body = s->seen;
    c->body_len = s->seen_len;
}

static void answer_wrongly(server *s, conn *c, fault kind)
{
    s->faults++;
    switch (kind) {
    case FAULT_NONE:
        break;
    case FAULT_RESET:
        c->reset_after = true;
        break;
    case FAULT_MID_RESET:
    case FAULT_SHORT:
        answer_body(s, c, FRAME_LENGTH, 1000);
        c->body_len = 100;
        c->reset_after = kind == FAULT_MID_RESET;
        c->close_after = true;
        break;
    case FAULT_GARBAGE:
        c->pre_len = (size_t)snprintf(c->pre, sizeof c->pre, "these are not the bytes\r\n\r\n");
        c->pre_sent = 0;
        c->close_after = true;
        break;
    case FAULT_NEVER:
        c->silent = true;
        break;
    case FAULT_TOKEN:
        memset(c->token, 'f', strlen(c->token));
        answer_body(s, c, FRAME_LENGTH, 128);
        break;
    case FAULT_LENGTH:
        answer_body(s, c, FRAME_LENGTH, 127);
        break;
    case FAULT_BODY:
        c->turn = (c->turn + 1) % DP_PATTERN_PERIOD;
        answer_body(s, c, FRAME_LENGTH, 128);
        break;
    case FAULT_SURPLUS:
        answer_body(s, c, FRAME_LENGTH, 128);
        c->post = "surplus";
        c->post_len = 7;
        break;
    case FAULT_STATUS:
        answer_head(s, c, 500, FRAME_LENGTH, 128);
        c->body = s->pattern + c->turn;
        c->body_len = 128;
        break;
    }
}

static fault fault_named(const char *name)
{
    for (size_t i = 0; i < sizeof fault_names / sizeof fault_names[0]; i++)
        if (strcmp(name, fault_names[i]) == 0)
            return (fault)i;
    return FAULT_NONE;
}

static void answer(server *s, conn *c)
{
    uint64_t length = 128;
    framing how = FRAME_LENGTH;
    s->requests++;
    c->body = c->post = "";
    c->body_len = c->post_len = 0;
    c->later = 0;
    c->chunked = false;
    c->pre_len = c->pre_sent = 0;
    if (strncmp(c->path, "/fault/", 7) == 0 && fault_named(c->path + 7) != FAULT_NONE) {
        answer_wrongly(s, c, fault_named(c->path + 7));
        return;
    }
    if (s->fault_at != 0 && s->requests == s->fault_at) {
        answer_wrongly(s, c, s->fault);
        return;
    }
    if (strcmp(c->path, "/stats") == 0) {
        answer_stats(s, c);
        return;
    }
    if (strcmp(c->path, "/head") == 0) {
        answer_seen(s, c);
        return;
    }
    if (c->path[0] == '/' && c->path[1] != '\0' && c->path[2] == '/') {
        const char *number = c->path + 3;
        uint64_t asked;
        if (dp_parse_number(number, strlen(number), 10, DP_BODY_MAX, &asked)) {
            length = asked;
            how = c->path[1] == 'c'   ? FRAME_CHUNKED
                  : c->path[1] == 'u' ? FRAME_CLOSE
                                      : FRAME_LENGTH;
        }
    }
    answer_body(s, c, how, length);
}

static void read_field(conn *c, const char *name, size_t name_len, const char *value,
                       size_t value_len)
{
    if (dp_name_is(name, name_len, "content-length")) {
        if (dp_parse_number(value, value_len, 10, UINT64_MAX, &c->in_left) && c->in_left > 0) {
            c->phase = IN_LENGTH;
            c->has_body = true;
        }
    } else if (dp_name_is(name, name_len, "transfer-encoding")) {
        c->phase = IN_CHUNK_SIZE;
        c->has_body = true;
    } else if (dp_name_is(name, name_len, "connection")) {
        c->wants_close = dp_name_is(value, value_len, "close");
    } else if (dp_name_is(name, name_len, "x-token") && value_len <= TOKEN_MAX) {
        uint64_t number = 0;
        memcpy(c->token, value, value_len);
        c->token[value_len] = '\0';
        if (dp_parse_number(value, value_len, 16, UINT64_MAX, &number))
            c->turn = number % DP_PATTERN_PERIOD;
    }
}

/* The head's bytes are data[0..len), the empty line left out; false: it is no request of ours. */
static bool read_head(conn *c, const char *data, size_t len)
{
    const char *end = data + len;
    const char *eol = memchr(data, '\r', len);
    const char *space = memchr(data, ' ', len);
    if (eol == NULL || space == NULL || space > eol)
        return false;
    const char *path = space + 1;
    const char *path_end = memchr(path, ' ', (size_t)(eol - path));
    if (path_end == NULL || eol - path_end != 9 || memcmp(path_end + 1, "HTTP/1.", 7) != 0)
        return false;
    size_t path_len = (size_t)(path_end - path);
    path_len = path_len < sizeof c->path ? path_len : sizeof c->path - 1;
    memcpy(c->path, path, path_len);
    c->path[path_len] = '\0';
    c->is_head = dp_name_is(data, (size_t)(space - data), "head");
    c->phase = IN_HEAD;
    c->in_left = c->received = c->turn = c->line = 0;
    c->has_body = c->altered = false;
    c->wants_close = path_end[8] == '0';
    c->token[0] = '\0';
    for (const char *line = eol + 2; line < end;) {
        eol = memchr(line, '\r', (size_t)(end - line));
        const char *stop = eol == NULL ? end : eol;
        const char *colon = memchr(line, ':', (size_t)(stop - line));
        if (colon == NULL)
            return false;
        const char *value = colon + 1;
        while (value < stop && *value == ' ')
            value++;
        read_field(c, line, (size_t)(colon - line), value, (size_t)(stop - value));
        line = stop + 2;
    }
    return true;
}

static void body_bytes(server *s, conn *c, const char *data, size_t len)
{
    size_t from = (c->turn + c->received) % DP_PATTERN_PERIOD;
    if (memcmp(data, s->pattern + from, len) != 0)
        c->altered = true;
    c->received += len;
    s->received += len;
}

/* One byte of a chunk's framing; true at the body's end. A wrong byte only shows as "altered". */
static bool chunk_framing(conn *c, char byte)
{
    uint64_t digit;
    switch (c->phase) {
    case IN_CHUNK_SIZE:
        if (byte == '\n') {
            c->phase = c->in_left > 0 ? IN_CHUNK_DATA : IN_TRAILER;
            c->line = 0;
        } else if (dp_parse_number(&byte, 1, 16, 15, &digit)) {
            c->in_left = c->in_left * 16 + digit;
        } else if (byte != '\r') {
            c->altered = true;
        }
        return false;
    case IN_CHUNK_END:
        if (byte == '\n')
            c->phase = IN_CHUNK_SIZE;
        else if (byte != '\r')
            c->altered = true;
        return false;
    case IN_TRAILER:
        if (byte == '\n' && c->line == 0)
            return true;
        c->line = byte == '\n' ? 0 : c->line + (byte != '\r');
        return false;
    case IN_HEAD:
    case IN_LENGTH:
    case IN_CHUNK_DATA:
        break;
    }
    return false;
}

/* Takes what it can of the request's body; *ret_done says that the body is whole. */
static size_t take_body(server *s, conn *c, const char *data, size_t len, bool *ret_done)
{
    *ret_done = false;
    if (c->phase == IN_LENGTH || c->phase == IN_CHUNK_DATA) {
        size_t part = len < c->in_left ? len : (size_t)c->in_left;
        body_bytes(s, c, data, part);
        c->in_left -= part;
        if (c->in_left == 0 && c->phase == IN_CHUNK_DATA)
            c->phase = IN_CHUNK_END;
        else if (c->in_left == 0)
            *ret_done = true;
        return part;
    }
    *ret_done = chunk_framing(c, data[0]);
    return 1;
}

/* Goes through what was read; false if the connection is gone (freed). */
static bool process(server *s, conn *c)
{
    size_t at = 0;
    while (at < c->in_len && !c->waits_to_write && !c->silent) {
        bool done = false;
        if (c->phase == IN_HEAD) {
            char *end = memmem(c->in + at, c->in_len - at, "\r\n\r\n", 4);
            if (end == NULL && at == 0 && c->in_len == sizeof c->in) {
                conn_close(s, c, false);
                return false;
            }
            if (end == NULL)
                break;
            if (!read_head(c, c->in + at, (size_t)(end - (c->in + at)))) {
                conn_close(s, c, false);
                return false;
            }
            if (strcmp(c->path, "/head") == 0) {
                s->seen_len = (size_t)(end - (c->in + at));
                memcpy(s->seen, c->in + at, s->seen_len);
            }
            if (s->never_close)
                c->wants_close = false;
            at = (size_t)(end + 4 - c->in);
            done = c->phase == IN_HEAD;
        } else {
            at += take_body(s, c, c->in + at, c->in_len - at, &done);
        }
        if (!done)
            continue;
        answer(s, c);
        c->phase = IN_HEAD;
        if (!flush(s, c))
            return false;
    }
    c->in_len -= at;
    if (c->silent)
        c->in_len = 0;
    else if (at > 0 && c->in_len > 0)
        memmove(c->in, c->in + at, c->in_len);
    return true;
}

static void on_readable(server *s, conn *c)
{
    for (;;) {
        size_t room = sizeof c->in - c->in_len;
        ssize_t n = recv(c->fd, c->in + c->in_len, room, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            conn_close(s, c, false);
            return;
        }
        c->in_len += (size_t)n;
        if (!process(s, c) || c->waits_to_write || (size_t)n < room)
            return;
    }
}

static void on_accept(server *s)
{
    for (int i = 0; i < 64; i++) {
        int fd = accept4(s->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        conn *c = malloc(sizeof *c);
        if (c == NULL)
            dp_die(1, "no memory for", "a connection");
        memset(c, 0, offsetof(conn, in)); /* not the buffer: its pages stay untouched */
        c->fd = fd;
        c->phase = IN_HEAD;
        c->body = c->post = "";
        s->accepts++;
        s->open++;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
            dp_die(1, "epoll_ctl:", strerror(errno));
    }
}

static void on_event(server *s, struct epoll_event *event)
{
    conn *c = event->data.ptr;
    if (event->data.ptr == &s->listener) {
        on_accept(s);
    } else if (event->data.ptr == &s->signals) {
        s->ended = true;
    } else if ((event->events & EPOLLOUT) != 0) {
        /* What was read before the answer got stuck is gone through first. */
        if (flush(s, c) && !c->waits_to_write)
            (void)process(s, c);
    } else {
        on_readable(s, c);
    }
}

static int open_listener(const char *text, struct sockaddr_storage *ret_address)
{
    socklen_t len = 0;
    int on = 1;
    if (!dp_parse_address(text, ret_address, &len))
        dp_die(DP_USAGE, "not an address like 127.0.0.1:0 or [::1]:0:", text);
    int fd = socket(ret_address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        dp_die(1, "socket:", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Whatever address it has, nobody but this host is served. */
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 3) != 0)
        dp_die(1, "cannot hold the socket to loopback:", strerror(errno));
    if (bind(fd, (struct sockaddr *)ret_address, len) != 0 || listen(fd, 4096) != 0)
        dp_die(1, "cannot listen:", strerror(errno));
    if (getsockname(fd, (struct sockaddr *)ret_address, &len) != 0)
        dp_die(1, "getsockname:", strerror(errno));
    return fd;
}

static int port_of(const struct sockaddr_storage *address)
{
    /* sin_port and sin6_port lie at the same place. */
    return ntohs(((const struct sockaddr_in *)address)->sin_port);
}

static void watch(server *s, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        dp_die(1, "epoll_ctl:", strerror(errno));
}

static void usage(FILE *to)
{
    fputs("usage: dp_upstream [--listen 127.0.0.1:0] [--mark TEXT] [--fault KIND --fault-at N]\n"
          "                   [--never-close] [--end-with-parent]\n"
          "Prints its port as JSON, serves until SIGTERM, prints its counters.\n"
          "example: dp_upstream --listen 127.0.0.1:9001 --mark blue\n",
          to);
}

static const char *read_options(server *s, int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'}, {"mark", required_argument, NULL, 'm'},
        {"fault", required_argument, NULL, 'f'},  {"fault-at", required_argument, NULL, 'n'},
        {"never-close", no_argument, NULL, 'k'},  {"end-with-parent", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    const char *listen_at = "127.0.0.1:0";
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'l') {
            listen_at = optarg;
        } else if (option == 'm' && strlen(optarg) <= MARK_MAX) {
            s->mark = optarg;
        } else if (option == 'f' && fault_named(optarg) != FAULT_NONE) {
            s->fault = fault_named(optarg);
        } else if (option == 'n' &&
                   dp_parse_number(optarg, strlen(optarg), 10, UINT64_MAX, &s->fault_at)) {
            continue;
        } else if (option == 'k') {
            s->never_close = true;
        } else if (option == 'p') {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
        } else {
            usage(option == 'h' ? stdout : stderr);
            exit(option == 'h' ? 0 : DP_USAGE);
        }
    }
    if (optind != argc || (s->fault == FAULT_NONE) != (s->fault_at == 0)) {
        usage(stderr);
        exit(DP_USAGE);
    }
    return listen_at;
}

int main(int argc, char **argv)
{
    static const struct rlimit files = {.rlim_cur = 20000, .rlim_max = 20000};
    struct sockaddr_storage address;
    struct epoll_event events[EVENTS];
    static server s = {.epoll = -1}; /* too large for a stack */
    sigset_t ends;
    const char *listen_at = read_options(&s, argc, argv);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    (void)setrlimit(RLIMIT_NOFILE, &files); /* as far as we may; accept says so if it is short */
    s.pattern = dp_pattern_new(SLICE);
    s.epoll = epoll_create1(EPOLL_CLOEXEC);
    s.listener = open_listener(listen_at, &address);
    s.signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    if (s.epoll < 0 || s.signals < 0)
        dp_die(1, "cannot start:", strerror(errno));
    watch(&s, s.listener, &s.listener);
    watch(&s, s.signals, &s.signals);
    printf("{\"listen\": \"%s\", \"port\": %d, \"pid\": %d}\n", listen_at, port_of(&address),
           (int)getpid());
    fflush(stdout);
    while (!s.ended) {
        int n = epoll_wait(s.epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++)
            on_event(&s, &events[i]);
    }
    printf("{\"accepts\": %" PRIu64 ", \"open\": %" PRIu64 ", \"requests\": %" PRIu64
           ", \"received_bytes\": %" PRIu64 ", \"faults\": %" PRIu64 "}\n",
           s.accepts, s.open, s.requests, s.received, s.faults);
    free(s.pattern);
    return 0;
}
