/* dp_route: from a request head to a route. Pure.
 *
 * The most specific match wins: an exact host before a wildcard (the longer first) before any; an
 * exact path before the longest prefix before any; then the order in the config. Routes are sorted
 * by that once, so that the first that matches is the answer. */
#include <stdlib.h>
#include <string.h>

#include "dp_core.h"

static int host_rank(const dp_route *route)
{
    return route->any_host ? 2 : route->wildcard_host ? 1 : 0;
}

static int path_rank(const dp_route *route)
{
    return route->any_path ? 2 : route->prefix_path ? 1 : 0;
}

static int by_specificity(const void *left, const void *right)
{
    const dp_route *a = *(dp_route *const *)left;
    const dp_route *b = *(dp_route *const *)right;
    if (host_rank(a) != host_rank(b))
        return host_rank(a) - host_rank(b);
    if (a->wildcard_host && a->host.len != b->host.len)
        return a->host.len > b->host.len ? -1 : 1;
    if (path_rank(a) != path_rank(b))
        return path_rank(a) - path_rank(b);
    if (a->prefix_path && a->path.len != b->path.len)
        return a->path.len > b->path.len ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order ? 1 : 0;
}

void dp_route_sort(dp_route **routes, uint32_t count)
{
    qsort(routes, count, sizeof(*routes), by_specificity);
}

static bool host_matches(const dp_route *route, const uint8_t *host, uint32_t len)
{
    if (route->any_host)
        return true;
    const uint8_t *name = (const uint8_t *)route->host.data;
    if (!route->wildcard_host)
        return len == route->host.len && dp_equal_fold(host, name, len);
    return len > route->host.len &&
           dp_equal_fold(host + len - route->host.len, name, route->host.len);
}

static bool path_matches(const dp_route *route, const uint8_t *path, uint32_t len)
{
    if (route->any_path)
        return true;
    if (route->prefix_path)
        return len >= route->path.len && memcmp(path, route->path.data, route->path.len) == 0;
    return len == route->path.len && memcmp(path, route->path.data, len) == 0;
}

static bool headers_match(const dp_route *route, const uint8_t *data, const dp_request_head *head)
{
    for (const dp_header_match *want = route->headers; want != NULL; want = want->next) {
        bool found = false;
        for (uint32_t i = 0; i < head->field_count && !found; i++) {
            const dp_field *field = &head->fields[i];
            found = field->name.len == want->name.len && field->value.len == want->value.len &&
                    dp_equal_fold(data + field->name.off, (const uint8_t *)want->name.data,
                                  want->name.len) &&
                    memcmp(data + field->value.off, want->value.data, want->value.len) == 0;
        }
        if (!found)
            return false;
    }
    return true;
}

const dp_route *dp_route_lookup(const dp_tables *tables, const uint8_t *data,
                                const dp_request_head *head)
{
    const uint8_t *host = data + head->host_name.off;
    uint32_t host_len = head->host_name.len;
    if (host_len > 1 && host[host_len - 1] == '.')
        host_len--; /* the root label's dot names the same host */
    const uint8_t *path = data + head->path.off;
    uint32_t path_len = head->path.len;
    if (path_len == 0) { /* absolute-form without a path, RFC 9112 3.2.2 */
        path = (const uint8_t *)"/";
        path_len = 1;
    }
    for (uint32_t i = 0; i < tables->route_count; i++) {
        const dp_route *route = tables->routes[i];
        if ((route->methods == 0 || (route->methods & head->method) != 0) &&
            path_matches(route, path, path_len) && host_matches(route, host, host_len) &&
            headers_match(route, data, head))
            return route;
    }
    return NULL;
}
