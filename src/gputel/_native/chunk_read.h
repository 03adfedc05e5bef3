/* Chunks, read. Drawn in gputel._reference.codec, the twin.
 *
 * A chunk is read in three steps. `gputel_read_header` checks what stands before the times;
 * `gputel_walk` passes over all that follows and checks its form, so that a lie about n costs
 * nothing; `gputel_read_columns` fills rows of n words that the caller made only then.
 */
#ifndef GPUTEL_CHUNK_READ_H
#define GPUTEL_CHUNK_READ_H

#include "chunk.h"
#include "series_read.h"

typedef struct {
    int storage;
    int mode;
    int decimals;
    uint8_t tag; /* of the series */
    size_t m;
    size_t at;             /* where the values begin: behind the series' tag, if it has one */
    const uint8_t *bitmap; /* NULL: all rows are valid */
    gputel_link link;
} gputel_part;

typedef struct {
    int version;
    uint32_t set_id;
    size_t n;
    int64_t t0, t1, first;
    size_t count; /* columns */
    uint32_t ids[GPUTEL_COLUMNS_MAX];
    gputel_part times, sequences;
    gputel_part parts[GPUTEL_COLUMNS_MAX];
} gputel_chunk;

static inline bool gputel_has_integers(const gputel_part *part)
{
    return part->mode == GPUTEL_SERIES || part->mode == GPUTEL_DECIMAL;
}

static inline gputel_refusal gputel_read_ids(gputel_cursor *cursor, gputel_chunk *chunk)
{
    uint64_t runs, length;
    int64_t gap, last = 0;
    bool ascending = true;
    GPUTEL_TRY(gputel_get_varint(cursor, &runs));
    if (runs > GPUTEL_COLUMNS_MAX)
        return GPUTEL_RUNS;
    for (uint64_t run = 0; run < runs; run++) {
        GPUTEL_TRY(gputel_get_zigzag(cursor, &gap));
        GPUTEL_TRY(gputel_get_varint(cursor, &length));
        if (gap < -GPUTEL_ID_MAX || gap > GPUTEL_ID_MAX || !length
            || length > GPUTEL_COLUMNS_MAX - chunk->count)
            return GPUTEL_METRIC_IDS;
        int64_t first = last + gap;
        ascending = ascending && gap > 0;
        last = first + (int64_t)length - 1;
        if (first < 1 || last > GPUTEL_ID_MAX)
            return GPUTEL_METRIC_IDS;
        while (first <= last)
            chunk->ids[chunk->count++] = (uint32_t)first++;
    }
    for (size_t i = 1; i < chunk->count && !ascending; i++)
        for (size_t j = 0; j < i; j++)
            if (chunk->ids[i] == chunk->ids[j])
                return GPUTEL_METRIC_TWICE;
    return GPUTEL_OK;
}

/* The header, of a cursor at the set id. */
static inline gputel_refusal gputel_read_header(gputel_cursor *cursor, gputel_chunk *chunk)
{
    uint64_t number;
    const uint8_t *bytes;
    chunk->count = 0;
    GPUTEL_TRY(gputel_get_varint(cursor, &number));
    if (number > GPUTEL_ID_MAX)
        return GPUTEL_SET_ID;
    chunk->set_id = (uint32_t)number;
    GPUTEL_TRY(gputel_get_varint(cursor, &number));
    if (number < 1 || number > GPUTEL_CHUNK_SAMPLES_MAX)
        return GPUTEL_SAMPLES;
    chunk->n = (size_t)number;
    GPUTEL_TRY(gputel_take(cursor, 8, &bytes));
    memcpy(&chunk->t0, bytes, 8);
    GPUTEL_TRY(gputel_get_varint(cursor, &number));
    if (number > (uint64_t)INT64_MAX - (uint64_t)chunk->t0)
        return GPUTEL_LATEST;
    chunk->t1 = gputel_add(chunk->t0, (int64_t)number);
    GPUTEL_TRY(gputel_get_zigzag(cursor, &chunk->first));
    return gputel_read_ids(cursor, chunk);
}

/* Pass over the series of part->m numbers; a link goes to one of the `earlier` parts before. */
static inline gputel_refusal gputel_walk_series(
    gputel_cursor *cursor, int version, gputel_part *part, size_t earlier)
{
    uint8_t tag;
    uint8_t known = GPUTEL_SHAPE | GPUTEL_SCALED;
    GPUTEL_TRY(gputel_get_byte(cursor, &tag));
    if (version > 1)
        known |= GPUTEL_DIFFERENCES | GPUTEL_LINKED;
    if (tag & ~known || (version == 1 && (tag & GPUTEL_SHAPE) == GPUTEL_BLOCKS))
        return GPUTEL_SERIES_TAG;
    part->link.back = 0;
    if (tag & GPUTEL_LINKED) {
        GPUTEL_TRY(gputel_read_link(cursor, &part->link));
        if (part->link.back < 1 || part->link.back > earlier)
            return GPUTEL_LINK_BASE;
        const gputel_part *base = part - part->link.back;
        if (!gputel_has_integers(base) || base->m != part->m)
            return GPUTEL_LINK_BASE;
    }
    part->tag = tag & (uint8_t)~GPUTEL_LINKED;
    part->at = cursor->position;
    return gputel_read_series(cursor, part->tag, part->m, NULL);
}

static inline gputel_refusal gputel_walk_column(
    gputel_cursor *cursor, const gputel_chunk *chunk, gputel_part *part)
{
    size_t size;
    const uint8_t *bytes;
    uint8_t tag, decimals;
    GPUTEL_TRY(gputel_get_byte(cursor, &tag));
    part->storage = tag & GPUTEL_STORAGE;
    part->mode = tag & GPUTEL_MODE;
    part->bitmap = NULL;
    part->m = chunk->n;
    bool floats = part->storage < GPUTEL_I64;
    if (tag & 0xE0 || (part->mode != GPUTEL_SERIES && !floats)
        || (part->mode == GPUTEL_SERIES && floats && chunk->version == 1))
        return GPUTEL_COLUMN_TAG;
    if (tag & GPUTEL_PARTIAL) {
        size = (chunk->n + 7) / 8;
        GPUTEL_TRY(gputel_take(cursor, size, &part->bitmap));
        part->m = gputel_count(part->bitmap, chunk->n);
        if (part->m < 1 || part->m == chunk->n
            || part->bitmap[size - 1] & (uint8_t)~gputel_last_mask(chunk->n))
            return GPUTEL_BITMAP;
    }
    if (part->mode == GPUTEL_SAME || part->mode == GPUTEL_PLAIN) {
        size = gputel_value_bytes(part->storage);
        part->at = cursor->position;
        return gputel_take(cursor, part->mode == GPUTEL_SAME ? size : size * part->m, &bytes);
    }
    if (part->mode == GPUTEL_DECIMAL) {
        GPUTEL_TRY(gputel_get_byte(cursor, &decimals));
        part->decimals = decimals;
        if (decimals > GPUTEL_DECIMALS_MAX)
            return GPUTEL_DECIMALS;
    }
    return gputel_walk_series(cursor, chunk->version, part, (size_t)(part - chunk->parts));
}

/* Pass over all behind the header. */
static inline gputel_refusal gputel_walk(gputel_cursor *cursor, gputel_chunk *chunk)
{
    chunk->times.m = chunk->sequences.m = chunk->n;
    if (chunk->n > 1) {
        GPUTEL_TRY(gputel_walk_series(cursor, chunk->version, &chunk->times, 0));
        GPUTEL_TRY(gputel_walk_series(cursor, chunk->version, &chunk->sequences, 0));
    }
    for (size_t j = 0; j < chunk->count; j++)
        GPUTEL_TRY(gputel_walk_column(cursor, chunk, &chunk->parts[j]));
    return cursor->position == cursor->end ? GPUTEL_OK : GPUTEL_LEFT_OVER;
}

/* The rows' times and sequences from their offsets, which must agree with the header. */
static inline gputel_refusal gputel_read_rows(
    gputel_cursor *cursor, const gputel_chunk *chunk, int64_t *time_ns, int64_t *sequence)
{
    uint64_t least = ~0ull, most = 0;
    size_t n = chunk->n;
    time_ns[0] = sequence[0] = 0;
    if (n > 1) {
        cursor->position = chunk->times.at;
        GPUTEL_TRY(gputel_read_series(cursor, chunk->times.tag, n, time_ns));
        cursor->position = chunk->sequences.at;
        GPUTEL_TRY(gputel_read_series(cursor, chunk->sequences.tag, n, sequence));
    }
    if (sequence[0] != 0)
        return GPUTEL_SEQUENCES;
    for (size_t i = 0; i < n; i++) {
        uint64_t offset = (uint64_t)time_ns[i];
        least = offset < least ? offset : least;
        most = offset > most ? offset : most;
        time_ns[i] = gputel_add(time_ns[i], chunk->t0);
        sequence[i] = gputel_add(sequence[i], chunk->first);
    }
    bool agrees = least == 0 && most == (uint64_t)chunk->t1 - (uint64_t)chunk->t0;
    return agrees ? GPUTEL_OK : GPUTEL_TIMES;
}

/* Integers of a column to what they stand for, in place. */
static inline gputel_refusal gputel_finish_integers(const gputel_part *part, int64_t *row)
{
    size_t m = part->m;
    double *wide = (double *)row;
    float *narrow = (float *)row;
    uint32_t *bits = (uint32_t *)row;
    uint64_t above = 0;
    if (part->mode == GPUTEL_DECIMAL) {
        double power = gputel_powers[part->decimals];
        if (part->storage == GPUTEL_F64)
            for (size_t i = 0; i < m; i++)
                wide[i] = (double)row[i] / power;
        else
            for (size_t i = 0; i < m; i++)
                narrow[i] = (float)((double)row[i] / power);
    } else if (part->storage == GPUTEL_F32) {
        for (size_t i = 0; i < m; i++) {
            above |= (uint64_t)row[i] >> 32;
            bits[i] = (uint32_t)row[i];
        }
    }
    return above ? GPUTEL_F32_BITS : GPUTEL_OK;
}

/* Spread m values over the rows that have one, in place and from the end; 0 elsewhere. */
static inline void gputel_spread(const gputel_part *part, size_t n, void *row)
{
    size_t left = part->m;
    if (part->storage == GPUTEL_F32) {
        uint32_t *values = row;
        for (size_t i = n; i-- > 0;)
            values[i] = gputel_bit(part->bitmap, i) ? values[--left] : 0;
        return;
    }
    uint64_t *values = row;
    for (size_t i = n; i-- > 0;)
        values[i] = gputel_bit(part->bitmap, i) ? values[--left] : 0;
}

static inline gputel_refusal gputel_read_part(
    gputel_cursor *cursor, const gputel_part *part, size_t n, int64_t *row)
{
    size_t size = gputel_value_bytes(part->storage);
    const uint8_t *bytes = cursor->data + part->at;
    cursor->position = part->at;
    if (part->mode == GPUTEL_PLAIN) {
        memcpy(row, bytes, size * part->m);
    } else if (part->mode == GPUTEL_SAME) {
        for (size_t i = 0; i < part->m; i++)
            memcpy((uint8_t *)row + i * size, bytes, size);
    } else {
        GPUTEL_TRY(gputel_read_series(cursor, part->tag, part->m, row));
        if (part->link.back)
            gputel_add_prediction(&part->link, row - part->link.back * n, part->m, row);
    }
    return GPUTEL_OK;
}

/* Rows of n words: times, sequences, then the columns; a f32 column is n words of 4 bytes.
 * The cursor may be anywhere in a chunk that was walked. */
static inline gputel_refusal gputel_read_columns(
    gputel_cursor *cursor, const gputel_chunk *chunk, int64_t *rows)
{
    size_t n = chunk->n;
    int64_t *columns = rows + 2 * n;
    GPUTEL_TRY(gputel_read_rows(cursor, chunk, rows, rows + n));
    for (size_t j = 0; j < chunk->count; j++)
        GPUTEL_TRY(gputel_read_part(cursor, &chunk->parts[j], n, columns + j * n));
    /* Only now: until here a later column may have been predicted from the integers. */
    for (size_t j = 0; j < chunk->count; j++) {
        const gputel_part *part = &chunk->parts[j];
        if (gputel_has_integers(part))
            GPUTEL_TRY(gputel_finish_integers(part, columns + j * n));
        if (part->bitmap)
            gputel_spread(part, n, columns + j * n);
    }
    return GPUTEL_OK;
}

#endif
