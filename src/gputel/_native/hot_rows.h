/* Rows of the COPY stream whose last field is a sample's packed values; they are drawn in
 * gputel/_reference/hot_rows.py.
 *
 * What is written has room where it is written. What is read may end or be anything: nothing is
 * read behind `end`, and nothing is stored of a row before its length is known to be right.
 */
#ifndef GPUTEL_HOT_ROWS_H
#define GPUTEL_HOT_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pgcopy.h"

#define GPUTEL_HOT_FIELDS 5
#define GPUTEL_HOT_KEYS 4
#define GPUTEL_HOT_VALID_BYTES 8
#define GPUTEL_HOT_HEAD_BYTES (2 + GPUTEL_HOT_KEYS * 12 + 4) /* before the values */
#define GPUTEL_HOT_COLUMNS_MAX 64
#define GPUTEL_HOT_VALUES_BYTES_MAX (GPUTEL_HOT_VALID_BYTES + 8 * GPUTEL_HOT_COLUMNS_MAX)
#define GPUTEL_TIME_US_MAX (INT64_MAX / 1000)
#define GPUTEL_TRAILER UINT16_MAX

/* A column to be written. */
typedef struct {
    const char *data;
    ptrdiff_t stride;
    const uint8_t *valid; /* a bitmap */
    int bytes;            /* of a value, 4 or 8 */
} gputel_hot_column;

/* A column to be read. */
typedef struct {
    char *values;
    uint8_t *valid;
    int column;
    int at; /* in a row's values */
    int bytes;
} gputel_hot_target;

/* What rows are read into, and the set's layout. */
typedef struct {
    int64_t *keys[GPUTEL_HOT_KEYS];
    gputel_hot_target *targets;
    int target_count;
    int column_count;
    int ends[GPUTEL_HOT_COLUMNS_MAX + 1]; /* of the first 0, 1, ... columns, in a row's values */
} gputel_hot_reader;

typedef enum {
    GPUTEL_ROW,     /* one row was read */
    GPUTEL_PARTIAL, /* it goes on behind the end */
    GPUTEL_END,     /* it was the trailer */
    GPUTEL_COUNT,   /* `number` fields */
    GPUTEL_LENGTH,  /* of the field `number`: `length` */
    GPUTEL_TIME,    /* out of range */
    GPUTEL_VALUES,  /* of `length` bytes, which is no row of the set */
    GPUTEL_VALID,   /* says that the metric `number` of `length` has a value */
} gputel_row_outcome;

typedef struct {
    const char *at; /* behind what was read */
    const char *end;
    int64_t number;
    int64_t length;
    int64_t keys[GPUTEL_HOT_KEYS]; /* of the row that was begun last */
} gputel_hot_reading;

static inline uint16_t gputel_get16(const char *at)
{
    uint16_t number;
    memcpy(&number, at, sizeof number);
    return __builtin_bswap16(number);
}

static inline uint32_t gputel_get32(const char *at)
{
    uint32_t number;
    memcpy(&number, at, sizeof number);
    return __builtin_bswap32(number);
}

static inline uint64_t gputel_get64(const char *at)
{
    return __builtin_bswap64(gputel_load64(at));
}

/* Microseconds since 2000 as nanoseconds since 1970. */
static inline bool gputel_get_time(int64_t time_us, int64_t *time_ns)
{
    if (__builtin_add_overflow(time_us, GPUTEL_EPOCH_2000_US, &time_us))
        return false;
    if (time_us < -GPUTEL_TIME_US_MAX || time_us > GPUTEL_TIME_US_MAX)
        return false;
    *time_ns = time_us * 1000;
    return true;
}

/* Sample `i` of the columns, whose values take `bytes` with their bitmap. */
static inline char *gputel_put_values(char *out, const gputel_hot_column *columns, int count,
                                      uint32_t bytes, ptrdiff_t i)
{
    uint64_t mask = 0;
    char *bitmap = gputel_put32(out, bytes);
    out = bitmap + GPUTEL_HOT_VALID_BYTES;
    for (int j = 0; j < count; j++) {
        const gputel_hot_column *column = &columns[j];
        const char *cell = column->data + i * column->stride;
        uint64_t valid = column->valid[i >> 3] >> (i & 7) & 1;
        mask |= valid << j;
        if (column->bytes == 8) {
            out = gputel_put64(out, gputel_load64(cell) & -valid);
        } else {
            uint32_t bits;
            memcpy(&bits, cell, sizeof bits);
            out = gputel_put32(out, bits & -(uint32_t)valid);
        }
    }
    memcpy(bitmap, &mask, sizeof mask); /* our machines are little-endian */
    return out;
}

/* How many of the set's columns values of so many bytes have; -1: there are no such values. */
static inline int gputel_hot_columns_in(const gputel_hot_reader *reader, uint32_t bytes)
{
    uint32_t whole = (uint32_t)reader->ends[reader->column_count];
    if (bytes == whole)
        return reader->column_count;
    if (bytes > whole)
        return bytes <= GPUTEL_HOT_VALUES_BYTES_MAX && (bytes - whole) % 4 == 0
                   ? reader->column_count
                   : -1;
    for (int count = 0; count < reader->column_count; count++)
        if ((uint32_t)reader->ends[count] == bytes)
            return count;
    return -1;
}

/* The values at `at`, of the first `count` columns at least, as row number `row`. */
static inline void gputel_take_values(const gputel_hot_reader *reader, const char *at, int count,
                                      uint64_t mask, size_t row)
{
    for (int k = 0; k < reader->target_count; k++) {
        const gputel_hot_target *target = &reader->targets[k];
        uint64_t valid = target->column < count ? mask >> target->column & 1 : 0;
        target->valid[row] = (uint8_t)valid;
        if (target->bytes == 8) {
            uint64_t bits = valid ? gputel_get64(at + target->at) : 0;
            memcpy(target->values + 8 * row, &bits, sizeof bits);
        } else {
            uint32_t bits = valid ? gputel_get32(at + target->at) : 0;
            memcpy(target->values + 4 * row, &bits, sizeof bits);
        }
    }
}

/* The next row, as row number `row`. */
static inline gputel_row_outcome gputel_read_hot_row(gputel_hot_reading *reading,
                                                     const gputel_hot_reader *reader, size_t row)
{
    const char *at = reading->at;
    const char *end = reading->end;
    if (end - at < 2)
        return GPUTEL_PARTIAL;
    uint16_t fields = gputel_get16(at);
    at += 2;
    if (fields == GPUTEL_TRAILER) {
        reading->at = at;
        return GPUTEL_END;
    }
    reading->number = (int16_t)fields;
    if (fields != GPUTEL_HOT_FIELDS)
        return GPUTEL_COUNT;
    for (int k = 0; k < GPUTEL_HOT_KEYS; k++) {
        if (end - at < 4)
            return GPUTEL_PARTIAL;
        reading->number = k;
        reading->length = (int32_t)gputel_get32(at);
        if (reading->length != 8)
            return GPUTEL_LENGTH;
        if (end - at < 12)
            return GPUTEL_PARTIAL;
        reading->keys[k] = (int64_t)gputel_get64(at + 4);
        if (k == 1 && !gputel_get_time(reading->keys[k], &reading->keys[k]))
            return GPUTEL_TIME;
        at += 12;
    }
    if (end - at < 4)
        return GPUTEL_PARTIAL;
    uint32_t bytes = gputel_get32(at);
    at += 4;
    int count = gputel_hot_columns_in(reader, bytes);
    reading->length = (int32_t)bytes;
    if (count < 0)
        return GPUTEL_VALUES;
    if (end - at < (ptrdiff_t)bytes)
        return GPUTEL_PARTIAL;
    uint64_t mask = gputel_load64(at);
    uint64_t beyond = count < 64 ? mask >> count : 0;
    if (beyond && bytes <= (uint32_t)reader->ends[reader->column_count]) {
        reading->number = 63 - __builtin_clzll(mask);
        reading->length = count;
        return GPUTEL_VALID;
    }
    for (int k = 0; k < GPUTEL_HOT_KEYS; k++)
        reader->keys[k][row] = reading->keys[k];
    gputel_take_values(reader, at, count, mask, row);
    reading->at = at + bytes;
    return GPUTEL_ROW;
}

#endif
