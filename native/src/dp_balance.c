/* dp_balance: see the header. Pure. */
#include "dp_balance.h"

#include "dp.h"

enum { SAMPLES = 8 }; /* of a drawn or hashed choice, before any that has room will do */

static const uint64_t STRIDE = (uint64_t)1 << 40; /* of virtual time, by weight */
static const uint64_t LOAD = (uint64_t)1 << 20;
static const uint64_t CLOCK_END = (uint64_t)1 << 62;

/* --- tried ------------------------------------------------------------------------------------ */

bool dp_tried_has(const dp_tried *tried, uint32_t item)
{
    for (uint16_t i = 0; i < tried->count; i++)
        if (tried->item[i] == item)
            return true;
    return false;
}

void dp_tried_add(dp_tried *tried, uint32_t item)
{
    if (tried->count < DP_TRIED_MAX && !dp_tried_has(tried, item))
        tried->item[tried->count++] = (uint16_t)item;
}

/* --- heap ------------------------------------------------------------------------------------- */

static bool before(const dp_heap *heap, uint32_t one, uint32_t other)
{
    if (heap->key[one] != heap->key[other])
        return heap->key[one] < heap->key[other];
    return heap->stamp[one] < heap->stamp[other];
}

static void place_at(dp_heap *heap, uint32_t at, uint32_t item)
{
    heap->order[at] = item;
    heap->place[item] = at + 1;
}

static void sift(dp_heap *heap, uint32_t at)
{
    uint32_t item = heap->order[at];
    for (; at > 0 && before(heap, item, heap->order[(at - 1) / 2]); at = (at - 1) / 2)
        place_at(heap, at, heap->order[(at - 1) / 2]);
    for (uint32_t child; (child = 2 * at + 1) < heap->count; at = child) {
        if (child + 1 < heap->count && before(heap, heap->order[child + 1], heap->order[child]))
            child++;
        if (!before(heap, heap->order[child], item))
            break;
        place_at(heap, at, heap->order[child]);
    }
    place_at(heap, at, item);
}

void dp_heap_put(dp_heap *heap, uint32_t item, uint64_t key, uint64_t stamp)
{
    heap->key[item] = key;
    heap->stamp[item] = stamp;
    if (heap->place[item] == 0)
        place_at(heap, heap->count++, item);
    sift(heap, heap->place[item] - 1);
}

void dp_heap_take(dp_heap *heap, uint32_t item)
{
    uint32_t at = heap->place[item];
    if (at == 0)
        return;
    heap->place[item] = 0;
    uint32_t last = heap->order[--heap->count];
    if (last == item)
        return;
    place_at(heap, at - 1, last);
    sift(heap, at - 1);
}

bool dp_heap_has(const dp_heap *heap, uint32_t item)
{
    return heap->place[item] != 0;
}

int dp_heap_least(const dp_heap *heap, const dp_tried *tried)
{
    /* Only below a tried one can a better one hide: so many nodes are waiting at most. */
    uint32_t waiting[DP_TRIED_MAX + 2];
    uint32_t count = 0;
    int best = -1;
    if (heap->count != 0)
        waiting[count++] = 0;
    while (count != 0) {
        uint32_t at = waiting[--count];
        uint32_t item = heap->order[at];
        if (!dp_tried_has(tried, item)) {
            if (best < 0 || before(heap, item, (uint32_t)best))
                best = (int)item;
            continue;
        }
        for (uint32_t child = 2 * at + 1; child <= 2 * at + 2 && child < heap->count; child++)
            waiting[count++] = child;
    }
    return best;
}

/* --- a balancer's memory ---------------------------------------------------------------------- */

size_t dp_balancer_bytes(uint32_t size)
{
    return size * (2 * sizeof(uint64_t) + 8 * sizeof(uint32_t) + sizeof(bool));
}

static uint32_t *words(uint8_t **memory, uint32_t size)
{
    uint32_t *at = (void *)*memory;
    *memory += size * sizeof(*at);
    return at;
}

void dp_balancer_init(dp_balancer *balancer, int kind, uint32_t size, uint64_t seed, void *memory)
{
    uint64_t *longs = memory;
    uint8_t *rest = (void *)(longs + 2 * (size_t)size);
    *balancer = (dp_balancer){.kind = kind, .size = size, .random = dp_mix(seed) | 1};
    balancer->heap.key = longs;
    balancer->heap.stamp = longs + size;
    balancer->heap.order = words(&rest, size);
    balancer->heap.place = words(&rest, size);
    balancer->weight = words(&rest, size);
    balancer->active = words(&rest, size);
    balancer->open = words(&rest, size);
    balancer->open_place = words(&rest, size);
    balancer->drawn = words(&rest, size);
    balancer->drawn_sum = words(&rest, size);
    balancer->full = (bool *)rest;
    /* Of those that are equal the first is the one that the seed names: or all workers would
     * begin their rounds at the same endpoint. */
    for (uint32_t i = 0; i < size; i++)
        balancer->heap.stamp[i] = (i + size - (uint32_t)(seed % size)) % size;
}

/* --- weights, load, room ---------------------------------------------------------------------- */

static uint64_t load_of(const dp_balancer *balancer, uint32_t item)
{
    if (balancer->kind != DP_LEAST_REQUEST)
        return 0;
    return balancer->active[item] * LOAD * DP_WEIGHT_ONE / balancer->weight[item];
}

static bool has_heap(const dp_balancer *balancer)
{
    return balancer->kind == DP_ROUND_ROBIN || balancer->kind == DP_LEAST_REQUEST;
}

/* Puts it where it belongs, after a change of its weight or its room. */
static void seat(dp_balancer *balancer, uint32_t item, uint64_t stamp)
{
    bool open = balancer->weight[item] != 0 && !balancer->full[item];
    uint32_t place = balancer->open_place[item];
    if (open && place == 0) {
        balancer->open[balancer->open_count++] = item;
        balancer->open_place[item] = balancer->open_count;
    } else if (!open && place != 0) {
        uint32_t last = balancer->open[--balancer->open_count];
        balancer->open[place - 1] = last;
        balancer->open_place[last] = place;
        balancer->open_place[item] = 0;
    }
    balancer->heap.stamp[item] = stamp;
    if (!open)
        dp_heap_take(&balancer->heap, item);
    else if (has_heap(balancer))
        dp_heap_put(&balancer->heap, item, load_of(balancer, item), stamp);
}

void dp_balancer_weigh(dp_balancer *balancer, uint32_t item, uint32_t weight)
{
    uint32_t old = balancer->weight[item];
    if (old == weight)
        return;
    balancer->weight[item] = weight;
    balancer->drawn_stale = true;
    balancer->usable += weight != 0;
    balancer->usable -= old != 0;
    uint64_t stamp = balancer->heap.stamp[item];
    if (weight != 0 && old != 0) { /* what is left of its wait, at its new pace */
        uint64_t left = stamp > balancer->clock ? stamp - balancer->clock : 0;
        stamp = balancer->clock + left / weight * old;
    } else if (weight != 0) {
        /* Half a stride: so those with more weight are spread between the others. Those that are
         * equal keep the order that init gave them. */
        uint64_t half = balancer->clock + STRIDE / weight / 2;
        stamp = stamp < balancer->size ? stamp + half : stamp > half ? stamp : half;
    }
    seat(balancer, item, stamp);
}

void dp_balancer_fill(dp_balancer *balancer, uint32_t item, bool full)
{
    if (balancer->full[item] == full)
        return;
    balancer->full[item] = full;
    uint64_t stamp = balancer->heap.stamp[item];
    /* One that was full for long must not catch up on all the turns it missed. */
    seat(balancer, item, full || stamp > balancer->clock ? stamp : balancer->clock);
}

static void load_changed(dp_balancer *balancer, uint32_t item)
{
    if (balancer->kind == DP_LEAST_REQUEST && dp_heap_has(&balancer->heap, item))
        dp_heap_put(&balancer->heap, item, load_of(balancer, item), balancer->heap.stamp[item]);
}

void dp_balancer_begin(dp_balancer *balancer, uint32_t item)
{
    balancer->active[item]++;
    load_changed(balancer, item);
}

void dp_balancer_end(dp_balancer *balancer, uint32_t item)
{
    balancer->active[item]--;
    load_changed(balancer, item);
}

/* --- choosing --------------------------------------------------------------------------------- */

bool dp_balancer_takes(const dp_balancer *balancer, uint32_t item, const dp_tried *tried)
{
    return balancer->open_place[item] != 0 && !dp_tried_has(tried, item);
}

static void begin_anew(dp_balancer *balancer)
{
    for (uint32_t i = 0; i < balancer->size; i++) {
        uint64_t *stamp = &balancer->heap.stamp[i];
        *stamp = *stamp > balancer->clock ? *stamp - balancer->clock : 0;
    }
    balancer->clock = 0;
}

int dp_balancer_next(dp_balancer *balancer, const dp_tried *tried)
{
    int best = dp_heap_least(&balancer->heap, tried);
    if (best < 0 || balancer->open_count == 1)
        return best;
    uint32_t item = (uint32_t)best;
    uint64_t *stamp = &balancer->heap.stamp[item];
    if (*stamp > balancer->clock)
        balancer->clock = *stamp;
    *stamp += STRIDE / balancer->weight[item];
    dp_heap_put(&balancer->heap, item, balancer->heap.key[item], *stamp);
    if (balancer->clock > CLOCK_END)
        begin_anew(balancer);
    return best;
}

/* From a place among those with room, the next that was not tried. */
static int open_from(const dp_balancer *balancer, uint64_t at, const dp_tried *tried)
{
    for (uint32_t i = 0; i < balancer->open_count && i <= tried->count; i++) {
        uint32_t item = balancer->open[(at + i) % balancer->open_count];
        if (!dp_tried_has(tried, item))
            return (int)item;
    }
    return -1;
}

int dp_balancer_keyed(const dp_balancer *balancer, uint64_t hash, const dp_tried *tried)
{
    /* The keys of an endpoint that is out spread over all others, and nobody else's key moves. */
    for (uint32_t i = 0; i < SAMPLES; i++) {
        uint16_t item = balancer->maglev[hash % balancer->maglev_size];
        if (dp_balancer_takes(balancer, item, tried))
            return item;
        hash = dp_mix(hash + i + 1);
    }
    return open_from(balancer, hash, tried);
}

static uint64_t draw(dp_balancer *balancer)
{
    balancer->random += 0x9e3779b97f4a7c15u;
    return dp_mix(balancer->random);
}

static void line_up(dp_balancer *balancer)
{
    uint32_t sum = 0;
    balancer->drawn_count = 0;
    balancer->drawn_stale = false;
    for (uint32_t i = 0; i < balancer->size; i++) {
        if (balancer->weight[i] == 0)
            continue;
        sum += balancer->weight[i];
        balancer->drawn[balancer->drawn_count] = i;
        balancer->drawn_sum[balancer->drawn_count++] = sum;
    }
}

int dp_balancer_any(dp_balancer *balancer, const dp_tried *tried)
{
    if (balancer->drawn_stale)
        line_up(balancer);
    for (uint32_t i = 0; i < SAMPLES && balancer->drawn_count != 0; i++) {
        uint32_t low = 0;
        uint32_t high = balancer->drawn_count - 1;
        uint32_t mark = (uint32_t)(draw(balancer) % balancer->drawn_sum[high]);
        while (low < high) {
            uint32_t middle = low + (high - low) / 2;
            if (balancer->drawn_sum[middle] > mark)
                high = middle;
            else
                low = middle + 1;
        }
        if (dp_balancer_takes(balancer, balancer->drawn[low], tried))
            return (int)balancer->drawn[low];
    }
    return open_from(balancer, draw(balancer), tried);
}
