/* dp_record: a moved connection as bytes. Pure: no I/O, no allocation, no clock.
 *
 * One page. Numbers are little-endian. Both versions begin alike:
 *   u32 length of the whole record    u16 version    u8 kind    u8 flags
 *
 * Version 1, kind 1 (http between requests; one descriptor, the client's socket) goes on with
 *   u8 listener name length    u8 client text length
 *   u16 client port, as a PROXY header told it, 0: not told (always, by older code)
 *   u32 bytes already read     u32 ms left to its deadline, 0: none
 *   u64 when it was frozen, CLOCK_MONOTONIC in us
 *   listener name, client text, bytes already read
 *
 * Version 2, kind 2 (a tunnel) and kind 3 (a response whose head has gone out), goes on with
 *   u8 descriptors             in their order: the client's socket; its pipe's reading and writing
 *                              end, where it has one; the same of the upstream's socket
 *   u8 io, u8 read shift       of the client's side: DP_MOVED_AT_EOF, DP_MOVED_SHUT; how much a
 *   u8 io, u8 read shift       read takes; of the upstream's side
 *   u32 bytes in its pipe      of the client's side, and of the upstream's
 *   u32 ms left to its deadline                       u64 when it was frozen
 *   16 address of the client's peer, zero: none       u16 port that a PROXY header told
 *   u64 when it began, CLOCK_MONOTONIC in us          u64 bytes in    u64 bytes out
 *   u32 us to the head         u32 bytes of the head  u16 status      u8 attempts    u8 outcome
 *   u8 access log format       u8 PROXY protocol version of the upstream
 *   u8 response framing        u8 DP_CHUNKED_ of it   u8 HTTP/1.minor of the client
 *   u64 bytes of the body left, and of a chunked one: u64 left, u64 total, u32 state, u32 overhead
 *   u16 listener name length   u16 client text length u16 upstream name length
 *   u16 endpoint text length   u16 length of the request's part of its access log line
 *   u32 bytes read of the client's and not used, u32 bytes to be written to it, then the same of
 *   the upstream's
 *   and the nine of them in that order.
 * The bytes to be written come before what is in the pipe.
 *
 * Who does not know a version takes none of the batch (DP_EVERSION); who does not know a kind
 * declines that record. Version 1 is read for as long as images with it may run. */
#ifndef DP_RECORD_H
#define DP_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dp.h"

enum dp_moved_kind { DP_MOVED_HTTP = 1, DP_MOVED_TUNNEL = 2, DP_MOVED_RESPONSE = 3 };

enum {                         /* dp_record.flags */
       DP_MOVED_AFTER = 1,     /* its last exchange ended during the drain */
       DP_MOVED_UPSTREAM = 2,  /* it has an upstream's socket, too */
       DP_MOVED_UPGRADED = 4,  /* a tunnel that began as an exchange */
       DP_MOVED_COUNTED = 8,   /* among the requests that are limited */
       DP_MOVED_DONE = 16,     /* the upstream has given all of the response */
       DP_MOVED_KEEP = 32,     /* the client may send another request */
       DP_MOVED_TOLD = 64,     /* or was told already that none is read */
       DP_MOVED_REUSABLE = 128 /* the upstream's connection may serve another */
};

enum { DP_MOVED_AT_EOF = 1, DP_MOVED_SHUT = 2 }; /* dp_moved_side.io */

enum {
    DP_MOVED_FDS_MAX = 6,
    DP_MOVED_TEXT_MAX = 256 /* of an endpoint */
};

typedef struct dp_moved_bytes {
    const uint8_t *data;
    uint32_t len;
} dp_moved_bytes;

typedef struct dp_moved_side {
    uint8_t io;
    uint8_t read_shift;
    uint32_t piped; /* bytes in its pipe; 0: it has none */
    dp_moved_bytes in;
    dp_moved_bytes out;
} dp_moved_side;

typedef struct dp_record {
    uint16_t version;
    uint8_t kind; /* dp_moved_kind, or one that only later code knows */
    uint8_t flags;
    uint32_t left_ms;
    uint64_t frozen_us;
    dp_moved_bytes listener;
    dp_moved_bytes client;
    /* version 1 says nothing of the rest */
    uint8_t address[16];
    uint16_t client_port;
    dp_moved_bytes upstream;
    dp_moved_bytes endpoint;
    dp_moved_bytes line;
    dp_moved_side down;
    dp_moved_side up;
    uint64_t began_us;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint32_t head_us;
    uint32_t head_bytes;
    uint16_t status;
    uint8_t attempts;
    uint8_t outcome;
    uint8_t log_format;
    uint8_t proxy_protocol;
    uint8_t framing;
    uint8_t keep;
    uint8_t minor;
    uint64_t body_left;
    dp_chunked chunked;
} dp_record;

/* How many descriptors belong to it. */
uint32_t dp_record_fds(const dp_record *record);
size_t dp_record_size(const dp_record *record);
/* Writes dp_record_size bytes. */
void dp_record_write(const dp_record *record, uint8_t *ret_bytes);
/* The record at data, which has at most len bytes: its texts and bytes stay there. DP_OK and its
 * size; DP_EVERSION; DP_EMALFORMED: nothing of it is to be used. */
int dp_record_read(const uint8_t *data, size_t len, dp_record *ret_record, size_t *ret_size);

#endif
