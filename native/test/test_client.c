/* Who a connection comes from: networks, and the walk along x-forwarded-for, case by case. */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "dp_core.h"
#include "support.h"

static const struct {
    const char *network;
    uint32_t bits;
    const char *address;
    bool inside;
} NETWORKS[] = {
    {"10.0.0.0", 8, "10.255.0.1", true},
    {"10.0.0.0", 8, "11.0.0.0", false},
    {"10.0.0.0", 8, "::ffff:10.1.2.3", true}, /* RFC 4291 2.5.5.2 */
    {"192.0.2.128", 25, "192.0.2.128", true},
    {"192.0.2.128", 25, "192.0.2.127", false},
    {"192.0.2.1", 32, "192.0.2.1", true},
    {"192.0.2.1", 32, "192.0.2.2", false},
    {"0.0.0.0", 0, "203.0.113.1", true},
    {"0.0.0.0", 0, "2001:db8::1", false},
    {"::", 0, "2001:db8::1", true},
    {"2001:db8::", 32, "2001:db8:ffff::1", true},
    {"2001:db8::", 33, "2001:db8:8000::1", false},
    {"::1", 128, "::1", true},
    {"::1", 128, "::2", false},
};

/* 10.0.0.0/8 and 2001:db8::/32 are trusted, and the peer is 10.0.0.1. */
static const struct {
    const char *said; /* x-forwarded-for; a '|' begins another field */
    const char *client;
} WALKS[] = {
    {"", "10.0.0.1"},
    {"192.0.2.1", "192.0.2.1"},
    {"192.0.2.1, 10.0.0.2", "192.0.2.1"},
    {"6.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1"}, /* a client's own claim */
    {"10.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1"},
    {"10.0.0.3,10.0.0.2", "10.0.0.3"}, /* all trusted: the first of them */
    {"192.0.2.1|10.0.0.2", "192.0.2.1"},
    {"6.6.6.6|192.0.2.1|10.0.0.2 , 10.0.0.3", "192.0.2.1"},
    {"6.6.6.6, 192.0.2.1|10.0.0.2|",
     "10.0.0.1"}, /* an empty one says nothing, nor do those before */
    {"192.0.2.1:5000", "192.0.2.1"},
    {"192.0.2.1, 10.0.0.2:5000", "192.0.2.1"},
    {"2001:db8::5", "2001:db8::5"},
    {"2001:db9::1, [2001:db8::5]", "2001:db9::1"},
    {"2001:db9::1, [2001:db8::5]:443", "2001:db9::1"},
    {"192.0.2.1, unknown", "10.0.0.1"},
    {"192.0.2.1, _hidden, 10.0.0.2", "10.0.0.2"},
    {"192.0.2.1, 10.0.0.2;x", "10.0.0.1"},
    {"192.0.2.1, 10.0.0.02", "10.0.0.1"},
    {"192.0.2.1, [10.0.0.2", "10.0.0.1"},
    {"192.0.2.1, ,10.0.0.2", "10.0.0.2"},
    {"::ffff:192.0.2.1", "192.0.2.1"},
    {"192.0.2.1, 0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000",
     "10.0.0.1"},
};

static dp_network trusted[2];
static dp_listener listener = {.trusted = trusted, .trusted_count = 2};
static dp_engine engine = {.tables = {.listeners = &listener}};

static void check_walk(const char *said, const char *expected)
{
    static dp_request_head head;
    dp_exchange exchange = {0};
    dp_conn conn = {.exchange = &exchange};
    char text[2048];
    uint8_t peer[16];
    size_t len = strlen(said);
    char got[DP_CLIENT_TEXT];

    snprintf(text, sizeof(text), "%s", said);
    const uint8_t *const data = place_before_guard(text, len);
    head.field_count = 0;
    for (size_t at = 0; at <= len; at++) {
        const size_t from = at;
        while (at < len && text[at] != '|') {
            at++;
        }
        head.fields[head.field_count++] =
            (dp_field){.value = {.off = (uint32_t)from, .len = (uint32_t)(at - from)},
                       .id = DP_F_X_FORWARDED_FOR};
    }
    expect("an address", dp_address_parse("10.0.0.1", peer));
    dp_client_set(&engine, &conn, peer);
    expect("the peer is trusted", conn.trusted);
    dp_client_walk(&engine, &conn, data, &head);
    expect("its length", dp_client_text(&conn, got) == strlen(got));
    expect_text(said, "", "walk", got, expected);
    conn.exchange = NULL;
    expect("between requests it is the peer",
           dp_client_text(&conn, got) == 8 && strcmp(got, "10.0.0.1") == 0);
}

static void check_many_hops(void)
{
    char text[2048] = "192.0.2.1";

    for (int i = 0; i < 31; i++) {
        strcat(text, ", 10.0.0.2");
    }
    check_walk(text, "192.0.2.1");
    strcat(text, ", 10.0.0.2");
    check_walk(text, "10.0.0.2");
}

/* Beside the C library's own, with runs of zeros of every place and length. */
static void check_texts(void)
{
    uint32_t seed = 1;

    for (int round = 0; round < 20000; round++) {
        uint8_t address[16];
        char text[DP_CLIENT_TEXT];
        char wanted[INET6_ADDRSTRLEN];
        for (int i = 0; i < 16; i++) {
            seed = seed * 1664525u + 1013904223u;
            address[i] = (seed >> 24) % 3 == 0 ? (uint8_t)(seed >> 16) : 0;
        }
        expect("inet_ntop", inet_ntop(AF_INET6, address, wanted, sizeof(wanted)) != NULL);
        const bool mapped = strncmp(wanted, "::ffff:", 7) == 0 && strchr(wanted, '.') != NULL;
        const size_t len = dp_address_text(address, text);
        expect_text(wanted, "", "text", text, mapped ? wanted + 7 : wanted);
        expect("its length", len == strlen(text));
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof(NETWORKS) / sizeof(NETWORKS[0]); i++) {
        dp_network network;
        uint8_t address[16];
        expect("a network", dp_network_make(NETWORKS[i].network, NETWORKS[i].bits, &network) &&
                                dp_address_parse(NETWORKS[i].address, address));
        expect(NETWORKS[i].address, dp_network_has(&network, address) == NETWORKS[i].inside);
    }
    expect("33 bits of IPv4", !dp_network_make("10.0.0.0", 33, &trusted[0]));
    expect("129 bits of IPv6", !dp_network_make("::", 129, &trusted[0]));
    expect("no address", !dp_network_make("a", 8, &trusted[0]));
    expect("trusted ones", dp_network_make("10.0.0.0", 8, &trusted[0]) &&
                               dp_network_make("2001:db8::", 32, &trusted[1]));
    for (size_t i = 0; i < sizeof(WALKS) / sizeof(WALKS[0]); i++) {
        check_walk(WALKS[i].said, WALKS[i].client);
    }
    check_many_hops();
    check_texts();
    return finish("clients");
}
