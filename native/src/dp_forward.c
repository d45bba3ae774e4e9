/* dp_forward: x-forwarded-* and forwarded (RFC 7239), and what else of a request goes on. Pure but
 * for what is written.
 *
 * From a peer that is not trusted none of them is believed: ours take their place. A trusted
 * proxy's are kept, the chains with its own address behind; one that is malformed or there twice is
 * not. */
#include "dp_forward.h"

#include "dp_target.h"
#include "dp_upgrade.h"

enum {
    CHAINS = 1u << DP_F_X_FORWARDED_FOR | 1u << DP_F_FORWARDED,
    OWN = 1u << DP_F_X_FORWARDED_PROTO | 1u << DP_F_X_FORWARDED_HOST,
    ALL = CHAINS | OWN | 1u << DP_F_X_FORWARDED_PORT
};

static bool is_sound(uint16_t id, const uint8_t *value, size_t len)
{
    size_t name_len;
    switch (id) {
    case DP_F_X_FORWARDED_PROTO:
        return (len == 4 && dp_equal_fold(value, (const uint8_t *)"http", 4)) ||
               (len == 5 && dp_equal_fold(value, (const uint8_t *)"https", 5));
    case DP_F_X_FORWARDED_HOST:
        return dp_authority_parse(value, value + len, &name_len);
    default: /* port */
        for (size_t i = 0; i < len; i++)
            if (value[i] < '0' || value[i] > '9')
                return false;
        return len >= 1 && len <= 5;
    }
}

uint32_t dp_forward_drops(const dp_conn *down, const uint8_t *data, const dp_request_head *head)
{
    if (!down->trusted)
        return ALL;
    uint32_t kept = 0;
    uint32_t drops = CHAINS | OWN; /* what is not there is ours to say */
    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        const uint32_t bit = field->id == DP_F_OTHER ? 0 : 1u << field->id;
        if ((bit & ALL & ~(uint32_t)CHAINS) == 0)
            continue;
        if ((kept & bit) == 0 && is_sound(field->id, data + field->value.off, field->value.len))
            drops &= ~bit;
        else
            drops |= bit;
        kept |= bit;
    }
    return drops;
}

/* The values of all fields of that id, joined, each with ", " behind. */
static void put_chain(dp_writer *out, const uint8_t *data, const dp_request_head *head, uint16_t id)
{
    for (uint32_t i = 0; i < head->field_count; i++) {
        const dp_field *field = &head->fields[i];
        if (field->id != id || field->value.len == 0)
            continue;
        dp_put(out, data + field->value.off, field->value.len);
        dp_put(out, ", ", 2);
    }
}

static bool has_field(const dp_request_head *head, uint16_t id)
{
    for (uint32_t i = 0; i < head->field_count; i++)
        if (head->fields[i].id == id)
            return true;
    return false;
}

static void put_trusted_chains(dp_writer *out, const dp_conn *down, const uint8_t *data,
                               const dp_request_head *head, const dp_edit *edits)
{
    char peer[46];
    const size_t len = dp_address_text(down->address, peer);
    if (!dp_is_edited(edits, (const uint8_t *)"x-forwarded-for", 15)) {
        dp_put_text(out, "x-forwarded-for: ");
        put_chain(out, data, head, DP_F_X_FORWARDED_FOR);
        dp_put(out, peer, len);
        dp_put(out, "\r\n", 2);
    }
    if (!has_field(head, DP_F_FORWARDED) || dp_is_edited(edits, (const uint8_t *)"forwarded", 9))
        return;
    const bool v6 = memchr(peer, ':', len) != NULL;
    dp_put_text(out, "forwarded: ");
    put_chain(out, data, head, DP_F_FORWARDED);
    dp_put_text(out, v6 ? "for=\"[" : "for="); /* RFC 7239 6 */
    dp_put(out, peer, len);
    dp_put_text(out, v6 ? "]\"\r\n" : "\r\n");
}

void dp_forward_write(dp_writer *out, const dp_conn *down, const uint8_t *data,
                      const dp_request_head *head, uint32_t drops, const dp_edit *edits)
{
    if (down->trusted) {
        put_trusted_chains(out, down, data, head, edits);
    } else {
        char client[DP_CLIENT_TEXT];
        const size_t len = dp_client_text(down, client);
        dp_put_own(out, edits, "x-forwarded-for", (const uint8_t *)client, len);
    }
    if ((drops & 1u << DP_F_X_FORWARDED_PROTO) != 0)
        dp_put_own(out, edits, "x-forwarded-proto", (const uint8_t *)"https",
                   head->is_https ? 5 : 4); /* a trusted proxy may say so by the target alone */
    if (head->host.len != 0 && (drops & 1u << DP_F_X_FORWARDED_HOST) != 0)
        dp_put_own(out, edits, "x-forwarded-host", data + head->host.off, head->host.len);
}

/* RFC 9110 6.5.1: trailer fields go on where the next one can take them. A route's edits speak of
 * names, and a trailer must not get past them. */
void dp_forward_choose(dp_exchange *exchange, const uint8_t *data, const dp_request_head *head)
{
    const dp_route *route = exchange->route;
    bool to_upstream = route != NULL && route->request_edits == NULL;
    bool upgrades = route != NULL && route->upstream >= 0 && head->upgrade.len != 0;
    bool to_client =
        route != NULL && route->response_edits == NULL && head->takes_trailers != 0 && !upgrades;
    exchange->upgrade = upgrades ? dp_upgrade_mark(data, head->upgrade) : 0;
    exchange->request_keep = to_upstream ? DP_CHUNKED_TRAILERS : DP_CHUNKED_FRAMED;
    exchange->response_keep = to_client              ? DP_CHUNKED_TRAILERS
                              : exchange->minor != 0 ? DP_CHUNKED_FRAMED
                                                     : DP_CHUNKED_BARE;
}
