/* Links between columns; drawn and explained in gputel._reference.links, the twin.
 *
 * The search adds floats in the twin's order, so that both come to the same link. It relies on
 * -ffp-contract=off, which -std=c11 implies: a fused product would round elsewhere.
 */
#ifndef GPUTEL_LINKS_H
#define GPUTEL_LINKS_H

#include <math.h>

#include "series.h"

#define GPUTEL_LINK_SAMPLES_MIN 32
#define GPUTEL_SHIFT_MAX 63
#define GPUTEL_PROBES_MIN 64
#define GPUTEL_PROBES_MAX (2 * GPUTEL_PROBES_MIN)
#define GPUTEL_CORRELATION_MIN 0.5
#define GPUTEL_WHOLE_TOLERANCE 0x1p-10
#define GPUTEL_FACTOR_SHIFT_MAX 30
#define GPUTEL_PRODUCT_MAX 0x1p62

typedef struct {
    uint64_t back; /* columns; 0: no link */
    int64_t factor;
    int shift;
} gputel_link;

/* What a column can be predicted from: its integers, and some of their steps. */
typedef struct {
    const int64_t *values; /* NULL: none */
    size_t m;
    double energy;
    double steps[GPUTEL_PROBES_MAX];
} gputel_base;

static inline size_t gputel_probes(size_t m, size_t *stride)
{
    *stride = (m - 1) / GPUTEL_PROBES_MIN > 1 ? (m - 1) / GPUTEL_PROBES_MIN : 1;
    return (m - 2) / *stride + 1;
}

static inline double gputel_product(const double *one, const double *other, size_t count)
{
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += one[i] * other[i];
    return total;
}

/* Make a base of the m >= 2 integers at v, which must outlive it. */
static inline void gputel_probe(gputel_base *base, const int64_t *v, size_t m)
{
    size_t stride, probes = gputel_probes(m, &stride);
    base->values = v;
    base->m = m;
    for (size_t i = 0; i < probes; i++)
        base->steps[i] = (double)gputel_sub(v[i * stride + 1], v[i * stride]);
    base->energy = gputel_product(base->steps, base->steps, probes);
}

static inline gputel_link gputel_link_of(uint64_t back, double slope, double span)
{
    gputel_link link = {0};
    if (!(fabs(slope) * span < GPUTEL_PRODUCT_MAX))
        return link;
    double whole = rint(slope);
    if (whole != 0 && fabs(slope - whole) <= GPUTEL_WHOLE_TOLERANCE)
        return (gputel_link){back, (int64_t)whole, 0};
    for (int shift = GPUTEL_FACTOR_SHIFT_MAX; shift > 0; shift--) {
        double scale = ldexp(1, shift);
        double factor = rint(slope * scale);
        if (span * 4 >= scale && fabs(factor) * span < GPUTEL_PRODUCT_MAX) {
            if (factor != 0)
                link = (gputel_link){back, (int64_t)factor, shift};
            return link;
        }
    }
    return link;
}

/* The link of column `own` to the one of the `count` before it that correlates best. */
static inline gputel_link gputel_find_link(
    const gputel_base *bases, size_t count, const gputel_base *own)
{
    const gputel_base *found = NULL;
    double best = GPUTEL_CORRELATION_MIN, slope = 0;
    size_t stride, probes = gputel_probes(own->m, &stride);
    for (size_t j = 0; j < count; j++) {
        const gputel_base *base = &bases[j];
        if (!base->values || base->m != own->m || base->energy == 0 || own->energy == 0)
            continue;
        double mixed = gputel_product(own->steps, base->steps, probes);
        double correlation = (mixed * mixed) / (own->energy * base->energy);
        if (correlation > best) {
            best = correlation;
            slope = mixed / base->energy;
            found = base;
        }
    }
    if (!found)
        return (gputel_link){0};
    int64_t low = found->values[0], high = low;
    for (size_t i = 1; i < found->m; i++) {
        low = found->values[i] < low ? found->values[i] : low;
        high = found->values[i] > high ? found->values[i] : high;
    }
    double span = (double)((uint64_t)high - (uint64_t)low);
    return gputel_link_of((uint64_t)(bases + count - found), slope, span);
}

static inline size_t gputel_link_bytes(const gputel_link *link)
{
    return gputel_varint_bytes(link->back) + gputel_varint_bytes(gputel_zigzag(link->factor)) + 1;
}

static inline uint8_t *gputel_write_link(const gputel_link *link, uint8_t *out)
{
    out = gputel_put_varint(out, link->back);
    out = gputel_put_zigzag(out, link->factor);
    *out++ = (uint8_t)link->shift;
    return out;
}

static inline gputel_refusal gputel_read_link(gputel_cursor *cursor, gputel_link *link)
{
    uint8_t shift;
    GPUTEL_TRY(gputel_get_varint(cursor, &link->back));
    GPUTEL_TRY(gputel_get_zigzag(cursor, &link->factor));
    GPUTEL_TRY(gputel_get_byte(cursor, &shift));
    link->shift = shift;
    return shift > GPUTEL_SHIFT_MAX ? GPUTEL_LINK_SHIFT : GPUTEL_OK;
}

/* rest = v - prediction from u; all of m integers. */
static inline void gputel_residuals(
    const gputel_link *link, const int64_t *u, const int64_t *v, size_t m, int64_t *rest)
{
    int64_t first = u[0];
    for (size_t i = 0; i < m; i++)
        rest[i] = gputel_sub(
            v[i], gputel_mul(link->factor, gputel_sub(u[i], first)) >> link->shift);
}

/* The inverse, in place. */
static inline void gputel_add_prediction(
    const gputel_link *link, const int64_t *u, size_t m, int64_t *v)
{
    int64_t first = u[0];
    for (size_t i = 0; i < m; i++)
        v[i] = gputel_add(
            v[i], gputel_mul(link->factor, gputel_sub(u[i], first)) >> link->shift);
}

#endif
