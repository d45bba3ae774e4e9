/* Routes: any order of adding gives the same answer, and nothing is read beyond the head. */
#include "dp_route.c"

#include "support.h"

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

static int lookup(dp_route **sorted, const char *host, const char *path, uint32_t method)
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
    dp_tables tables = {.routes = sorted, .route_count = ROUTES};
    const dp_route *route = dp_route_lookup(&tables, data, &head);
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
        bool all = true;
        for (size_t i = 0; i < DP_ARRAY_LEN(asked); i++)
            all = all && lookup(sorted, asked[i].host, asked[i].path, asked[i].method) ==
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

int main(void)
{
    every_order_of_adding_gives_the_same_answer();
    equal_routes_keep_the_order_of_the_file();
    return finish("route");
}
