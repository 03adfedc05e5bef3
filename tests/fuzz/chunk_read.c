/* The chunk reader under libFuzzer, which looks for inputs that reach new branches.
 *
 * `make fuzz` builds and runs it where clang is installed, beginning with the frozen chunks. An
 * input is a chunk whose checksum is not looked at: it would hide all that stands before it.
 * Each is read twice, because the same bytes must give the same values.
 */
#include <stdlib.h>

#include "chunk_read.h"

#define WORDS_MAX (1 << 20)

static gputel_refusal read_chunk(const uint8_t *data, size_t size, int version, int64_t **rows,
                                 size_t *words)
{
    gputel_chunk chunk = {.version = version};
    gputel_cursor cursor = {.data = data, .position = 0, .end = size};
    GPUTEL_TRY(gputel_read_header(&cursor, &chunk));
    GPUTEL_TRY(gputel_walk(&cursor, &chunk));
    *words = (chunk.count + 2) * chunk.n;
    if (*words > WORDS_MAX)
        return GPUTEL_SAMPLES;
    *rows = calloc(*words, sizeof **rows);
    return gputel_read_columns(&cursor, &chunk, *rows);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    int64_t *rows[2] = {NULL, NULL};
    size_t words = 0;
    gputel_refusal refusals[2];
    if (size < GPUTEL_PREAMBLE_BYTES + GPUTEL_CRC_BYTES)
        return 0;
    size -= GPUTEL_PREAMBLE_BYTES + GPUTEL_CRC_BYTES;
    for (int pass = 0; pass < 2; pass++) {
        /* A copy of just this size: reading past its end is an error that the sanitizer sees. */
        uint8_t *data = malloc(size);
        memcpy(data, input + GPUTEL_PREAMBLE_BYTES, size);
        refusals[pass] = read_chunk(data, size, input[2] == 1 ? 1 : 2, &rows[pass], &words);
        free(data);
    }
    if (refusals[0] != refusals[1])
        abort();
    if (refusals[0] == GPUTEL_OK && memcmp(rows[0], rows[1], words * sizeof **rows))
        abort();
    free(rows[0]);
    free(rows[1]);
    return 0;
}
