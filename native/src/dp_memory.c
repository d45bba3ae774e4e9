/* dp_memory: pages that forked processes have in common, and have in common again after they were
 * written to for a moment. Knows nothing of the engine. */
#include "dp.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Documentation/admin-guide/mm/pagemap.rst: what the kernel tells of one page. */
#define PAGE_PRESENT (UINT64_C(1) << 63)
#define PAGE_OF_FILE (UINT64_C(1) << 61)

enum { SIZE_STEP = 16 }; /* between two sizes that obmalloc and the C library tell apart */
enum { ENTRIES = 256 };  /* read at a time: what is on the stack is written to, too */

/* The address sanitiser's marks lie between all that is allocated: to it, a read of a whole area is
 * a fault, and the pages of its own that it writes to are nobody's to move. */
#ifdef __SANITIZE_ADDRESS__
enum { CAN_SHARE = 0 };
#else
enum { CAN_SHARE = 1 };
#endif

static void *address(uint64_t number)
{
    return (void *)(uintptr_t)number;
}

static int copy(const dp_memory_area *area, int fd)
{
    size_t written = 0;
    while (written < area->len) {
        ssize_t result = pwrite(fd, address(area->start + written), area->len - written,
                                (off_t)(area->offset + written));
        if (result < 0 && errno == EINTR)
            continue;
        if (result <= 0)
            return DP_ESYSTEM;
        written += (size_t)result;
    }
    return DP_OK;
}

int dp_memory_share(dp_memory_area *areas, uint32_t count, int fd)
{
    if (!CAN_SHARE) {
        for (uint32_t i = 0; i < count; i++)
            areas[i].len = 0;
        errno = ENOTSUP;
        return DP_ESYSTEM;
    }
    for (uint32_t i = 0; i < count; i++) {
        dp_memory_area area = areas[i]; /* the list may itself lie in one of them */
        /* Between these two nothing may be written to the area: no call that could allocate. */
        if (copy(&area, fd) != DP_OK ||
            mmap(address(area.start), area.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd,
                 (off_t)area.offset) == MAP_FAILED)
            areas[i].len = 0;
    }
    return DP_OK;
}

int dp_memory_map(int fd, size_t len, const uint8_t **ret_base)
{
    /* Private: before 6.7 a file that is sealed against writing could not be mapped as a shared
     * one. One write, of what is there, has fork(2) copy the page tables of the whole mapping,
     * which are made here: each child would otherwise fault for every page that it compares. */
    void *base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (base == MAP_FAILED)
        return DP_ESYSTEM;
    volatile uint8_t *first = base;
    *first = *first;
    if (mprotect(base, len, PROT_READ) != 0) {
        (void)munmap(base, len);
        return DP_ESYSTEM;
    }
    (void)madvise(base, len, MADV_POPULATE_READ); /* Linux 5.14 */
    *ret_base = base;
    return DP_OK;
}

static int give_back_run(uint64_t start, size_t len, uint64_t *given)
{
    if (len == 0)
        return DP_OK;
    if (madvise(address(start), len, MADV_DONTNEED) != 0)
        return DP_ESYSTEM;
    *given += len;
    return DP_OK;
}

/* The pages of one area that `entries` tell of, from the page at `offset` bytes on. */
static int give_back_pages(const dp_memory_area *area, const uint8_t *base, size_t offset,
                           const uint64_t *entries, size_t count, size_t page, uint64_t *given)
{
    size_t run = 0;
    for (size_t i = 0; i < count; i++, offset += page) {
        int is_own = (entries[i] & PAGE_PRESENT) != 0 && (entries[i] & PAGE_OF_FILE) == 0;
        if (is_own &&
            memcmp(address(area->start + offset), base + area->offset + offset, page) == 0) {
            run += page;
            continue;
        }
        if (give_back_run(area->start + offset - run, run, given) != DP_OK)
            return DP_ESYSTEM;
        run = 0;
    }
    return give_back_run(area->start + offset - run, run, given);
}

int dp_memory_give_back(const dp_memory_area *areas, uint32_t count, const uint8_t *base,
                        int pagemap, uint64_t *ret_given)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint64_t entries[ENTRIES];
    *ret_given = 0;
    for (uint32_t i = 0; i < count; i++) {
        for (size_t offset = 0; offset < areas[i].len;) {
            size_t left = (areas[i].len - offset) / page;
            size_t wanted = left < ENTRIES ? left : ENTRIES;
            off_t at = (off_t)((areas[i].start + offset) / page * sizeof *entries);
            /* Not pread: a sealed worker may not call it. */
            if (lseek(pagemap, at, SEEK_SET) != at)
                return DP_ESYSTEM;
            ssize_t got = read(pagemap, entries, wanted * sizeof *entries);
            if (got <= 0 || (size_t)got % sizeof *entries != 0)
                return DP_ESYSTEM;
            size_t told = (size_t)got / sizeof *entries;
            if (give_back_pages(&areas[i], base, offset, entries, told, page, ret_given) != DP_OK)
                return DP_ESYSTEM;
            offset += told * page;
        }
    }
    return DP_OK;
}

/* What an allocator gives lies side by side where it begins on new room, and apart where it fills
 * gaps: so many bytes in a row are new room. */
enum { NEW_ROOM = 4096, GAPS_MAX = 1 << 20 };

static void fill_size(void *(*allocate)(size_t), size_t size)
{
    uint64_t last = 0;
    uint64_t distance = 0;
    size_t row = 0;

    for (size_t taken = 0; taken < GAPS_MAX && row < NEW_ROOM; taken += size) {
        uint64_t at = (uint64_t)(uintptr_t)allocate(size);
        if (at == 0)
            return;
        row = at - last == distance ? row + size : 0;
        distance = at - last;
        last = at;
    }
}

void dp_memory_fill(void *(*allocate)(size_t), size_t largest)
{
    /* Large ones first: what is left of a gap is one for smaller ones. Where pages are not shared,
     * gaps cost nobody anything. */
    for (size_t size = CAN_SHARE ? largest : 0; size > 0; size -= SIZE_STEP)
        fill_size(allocate, size);
}
