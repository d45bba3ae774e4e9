/* Buffers: what is kept stays whole, limits hold, and every block comes back. */
#include "dp_buffer.c"

#include "support.h"

static dp_engine *fresh(uint64_t limit)
{
    static dp_engine engine;
    dp_buffers_trim(&engine, true);
    engine = (dp_engine){.options = {.max_buffer_bytes = limit}};
    engine.stats = &engine.own_stats;
    return &engine;
}

void dp_fail(const char *file, int line, const char *condition)
{
    (void)file;
    (void)line;
    (void)condition;
    abort();
}

static void keeps_bytes_in_order(void)
{
    dp_engine *engine = fresh(0);
    dp_buffer buffer = {0};
    uint32_t written = 0;
    uint32_t read = 0;
    bool same = true;
    uint32_t dice = 1;
    for (int i = 0; i < 20000; i++) {
        uint8_t piece[1500];
        dice = dice * 1664525u + 1013904223u;
        size_t len = (dice >> 8) % sizeof(piece);
        for (size_t j = 0; j < len; j++)
            piece[j] = (uint8_t)((written + j) * 31);
        if (buffer.len + len < 200000 && dp_buffer_append(engine, &buffer, piece, len) == DP_OK)
            written += (uint32_t)len;
        size_t take = (dice >> 4) % 1600;
        take = take < buffer.len ? take : buffer.len;
        for (size_t j = 0; j < take; j++)
            same = same && buffer.data[buffer.off + j] == (uint8_t)((read + j) * 31);
        dp_buffer_consume(engine, &buffer, take);
        read += (uint32_t)take;
        same = same && buffer.off + buffer.len <= dp_buffer_room(&buffer) &&
               written - read == buffer.len;
    }
    expect("bytes come out as they went in", same);
    dp_buffer_free(engine, &buffer);
    expect("all blocks came back", engine->buffer_bytes == 0 && engine->stats->buffer_bytes == 0);
}

static void gives_its_block_back_when_empty(void)
{
    dp_engine *engine = fresh(0);
    dp_buffer buffer = {0};
    expect("append", dp_buffer_append(engine, &buffer, (const uint8_t *)"abc", 3) == DP_OK);
    expect("the smallest block", engine->buffer_bytes == 1024);
    uint8_t *block = buffer.data;
    dp_buffer_consume(engine, &buffer, 3);
    expect("empty means no block", buffer.data == NULL && engine->buffer_bytes == 0);
    expect("append", dp_buffer_append(engine, &buffer, (const uint8_t *)"abc", 3) == DP_OK);
    expect("the block is used again", buffer.data == block);
    dp_buffer_free(engine, &buffer);
    dp_buffer_free(engine, &buffer);
    expect("freed twice is freed once", engine->buffer_bytes == 0);
}

static void holds_its_limits(void)
{
    static uint8_t much[600 * 1024];
    dp_engine *engine = fresh(4096);
    dp_buffer one = {0};
    dp_buffer two = {0};
    expect("within the limit", dp_buffer_append(engine, &one, much, 2048) == DP_OK);
    expect("within the limit", dp_buffer_append(engine, &two, much, 1024) == DP_OK);
    expect("beyond it", dp_buffer_append(engine, &two, much, 1) == DP_ENOMEM);
    expect("what was there stays", two.len == 1024 && engine->buffer_bytes == 3072);
    dp_buffer_free(engine, &one);
    expect("room again", dp_buffer_append(engine, &two, much, 1) == DP_OK);
    dp_buffer_free(engine, &two);
    engine = fresh(0);
    expect("the largest block", dp_buffer_append(engine, &one, much, 512 * 1024) == DP_OK);
    expect("none is larger", dp_buffer_append(engine, &one, much, 1) == DP_ETOOBIG);
    expect("none is larger", dp_buffer_append(engine, &two, much, sizeof(much)) == DP_ETOOBIG);
    dp_buffer_free(engine, &one);
    expect("all blocks came back", engine->buffer_bytes == 0);
}

int main(void)
{
    keeps_bytes_in_order();
    gives_its_block_back_when_empty();
    holds_its_limits();
    (void)fresh(0); /* frees what is kept: the sanitizer looks for leaks */
    return finish("buffer");
}
