/* From what a driver says to a cell of the row: scaled, in range, or left out and counted. */
#ifndef GPUTEL_NVML_CELLS_H
#define GPUTEL_NVML_CELLS_H

#include <math.h>

#include "nvml_plan.h"

#define GPUTEL_I64_LIMIT 9223372036854775808.0 /* 2**63 */

/* The row's words: time_ns, gpu and lateness_us, valid, sequence, cells (gputel.rows). */
#define GPUTEL_ROW_VALID 2
#define GPUTEL_ROW_CELLS 4

/* What one read works on: of the thread, so that nobody else's call writes into it. */
typedef struct {
    gputel_core *core;
    gputel_device *device;
    const gputel_plan *plan;
    gputel_reading *reading;
    int plan_index;
    int slot;
    int64_t time_ns;
    int64_t monotonic_ns;
    uint32_t generation; /* of the device, when it was claimed */
    uint64_t start;  /* ticks, of the call in progress */
    uint64_t weight; /* 0: calls are not timed this time */
    /* What is in an invalid cell means nothing. */
    _Alignas(GPUTEL_LINE_BYTES) uint64_t row[GPUTEL_ROW_WORDS];
    nvmlFieldValue_t values[GPUTEL_FIELDS_MAX];
} gputel_reader;

static GPUTEL_COLD void gputel_note_down(
    gputel_reader *r, int kind, int column, int64_t before, double value)
{
    gputel_note *note = &r->device->note[r->device->notes];
    if (r->device->notes == GPUTEL_NOTES_MAX)
        return;
    r->device->notes++;
    note->kind = kind;
    note->slot = r->slot;
    note->plan = r->plan_index;
    note->column = column;
    note->time_ns = r->time_ns;
    note->before = before;
    note->value = value;
}

/* ---- Cells ------------------------------------------------------------------------------- */

static GPUTEL_COLD void gputel_reject(gputel_reader *r, const gputel_target *target, double value)
{
    /* Two threads may count at once, for different devices. */
    __atomic_fetch_add(
        &r->core->rejected[r->plan_index * GPUTEL_COLUMNS_MAX + target->column], 1,
        __ATOMIC_RELAXED);
    if (!r->reading->rejected[target->column]) {
        r->reading->rejected[target->column] = 1;
        gputel_note_down(r, GPUTEL_NOTE_REJECTED, target->column, 0, value);
    }
}

static inline void gputel_put_i(gputel_reader *r, const gputel_target *target, int64_t value)
{
    gputel_reading *reading = r->reading;
    int column = target->column;

    if (target->is_counter) {
        if (value < reading->counter[column])
            gputel_note_down(r, GPUTEL_NOTE_RESET, column, reading->counter[column],
                             (double)value);
        reading->counter[column] = value;
    }
    r->row[GPUTEL_ROW_CELLS + column] = (uint64_t)value;
    r->row[GPUTEL_ROW_VALID] |= target->bit;
}

static inline void gputel_put_double(gputel_reader *r, const gputel_target *target, double raw)
{
    double value = raw * target->factor / target->divisor;

    if (!target->is_float)
        value = rint(value);
    if (!(value >= target->low && value <= target->high)) {
        gputel_reject(r, target, value);
    } else if (target->is_float) {
        memcpy(&r->row[GPUTEL_ROW_CELLS + target->column], &value, sizeof value);
        r->row[GPUTEL_ROW_VALID] |= target->bit;
    } else if (value < GPUTEL_I64_LIMIT) {
        gputel_put_i(r, target, (int64_t)value);
    } else {
        gputel_reject(r, target, value);
    }
}

static inline void gputel_put_signed(gputel_reader *r, const gputel_target *target, int64_t raw)
{
    int64_t value;

    if (target->is_float)
        gputel_put_double(r, target, (double)raw);
    else if (__builtin_mul_overflow(raw, (int64_t)target->multiply, &value) ||
             value < target->low_i || value > target->high_i)
        gputel_reject(r, target, (double)raw * target->multiply);
    else
        gputel_put_i(r, target, value);
}

static GPUTEL_COLD void gputel_put_word(
    gputel_reader *r, const gputel_target *target, uint64_t raw)
{
    if (raw <= INT64_MAX)
        gputel_put_signed(r, target, (int64_t)raw);
    else if (target->is_float)
        gputel_put_double(r, target, (double)raw);
    else
        gputel_reject(r, target, (double)raw * target->multiply);
}

/* PERF(cells): nearly every value comes here, and goes straight to its cell. False, and nothing
 * is done, for one that needs a look: it may be out of range, or a counter went back. The
 * caller collects the validity bits, for the row's word would be a chain through memory. */
static inline int gputel_put_quickly(
    gputel_reader *r, int64_t *counter, const gputel_target *target, uint64_t raw)
{
    uint64_t *cell = &r->row[GPUTEL_ROW_CELLS + target->column];

    if (raw > target->raw_max)
        return 0;
    if (target->is_float) {
        /* As gputel_put_double does; raw_max is below 2**53. */
        double value = (double)(int64_t)raw * target->factor / target->divisor;

        memcpy(cell, &value, sizeof value);
    } else {
        uint64_t value = raw * target->multiply;

        if ((int64_t)value < counter[target->column])
            return 0;
        counter[target->column] = (int64_t)(value & target->remembered);
        *cell = value;
    }
    return 1;
}

/* A value by the member of the union that holds it; -1 when no such member exists. */
static inline int gputel_put_value(
    gputel_reader *r, const gputel_target *target, int member, const nvmlValue_t *value)
{
    if (member == NVML_VALUE_TYPE_UNSIGNED_LONG_LONG || member == NVML_VALUE_TYPE_UNSIGNED_INT) {
        gputel_put_word(r, target,
                        member == NVML_VALUE_TYPE_UNSIGNED_INT ? value->uiVal : value->ullVal);
        return 0;
    }
    switch (member) {
    case NVML_VALUE_TYPE_DOUBLE:
        gputel_put_double(r, target, value->dVal);
        return 0;
    case NVML_VALUE_TYPE_UNSIGNED_LONG:
        gputel_put_word(r, target, value->ulVal);
        return 0;
    case NVML_VALUE_TYPE_SIGNED_LONG_LONG:
        gputel_put_signed(r, target, value->sllVal);
        return 0;
    case NVML_VALUE_TYPE_SIGNED_INT:
        gputel_put_signed(r, target, value->siVal);
        return 0;
    case NVML_VALUE_TYPE_UNSIGNED_SHORT:
        gputel_put_word(r, target, value->usVal);
        return 0;
    default:
        return -1;
    }
}

#endif
