/* Integer series, read; the twin is gputel._reference.series.
 *
 * With `out` NULL a series is passed over, and everything about it is checked but the padding
 * bits: a chunk is walked like this before anything is allocated for it.
 */
#ifndef GPUTEL_SERIES_READ_H
#define GPUTEL_SERIES_READ_H

#include "series.h"

typedef struct {
    uint64_t divisor;
    int64_t value;  /* the last one restored */
    int64_t number; /* the last one of the blocks: s[i] or d[i] */
    bool differences;
} gputel_restoring;

/* The values of `count` numbers of BLOCKS, the last of which is then `at->number`. */
static inline void gputel_restore(
    gputel_restoring *at, int64_t first, const int64_t *numbers, size_t count, int64_t *out)
{
    uint64_t divisor = at->divisor;
    if (!at->differences) {
        for (size_t i = 0; i < count; i++)
            out[i] = (int64_t)((uint64_t)first + divisor * (uint64_t)numbers[i]);
        return;
    }
    uint64_t value = (uint64_t)at->value;
    for (size_t i = 0; i < count; i++) {
        value += divisor * (uint64_t)numbers[i];
        out[i] = (int64_t)value;
    }
    at->value = (int64_t)value;
}

/* The numbers of one block from its packed ones. */
static inline void gputel_unfold(
    const uint64_t *packed, size_t count, bool floor, int64_t base, int64_t *numbers)
{
    if (floor) {
        for (size_t i = 0; i < count; i++)
            numbers[i] = gputel_add(base, (int64_t)packed[i]);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        base = gputel_add(base, gputel_unzigzag(packed[i]));
        numbers[i] = base;
    }
}

static inline gputel_refusal gputel_read_blocks(
    gputel_cursor *cursor, gputel_restoring *at, int64_t first, size_t count, int64_t *out)
{
    uint64_t packed[GPUTEL_GROUP];
    int64_t numbers[GPUTEL_GROUP];
    for (size_t done = 0; done < count; done += GPUTEL_GROUP) {
        size_t size = count - done < GPUTEL_GROUP ? count - done : GPUTEL_GROUP;
        int64_t base = 0;
        const uint8_t *bytes;
        uint8_t control;
        GPUTEL_TRY(gputel_get_byte(cursor, &control));
        int width = control & ~GPUTEL_FLOOR;
        if (width > GPUTEL_WIDTH_MAX)
            return GPUTEL_WIDTH;
        if (control & GPUTEL_FLOOR)
            GPUTEL_TRY(gputel_get_zigzag(cursor, &base));
        GPUTEL_TRY(gputel_take(cursor, gputel_packed_bytes(size, width), &bytes));
        if (!out)
            continue;
        base = gputel_add(at->number, base);
        if (!width) {
            for (size_t i = 0; i < size; i++)
                numbers[i] = base;
        } else {
            size_t readable = (size_t)(cursor->data + cursor->end - bytes);
            GPUTEL_TRY(gputel_unpack(bytes, readable, size, width, packed));
            gputel_unfold(packed, size, control & GPUTEL_FLOOR, base, numbers);
        }
        at->number = numbers[size - 1];
        gputel_restore(at, first, numbers, size, out + done);
    }
    return GPUTEL_OK;
}

/* The `count` packed numbers of a shape of one width, as the differences that they are. */
static inline gputel_refusal gputel_read_packed(
    gputel_cursor *cursor, gputel_restoring *at, int shape, int64_t first, size_t count,
    int64_t *out)
{
    uint64_t packed[GPUTEL_GROUP];
    int64_t numbers[GPUTEL_GROUP];
    const uint8_t *bytes;
    uint8_t width;
    GPUTEL_TRY(gputel_get_byte(cursor, &width));
    if (width > GPUTEL_WIDTH_MAX)
        return GPUTEL_WIDTH;
    GPUTEL_TRY(gputel_take(cursor, gputel_packed_bytes(count, width), &bytes));
    if (!out)
        return GPUTEL_OK;
    for (size_t done = 0; done < count; done += GPUTEL_GROUP) {
        size_t size = count - done < GPUTEL_GROUP ? count - done : GPUTEL_GROUP;
        size_t readable = (size_t)(cursor->data + cursor->end - bytes);
        GPUTEL_TRY(gputel_unpack(bytes, readable, size, width, packed));
        if (shape == GPUTEL_DELTA)
            for (size_t i = 0; i < size; i++)
                numbers[i] = gputel_unzigzag(packed[i]);
        else
            gputel_unfold(packed, size, shape == GPUTEL_OFFSET, at->number, numbers);
        if (shape == GPUTEL_DELTA2)
            at->number = numbers[size - 1];
        gputel_restore(at, first, numbers, size, out + done);
        bytes += gputel_packed_bytes(size, width);
    }
    return GPUTEL_OK;
}

/* RAW, CONSTANT and STEP behind their tag. */
static inline gputel_refusal gputel_read_simple(
    gputel_cursor *cursor, int shape, size_t m, int64_t *out)
{
    const uint8_t *bytes;
    int64_t first, step = 0;
    if (shape == GPUTEL_RAW) {
        GPUTEL_TRY(gputel_take(cursor, 8 * m, &bytes));
        if (out)
            memcpy(out, bytes, 8 * m);
        return GPUTEL_OK;
    }
    GPUTEL_TRY(gputel_get_zigzag(cursor, &first));
    if (shape == GPUTEL_STEP)
        GPUTEL_TRY(gputel_get_zigzag(cursor, &step));
    if (out)
        for (size_t i = 0; i < m; i++)
            out[i] = gputel_add(first, gputel_mul((int64_t)i, step));
    return GPUTEL_OK;
}

/* The series of m >= 1 numbers behind its `tag` (and link). */
static inline gputel_refusal gputel_read_series(
    gputel_cursor *cursor, uint8_t tag, size_t m, int64_t *out)
{
    int shape = tag & GPUTEL_SHAPE;
    bool divides = shape >= GPUTEL_OFFSET && shape != GPUTEL_RAW;
    gputel_restoring at = {.divisor = 1};
    int64_t first;
    if (shape > GPUTEL_BLOCKS || (tag & GPUTEL_SCALED && !divides)
        || (tag & GPUTEL_DIFFERENCES && shape != GPUTEL_BLOCKS))
        return GPUTEL_SERIES_TAG;
    if (!divides)
        return gputel_read_simple(cursor, shape, m, out);
    GPUTEL_TRY(gputel_get_zigzag(cursor, &first));
    if (tag & GPUTEL_SCALED) {
        GPUTEL_TRY(gputel_get_varint(cursor, &at.divisor));
        if (at.divisor < 2)
            return GPUTEL_DIVISOR;
    }
    if (shape == GPUTEL_OFFSET)
        return gputel_read_packed(cursor, &at, shape, first, m, out);
    at.value = first;
    at.differences = shape != GPUTEL_BLOCKS || tag & GPUTEL_DIFFERENCES;
    size_t restored = 1;
    if (out)
        out[0] = first;
    if (shape == GPUTEL_DELTA2 || tag & GPUTEL_DIFFERENCES) {
        GPUTEL_TRY(gputel_get_zigzag(cursor, &at.number));
        if (m < 2)
            return GPUTEL_DIFFERENCES_OF_ONE;
        if (out)
            gputel_restore(&at, first, &at.number, 1, out + 1);
        restored = 2;
    }
    if (shape == GPUTEL_BLOCKS)
        return gputel_read_blocks(cursor, &at, first, m - restored, out ? out + restored : NULL);
    return gputel_read_packed(
        cursor, &at, shape, first, m - restored, out ? out + restored : NULL);
}

#endif
