/* fuzz_main: runs a libFuzzer target without libFuzzer, with gcc alone.
 *
 *   fuzz_TARGET SECONDS CORPUS CRASHES DICTIONARY [SEED]
 *
 * Every file of CORPUS is run as it is, then mutated copies of them for SECONDS. An input that
 * reaches code no other reached joins the ones in memory (gcc's trace-pc tells; it must not be on
 * in this file). The last byte of each input lies against an unreadable page. An input that ends
 * the program is written to CRASHES first, and belongs into the corpus once its bug is fixed.
 *
 * With SECONDS 0 only the corpus is run. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "fuzz.h"

enum {
    INPUT_MAX = 4096,      /* heads and chunk lines are short; longer is only slower */
    WORDS_MAX = 256,       /* of the dictionary */
    INPUTS_MAX = 8192,     /* in memory; beyond that new ones take the place of old ones */
    COVERAGE_SIZE = 65536, /* buckets of code edges */
    HANG_SECONDS = 10,     /* that the inputs of a turn may take together */
    TURN = 64              /* inputs between two looks at the clock */
};

struct input {
    uint8_t *bytes;
    size_t len;
};

static struct input inputs[INPUTS_MAX];
static size_t input_count;
static struct input words[WORDS_MAX];
static size_t word_count;
static uint8_t reached[COVERAGE_SIZE];
static size_t reached_count;
static uintptr_t last_place;
static bool reached_more;
static uint8_t *room; /* INPUT_MAX bytes, then an unreadable page */
static size_t current_len;
static char crash_path[4096];
static uint64_t random_state;

/* gcc calls it on every edge of the code under test. */
void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void)
{
    const uintptr_t place = (uintptr_t)__builtin_return_address(0);
    const size_t edge = (place ^ (last_place << 1)) % COVERAGE_SIZE;

    last_place = place;
    if (reached[edge] == 0) {
        reached[edge] = 1;
        reached_count++;
        reached_more = true;
    }
}

static uint64_t draw(void) /* xorshift64* */
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(2685821657736338717);
}

static size_t below(size_t bound)
{
    return bound == 0 ? 0 : (size_t)(draw() % bound);
}

static void keep_input(const uint8_t *bytes, size_t len)
{
    const size_t at = input_count < INPUTS_MAX ? input_count++ : below(INPUTS_MAX);

    free(inputs[at].bytes);
    inputs[at].bytes = malloc(len + 1);
    if (inputs[at].bytes == NULL) {
        abort();
    }
    memcpy(inputs[at].bytes, bytes, len);
    inputs[at].len = len;
}

/* Async-signal-safe: also runs when a sanitizer ends the program. */
static void save_crash(void)
{
    const int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);

    if (fd >= 0) {
        if (write(fd, room + INPUT_MAX - current_len, current_len) < 0) {
            current_len = 0;
        }
        close(fd);
    }
}

static void on_signal(int number)
{
    static const char SAVED[] = "\nfuzz: a broken invariant or a hang; the input is saved\n";

    save_crash();
    if (write(STDERR_FILENO, SAVED, sizeof(SAVED) - 1) < 0) {
        _exit(3);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void run(const uint8_t *bytes, size_t len)
{
    uint8_t *const data = room + INPUT_MAX - len;

    memmove(data, bytes, len);
    current_len = len;
    last_place = 0;
    reached_more = false;
    (void)LLVMFuzzerTestOneInput(data, len);
}

static size_t mutate(uint8_t *bytes, size_t len)
{
    uint8_t piece[INPUT_MAX];
    const size_t rounds = 1 + below(4);

    for (size_t i = 0; i < rounds; i++) {
        const size_t at = below(len + 1);
        size_t count = 0;

        switch (below(8)) {
        case 0: /* a bit */
            if (at < len) {
                bytes[at] ^= (uint8_t)(1u << below(8));
            }
            continue;
        case 1: /* a byte */
            if (at < len) {
                bytes[at] = (uint8_t)draw();
            }
            continue;
        case 2: /* cut out */
            count = below(below(len - at + 1) + 1);
            memmove(bytes + at, bytes + at + count, len - at - count);
            len -= count;
            continue;
        case 3: /* cut off */
            if (below(4) == 0) {
                len = at;
            }
            continue;
        case 4: { /* a piece of itself again */
            const size_t from = below(len + 1);
            count = below(len - from + 1);
            memcpy(piece, bytes + from, count);
            break;
        }
        case 5: { /* a piece of another */
            const struct input *const other = &inputs[below(input_count)];
            const size_t from = below(other->len + 1);
            count = below(other->len - from + 1);
            memcpy(piece, other->bytes + from, count);
            break;
        }
        default: { /* a word */
            const struct input *const word = &words[below(word_count)];
            count = word->len;
            memcpy(piece, word->bytes, count);
            break;
        }
        }
        if (len + count > INPUT_MAX) {
            continue;
        }
        memmove(bytes + at + count, bytes + at, len - at);
        memcpy(bytes + at, piece, count);
        len += count;
    }
    return len;
}

static void load(const char *folder)
{
    DIR *const dir = opendir(folder);
    const struct dirent *entry;

    if (dir == NULL) {
        fprintf(stderr, "fuzz: %s: %s\n", folder, strerror(errno));
        exit(2);
    }
    while ((entry = readdir(dir)) != NULL) {
        char path[4096];
        uint8_t bytes[INPUT_MAX];

        if (entry->d_name[0] == '.') {
            continue;
        }
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        FILE *const file = fopen(path, "rb");
        if (file == NULL) {
            fprintf(stderr, "fuzz: %s: %s\n", path, strerror(errno));
            exit(2);
        }
        keep_input(bytes, fread(bytes, 1, sizeof(bytes), file));
        fclose(file);
    }
    closedir(dir);
    if (input_count == 0) {
        fprintf(stderr, "fuzz: %s: no inputs there\n", folder);
        exit(2);
    }
}

/* A line of libFuzzer's dictionaries: "text", where \\, \" and \xHH are escapes. */
static void learn(const char *line)
{
    uint8_t bytes[256];
    size_t len = 0;

    while (*++line != '"' && *line != '\0' && len < sizeof(bytes)) {
        unsigned byte = (uint8_t)*line;
        if (*line == '\\' && line[1] == 'x' && sscanf(line + 2, "%2x", &byte) == 1) {
            line += 3;
        } else if (*line == '\\') {
            byte = (uint8_t)*++line;
        }
        bytes[len++] = (uint8_t)byte;
    }
    if (word_count < WORDS_MAX && (words[word_count].bytes = malloc(len + 1)) != NULL) {
        memcpy(words[word_count].bytes, bytes, len);
        words[word_count++].len = len;
    }
}

static void load_words(const char *path)
{
    char line[1024];
    FILE *const file = fopen(path, "r");

    if (file == NULL) {
        fprintf(stderr, "fuzz: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    while (fgets(line, sizeof(line), file) != NULL) {
        if (line[0] == '"') {
            learn(line);
        }
    }
    fclose(file);
}

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* What is still found at the end of a long run tells whether a longer one is worth it. */
static const double LAST_SECONDS = 300.0;

int main(int argc, char **argv)
{
    uint8_t bytes[INPUT_MAX];
    uint64_t executions = 0;

    if (argc < 5) {
        fprintf(stderr, "usage: %s SECONDS CORPUS CRASHES DICTIONARY [SEED]\n", argv[0]);
        return 2;
    }
    const double begin = now();
    const double seconds = strtod(argv[1], NULL);
    const uint64_t seed = argc > 5 ? strtoull(argv[5], NULL, 0) : (uint64_t)(begin * 1e6);
    const char *const slash = strrchr(argv[0], '/');
    const char *const name = slash != NULL ? slash + 1 : argv[0];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);

    random_state = seed | 1;
    mkdir(argv[3], 0777);
    snprintf(crash_path, sizeof(crash_path), "%s/%s-%" PRIx64, argv[3], name, seed);
    room = mmap(NULL, INPUT_MAX + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED || mprotect(room + INPUT_MAX, page, PROT_NONE) != 0) {
        perror("guard page");
        return 2;
    }
    __sanitizer_set_death_callback(save_crash);
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);

    load(argv[2]);
    load_words(argv[4]);
    const size_t seeds = input_count;
    for (size_t i = 0; i < seeds; i++, executions++) {
        alarm(HANG_SECONDS);
        run(inputs[i].bytes, inputs[i].len);
    }
    const size_t reached_by_seeds = reached_count;
    size_t reached_before_end = reached_count;
    while (now() - begin < seconds) {
        if (now() - begin < seconds - LAST_SECONDS) {
            reached_before_end = reached_count;
        }
        alarm(HANG_SECONDS);
        for (unsigned i = 0; i < TURN; i++, executions++) {
            const struct input *const seed_input = &inputs[below(input_count)];
            memcpy(bytes, seed_input->bytes, seed_input->len);
            const size_t len = mutate(bytes, seed_input->len);
            run(bytes, len);
            if (reached_more) {
                keep_input(bytes, len);
            }
        }
    }
    alarm(0);
    printf("%-16s %" PRIu64 " executions in %.0f s, %zu edges by %zu seeds, %zu now, "
           "%zu of them new in the last %.0f s, seed %#" PRIx64 "\n",
           name, executions, now() - begin, reached_by_seeds, seeds, reached_count,
           reached_count - reached_before_end, LAST_SECONDS, seed);
    for (size_t i = 0; i < input_count; i++) {
        free(inputs[i].bytes);
    }
    for (size_t i = 0; i < word_count; i++) {
        free(words[i].bytes);
    }
    return 0;
}
