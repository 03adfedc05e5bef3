/* Integer series, written: the shapes and blocks are drawn in gputel._reference.series, the twin.
 *
 * Writing has two steps. `gputel_plan` decides shape, divisor and every block's width, and knows
 * the size to the byte; `gputel_write` writes what was planned. So a series and its rest after a
 * prediction are compared without packing either.
 */
#ifndef GPUTEL_SERIES_H
#define GPUTEL_SERIES_H

#include <stdbool.h>

#include "bits.h"

enum { GPUTEL_CONSTANT, GPUTEL_STEP, GPUTEL_OFFSET, GPUTEL_DELTA, GPUTEL_DELTA2, GPUTEL_RAW,
       GPUTEL_BLOCKS };

#define GPUTEL_SHAPE 0x07
#define GPUTEL_SCALED 0x08
#define GPUTEL_DIFFERENCES 0x10
#define GPUTEL_LINKED 0x20
#define GPUTEL_FLOOR 0x80
#define GPUTEL_BLOCKS_SAMPLES_MIN 32
#define GPUTEL_SPAN_SCALED_MAX (1ull << 62)
#define GPUTEL_CHUNK_SAMPLES_MAX 65536
#define GPUTEL_BLOCKS_MAX (GPUTEL_CHUNK_SAMPLES_MAX / GPUTEL_GROUP)

typedef struct {
    int shape;
    int width;          /* of the shapes with one width */
    bool differences;   /* BLOCKS of them */
    int64_t head;       /* value, first or floor */
    int64_t delta;      /* step, or the first difference divided */
    uint64_t divisor;
    int twos;           /* of the divisor: it is odd << twos */
    uint64_t inverse;   /* of the odd part, modulo 2^64: an exact division is a product */
    size_t size;        /* bytes, the tag included */
    uint8_t controls[GPUTEL_BLOCKS_MAX + 1];
} gputel_plan;

/* The most bytes that a series of m numbers can take, and the slack to write them. */
static inline size_t gputel_series_bytes_max(size_t m)
{
    size_t blocks = m / GPUTEL_GROUP + 1;
    return 64 + GPUTEL_SLACK_BYTES + 8 * m + blocks * (1 + GPUTEL_VARINT_BYTES_MAX);
}

static inline int64_t gputel_divided(const gputel_plan *plan, int64_t number)
{
    return gputel_mul(number >> plan->twos, (int64_t)plan->inverse);
}

static inline void gputel_set_divisor(gputel_plan *plan, uint64_t divisor)
{
    plan->divisor = divisor;
    plan->twos = __builtin_ctzll(divisor);
    uint64_t odd = divisor >> plan->twos;
    uint64_t inverse = odd; /* right in 3 bits; each round doubles them (Newton) */
    for (int round = 0; round < 5; round++)
        inverse *= 2 - odd * inverse;
    plan->inverse = inverse;
}

static inline uint64_t gputel_gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The common divisor of all differences, of which the first is not 0 or a later one is not. */
static inline void gputel_plan_divisor(gputel_plan *plan, const int64_t *v, size_t m)
{
    uint64_t divisor = 0, most = 0;
    for (size_t i = 1; i < m && divisor != 1; i++) {
        int64_t delta = v[i] - v[i - 1];
        uint64_t size = delta < 0 ? 0 - (uint64_t)delta : (uint64_t)delta;
        if (!divisor) {
            if (!size)
                continue;
        } else {
            /* Divisible exactly when the product with the inverse, rotated, is no more than
             * the greatest quotient (Granlund and Montgomery, 1994, section 9). */
            uint64_t product = size * plan->inverse;
            product = product >> plan->twos | (plan->twos ? product << (64 - plan->twos) : 0);
            if (product <= most)
                continue;
        }
        divisor = divisor ? gputel_gcd(size, divisor) : size;
        gputel_set_divisor(plan, divisor);
        most = ~0ull / divisor;
    }
    gputel_set_divisor(plan, divisor ? divisor : 1);
}

/* One block of `count` numbers after `before`: its control byte; adds its bytes to *size. */
static inline uint8_t gputel_plan_block(
    const int64_t *numbers, size_t count, int64_t before, size_t *size)
{
    int64_t low = numbers[0], high = numbers[0];
    uint64_t steps = gputel_zigzag(gputel_sub(numbers[0], before));
    for (size_t i = 1; i < count; i++) {
        steps |= gputel_zigzag(gputel_sub(numbers[i], numbers[i - 1]));
        low = numbers[i] < low ? numbers[i] : low;
        high = numbers[i] > high ? numbers[i] : high;
    }
    int step_width = gputel_width(steps);
    int offset_width = gputel_width((uint64_t)high - (uint64_t)low);
    size_t step_bytes = gputel_packed_bytes(count, step_width);
    size_t offset_bytes = gputel_varint_bytes(gputel_zigzag(gputel_sub(low, before)))
                          + gputel_packed_bytes(count, offset_width);
    if (step_bytes <= offset_bytes) {
        *size += 1 + step_bytes;
        return (uint8_t)step_width;
    }
    *size += 1 + offset_bytes;
    return (uint8_t)(GPUTEL_FLOOR | offset_width);
}

/* `count` numbers of BLOCKS from index `at` of v on: s[i], or d[i] with `differences`. */
static inline void gputel_numbers(
    const gputel_plan *plan, bool differences, const int64_t *v, size_t at, size_t count,
    int64_t *numbers)
{
    const int64_t *from = v + at;
    if (differences)
        for (size_t i = 0; i < count; i++)
            numbers[i] = gputel_sub(from[i], from[(ptrdiff_t)i - 1]);
    else
        for (size_t i = 0; i < count; i++)
            numbers[i] = gputel_sub(from[i], v[0]);
    if (plan->divisor > 1)
        for (size_t i = 0; i < count; i++)
            numbers[i] = gputel_divided(plan, numbers[i]);
}

/* All blocks of one kind into `controls`; their bytes. */
static inline size_t gputel_plan_blocks(
    const gputel_plan *plan, bool differences, const int64_t *v, size_t m, uint8_t *controls)
{
    int64_t numbers[GPUTEL_GROUP];
    int64_t before = differences ? plan->delta : 0;
    size_t size = 0;
    for (size_t at = differences ? 2 : 1; at < m; at += GPUTEL_GROUP) {
        size_t count = m - at < GPUTEL_GROUP ? m - at : GPUTEL_GROUP;
        gputel_numbers(plan, differences, v, at, count, numbers);
        *controls++ = gputel_plan_block(numbers, count, before, &size);
        before = numbers[count - 1];
    }
    return size;
}

/* The shapes of one width; `span` is the greatest value less the least, divided. */
static inline void gputel_plan_short(
    gputel_plan *plan, const int64_t *v, size_t m, int64_t floor, uint64_t span)
{
    uint64_t deltas = 0, seconds = 0;
    int64_t last = plan->delta;
    for (size_t i = 1; i < m; i++) {
        int64_t delta = gputel_divided(plan, gputel_sub(v[i], v[i - 1]));
        deltas |= gputel_zigzag(delta);
        if (i > 1)
            seconds |= gputel_zigzag(gputel_sub(delta, last));
        last = delta;
    }
    int offset_width = gputel_width(span), delta_width = gputel_width(deltas);
    int second_width = gputel_width(seconds);
    size_t best = m * (size_t)offset_width, bits;
    plan->shape = GPUTEL_OFFSET;
    plan->width = offset_width;
    if ((bits = (m - 1) * (size_t)delta_width) < best) {
        best = bits;
        plan->shape = GPUTEL_DELTA;
        plan->width = delta_width;
    }
    if ((bits = (m - 2) * (size_t)second_width + (size_t)delta_width + 8) < best) {
        best = bits;
        plan->shape = GPUTEL_DELTA2;
        plan->width = second_width;
    }
    if (m * 64 < best) {
        plan->shape = GPUTEL_RAW;
        plan->size = 1 + 8 * m;
        return;
    }
    size_t count = m - (size_t)(plan->shape - GPUTEL_OFFSET);
    if (plan->shape == GPUTEL_OFFSET)
        plan->head = floor;
    plan->size = 2 + gputel_varint_bytes(gputel_zigzag(plan->head))
                 + (plan->divisor > 1 ? gputel_varint_bytes(plan->divisor) : 0)
                 + gputel_packed_bytes(count, plan->width);
    if (plan->shape == GPUTEL_DELTA2)
        plan->size += gputel_varint_bytes(gputel_zigzag(plan->delta));
}

/* Decide how the m >= 1 numbers at v are written. */
static inline void gputel_plan_series(gputel_plan *plan, const int64_t *v, size_t m)
{
    uint8_t others[GPUTEL_BLOCKS_MAX + 1];
    int64_t low = v[0], high = v[0];
    plan->head = v[0];
    plan->shape = GPUTEL_CONSTANT;
    plan->size = 1 + gputel_varint_bytes(gputel_zigzag(v[0]));
    if (m == 1 || !memcmp(v, v + 1, 8 * (m - 1)))
        return;
    size_t i = 2;
    plan->delta = gputel_sub(v[1], v[0]);
    while (i < m && gputel_sub(v[i], v[i - 1]) == plan->delta)
        i++;
    if (i == m) {
        plan->shape = GPUTEL_STEP;
        plan->size += gputel_varint_bytes(gputel_zigzag(plan->delta));
        return;
    }
    for (i = 1; i < m; i++) {
        low = v[i] < low ? v[i] : low;
        high = v[i] > high ? v[i] : high;
    }
    uint64_t span = (uint64_t)high - (uint64_t)low;
    if (span < GPUTEL_SPAN_SCALED_MAX)
        gputel_plan_divisor(plan, v, m);
    else
        gputel_set_divisor(plan, 1);
    plan->delta = gputel_divided(plan, plan->delta);
    if (m < GPUTEL_BLOCKS_SAMPLES_MIN) {
        gputel_plan_short(plan, v, m, low, span / plan->divisor);
        return;
    }
    plan->shape = GPUTEL_BLOCKS;
    plan->size += plan->divisor > 1 ? gputel_varint_bytes(plan->divisor) : 0;
    size_t plain = gputel_plan_blocks(plan, false, v, m, plan->controls);
    size_t differences = gputel_varint_bytes(gputel_zigzag(plan->delta))
                         + gputel_plan_blocks(plan, true, v, m, others);
    plan->differences = differences < plain;
    plan->size += plan->differences ? differences : plain;
    if (plan->differences)
        memcpy(plan->controls, others, m / GPUTEL_GROUP + 1);
}

static inline uint8_t *gputel_write_blocks(
    const gputel_plan *plan, const int64_t *v, size_t m, uint8_t *out)
{
    int64_t numbers[GPUTEL_GROUP];
    uint64_t packed[GPUTEL_GROUP];
    const uint8_t *controls = plan->controls;
    int64_t before = plan->differences ? plan->delta : 0;
    for (size_t at = plan->differences ? 2 : 1; at < m; at += GPUTEL_GROUP) {
        size_t count = m - at < GPUTEL_GROUP ? m - at : GPUTEL_GROUP;
        uint8_t control = *controls++;
        int width = control & ~GPUTEL_FLOOR;
        *out++ = control;
        gputel_numbers(plan, plan->differences, v, at, count, numbers);
        if (control & GPUTEL_FLOOR) {
            int64_t low = numbers[0];
            for (size_t i = 1; i < count; i++)
                low = numbers[i] < low ? numbers[i] : low;
            out = gputel_put_zigzag(out, gputel_sub(low, before));
            for (size_t i = 0; i < count; i++)
                packed[i] = (uint64_t)numbers[i] - (uint64_t)low;
        } else {
            packed[0] = gputel_zigzag(gputel_sub(numbers[0], before));
            for (size_t i = 1; i < count; i++)
                packed[i] = gputel_zigzag(gputel_sub(numbers[i], numbers[i - 1]));
        }
        out = gputel_pack(out, packed, count, width);
        before = numbers[count - 1];
    }
    return out;
}

/* The packed numbers of a shape of one width, all of a short series. */
static inline uint8_t *gputel_write_packed(
    const gputel_plan *plan, const int64_t *v, size_t m, uint8_t *out)
{
    uint64_t packed[GPUTEL_BLOCKS_SAMPLES_MIN];
    int64_t last = plan->delta;
    size_t count = 0;
    for (size_t i = (size_t)(plan->shape - GPUTEL_OFFSET); i < m; i++) {
        if (plan->shape == GPUTEL_OFFSET) {
            packed[count++] = (uint64_t)gputel_divided(plan, gputel_sub(v[i], plan->head));
            continue;
        }
        int64_t delta = gputel_divided(plan, gputel_sub(v[i], v[i - 1]));
        packed[count++] = gputel_zigzag(
            plan->shape == GPUTEL_DELTA ? delta : gputel_sub(delta, last));
        last = delta;
    }
    *out++ = (uint8_t)plan->width;
    return gputel_pack(out, packed, count, plan->width);
}

/* The tag, with `flags` more, of a planned series; what a link needs goes behind it. */
static inline uint8_t *gputel_write_tag(const gputel_plan *plan, uint8_t *out, int flags)
{
    bool divides = plan->shape >= GPUTEL_OFFSET && plan->shape != GPUTEL_RAW;
    if (divides && plan->divisor > 1)
        flags |= GPUTEL_SCALED;
    if (plan->shape == GPUTEL_BLOCKS && plan->differences)
        flags |= GPUTEL_DIFFERENCES;
    *out++ = (uint8_t)(plan->shape | flags);
    return out;
}

/* A planned series behind its tag; returns the end. */
static inline uint8_t *gputel_write_series(
    const gputel_plan *plan, const int64_t *v, size_t m, uint8_t *out)
{
    if (plan->shape == GPUTEL_RAW) {
        memcpy(out, v, 8 * m);
        return out + 8 * m;
    }
    out = gputel_put_zigzag(out, plan->head);
    if (plan->shape == GPUTEL_CONSTANT)
        return out;
    if (plan->shape == GPUTEL_STEP)
        return gputel_put_zigzag(out, plan->delta);
    if (plan->divisor > 1)
        out = gputel_put_varint(out, plan->divisor);
    if (plan->shape == GPUTEL_DELTA2 || (plan->shape == GPUTEL_BLOCKS && plan->differences))
        out = gputel_put_zigzag(out, plan->delta);
    if (plan->shape == GPUTEL_BLOCKS)
        return gputel_write_blocks(plan, v, m, out);
    return gputel_write_packed(plan, v, m, out);
}

#endif
