/* Whole exchanges through a real engine, with a second reader at both ends.
 *
 * Whatever a client sends: each request that arrives whole at the upstream is, to another parser,
 * the next one that the client sent whole, with the same method, path (in its one form), query,
 * host, fields and body; and the client's answers are answers to another parser.
 *
 * Whatever an upstream answers: what the client gets is one answer that says the same to another
 * parser, or visibly not whole; and the next client gets its own answer and nothing else.
 *
 * The input: a byte of options, then what one side says. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "dp.h"
#include "fuzz.h"
#include "second.h"

enum { ROOM = 64 * 1024, LINES = 12, STEPS = 200, LATE_MS = 5000 };

enum {                  /* options */
       OF_UPSTREAM = 1, /* the input is what the upstream says */
       IN_PARTS = 2,
       TRICKLE = 4,
       TRAILERS = 8, /* what the client of an answer asked: */
       VERSION_10 = 16,
       METHOD = 32, /* and this: HEAD; this and the next: POST */
       UPGRADE = 64,
       THEN_ENDS = 128
};

struct line { /* one connection at the upstream */
    int fd;
    char got[ROOM];
    size_t len;
    size_t read; /* whole requests so far */
};

static struct {
    dp_engine *engines[2];
    dp_engine *engine;
    dp_stats stats[2];
    int listening; /* a UNIX socket: the engine does not mind */
    struct sockaddr_un door;
    socklen_t door_len;
    int upstream;
    struct line lines[LINES];
    struct sockaddr_in upstream_address;
} stage;

static dp_engine *make(uint32_t transport, dp_stats *stats)
{
    dp_engine *engine;
    const dp_engine_options given = {
        .transport = transport,
        .max_header_bytes = 2048,
        .max_headers = 40,
        .header_ms = 600000,
        .body_idle_ms = 600000,
        .idle_ms = 600000,
        .tunnel_idle_ms = 600000,
    };
    const dp_upstream_options behind = {
        .name = "api",
        .endpoints = 1,
        .balance = DP_ROUND_ROBIN,
        .connect_timeout_ms = 60000,
        .keepalive = 4,
    };
    const dp_route_options all = {.path = "/", .upstream = 0, .request_timeout_ms = 600000};

    hold(dp_engine_new(&given, stats, &engine) == DP_OK && dp_upstream_add(engine, &behind) == 0 &&
             dp_endpoint_add(engine, 0, "127.0.0.1", ntohs(stage.upstream_address.sin_port), 1) ==
                 0 &&
             dp_listener_add(engine, "web", DP_HTTP, -1) == 0 && dp_route_add(engine, &all) == 0 &&
             dp_engine_seal(engine) == DP_OK,
         "an engine is made");
    hold(dp_listener_attach(engine, 0, stage.listening) == DP_OK, "it listens");
    return engine;
}

static void open_stage(void)
{
    socklen_t len = sizeof(stage.upstream_address);

    (void)signal(SIGPIPE, SIG_IGN);
    stage.listening = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    stage.door.sun_family = AF_UNIX;
    stage.door_len = sizeof(stage.door);
    hold(bind(stage.listening, (struct sockaddr *)&stage.door, sizeof(sa_family_t)) == 0 &&
             listen(stage.listening, 64) == 0 &&
             getsockname(stage.listening, (struct sockaddr *)&stage.door, &stage.door_len) == 0,
         "a door opens");
    stage.upstream = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    stage.upstream_address.sin_family = AF_INET;
    stage.upstream_address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    hold(bind(stage.upstream, (struct sockaddr *)&stage.upstream_address, len) == 0 &&
             listen(stage.upstream, 64) == 0 &&
             getsockname(stage.upstream, (struct sockaddr *)&stage.upstream_address, &len) == 0,
         "an upstream listens");
    for (uint32_t i = 0; i < 2; i++) {
        stage.engines[i] = make(i, &stage.stats[i]);
    }
    for (size_t i = 0; i < LINES; i++) {
        stage.lines[i].fd = -1;
    }
}

static int come(void)
{
    const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    hold(fd >= 0 && connect(fd, (struct sockaddr *)&stage.door, stage.door_len) == 0,
         "a client gets in");
    return fd;
}

static void cut(int *fd)
{
    const struct linger linger = {.l_onoff = 1, .l_linger = 0};

    if (*fd >= 0) {
        (void)setsockopt(*fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
        (void)close(*fd);
        *fd = -1;
    }
}

static void turn(void)
{
    hold(dp_engine_turn(stage.engine, 8) >= 0, "a turn succeeds");
}

/* Appends what has come. False: nothing new. *ret_ended: nothing ever will. */
static bool hear(int fd, char *got, size_t *len, bool *ret_ended)
{
    const ssize_t count = recv(fd, got + *len, ROOM - *len, MSG_DONTWAIT);

    if (count > 0) {
        *len += (size_t)count;
        return true;
    }
    if (count == 0 || (errno != EAGAIN && errno != EINTR)) {
        *ret_ended = true;
    }
    return false;
}

static void say(int fd, const void *bytes, size_t len)
{
    (void)!send(fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static bool accept_lines(void)
{
    bool any = false;

    for (size_t i = 0; i < LINES; i++) {
        struct line *const line = &stage.lines[i];
        if (line->fd >= 0) {
            continue;
        }
        line->fd = accept4(stage.upstream, NULL, NULL, SOCK_NONBLOCK);
        line->len = 0;
        line->read = 0;
        if (line->fd < 0) {
            break;
        }
        any = true;
    }
    return any;
}

static void leave_all(int *client, int *other)
{
    cut(client);
    cut(other);
    for (int i = 0; i < 4; i++) {
        turn();
        (void)accept_lines();
        for (size_t j = 0; j < LINES; j++) {
            cut(&stage.lines[j].fd);
        }
    }
    turn();
    const dp_stats *const stats = &stage.stats[stage.engine == stage.engines[1]];
    hold(stats->connections == 0 && stats->requests_active == 0 && stats->tunnels == 0 &&
             stats->upstream_connections == 0 && stats->buffer_bytes == 0,
         "nothing is kept of what is over");
}

/* --- what a client says ----------------------------------------------------------------------- */

static bool is_ours(struct second_text name)
{
    static const char *const OURS[] = {"host",
                                       "connection",
                                       "te",
                                       "upgrade",
                                       "transfer-encoding",
                                       "x-forwarded-for",
                                       "x-forwarded-proto",
                                       "x-forwarded-host",
                                       "x-request-id",
                                       "max-forwards"};
    for (size_t i = 0; i < sizeof(OURS) / sizeof(OURS[0]); i++) {
        if (second_is(name, OURS[i])) {
            return true;
        }
    }
    return false;
}

static struct second_text field_of(const struct second_message *message, const char *name)
{
    struct second_text found = {NULL, 0};

    for (size_t i = 0; i < message->field_count; i++) {
        if (second_is(message->names[i], name)) {
            hold(found.at == NULL, "a field that must be alone is alone");
            found = message->values[i];
        }
    }
    return found;
}

/* What the client's target names: authority (may be empty), path and query. */
static void split_target(struct second_text target, struct second_text *ret_host,
                         struct second_text *ret_path, struct second_text *ret_query)
{
    const char *at = target.at;
    const char *const end = at + target.len;

    *ret_host = second_cut(at, at);
    if (target.len > 0 && *at != '/' && *at != '*') {
        at = memmem(at, target.len, "://", 3);
        hold(at != NULL, "a target is a path or a URI");
        const char *const host = at + 3;
        for (at = host; at < end && *at != '/' && *at != '?'; at++) {
        }
        *ret_host = second_cut(host, at);
    }
    const char *const query = memchr(at, '?', (size_t)(end - at));
    *ret_path = second_cut(at, query != NULL ? query : end);
    *ret_query = query != NULL ? second_cut(query, end) : second_cut(end, end);
    if (ret_path->len == 0) {
        *ret_path = (struct second_text){.at = "/", .len = 1};
    }
}

static void check_fields(const struct second_message *sent, const struct second_message *got)
{
    size_t next = 0;

    for (size_t i = 0; i < got->field_count; i++) {
        if (is_ours(got->names[i])) {
            continue;
        }
        while (next < sent->field_count && !(second_same(sent->names[next], got->names[i]) &&
                                             second_same(sent->values[next], got->values[i]))) {
            next++;
        }
        hold(next++ < sent->field_count, "a field that goes on was sent, in this order");
        hold(!second_is(got->names[i], "proxy") && !second_is(got->names[i], "keep-alive") &&
                 !second_is(got->names[i], "proxy-connection") &&
                 !second_is(got->names[i], "http2-settings") &&
                 !second_is(got->names[i], "forwarded"),
             "what goes hop by hop ends here");
    }
}

static void check_request(const struct second_message *sent, const struct second_message *got)
{
    static char path[SECOND_BODY];
    struct second_text host;
    struct second_text raw;
    struct second_text query;
    size_t len;

    hold(second_same(sent->words[0], got->words[0]), "the method is the client's");
    hold(second_is(got->words[2], "HTTP/1.1"), "the version is ours");
    split_target(sent->words[1], &host, &raw, &query);
    hold(second_path(raw, path, &len), "a path does not lead above the root");
    hold(got->words[1].len == len + query.len && memcmp(got->words[1].at, path, len) == 0 &&
             memcmp(got->words[1].at + len, query.at, query.len) == 0,
         "the target is the client's, in its one form");
    const struct second_text arrived = field_of(got, "host");
    if (host.len == 0) {
        host = field_of(sent, "host");
    }
    hold(host.len == 0 ? second_is(arrived, "api") : second_same(arrived, host),
         "the host is the client's");
    const struct second_text upgrade = field_of(got, "upgrade");
    hold(upgrade.at == NULL ||
             (upgrade.len > 0 && (upgrade.len < 2 || strncasecmp(upgrade.at, "h2", 2) != 0) &&
              (upgrade.len < 4 || strncasecmp(upgrade.at, "http", 4) != 0)),
         "nobody is asked to speak another HTTP");
    (void)field_of(got, "transfer-encoding");
    (void)field_of(got, "content-length");
    hold(field_of(got, "x-forwarded-for").len == 7, "a stranger does not say where it came from");
    check_fields(sent, got);
    hold(sent->body_len == got->body_len && memcmp(sent->body, got->body, got->body_len) == 0,
         "the body is the client's");
}

/* RFC 9110 7.6.2: a TRACE or OPTIONS that may go no further. */
static bool has_no_hops(const struct second_message *message)
{
    const struct second_text method = message->words[0];
    bool none = false;

    if (!(method.len == 5 && memcmp(method.at, "TRACE", 5) == 0) &&
        !(method.len == 7 && memcmp(method.at, "OPTIONS", 7) == 0)) {
        return false;
    }
    for (size_t i = 0; i < message->field_count; i++) {
        const struct second_text value = message->values[i];
        size_t digits = 0;
        size_t zeros = 0;
        while (digits < value.len && value.at[digits] >= '0' && value.at[digits] <= '9') {
            zeros += value.at[digits++] == '0';
        }
        if (second_is(message->names[i], "max-forwards") && digits == value.len && digits > 0 &&
            digits <= 9) {
            none = zeros == digits;
        }
    }
    return none;
}

/* The next request that the client sent and the engine does not answer itself. */
static enum second_verdict next_sent(const char *data, size_t size, size_t *at,
                                     struct second_message *ret)
{
    enum second_verdict verdict;

    do {
        verdict = second_read(data + *at, size - *at, NULL, false, ret);
        if (verdict == SECOND_WHOLE) {
            *at += ret->used;
        }
    } while (verdict == SECOND_WHOLE &&
             (second_is(ret->words[1], "*") || has_no_hops(ret) ||
              (ret->words[1].len >= 6 && strncasecmp(ret->words[1].at, "https:", 6) == 0)));
    return verdict;
}

/* RFC 9110 9.1: a method has a case. */
static bool is_head(struct second_text method)
{
    return method.len == 4 && memcmp(method.at, "HEAD", 4) == 0;
}

/* Takes what came to the upstream; each whole request is held against what was sent, and answered.
 */
static bool serve(const char *data, size_t size, size_t *sent_at, size_t *forwarded)
{
    static struct second_message sent;
    static struct second_message got;
    bool moved = accept_lines();

    for (size_t i = 0; i < LINES; i++) {
        struct line *const line = &stage.lines[i];
        bool ended = false;
        if (line->fd < 0) {
            continue;
        }
        moved |= hear(line->fd, line->got, &line->len, &ended);
        const enum second_verdict verdict =
            second_read(line->got + line->read, line->len - line->read, NULL, ended, &got);
        hold(verdict != SECOND_BAD, "what is forwarded parses elsewhere");
        if (verdict == SECOND_WHOLE && line->len > line->read) {
            hold(next_sent(data, size, sent_at, &sent) == SECOND_WHOLE,
                 "a whole request was sent whole");
            check_request(&sent, &got);
            line->read += got.used;
            hold(line->read == line->len, "no request comes before the last one is answered");
            (*forwarded)++;
            say(line->fd, "HTTP/1.1 200 OK\r\nx-from: upstream\r\ncontent-length: 2\r\n\r\nok",
                is_head(got.words[0]) ? 57 : 59);
            moved = true;
        }
        if (ended) {
            cut(&line->fd);
        }
    }
    return moved;
}

static void check_answers(const char *data, size_t size, const char *got, size_t len, bool ended,
                          size_t forwarded)
{
    static struct second_message sent;
    static struct second_message answer;
    size_t sent_at = 0;
    size_t count = 0;

    for (size_t at = 0; at < len;) {
        const char *asked = data + sent_at;
        size_t left = size - sent_at;
        if (left >= 2 && memcmp(asked, "\r\n", 2) == 0) {
            asked += 2;
            left -= 2;
        }
        const bool head = left >= 5 && memcmp(asked, "HEAD ", 5) == 0;
        if (second_read(data + sent_at, size - sent_at, NULL, false, &sent) == SECOND_WHOLE) {
            sent_at += sent.used;
        }
        const enum second_verdict verdict =
            second_read(got + at, len - at, head ? "HEAD" : "GET", ended, &answer);
        hold(verdict == SECOND_WHOLE && second_is(answer.words[0], "HTTP/1.1"),
             "an answer parses elsewhere");
        at += answer.used;
        count += field_of(&answer, "x-from").at != NULL;
    }
    hold(count == forwarded, "each request that went on got its own answer");
}

static void play_client(const char *data, size_t size, bool in_parts)
{
    static char got[ROOM];
    size_t len = 0;
    size_t sent_at = 0;
    size_t forwarded = 0;
    bool ended = false;
    int client = come();
    int none = -1;
    const size_t first = in_parts ? split_of((const uint8_t *)data, size) : size;
    size_t said = first;

    say(client, data, first);
    for (int step = 0, still = 0; step < STEPS && still < 3; step++) {
        turn();
        bool moved = serve(data, size, &sent_at, &forwarded);
        moved |= hear(client, got, &len, &ended);
        still = moved ? 0 : still + 1;
        if (still == 3 && said < size) {
            say(client, data + said, size - said);
            said = size;
            still = 0;
        }
    }
    check_answers(data, size, got, len, ended, forwarded);
    leave_all(&client, &none);
}

/* --- what an upstream says -------------------------------------------------------------------- */

static const char SECOND_ANSWER[] = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecond";

static size_t ask(uint8_t options, char *ret_request, const char **ret_method)
{
    const char *const method = (options & METHOD) == 0 ? "GET" : "HEAD";

    *ret_method = method;
    return (size_t)snprintf(
        ret_request, 256, "%s /first HTTP/1.%d\r\nhost: a\r\n%s%s\r\n", method,
        (options & VERSION_10) != 0 ? 0 : 1, (options & TRAILERS) != 0 ? "te: trailers\r\n" : "",
        (options & UPGRADE) != 0 ? "connection: upgrade\r\nupgrade: x\r\n" : "");
}

/* Answers a request for /second as it should be; says the input to the first one. */
static bool answer_lines(const char *data, size_t size, size_t *said, size_t until, bool ends)
{
    bool moved = accept_lines();

    for (size_t i = 0; i < LINES; i++) {
        struct line *const line = &stage.lines[i];
        bool ended = false;
        if (line->fd < 0) {
            continue;
        }
        moved |= hear(line->fd, line->got, &line->len, &ended);
        const char *const fresh = line->got + line->read;
        const char *const stop = memmem(fresh, line->len - line->read, "\r\n\r\n", 4);
        if (stop != NULL) {
            line->read = line->len;
            moved = true;
            if (memmem(fresh, (size_t)(stop - fresh), " /second ", 9) != NULL) {
                say(line->fd, SECOND_ANSWER, sizeof(SECOND_ANSWER) - 1);
            }
        }
        if (i == 0 && line->read > 0 && *said < until) {
            say(line->fd, data + *said, until - *said);
            *said = until;
            moved = true;
            if (ends && *said == size) {
                (void)shutdown(line->fd, SHUT_WR);
            }
        }
        if (ended) {
            cut(&line->fd);
        }
    }
    return moved;
}

/* Skips interim answers: the first final one at *at. */
static enum second_verdict final_answer(const char *data, size_t len, const char *method,
                                        bool ended, size_t *at, struct second_message *ret)
{
    for (;;) {
        const enum second_verdict verdict = second_read(data + *at, len - *at, method, ended, ret);
        if (verdict != SECOND_WHOLE || ret->words[1].at[0] != '1' ||
            memcmp(ret->words[1].at, "101", 3) == 0) {
            return verdict;
        }
        *at += ret->used;
    }
}

static void check_answer(const char *data, size_t size, const char *got, size_t len, bool ended,
                         bool upstream_ended, const char *method, uint8_t options)
{
    static struct second_message came;
    static struct second_message arrived;
    size_t from = 0;
    size_t at = 0;

    if (len == 0) {
        return; /* it is still waited for, or was cut */
    }
    const enum second_verdict verdict = final_answer(got, len, method, ended, &at, &arrived);
    hold(verdict != SECOND_BAD, "an answer parses elsewhere");
    if (verdict == SECOND_PART) {
        return; /* it is visibly not whole */
    }
    if (second_is(field_of(&arrived, "server"), "dataplane")) {
        hold(arrived.words[1].at[0] == '5', "a broken upstream is a 502 or the like");
        return;
    }
    if (memcmp(arrived.words[1].at, "101", 3) == 0) {
        hold((options & UPGRADE) != 0 && (options & VERSION_10) == 0 &&
                 second_is(field_of(&arrived, "upgrade"), "x"),
             "a tunnel was asked for");
        return;
    }
    hold(at + arrived.used == len, "nothing comes behind an answer");
    if (final_answer(data, size, method, upstream_ended, &from, &came) != SECOND_WHOLE) {
        /* To a client of HTTP/1.0 the end of a chunked body is the end of the connection; it must
         * then have been a reset, which we cannot tell from an end here. */
        hold(arrived.to_close, "what arrived whole came whole");
        return;
    }
    hold(second_same(arrived.words[1], came.words[1]), "the status is the upstream's");
    /* Whoever reads on to the end of the connection sees by a reset alone, as above, that the rest
     * was refused: of trailers that the second parser takes, say. */
    const bool may_be_cut = arrived.to_close && (options & VERSION_10) != 0;
    hold((arrived.body_len == came.body_len || (may_be_cut && arrived.body_len < came.body_len)) &&
             memcmp(arrived.body, came.body, arrived.body_len) == 0,
         "the body is the upstream's");
}

static void play_upstream(const char *data, size_t size, uint8_t options)
{
    static char got[ROOM];
    static char other[ROOM];
    char request[256];
    const char *method;
    size_t len = 0;
    size_t other_len = 0;
    size_t said = 0;
    bool ended = false;
    bool other_ended = false;
    int client = come();
    int second = -1;
    const bool ends = (options & THEN_ENDS) != 0;
    size_t until = (options & IN_PARTS) != 0 ? split_of((const uint8_t *)data, size) : size;

    say(client, request, ask(options, request, &method));
    for (int step = 0, still = 0; step < STEPS && still < 3; step++) {
        turn();
        bool moved = answer_lines(data, size, &said, until, ends);
        if (!ended) {
            moved |= hear(client, got, &len, &ended);
        }
        still = moved ? 0 : still + 1;
        if (still == 3 && until < size) {
            until = size;
            still = 0;
        }
    }
    check_answer(data, size, got, len, ended, ends && said == size, method, options);
    second = come();
    say(second, "GET /second HTTP/1.1\r\nhost: b\r\n\r\n", 33);
    for (int step = 0, still = 0, late = 0; step < STEPS && still < 3; step++) {
        turn();
        bool moved = answer_lines(data, size, &said, until, ends);
        moved |= hear(second, other, &other_len, &other_ended);
        still = moved ? 0 : still + 1;
        /* It must be answered; a busy kernel may carry what was sent to loopback a little later. */
        if (still == 3 && other_len == 0 && late++ < LATE_MS) {
            (void)poll(NULL, 0, 1);
            still = 2;
            step--;
        }
    }
    const char *const stop = memmem(other, other_len, "\r\n\r\n", 4);
    hold(stop != NULL && other_len - (size_t)(stop - other) == 10 &&
             memcmp(stop + 4, "second", 6) == 0 && memcmp(other, "HTTP/1.1 200 OK\r\n", 17) == 0,
         "the next client gets its own answer and nothing else");
    leave_all(&client, &second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (stage.engines[0] == NULL) {
        open_stage();
    }
    if (size < 1) {
        return 0;
    }
    const uint8_t options = data[0];
    /* A byte at a time takes a turn for each: for short ones only. */
    stage.engine = stage.engines[(options & TRICKLE) != 0 && size < 300 ? 1 : 0];
    hold(dp_engine_serve(stage.engine) == DP_OK, "it serves");
    if ((options & OF_UPSTREAM) != 0) {
        play_upstream((const char *)data + 1, size - 1, options);
    } else {
        play_client((const char *)data + 1, size - 1, (options & IN_PARTS) != 0);
    }
    hold(dp_engine_pause(stage.engine) == DP_OK, "it stops");
    return 0;
}
