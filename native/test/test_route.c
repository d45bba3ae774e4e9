/* Routes: any order of adding gives the same answer, and nothing is read beyond the head. */
#include <stdio.h>

#include "dp_route.c"

#include "support.h"

void dp_fail(const char *file, int line, const char *condition)
{
    fprintf(stderr, "%s:%d: %s\n", file, line, condition);
    abort();
}

static dp_text text(const char *given)
{
    return (dp_text){.data = given, .len = given == NULL ? 0 : (uint32_t)strlen(given)};
}

static dp_route make(const char *host, const char *path, uint32_t methods, uint32_t order)
{
    dp_route route = {.methods = methods, .order = order};
    route.any_host = host == NULL;
    route.any_path = path == NULL;
    if (host != NULL) {
        route.wildcard_host = host[0] == '*';
        route.host = text(host + route.wildcard_host);
    }
    if (path != NULL) {
        route.path = text(path);
        route.prefix_path = path[strlen(path) - 1] == '/';
    }
    return route;
}

/* From the most specific to the least, as the contract words it. */
static dp_route table[12];
enum { ROUTES = 12 };

static void fill(void)
{
    static const struct {
        const char *host;
        const char *path;
        uint32_t methods;
    } given[ROUTES] = {
        {"a.example.com", "/x/y", 0},
        {"a.example.com", "/x/", DP_M_GET},
        {"a.example.com", "/", 0},
        {"*.b.example.com", "/x/", 0},
        {"*.example.com", "/x/y", 0},
        {"*.example.com", "/x/y/", DP_M_POST},
        {"*.example.com", "/x/", 0},
        {"*.example.com", NULL, 0},
        {NULL, "/x/y", 0},
        {NULL, "/x/y/z/", 0},
        {NULL, "/", DP_M_GET},
        {NULL, NULL, 0},
    };
    for (uint32_t i = 0; i < ROUTES; i++)
        table[i] = make(given[i].host, given[i].path, given[i].methods, i);
}

static uint64_t index_memory[64 * 1024];

static dp_tables indexed(dp_route **sorted, uint32_t count)
{
    dp_tables tables = {.routes = sorted, .route_count = count};
    size_t size = dp_route_index_size(sorted, count);
    if (size > sizeof(index_memory))
        abort();
    memset(index_memory, 0, sizeof(index_memory));
    dp_route_index_build(&tables, index_memory);
    return tables;
}

static int lookup(const dp_tables *tables, const char *host, const char *path, uint32_t method)
{
    static uint8_t joined[256];
    size_t host_len = strlen(host);
    size_t path_len = strlen(path);
    memcpy(joined, path, path_len);
    memcpy(joined + path_len, host, host_len); /* the host ends at the guard */
    const uint8_t *data = place_before_guard(joined, path_len + host_len);
    dp_request_head head = {.method = method};
    head.path = (dp_span){.off = 0, .len = (uint32_t)path_len};
    head.host_name = (dp_span){.off = (uint32_t)path_len, .len = (uint32_t)host_len};
    const dp_route *route = dp_route_lookup(tables, data, &head);
    return route == NULL ? -1 : (int)(route - table);
}

static void every_order_of_adding_gives_the_same_answer(void)
{
    static const struct {
        const char *host;
        const char *path;
        uint32_t method;
        int expected;
    } asked[] = {
        {"a.example.com", "/x/y", DP_M_GET, 0},
        {"A.EXAMPLE.com", "/x/y", DP_M_PUT, 0},
        {"a.example.com.", "/x/y", DP_M_GET, 0},
        {"a.example.com", "/x/z", DP_M_GET, 1},
        {"a.example.com", "/x/z", DP_M_PUT, 2},
        {"a.example.com", "/q", DP_M_PUT, 2},
        {"c.b.example.com", "/x/", DP_M_GET, 3},
        {"c.b.example.com", "/x/y", DP_M_GET, 3},
        {"c.b.example.com", "/y", DP_M_GET, 7},
        {"b.example.com", "/x/y", DP_M_GET, 4},
        {"b.example.com", "/x/y/", DP_M_POST, 5},
        {"b.example.com", "/x/y/", DP_M_GET, 6},
        {".example.com", "/x/y", DP_M_GET, 8},
        {"example.com", "/x/y", DP_M_GET, 8},
        {"xexample.com", "/x/y/z/1", DP_M_GET, 9},
        {"", "/", DP_M_GET, 10},
        {"", "/", DP_M_PUT, 11},
        {"", "*", 0, 11},
        {".", "/", 0, 11},
    };
    dp_route *sorted[ROUTES];
    uint32_t dice = 3;
    for (int round = 0; round < 200; round++) {
        fill();
        for (uint32_t i = 0; i < ROUTES; i++)
            sorted[i] = &table[i];
        for (uint32_t i = ROUTES - 1; i > 0; i--) {
            dice = dice * 1664525u + 1013904223u;
            uint32_t j = (dice >> 16) % (i + 1);
            dp_route *swapped = sorted[i];
            sorted[i] = sorted[j];
            sorted[j] = swapped;
        }
        for (uint32_t i = 0; i < ROUTES; i++)
            sorted[i]->order = i; /* as the file has them now */
        dp_route_sort(sorted, ROUTES);
        dp_tables tables = indexed(sorted, ROUTES);
        bool all = true;
        for (size_t i = 0; i < DP_ARRAY_LEN(asked); i++)
            all = all && lookup(&tables, asked[i].host, asked[i].path, asked[i].method) ==
                             asked[i].expected;
        expect("the most specific wins", all);
    }
}

static void equal_routes_keep_the_order_of_the_file(void)
{
    dp_route same[3] = {make(NULL, "/", 0, 0), make(NULL, "/", 0, 1), make(NULL, "/", 0, 2)};
    dp_route *sorted[3] = {&same[2], &same[0], &same[1]};
    dp_route_sort(sorted, 3);
    expect("in order", sorted[0] == &same[0] && sorted[1] == &same[1] && sorted[2] == &same[2]);
}

/* --- against the definition, one route after the other ------------------------------------------
 */

static int rank(bool any, bool second)
{
    return any ? 2 : second ? 1 : 0;
}

/* Whether a is more specific than b; both match. */
static bool beats(const dp_route *a, const dp_route *b)
{
    int hosts = rank(a->any_host, a->wildcard_host) - rank(b->any_host, b->wildcard_host);
    int paths = rank(a->any_path, a->prefix_path) - rank(b->any_path, b->prefix_path);
    if (hosts != 0)
        return hosts < 0;
    if (a->host.len != b->host.len)
        return a->host.len > b->host.len;
    if (paths != 0)
        return paths < 0;
    if (a->path.len != b->path.len)
        return a->path.len > b->path.len;
    return a->order < b->order;
}

static bool matches(const dp_route *route, const char *host, const char *path, uint32_t method)
{
    size_t len = strlen(host);
    size_t path_len = strlen(path);
    bool host_ok = route->any_host ||
                   (route->wildcard_host
                        ? len > route->host.len && memcmp(host + len - route->host.len,
                                                          route->host.data, route->host.len) == 0
                        : len == route->host.len && memcmp(host, route->host.data, len) == 0);
    bool path_ok = route->any_path || (path_len >= route->path.len &&
                                       (route->prefix_path || path_len == route->path.len) &&
                                       memcmp(path, route->path.data, route->path.len) == 0);
    return host_ok && path_ok && (route->methods == 0 || (route->methods & method) != 0);
}

static uint32_t roll(uint32_t *dice, uint32_t sides)
{
    *dice = *dice * 1664525u + 1013904223u;
    return (*dice >> 16) % sides;
}

/* Few letters, so that names and paths often share their beginnings and ends. */
static void draw_host(uint32_t *dice, char *ret_host)
{
    size_t len = 0;
    uint32_t labels = 1 + roll(dice, 4);
    for (uint32_t i = 0; i < labels; i++) {
        ret_host[len++] = (char)('a' + roll(dice, 2));
        ret_host[len++] = '.';
    }
    ret_host[len - 1] = '\0';
}

static void draw_path(uint32_t *dice, char *ret_path)
{
    size_t len = 0;
    uint32_t segments = roll(dice, 5);
    ret_path[len++] = '/';
    for (uint32_t i = 0; i < segments; i++) {
        for (uint32_t letters = roll(dice, 3); letters > 0; letters--)
            ret_path[len++] = (char)('a' + roll(dice, 2));
        if (i + 1 < segments || roll(dice, 2) == 0)
            ret_path[len++] = '/';
    }
    ret_path[len] = '\0';
}

enum { DRAWN = 60 };

static void the_index_answers_as_the_definition_does(void)
{
    static char hosts[DRAWN][32];
    static char paths[DRAWN][64];
    static dp_route drawn[DRAWN];
    uint32_t dice = 7;
    bool all = true;
    for (int round = 0; round < 300; round++) {
        dp_route *sorted[DRAWN];
        uint32_t count = roll(&dice, DRAWN + 1);
        for (uint32_t i = 0; i < count; i++) {
            bool wildcard = roll(&dice, 3) == 0;
            memcpy(hosts[i], "*.", 2);
            draw_host(&dice, hosts[i] + (wildcard ? 2 : 0));
            draw_path(&dice, paths[i]);
            drawn[i] =
                make(roll(&dice, 4) == 0 ? NULL : hosts[i], roll(&dice, 8) == 0 ? NULL : paths[i],
                     roll(&dice, 3) == 0 ? DP_M_GET : 0, i);
            sorted[i] = &drawn[i];
        }
        dp_route_sort(sorted, count);
        dp_tables tables = indexed(sorted, count);
        for (int asked = 0; asked < 300; asked++) {
            char host[32] = "";
            char path[64];
            uint32_t method = roll(&dice, 2) == 0 ? DP_M_GET : DP_M_PUT;
            if (roll(&dice, 20) != 0)
                draw_host(&dice, host);
            draw_path(&dice, path);
            const dp_route *best = NULL;
            for (uint32_t i = 0; i < count; i++)
                if (matches(&drawn[i], host, path, method) &&
                    (best == NULL || beats(&drawn[i], best)))
                    best = &drawn[i];
            static uint8_t joined[96];
            size_t path_len = strlen(path);
            memcpy(joined, path, path_len);
            memcpy(joined + path_len, host, strlen(host));
            dp_request_head head = {.method = method};
            head.path = (dp_span){.off = 0, .len = (uint32_t)path_len};
            head.host_name = (dp_span){.off = (uint32_t)path_len, .len = (uint32_t)strlen(host)};
            const uint8_t *data = place_before_guard(joined, path_len + strlen(host));
            all = all && dp_route_lookup(&tables, data, &head) == best;
        }
    }
    expect("the index and the definition agree", all);
}

int main(void)
{
    the_index_answers_as_the_definition_does();
    every_order_of_adding_gives_the_same_answer();
    equal_routes_keep_the_order_of_the_file();
    return finish("route");
}
