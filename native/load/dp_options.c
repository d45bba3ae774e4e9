/* The command line of dp_load. See dp_options.h. */
#include "dp_options.h"

#include "dp_bench.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const dp_mode_names[3] = {
    [MODE_KEEPALIVE] = "keepalive", [MODE_PER_REQUEST] = "per-request", [MODE_IDLE] = "idle"};

static void usage(FILE *to)
{
    fputs("usage: dp_load --address HOST:PORT [options]\n"
          "  --mode keepalive|per-request|idle   keepalive\n"
          "  --connections N                     64 (in per-request: so many at a time)\n"
          "  --requests N, --seconds S, --ms M   where to end; without any 5 seconds\n"
          "  --rate R                            requests a second in all, sent when they are due\n"
          "                                      whatever became of those before, and timed from\n"
          "                                      then; 0: as fast as it goes\n"
          "  --headers small|browser             small\n"
          "  --header 'NAME: VALUE'              one more, as often as wanted\n"
          "  --method M, --path P, --host H      GET, /b/128, localhost\n"
          "  --body-bytes N, --body-chunked      a request body\n"
          "  --expect-status N                   200; 0: any\n"
          "  --expect-length N                   of the answer's body\n"
          "  --expect-body TEXT                  how the answer's body begins\n"
          "  --verify-body                       the body is dp_upstream's, byte by byte\n"
          "  --no-token                          the upstream is not a dp_upstream\n"
          "  --mark-header NAME                  count the values of this field\n"
          "  --mark-events                       tell each change of it (use one connection)\n"
          "  --timeout-ms N                      of connect, answer and close: 10000\n"
          "  --keep-going                        a broken connection does not end the run\n"
          "  --reopen                            nor is it left out: another takes its place\n"
          "  --sources N                         spread over so many addresses of 127.0.0.0/8\n"
          "  --progress                          tell each second\n"
          "  --end-with-parent                   end when whoever started us does\n"
          "  --control                           stdin: 'status' tells, 'stop' or its end ends\n"
          "  --rounds N                          idle: so many rounds, not one per line of stdin\n"
          "HOST:PORT is 127.0.0.1:8080, [::1]:8080 or unix:/path\n"
          "example: dp_load --address 127.0.0.1:8080 --seconds 5 --headers browser\n",
          to);
}

enum { NUMBERS = 256, TEXTS = 512, FLAGS = 768 };

static const struct option long_options[] = {
    {"connections", required_argument, NULL, NUMBERS},
    {"requests", required_argument, NULL, NUMBERS + 1},
    {"seconds", required_argument, NULL, NUMBERS + 2},
    {"rate", required_argument, NULL, NUMBERS + 3},
    {"rounds", required_argument, NULL, NUMBERS + 4},
    {"timeout-ms", required_argument, NULL, NUMBERS + 5},
    {"body-bytes", required_argument, NULL, NUMBERS + 6},
    {"expect-status", required_argument, NULL, NUMBERS + 7},
    {"expect-length", required_argument, NULL, NUMBERS + 8},
    {"sources", required_argument, NULL, NUMBERS + 9},
    {"ms", required_argument, NULL, NUMBERS + 10},
    {"method", required_argument, NULL, TEXTS},
    {"path", required_argument, NULL, TEXTS + 1},
    {"host", required_argument, NULL, TEXTS + 2},
    {"mark-header", required_argument, NULL, TEXTS + 3},
    {"expect-body", required_argument, NULL, TEXTS + 4},
    {"address", required_argument, NULL, TEXTS + 5},
    {"keep-going", no_argument, NULL, FLAGS},
    {"control", no_argument, NULL, FLAGS + 1},
    {"mark-events", no_argument, NULL, FLAGS + 2},
    {"verify-body", no_argument, NULL, FLAGS + 3},
    {"body-chunked", no_argument, NULL, FLAGS + 4},
    {"no-token", no_argument, NULL, FLAGS + 5},
    {"reopen", no_argument, NULL, FLAGS + 6},
    {"progress", no_argument, NULL, FLAGS + 7},
    {"end-with-parent", no_argument, NULL, FLAGS + 8},
    {"mode", required_argument, NULL, 'm'},
    {"headers", required_argument, NULL, 'H'},
    {"header", required_argument, NULL, 'x'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static _Noreturn void refuse(const char *what)
{
    fprintf(stderr, "dp_load: %s\n", what);
    usage(stderr);
    exit(DP_USAGE);
}

static void set_number(options *o, int which)
{
    const struct {
        uint64_t *to;
        uint64_t max;
    } numbers[] = {
        {&o->connections, DP_CONNECTIONS_MAX},
        {&o->requests, UINT64_MAX},
        {&o->seconds, DP_SECONDS_MAX},
        {&o->rate, 1000000},
        {&o->rounds, 1000000},
        {&o->timeout_ms, 3600000},
        {&o->body_bytes, 64 * 1024 * 1024},
        {&o->expect_status, 599},
        {&o->expect_length, DP_BODY_MAX},
        {&o->sources, DP_CONNECTIONS_MAX},
        {&o->ms, DP_SECONDS_MAX * 1000},
    };
    if (!dp_parse_number(optarg, strlen(optarg), 10, numbers[which].max, numbers[which].to))
        refuse("a number is wrong or too large");
    if (numbers[which].to == &o->expect_length)
        o->has_expect_length = true;
}

static void set_word(options *o, int option)
{
    if (option == 'm') {
        for (size_t i = 0; i < sizeof dp_mode_names / sizeof dp_mode_names[0]; i++) {
            if (strcmp(optarg, dp_mode_names[i]) == 0) {
                o->mode = (mode)i;
                return;
            }
        }
        refuse("no such mode");
    } else if (option == 'H') {
        o->browser = strcmp(optarg, "browser") == 0;
        if (!o->browser && strcmp(optarg, "small") != 0)
            refuse("no such headers");
    } else {
        size_t used = strlen(o->extra);
        int n = snprintf(o->extra + used, sizeof o->extra - used, "%s\r\n", optarg);
        if (n < 0 || (size_t)n >= sizeof o->extra - used)
            refuse("too many headers");
    }
}

void dp_options_read(options *o, int argc, char **argv)
{
    *o = (options){.connections = 64,
                   .timeout_ms = 10000,
                   .method = "GET",
                   .path = "/b/128",
                   .host = "localhost",
                   .expect_status = 200};
    const char *mark_header = NULL;
    const char **texts[] = {&o->method,   &o->path,        &o->host,
                            &mark_header, &o->expect_body, &o->address_text};
    bool *flags[] = {&o->keep_going,  &o->control,      &o->mark_events,
                     &o->verify_body, &o->body_chunked, &o->no_token,
                     &o->reopen,      &o->progress,     &o->end_with_parent};
    int option;
    while ((option = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
        if (option >= FLAGS) {
            *flags[option - FLAGS] = true;
        } else if (option >= TEXTS) {
            *texts[option - TEXTS] = optarg;
        } else if (option >= NUMBERS) {
            set_number(o, option - NUMBERS);
        } else if (option == 'h') {
            usage(stdout);
            exit(0);
        } else if (option == '?') {
            refuse("an option is wrong");
        } else {
            set_word(o, option);
        }
    }
    if (mark_header != NULL && (o->mark_header = strdup(mark_header)) == NULL)
        dp_die(1, "no memory for", "a name");
    for (char *c = o->mark_header; c != NULL && *c != '\0'; c++)
        *c = (char)tolower((unsigned char)*c);
    if (optind != argc || o->address_text == NULL || o->connections == 0)
        refuse("an --address and at least one connection are needed, and nothing else");
    if (!dp_parse_address(o->address_text, &o->address, &o->address_len))
        refuse("an address is like 127.0.0.1:8080, [::1]:8080 or unix:/path");
    if (o->sources > 0 && o->address.ss_family != AF_INET)
        refuse("--sources needs an address of 127.0.0.0/8");
    o->keep_going = o->keep_going || o->reopen;
    if (o->body_chunked && o->body_bytes == 0)
        refuse("--body-chunked needs --body-bytes");
    if (o->verify_body && o->no_token)
        refuse("--verify-body needs the token");
    if (o->seconds == 0 && o->ms == 0 && o->requests == 0 && o->mode != MODE_IDLE && !o->control)
        o->seconds = 5;
    if (o->seconds == 0 && o->ms == 0)
        o->seconds = DP_SECONDS_UNTOLD; /* nothing here runs for ever */
    if (o->seconds != 0)
        o->ms = o->seconds * 1000;
}
