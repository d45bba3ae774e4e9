/* Reads answers strictly and judges them: framing, status, token, body. Pure: no I/O, no memory of
 * its own, one answer at a time, fed in whatever pieces the network brings. */
#ifndef DP_ANSWER_H
#define DP_ANSWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    DP_HEAD_MAX = 16 * 1024,   /* of an answer, or of a chunk-size or trailer line */
    DP_PIECE_MAX = 256 * 1024, /* bytes given to dp_answer_take at once */
    DP_TOKEN_LEN = 16,
    DP_MARK_MAX = 64,
    DP_ANY_STATUS = 0,
};

/* How a request, or its connection, ended. */
typedef enum {
    OK,
    CONNECT_REFUSED,
    CONNECT_FAILED,
    RESET,
    END_OF_FILE,
    TIMEOUT,
    BAD_STATUS,
    BAD_TOKEN,
    BAD_LENGTH,
    BAD_BODY,
    MALFORMED,
    SURPLUS,
    TOLD_TO_CLOSE,
    OUTCOMES,
} outcome;

extern const char *const dp_outcome_names[OUTCOMES];

typedef struct span {
    const char *at; /* borrowed */
    size_t len;
} span;

/* What every answer of the run is held against; all texts are borrowed for the run. */
typedef struct expected {
    uint64_t status; /* or DP_ANY_STATUS */
    uint64_t length;
    bool has_length;
    bool no_token;
    bool pattern_body; /* byte by byte as dp_bench.h says */
    bool no_body;      /* answers to HEAD */
    const char *pattern;
    const char *body;        /* how the body begins, or NULL */
    const char *mark_header; /* in lower case, or NULL */
    uint64_t sent_body;      /* bytes of the request's body */
} expected;

typedef enum { A_HEAD, A_LENGTH, A_UNTIL_CLOSE, A_SIZE, A_DATA, A_DATA_END, A_TRAILER } piece;

typedef struct answer {
    piece part;
    bool closes; /* it says that the connection ends with it */
    uint16_t status;
    uint64_t token; /* of the request */
    uint64_t left;  /* of the body, or of the chunk */
    uint64_t seen;  /* of the body */
    size_t mark_len;
    char mark[DP_MARK_MAX];
} answer;

/* Makes ready for the answer to the request with this token. */
void dp_answer_begin(answer *a, uint64_t token);

/* Takes one piece of the answer off data; takes nothing where more bytes are needed. What is not
 * OK is the end of the connection. *ret_whole: this was the last piece. */
outcome dp_answer_take(const expected *e, answer *a, span data, size_t *ret_taken, bool *ret_whole);

/* Judges the answer once it is whole. */
outcome dp_answer_judge(const expected *e, const answer *a);

#endif
