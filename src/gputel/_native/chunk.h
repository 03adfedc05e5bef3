/* Chunks, written: columns in, bytes out. Drawn in gputel._reference.codec, the twin. */
#ifndef GPUTEL_CHUNK_H
#define GPUTEL_CHUNK_H

#include "crc32c.h"
#include "floats.h"
#include "links.h"
#include "series.h"

#define GPUTEL_VERSION 2
#define GPUTEL_PREAMBLE_BYTES 3
#define GPUTEL_CRC_BYTES 4
#define GPUTEL_COLUMNS_MAX 64
#define GPUTEL_ID_MAX 65535 /* of sets and metrics */

enum { GPUTEL_F32, GPUTEL_F64, GPUTEL_I64, GPUTEL_U64 };
enum { GPUTEL_SERIES = 0 << 3, GPUTEL_DECIMAL = 1 << 3, GPUTEL_SAME = 2 << 3, GPUTEL_PLAIN = 3 << 3 };

#define GPUTEL_STORAGE 0x03
#define GPUTEL_PARTIAL 0x04
#define GPUTEL_MODE 0x18

/* A column as it is given: n values of its storage, aligned; n bits of validity. */
typedef struct {
    const void *values;
    const uint8_t *valid;
    uint32_t id;
    int storage;
    size_t m; /* how many values are valid; gputel_count finds it */
} gputel_column;

/* Memory for writing: (columns + 2) rows of n integers, and a base a column. */
typedef struct {
    int64_t *rows;
    gputel_base *bases;
    size_t n;
    size_t present; /* columns written so far */
} gputel_scratch;

enum { GPUTEL_ROW_REST, GPUTEL_ROW_DENSE, GPUTEL_ROW_FIRST_COLUMN };

static inline int64_t *gputel_row(const gputel_scratch *scratch, size_t row)
{
    return scratch->rows + row * scratch->n;
}

static inline size_t gputel_value_bytes(int storage)
{
    return storage == GPUTEL_F32 ? 4 : 8;
}

static inline uint8_t gputel_last_mask(size_t n)
{
    return (uint8_t)(n % 8 ? (1u << n % 8) - 1 : 0xFF);
}

static inline bool gputel_bit(const uint8_t *bits, size_t i)
{
    return bits[i / 8] >> i % 8 & 1;
}

/* The bits set among the first n; what lies beyond is ignored. */
static inline size_t gputel_count(const uint8_t *bits, size_t n)
{
    size_t last = (n - 1) / 8;
    size_t count = (size_t)__builtin_popcount(bits[last] & gputel_last_mask(n));
    for (size_t i = 0; i < last; i++)
        count += (size_t)__builtin_popcount(bits[i]);
    return count;
}

/* The most bytes that a chunk can take, and the slack to write them. */
static inline size_t gputel_chunk_bytes_max(size_t n, size_t columns)
{
    return 64 + 8 * columns + (columns + 2) * (n / 8 + 8 + gputel_series_bytes_max(n));
}

/* The values of valid rows only, in `dense`. */
static inline void gputel_gather(const gputel_column *column, size_t n, void *dense)
{
    size_t m = 0;
    if (column->storage == GPUTEL_F32) {
        const uint32_t *from = column->values;
        for (size_t i = 0; i < n; i++)
            if (gputel_bit(column->valid, i))
                ((uint32_t *)dense)[m++] = from[i];
        return;
    }
    const uint64_t *from = column->values;
    for (size_t i = 0; i < n; i++)
        if (gputel_bit(column->valid, i))
            ((uint64_t *)dense)[m++] = from[i];
}

/* A column on its way out: its integers, how they are written, and from what predicted. */
typedef struct {
    const int64_t *integers;
    size_t m;
    gputel_plan plan;
    gputel_link link;
} gputel_planned;

static inline size_t gputel_planned_bytes(const gputel_planned *planned)
{
    return planned->plan.size + (planned->link.back ? gputel_link_bytes(&planned->link) : 0);
}

/* Plan the m integers of the next column, linked to an earlier one where that is smaller;
 * it becomes a base for those that follow. The rest after a prediction stays in its row. */
static inline void gputel_plan_column(
    gputel_scratch *scratch, const int64_t *integers, size_t m, gputel_planned *planned)
{
    gputel_base *own = &scratch->bases[scratch->present];
    planned->integers = integers;
    planned->m = m;
    planned->link.back = 0;
    gputel_plan_series(&planned->plan, integers, m);
    if (m < GPUTEL_LINK_SAMPLES_MIN)
        return;
    gputel_probe(own, integers, m);
    if (planned->plan.shape != GPUTEL_BLOCKS)
        return;
    gputel_link link = gputel_find_link(scratch->bases, scratch->present, own);
    if (!link.back)
        return;
    gputel_plan rest_plan;
    int64_t *rest = gputel_row(scratch, GPUTEL_ROW_REST);
    gputel_residuals(&link, own[-(ptrdiff_t)link.back].values, integers, m, rest);
    gputel_plan_series(&rest_plan, rest, m);
    if (rest_plan.size + gputel_link_bytes(&link) < planned->plan.size) {
        planned->integers = rest;
        planned->plan = rest_plan;
        planned->link = link;
    }
}

static inline uint8_t *gputel_write_planned(const gputel_planned *planned, uint8_t *out)
{
    const gputel_plan *plan = &planned->plan;
    out = gputel_write_tag(plan, out, planned->link.back ? GPUTEL_LINKED : 0);
    if (planned->link.back)
        out = gputel_write_link(&planned->link, out);
    return gputel_write_series(plan, planned->integers, planned->m, out);
}

/* m floats, all of one value's bits. */
static inline uint8_t *gputel_write_same(
    const void *values, int storage, uint8_t *out, int *mode)
{
    size_t size = gputel_value_bytes(storage);
    int64_t integer;
    gputel_plan plan;
    int k = gputel_decimals(values, storage == GPUTEL_F64, 1, &integer);
    if (k >= 0) {
        gputel_plan_series(&plan, &integer, 1);
        if (1 + plan.size < size) {
            *mode = GPUTEL_DECIMAL;
            *out++ = (uint8_t)k;
            out = gputel_write_tag(&plan, out, 0);
            return gputel_write_series(&plan, &integer, 1, out);
        }
    }
    *mode = GPUTEL_SAME;
    memcpy(out, values, size);
    return out + size;
}

/* m floats, not all the same; `row` is where their integers go. */
static inline uint8_t *gputel_write_floats(
    gputel_scratch *scratch, const void *values, int storage, size_t m, int64_t *row,
    uint8_t *out, int *mode)
{
    gputel_planned planned;
    bool wide = storage == GPUTEL_F64;
    size_t size = m * gputel_value_bytes(storage);
    int k = gputel_decimals(values, wide, m, row);
    if (k < 0 && wide)
        memcpy(row, values, size);
    else if (k < 0)
        for (size_t i = 0; i < m; i++)
            row[i] = ((const uint32_t *)values)[i];
    gputel_plan_column(scratch, row, m, &planned);
    if ((k >= 0) + gputel_planned_bytes(&planned) >= size) {
        *mode = GPUTEL_PLAIN;
        scratch->bases[scratch->present].values = NULL;
        memcpy(out, values, size);
        return out + size;
    }
    *mode = k >= 0 ? GPUTEL_DECIMAL : GPUTEL_SERIES;
    if (k >= 0)
        *out++ = (uint8_t)k;
    return gputel_write_planned(&planned, out);
}

static inline uint8_t *gputel_write_column(
    gputel_scratch *scratch, const gputel_column *column, uint8_t *out)
{
    size_t n = scratch->n, m = column->m, bitmap_bytes = (n + 7) / 8;
    int64_t *row = gputel_row(scratch, GPUTEL_ROW_FIRST_COLUMN + scratch->present);
    const void *values = column->values;
    bool integers = column->storage >= GPUTEL_I64;
    uint8_t *tag = out++;
    int mode = GPUTEL_SERIES;
    scratch->bases[scratch->present].values = NULL;
    if (m < n) {
        void *dense = integers ? row : gputel_row(scratch, GPUTEL_ROW_DENSE);
        gputel_gather(column, n, dense);
        values = dense;
        memcpy(out, column->valid, bitmap_bytes);
        out[bitmap_bytes - 1] &= gputel_last_mask(n);
        out += bitmap_bytes;
    }
    if (integers) {
        gputel_planned planned;
        gputel_plan_column(scratch, values, m, &planned);
        out = gputel_write_planned(&planned, out);
    } else {
        size_t size = gputel_value_bytes(column->storage);
        if (!memcmp(values, (const uint8_t *)values + size, size * (m - 1)))
            out = gputel_write_same(values, column->storage, out, &mode);
        else
            out = gputel_write_floats(scratch, values, column->storage, m, row, out, &mode);
    }
    *tag = (uint8_t)(column->storage | mode | (m < n ? GPUTEL_PARTIAL : 0));
    scratch->present++;
    return out;
}

/* The ids of columns that have a value, as runs. */
static inline uint8_t *gputel_write_ids(const gputel_column *columns, size_t count, uint8_t *out)
{
    uint32_t gaps[GPUTEL_COLUMNS_MAX], lengths[GPUTEL_COLUMNS_MAX], last = 0;
    size_t runs = 0;
    for (size_t j = 0; j < count; j++) {
        if (!columns[j].m)
            continue;
        if (runs && columns[j].id == last + 1) {
            lengths[runs - 1]++;
        } else {
            gaps[runs] = columns[j].id - last; /* modulo 2^32, so a negative one too */
            lengths[runs++] = 1;
        }
        last = columns[j].id;
    }
    out = gputel_put_varint(out, runs);
    for (size_t run = 0; run < runs; run++) {
        out = gputel_put_zigzag(out, (int32_t)gaps[run]);
        out = gputel_put_varint(out, lengths[run]);
    }
    return out;
}

/* The series of v[i] - origin. */
static inline uint8_t *gputel_write_offsets(
    gputel_scratch *scratch, const int64_t *v, int64_t origin, uint8_t *out)
{
    gputel_plan plan;
    int64_t *offsets = gputel_row(scratch, GPUTEL_ROW_REST);
    for (size_t i = 0; i < scratch->n; i++)
        offsets[i] = gputel_sub(v[i], origin);
    gputel_plan_series(&plan, offsets, scratch->n);
    out = gputel_write_tag(&plan, out, 0);
    return gputel_write_series(&plan, offsets, scratch->n, out);
}

/* A chunk of n rows at `out`, which has gputel_chunk_bytes_max; its size. */
static inline size_t gputel_write_chunk(
    gputel_scratch *scratch, uint32_t set_id, const int64_t *time_ns, const int64_t *sequence,
    gputel_column *columns, size_t count, uint8_t *out)
{
    uint8_t *begin = out;
    size_t n = scratch->n;
    int64_t t0 = time_ns[0], t1 = time_ns[0];
    for (size_t i = 1; i < n; i++) {
        t0 = time_ns[i] < t0 ? time_ns[i] : t0;
        t1 = time_ns[i] > t1 ? time_ns[i] : t1;
    }
    for (size_t j = 0; j < count; j++)
        columns[j].m = gputel_count(columns[j].valid, n);
    memcpy(out, "GC", 2);
    out[2] = GPUTEL_VERSION;
    out = gputel_put_varint(out + GPUTEL_PREAMBLE_BYTES, set_id);
    out = gputel_put_varint(out, n);
    memcpy(out, &t0, 8);
    out = gputel_put_varint(out + 8, (uint64_t)t1 - (uint64_t)t0);
    out = gputel_put_zigzag(out, sequence[0]);
    out = gputel_write_ids(columns, count, out);
    if (n > 1) {
        out = gputel_write_offsets(scratch, time_ns, t0, out);
        out = gputel_write_offsets(scratch, sequence, sequence[0], out);
    }
    scratch->present = 0;
    for (size_t j = 0; j < count; j++)
        if (columns[j].m)
            out = gputel_write_column(scratch, &columns[j], out);
    uint32_t crc = gputel_crc32c(begin, (size_t)(out - begin));
    memcpy(out, &crc, GPUTEL_CRC_BYTES);
    return (size_t)(out - begin) + GPUTEL_CRC_BYTES;
}

#endif
