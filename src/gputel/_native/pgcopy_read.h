/* Rows of the COPY stream, read into columns; the twin is gputel._reference.pgcopy_rows.
 *
 * A row is taken as a whole, or not at all: what was written of one that has no end yet is
 * written again. Our machines are little-endian.
 */
#ifndef GPUTEL_PGCOPY_READ_H
#define GPUTEL_PGCOPY_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "pgcopy.h"

#define GPUTEL_TIME_US_MAX (INT64_MAX / 1000)
#define GPUTEL_WEIGHT_MAX 4 /* of a u64's first digit */
#define GPUTEL_NULL_LENGTH UINT32_MAX
#define GPUTEL_TRAILER UINT16_MAX

typedef enum {
    GPUTEL_CELL_4,
    GPUTEL_CELL_8,
    GPUTEL_CELL_TIME,
    GPUTEL_CELL_NUMERIC,
} gputel_cell_kind;

typedef struct {
    gputel_cell_kind kind;
    char *values;
    uint8_t *valid;
} gputel_target;

typedef enum {
    GPUTEL_ROW,     /* one row was read */
    GPUTEL_PARTIAL, /* it goes on behind the end */
    GPUTEL_END,     /* it was the trailer */
    GPUTEL_COUNT,   /* `number` fields, not as many as there are targets */
    GPUTEL_LENGTH,  /* of the field `number` */
    GPUTEL_RANGE,   /* of the value of the field `number` */
} gputel_row_outcome;

typedef struct {
    const char *at; /* behind what was read */
    const char *end;
    int64_t number;
    int64_t length;
} gputel_reading;

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

static inline bool gputel_length_fits(gputel_cell_kind kind, uint32_t length)
{
    if (kind == GPUTEL_CELL_NUMERIC)
        return length >= GPUTEL_NUMERIC_HEAD_BYTES && length % 2 == 0
            && length <= GPUTEL_NUMERIC_HEAD_BYTES + 2 * GPUTEL_DIGITS_MAX;
    return length == (kind == GPUTEL_CELL_4 ? 4 : 8);
}

/* Microseconds since 2000 as nanoseconds since 1970. */
static inline bool gputel_get_time(const char *at, int64_t *time_ns)
{
    int64_t time_us;
    if (__builtin_add_overflow((int64_t)gputel_get64(at), GPUTEL_EPOCH_2000_US, &time_us))
        return false;
    if (time_us < -GPUTEL_TIME_US_MAX || time_us > GPUTEL_TIME_US_MAX)
        return false;
    *time_ns = time_us * 1000;
    return true;
}

/* A numeric of `length` bytes, where it is a u64. */
static inline bool gputel_get_numeric(const char *at, uint32_t length, uint64_t *number)
{
    int digits = (int)(length - GPUTEL_NUMERIC_HEAD_BYTES) / 2;
    int count = (int16_t)gputel_get16(at);
    int weight = (int16_t)gputel_get16(at + 2);
    uint64_t value = 0;
    if (count != digits || gputel_get16(at + 4) != 0)
        return false;
    if (count && (weight < count - 1 || weight > GPUTEL_WEIGHT_MAX))
        return false;
    for (int i = 0; count && i <= weight; i++) {
        uint64_t digit = i < count ? gputel_get16(at + GPUTEL_NUMERIC_HEAD_BYTES + 2 * i) : 0;
        if (digit >= GPUTEL_DIGIT_BASE || __builtin_mul_overflow(value, GPUTEL_DIGIT_BASE, &value)
            || __builtin_add_overflow(value, digit, &value))
            return false;
    }
    *number = value;
    return true;
}

/* One cell, all of whose bytes are there; false: its value is out of range. */
static inline bool gputel_get_cell(const gputel_target *target, size_t row, const char *at,
                                   uint32_t length)
{
    if (target->kind == GPUTEL_CELL_4) {
        uint32_t bits = gputel_get32(at);
        memcpy(target->values + 4 * row, &bits, sizeof bits);
        return true;
    }
    uint64_t bits;
    int64_t time_ns;
    if (target->kind == GPUTEL_CELL_8) {
        bits = gputel_get64(at);
    } else if (target->kind == GPUTEL_CELL_TIME) {
        if (!gputel_get_time(at, &time_ns))
            return false;
        bits = (uint64_t)time_ns;
    } else if (!gputel_get_numeric(at, length, &bits)) {
        return false;
    }
    memcpy(target->values + 8 * row, &bits, sizeof bits);
    return true;
}

static inline void gputel_get_null(const gputel_target *target, size_t row)
{
    size_t bytes = target->kind == GPUTEL_CELL_4 ? 4 : 8;
    memset(target->values + bytes * row, 0, bytes);
}

/* The next row, as row number `row` of the `count` targets. */
static inline gputel_row_outcome gputel_read_row(gputel_reading *reading,
                                                 const gputel_target *targets, int64_t count,
                                                 size_t row)
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
    if (fields != count) {
        reading->number = (int16_t)fields;
        return GPUTEL_COUNT;
    }
    for (int64_t j = 0; j < count; j++) {
        const gputel_target *target = &targets[j];
        if (end - at < 4)
            return GPUTEL_PARTIAL;
        uint32_t length = gputel_get32(at);
        at += 4;
        target->valid[row] = length != GPUTEL_NULL_LENGTH;
        if (length == GPUTEL_NULL_LENGTH) {
            gputel_get_null(target, row);
            continue;
        }
        reading->number = j;
        reading->length = (int32_t)length;
        if (!gputel_length_fits(target->kind, length))
            return GPUTEL_LENGTH;
        if (end - at < (int64_t)length)
            return GPUTEL_PARTIAL;
        if (!gputel_get_cell(target, row, at, length))
            return GPUTEL_RANGE;
        at += length;
    }
    reading->at = at;
    return GPUTEL_ROW;
}

#endif
