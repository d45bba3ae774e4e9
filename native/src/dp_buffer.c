/* dp_buffer: blocks of memory for what could not be used or sent yet. Blocks come in powers of
 * two and go back to a free list; all blocks together stay within the engine's limit. */
#include <stdlib.h>
#include <string.h>

#include "dp_core.h"

static uint32_t class_of(size_t need)
{
    uint32_t class = 0;
    while (((size_t)DP_BUFFER_MIN << class) < need)
        class++;
    return class;
}

static uint8_t *block_take(dp_engine *engine, uint32_t class)
{
    size_t size = (size_t)DP_BUFFER_MIN << class;
    uint8_t *block = engine->free_buffers[class];
    if (engine->options.max_buffer_bytes != 0 &&
        engine->buffer_bytes + size > engine->options.max_buffer_bytes)
        return NULL;
    if (block != NULL)
        memcpy(&engine->free_buffers[class], block, sizeof(uint8_t *));
    else if ((block = malloc(size)) == NULL)
        return NULL;
    engine->buffer_bytes += size;
    engine->stats->buffer_bytes = engine->buffer_bytes;
    return block;
}

static void block_give(dp_engine *engine, uint8_t *block, uint32_t class)
{
    memcpy(block, &engine->free_buffers[class], sizeof(uint8_t *));
    engine->free_buffers[class] = block;
    engine->buffer_bytes -= (size_t)DP_BUFFER_MIN << class;
    engine->stats->buffer_bytes = engine->buffer_bytes;
}

int dp_buffer_reserve(dp_engine *engine, dp_buffer *buffer, size_t need)
{
    if (need <= dp_buffer_room(buffer)) {
        if (buffer->off + need > dp_buffer_room(buffer)) {
            memmove(buffer->data, buffer->data + buffer->off, buffer->len);
            buffer->off = 0;
        }
        return DP_OK;
    }
    uint32_t class = class_of(need);
    if (class >= DP_BUFFER_CLASSES)
        return DP_ETOOBIG;
    uint8_t *block = block_take(engine, class);
    if (block == NULL)
        return DP_ENOMEM;
    if (buffer->len > 0)
        memcpy(block, buffer->data + buffer->off, buffer->len);
    if (buffer->data != NULL)
        block_give(engine, buffer->data, buffer->class);
    buffer->data = block;
    buffer->class = class & 0xff;
    buffer->off = 0;
    return DP_OK;
}

int dp_buffer_append(dp_engine *engine, dp_buffer *buffer, const uint8_t *data, size_t len)
{
    if (len == 0)
        return DP_OK;
    int result = dp_buffer_reserve(engine, buffer, buffer->len + len);
    if (result != DP_OK)
        return result;
    memcpy(buffer->data + buffer->off + buffer->len, data, len);
    buffer->len += (uint32_t)len;
    return DP_OK;
}

void dp_buffer_consume(dp_engine *engine, dp_buffer *buffer, size_t len)
{
    DP_CHECK(len <= buffer->len);
    buffer->off = (buffer->off + (uint32_t)len) & 0xffffff;
    buffer->len -= (uint32_t)len;
    if (buffer->len == 0)
        dp_buffer_free(engine, buffer);
}

void dp_buffer_free(dp_engine *engine, dp_buffer *buffer)
{
    if (buffer->data != NULL)
        block_give(engine, buffer->data, buffer->class);
    *buffer = (dp_buffer){0};
}

void dp_buffers_trim(dp_engine *engine, bool all)
{
    /* One block of each size a call is enough to give a burst's memory back within a minute, and
     * leaves a steady load its blocks. */
    for (uint32_t class = 0; class < DP_BUFFER_CLASSES; class++) {
        uint8_t *block;
        while ((block = engine->free_buffers[class]) != NULL) {
            memcpy(&engine->free_buffers[class], block, sizeof(uint8_t *));
            free(block);
            if (!all)
                break;
        }
    }
}
