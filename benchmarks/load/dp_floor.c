/* The floor: a relay that makes the system calls of a proxy and parses nothing. What a proxy takes
 * beyond it is its own work. Never use it to serve anybody: it has no deadlines and no limits.
 *
 * Each client has an upstream connection of its own, or, with --per-request, one from a pool for as
 * long as its one answer takes, which must come in one piece; the upstream must then not close
 * (dp_upstream --never-close). A direction in which a read was large goes on by splice. */
#include "dp_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
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
#include <unistd.h>

enum {
    BUFFER = 256 * 1024,
    SPLICE_FROM = 64 * 1024, /* a read of so much, and its direction goes on by splice */
    EVENTS = 256,
    POOL = 1024,
};

typedef struct side side;

/* One end of a relayed connection, and what goes from it to the other. */
struct side {
    int fd;
    bool is_client, spliced, ended;
    side *peer; /* NULL: an upstream connection in the pool, or a client without one yet */
    int pipe[2];
    size_t in_pipe;
    char *rest; /* what the peer did not take, only while there is some */
    size_t rest_from, rest_len;
};

typedef struct relay {
    int epoll, listener, signals;
    struct sockaddr_storage upstream;
    socklen_t upstream_len;
    bool per_request, ended;
    side *pool[POOL];
    size_t pooled;
    side *dead[2 * EVENTS + POOL]; /* freed after the batch: an event of it may still come */
    size_t dead_len;
    char *buffer;
} relay;

static void bury(relay *r, side *s)
{
    if (s->fd < 0)
        return;
    close(s->fd);
    s->fd = -1;
    if (s->pipe[0] >= 0) {
        close(s->pipe[0]);
        close(s->pipe[1]);
    }
    free(s->rest);
    s->rest = NULL;
    s->peer = NULL;
    for (size_t i = 0; i < r->pooled; i++)
        if (r->pool[i] == s)
            r->pool[i] = r->pool[--r->pooled];
    if (r->dead_len == sizeof r->dead / sizeof r->dead[0])
        dp_die(1, "too many connections", "ended at once");
    r->dead[r->dead_len++] = s;
}

static void end_both(relay *r, side *s)
{
    side *peer = s->peer;
    bury(r, s);
    if (peer != NULL)
        bury(r, peer);
}

static side *side_new(int fd, bool is_client)
{
    side *s = calloc(1, sizeof *s);
    if (s == NULL)
        dp_die(1, "no memory for", "a connection");
    s->fd = fd;
    s->is_client = is_client;
    s->pipe[0] = s->pipe[1] = -1;
    return s;
}

static void watch(relay *r, side *s)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
    if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, s->fd, &event) != 0)
        dp_die(1, "epoll_ctl:", strerror(errno));
}

/* The last one that was used, or a new one. */
static side *take_upstream(relay *r)
{
    int on = 1;
    if (r->pooled > 0)
        return r->pool[--r->pooled];
    int fd = socket(r->upstream.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&r->upstream, r->upstream_len) != 0)
        dp_die(1, "cannot connect to the upstream:", strerror(errno));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    side *s = side_new(fd, false);
    watch(r, s);
    return s;
}

static void pair(side *client, side *upstream)
{
    client->peer = upstream;
    upstream->peer = client;
}

static void keep(side *s, const char *data, size_t len)
{
    char *rest = malloc(len);
    if (rest == NULL)
        dp_die(1, "no memory for", "what was not taken");
    memcpy(rest, data, len);
    free(s->rest);
    s->rest = rest;
    s->rest_from = 0;
    s->rest_len = len;
}

/* Hands what was kept on to the peer; false while some is left, or where the connection is gone. */
static bool flush(relay *r, side *s)
{
    while (s->rest != NULL) {
        ssize_t n = send(s->peer->fd, s->rest + s->rest_from, s->rest_len, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n < 0) {
            end_both(r, s);
            return false;
        }
        s->rest_from += (size_t)n;
        s->rest_len -= (size_t)n;
        if (s->rest_len == 0) {
            free(s->rest);
            s->rest = NULL;
        }
    }
    return true;
}

/* One round of a spliced direction: false where nothing more can be done now. */
static bool splice_once(relay *r, side *s)
{
    if (s->in_pipe == 0) {
        ssize_t n = splice(s->fd, NULL, s->pipe[1], NULL, BUFFER, SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n <= 0) {
            end_both(r, s);
            return false;
        }
        s->in_pipe = (size_t)n;
    }
    ssize_t n = splice(s->pipe[0], NULL, s->peer->fd, NULL, s->in_pipe, SPLICE_F_NONBLOCK);
    if (n < 0 && errno == EAGAIN)
        return false;
    if (n <= 0) {
        end_both(r, s);
        return false;
    }
    s->in_pipe -= (size_t)n;
    return true;
}

static void begin_splice(side *s)
{
    if (pipe2(s->pipe, O_NONBLOCK | O_CLOEXEC) != 0)
        dp_die(1, "pipe2:", strerror(errno));
    (void)fcntl(s->pipe[1], F_SETPIPE_SZ, BUFFER);
    s->spliced = true;
}

/* The one answer of a client's one request went out. */
static void finish_request(relay *r, side *upstream)
{
    side *client = upstream->peer;
    upstream->peer = NULL;
    bury(r, client);
    if (r->pooled < POOL)
        r->pool[r->pooled++] = upstream;
    else
        bury(r, upstream);
}

/* Relays what has come; one read, and only a full one is followed by another. */
static void relay_from(relay *r, side *s)
{
    while (s->fd >= 0) {
        if (s->peer != NULL && !flush(r, s))
            return;
        if (s->spliced) {
            if (!splice_once(r, s))
                return;
            continue;
        }
        ssize_t n = recv(s->fd, r->buffer, BUFFER, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            end_both(r, s);
            return;
        }
        if (s->peer == NULL && !s->is_client)
            return; /* nobody asked the upstream for this */
        if (s->peer == NULL)
            pair(s, take_upstream(r));
        ssize_t sent = send(s->peer->fd, r->buffer, (size_t)n, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) {
            end_both(r, s);
            return;
        }
        size_t gone = sent < 0 ? 0 : (size_t)sent;
        if (gone < (size_t)n)
            keep(s, r->buffer + gone, (size_t)n - gone);
        else if (r->per_request && !s->is_client)
            finish_request(r, s);
        if (n >= SPLICE_FROM && s->peer != NULL)
            begin_splice(s);
        else if (n < BUFFER)
            return;
    }
}

static void on_accept(relay *r)
{
    for (;;) {
        int fd = accept4(r->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        side *s = side_new(fd, true);
        if (!r->per_request) {
            pair(s, take_upstream(r));
            watch(r, s);
            continue;
        }
        relay_from(r, s); /* the listener waits for data: the request is here */
        if (s->fd >= 0 && s->peer == NULL)
            watch(r, s); /* unless it is not */
    }
}

static void on_event(relay *r, side *s, uint32_t events)
{
    if (s->fd < 0)
        return;
    if ((events & EPOLLOUT) != 0 && s->peer != NULL &&
        (s->peer->rest != NULL || s->peer->in_pipe > 0))
        relay_from(r, s->peer);
    if (s->fd >= 0 && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
        relay_from(r, s);
}

static int open_listener(const char *text, bool deferred, struct sockaddr_storage *ret_address)
{
    socklen_t len = 0;
    int on = 1;
    if (!dp_parse_address(text, ret_address, &len))
        dp_die(DP_USAGE, "not an address like 127.0.0.1:0:", text);
    int fd = socket(ret_address->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        dp_die(1, "socket:", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* inherited */
    if (deferred)
        setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)ret_address, len) != 0 || listen(fd, 4096) != 0 ||
        getsockname(fd, (struct sockaddr *)ret_address, &len) != 0)
        dp_die(1, "cannot listen:", strerror(errno));
    return fd;
}

static void usage(FILE *to)
{
    fputs("usage: dp_floor --upstream HOST:PORT [--listen 127.0.0.1:0] [--per-request]\n"
          "                [--end-with-parent]\n"
          "Prints its port as JSON and relays until SIGTERM.\n"
          "example: dp_floor --upstream 127.0.0.1:9001\n",
          to);
}

static const char *read_options(relay *r, int argc, char **argv)
{
    static const struct option options[] = {
        {"listen", required_argument, NULL, 'l'}, {"upstream", required_argument, NULL, 'u'},
        {"per-request", no_argument, NULL, 'r'},  {"end-with-parent", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    const char *listen_at = "127.0.0.1:0";
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'l') {
            listen_at = optarg;
        } else if (option == 'u' && dp_parse_address(optarg, &r->upstream, &r->upstream_len)) {
            continue;
        } else if (option == 'r') {
            r->per_request = true;
        } else if (option == 'p') {
            prctl(PR_SET_PDEATHSIG, SIGTERM);
        } else {
            usage(option == 'h' ? stdout : stderr);
            exit(option == 'h' ? 0 : DP_USAGE);
        }
    }
    if (optind != argc || r->upstream_len == 0) {
        usage(stderr);
        exit(DP_USAGE);
    }
    return listen_at;
}

static void watch_readable(relay *r, int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        dp_die(1, "epoll_ctl:", strerror(errno));
}

static void run(relay *r)
{
    struct epoll_event events[EVENTS];
    while (!r->ended) {
        int n = epoll_wait(r->epoll, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &r->listener)
                on_accept(r);
            else if (events[i].data.ptr == &r->signals)
                r->ended = true;
            else
                on_event(r, events[i].data.ptr, events[i].events);
        }
        while (r->dead_len > 0)
            free(r->dead[--r->dead_len]);
    }
}

int main(int argc, char **argv)
{
    struct rlimit files;
    struct sockaddr_storage address;
    sigset_t ends;
    relay *r = calloc(1, sizeof *r);
    if (r == NULL)
        dp_die(1, "no memory for", "the relay");
    const char *listen_at = read_options(r, argc, argv);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    r->buffer = malloc(BUFFER);
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    r->listener = open_listener(listen_at, r->per_request, &address);
    r->signals = signalfd(-1, &ends, SFD_CLOEXEC | SFD_NONBLOCK);
    if (r->buffer == NULL || r->epoll < 0 || r->signals < 0)
        dp_die(1, "cannot start:", strerror(errno));
    watch_readable(r, r->listener, &r->listener);
    watch_readable(r, r->signals, &r->signals);
    /* sin_port and sin6_port lie at the same place. */
    printf("{\"listen\": \"%s\", \"port\": %d, \"pid\": %d}\n", listen_at,
           ntohs(((struct sockaddr_in *)&address)->sin_port), (int)getpid());
    fflush(stdout);
    run(r);
    free(r->buffer);
    free(r);
    return 0;
}
