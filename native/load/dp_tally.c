/* What happened in a run, and its lines of JSON. See dp_tally.h. */
#include "dp_tally.h"

#include "dp_bench.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static size_t bucket_of(uint64_t ns)
{
    if (ns < 64)
        return (size_t)ns;
    unsigned top = 63U - (unsigned)__builtin_clzll(ns);
    size_t bucket = (size_t)(top - 5) * 64 + (size_t)((ns >> (top - 6)) & 63U);
    return bucket < DP_BUCKETS ? bucket : DP_BUCKETS - 1;
}

/* The middle of a bucket, in ns. */
static uint64_t bucket_value(size_t bucket)
{
    if (bucket < 64)
        return bucket;
    unsigned shift = (unsigned)(bucket / 64) - 1;
    uint64_t from = (64U + (uint64_t)(bucket % 64)) << shift;
    return from + ((uint64_t)1 << shift) / 2;
}

static void count(latencies *l, uint64_t took, uint64_t times)
{
    l->counts[bucket_of(took)] += times;
    l->len += times;
    l->sum += took * times;
    if (took > l->max)
        l->max = took;
}

static double percentile_us(const latencies *l, double share)
{
    uint64_t rank = (uint64_t)(share * (double)l->len);
    uint64_t sum = 0;
    for (size_t i = 0; i < DP_BUCKETS; i++) {
        sum += l->counts[i];
        if (sum > rank && bucket_value(i) < l->max)
            return (double)bucket_value(i) / 1e3;
    }
    return (double)l->max / 1e3;
}

static void count_mark(marks *m, span text)
{
    for (size_t i = 0; i < m->len; i++) {
        if (strlen(m->all[i].text) == text.len && memcmp(m->all[i].text, text.at, text.len) == 0) {
            m->all[i].count++;
            return;
        }
    }
    if (text.len == 0 || text.len > DP_MARK_MAX || m->len == DP_MARKS_MAX) {
        m->others++;
        return;
    }
    memcpy(m->all[m->len].text, text.at, text.len);
    m->all[m->len].text[text.len] = '\0';
    m->all[m->len].count = 1;
    m->len++;
}

/* Text of the peer's inside our JSON: only what needs no escape. */
static void print_text(const char *text, size_t len)
{
    putchar('"');
    for (size_t i = 0; i < len; i++)
        putchar(text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\' ? '?'
                                                                                    : text[i]);
    putchar('"');
}

static void note_mark(tally *t, span text)
{
    if (!t->counts_marks)
        return;
    count_mark(&t->marks, text);
    count_mark(&t->round_marks, text);
    if (!t->tells_marks || (t->has_last_mark && t->last_mark_len == text.len &&
                            memcmp(t->last_mark, text.at, text.len) == 0))
        return;
    memcpy(t->last_mark, text.at, text.len);
    t->last_mark_len = text.len;
    t->has_last_mark = true;
    printf("{\"event\": \"mark\", \"mark\": ");
    print_text(text.at, text.len);
    printf(", \"at_ns\": %" PRIu64 ", \"requests\": %" PRIu64 "}\n", t->last_answer, t->ok);
    fflush(stdout);
}

void dp_tally_answer(tally *t, uint64_t since, const answer *a)
{
    uint64_t now = dp_now_ns();
    uint64_t took = now - since;
    uint64_t gap = now - t->last_answer;
    count(&t->latencies, took, 1);
    if (t->tells_progress)
        count(&t->recent, took, 1);
    if (gap > t->longest_gap) {
        t->longest_gap = gap;
        t->longest_gap_at = now - t->start;
    }
    t->last_answer = now;
    t->bytes_in += a->seen;
    t->statuses[a->status / 100]++;
    t->ok++;
    t->round_ok++;
    note_mark(t, (span){a->mark, a->mark_len});
}

void dp_tally_unsent(tally *t, uint64_t waited, uint64_t times)
{
    t->unsent += times;
    count(&t->latencies, waited, times);
}

void dp_tally_failure(tally *t, outcome kind, uint32_t connection, uint64_t answers_before,
                      const char *detail)
{
    t->failed++;
    t->recent_failed++;
    t->round_failed++;
    t->kinds[kind]++;
    if (t->told_len == DP_TOLD_MAX)
        return;
    failure *f = &t->told[t->told_len++];
    *f = (failure){.kind = kind,
                   .connection = connection,
                   .answers_before = answers_before,
                   .at_ns = dp_now_ns() - t->start};
    snprintf(f->detail, sizeof f->detail, "%s", detail);
}

void dp_tally_begin_round(tally *t)
{
    t->round++;
    t->round_ok = t->round_failed = 0;
    t->round_start = t->last_answer = dp_now_ns();
    memset(&t->round_marks, 0, sizeof t->round_marks);
}

static void print_marks(const marks *m)
{
    printf("\"marks\": {");
    for (size_t i = 0; i < m->len; i++) {
        if (i > 0)
            printf(", ");
        print_text(m->all[i].text, strlen(m->all[i].text));
        printf(": %" PRIu64, m->all[i].count);
    }
    printf("}, \"without_mark\": %" PRIu64, m->others);
}

static void print_failures(const tally *t)
{
    bool first = true;
    printf("\"failures\": {");
    for (size_t kind = OK + 1; kind < OUTCOMES; kind++) {
        if (t->kinds[kind] == 0)
            continue;
        printf("%s\"%s\": %" PRIu64, first ? "" : ", ", dp_outcome_names[kind], t->kinds[kind]);
        first = false;
    }
    printf("}, \"first_failures\": [");
    for (size_t i = 0; i < t->told_len; i++) {
        const failure *f = &t->told[i];
        printf("%s{\"kind\": \"%s\", \"connection\": %" PRIu32 ", \"answers_before\": %" PRIu64
               ", \"at_ms\": %.3f, \"detail\": ",
               i > 0 ? ", " : "", dp_outcome_names[f->kind], f->connection, f->answers_before,
               (double)f->at_ns / 1e6);
        print_text(f->detail, strlen(f->detail));
        printf("}");
    }
    printf("]");
}

void dp_tally_print_round(const tally *t)
{
    printf("{\"event\": \"round\", \"round\": %" PRIu64 ", \"ok\": %" PRIu64
           ", \"failed\": %" PRIu64 ", \"open\": %" PRIu64 ", \"connects\": %" PRIu64
           ", \"ms\": %.3f, ",
           t->round, t->round_ok, t->round_failed, t->open, t->connects,
           (double)(dp_now_ns() - t->round_start) / 1e6);
    print_marks(&t->round_marks);
    printf("}\n");
    fflush(stdout);
}

void dp_tally_print_status(const tally *t)
{
    printf("{\"event\": \"status\", \"requests\": %" PRIu64 ", \"ok\": %" PRIu64
           ", \"failed\": %" PRIu64 ", \"open\": %" PRIu64 ", \"connects\": %" PRIu64
           ", \"at_ns\": %" PRIu64 "}\n",
           t->issued, t->ok, t->failed, t->open, t->connects, dp_now_ns());
    fflush(stdout);
}

void dp_tally_print_progress(tally *t)
{
    uint64_t now = dp_now_ns();
    double seconds = (double)(now - t->recent_start) / 1e9;
    printf("{\"event\": \"progress\", \"seconds\": %.3f, \"requests_per_second\": %.1f, "
           "\"ok\": %" PRIu64 ", \"failed\": %" PRIu64 ", \"open\": %" PRIu64
           ", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f}\n",
           (double)(now - t->start) / 1e9, (double)t->recent.len / seconds, t->recent.len,
           t->recent_failed, t->open, percentile_us(&t->recent, 0.5),
           percentile_us(&t->recent, 0.99), (double)t->recent.max / 1e3);
    fflush(stdout);
    memset(&t->recent, 0, sizeof t->recent);
    t->recent_failed = 0;
    t->recent_start = now;
}

void dp_tally_print_report(const tally *t, const char *mode, const char *address,
                           uint64_t connections)
{
    double seconds = (double)(dp_now_ns() - t->start) / 1e9;
    printf("{\"event\": \"report\", \"mode\": \"%s\", \"address\": ", mode);
    print_text(address, strlen(address));
    printf(", \"connections\": %" PRIu64 ", \"connects\": %" PRIu64 ", \"open_at_end\": %" PRIu64
           ", \"requests\": %" PRIu64 ", \"ok\": %" PRIu64 ", \"failed\": %" PRIu64 ", ",
           connections, t->connects, t->open, t->issued, t->ok, t->failed);
    print_failures(t);
    printf(", \"statuses\": {\"2xx\": %" PRIu64 ", \"3xx\": %" PRIu64 ", \"4xx\": %" PRIu64
           ", \"5xx\": %" PRIu64 "}",
           t->statuses[2], t->statuses[3], t->statuses[4], t->statuses[5]);
    printf(", \"seconds\": %.3f, \"requests_per_second\": %.1f, \"rate\": %" PRIu64
           ", \"unsent\": %" PRIu64 ", \"bytes_in\": %" PRIu64 ", \"bytes_out\": %" PRIu64,
           seconds, (double)t->ok / seconds, t->rate, t->unsent, t->bytes_in, t->bytes_out);
    const latencies *l = &t->latencies;
    printf(", \"latency_us\": {\"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, "
           "\"p999\": %.1f, \"max\": %.1f}",
           l->len > 0 ? (double)l->sum / (double)l->len / 1e3 : 0, percentile_us(l, 0.5),
           percentile_us(l, 0.9), percentile_us(l, 0.99), percentile_us(l, 0.999),
           (double)l->max / 1e3);
    printf(", \"longest_gap_ms\": %.3f, \"longest_gap_at_ms\": %.3f, ",
           (double)t->longest_gap / 1e6, (double)t->longest_gap_at / 1e6);
    print_marks(&t->marks);
    printf("}\n");
    fflush(stdout);
}
