/* What happened in a run: counts, latencies, marks and failures, and their lines of JSON. Prints to
 * stdout; knows no connection and no socket. */
#ifndef DP_TALLY_H
#define DP_TALLY_H

#include "dp_answer.h"

enum {
    DP_MARKS_MAX = 512,
    DP_TOLD_MAX = 10,     /* failures told one by one */
    DP_BUCKETS = 64 * 40, /* of the histogram: 64 to each power of two, so within 1.6 % */
};

typedef struct mark {
    char text[DP_MARK_MAX + 1];
    uint64_t count;
} mark;

typedef struct marks {
    mark all[DP_MARKS_MAX];
    size_t len;
    uint64_t others; /* answers without a mark, or whose mark found no room */
} marks;

typedef struct failure {
    outcome kind;
    uint32_t connection;
    uint64_t answers_before; /* on that connection */
    uint64_t at_ns;
    char detail[64];
} failure;

/* Latencies in ns. */
typedef struct latencies {
    uint64_t counts[DP_BUCKETS];
    uint64_t len, sum, max;
} latencies;

typedef struct tally {
    bool counts_marks, tells_marks, tells_progress;
    uint64_t start;
    uint64_t issued, ok, failed, connects, open, bytes_in, bytes_out;
    uint64_t statuses[6]; /* whole answers by class: [2] is 2xx */
    uint64_t rate;        /* asked for; 0: none */
    uint64_t unsent;      /* were due by the rate, and never sent */
    uint64_t kinds[OUTCOMES];
    failure told[DP_TOLD_MAX];
    size_t told_len;
    marks marks;       /* of the run */
    marks round_marks; /* of the round */
    char last_mark[DP_MARK_MAX];
    size_t last_mark_len;
    bool has_last_mark;
    uint64_t last_answer, longest_gap, longest_gap_at;
    latencies latencies; /* of the run */
    latencies recent;    /* since the last line of progress */
    uint64_t recent_start, recent_failed;
    uint64_t round, round_ok, round_failed, round_start;
} tally;

/* Counts a whole and right answer, whose request began (or was due) at since (dp_now_ns). */
void dp_tally_answer(tally *t, uint64_t since, const answer *a);

/* Counts requests that were due by the rate and never sent, each with how long it had waited: what
 * a server kept from being asked is not left out of its latencies. */
void dp_tally_unsent(tally *t, uint64_t waited, uint64_t count);

/* Counts a failure; the first few are kept with the detail. */
void dp_tally_failure(tally *t, outcome kind, uint32_t connection, uint64_t answers_before,
                      const char *detail);

/* Forgets the last round's counts. */
void dp_tally_begin_round(tally *t);

/* One line each. */
void dp_tally_print_round(const tally *t);
void dp_tally_print_status(const tally *t);
/* How it went since the last such line. */
void dp_tally_print_progress(tally *t);
void dp_tally_print_report(const tally *t, const char *mode, const char *address,
                           uint64_t connections);

#endif
