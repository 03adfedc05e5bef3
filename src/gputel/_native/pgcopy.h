/* Fields of the COPY stream, each at `out`, where there is room; the byte behind it is returned.
 *
 *   length i32 | payload      in network byte order; the payloads are drawn in
 *                             gputel/_reference/pgcopy.py
 *
 * Our machines are little-endian. Cells are read and bytes written by memcpy: neither is aligned.
 */
#ifndef GPUTEL_PGCOPY_H
#define GPUTEL_PGCOPY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GPUTEL_EPOCH_2000_US INT64_C(946684800000000)
#define GPUTEL_ARRAY_HEAD_BYTES 20

static inline char *gputel_put16(char *out, uint16_t number)
{
    number = __builtin_bswap16(number);
    memcpy(out, &number, sizeof number);
    return out + sizeof number;
}

static inline char *gputel_put32(char *out, uint32_t number)
{
    number = __builtin_bswap32(number);
    memcpy(out, &number, sizeof number);
    return out + sizeof number;
}

static inline char *gputel_put64(char *out, uint64_t number)
{
    number = __builtin_bswap64(number);
    memcpy(out, &number, sizeof number);
    return out + sizeof number;
}

static inline uint64_t gputel_load64(const char *cell)
{
    uint64_t bits;
    memcpy(&bits, cell, sizeof bits);
    return bits;
}

static inline char *gputel_put_null(char *out)
{
    return gputel_put32(out, UINT32_MAX);
}

/* An i64 as an integer of `bytes` bytes, 2, 4 or 8; NULL when it does not fit. */
static inline char *gputel_put_integer(char *out, int bytes, const char *cell)
{
    int64_t number = (int64_t)gputel_load64(cell);
    out = gputel_put32(out, (uint32_t)bytes);
    if (bytes == 8)
        return gputel_put64(out, (uint64_t)number);
    if (bytes == 4 && number == (int32_t)number)
        return gputel_put32(out, (uint32_t)number);
    if (bytes == 2 && number == (int16_t)number)
        return gputel_put16(out, (uint16_t)number);
    return NULL;
}

/* Nanoseconds since 1970 as microseconds since 2000, floored. */
static inline char *gputel_put_time(char *out, const char *cell)
{
    int64_t time_ns = (int64_t)gputel_load64(cell);
    int64_t time_us = time_ns / 1000 - (time_ns % 1000 < 0);
    return gputel_put64(gputel_put32(out, 8), (uint64_t)(time_us - GPUTEL_EPOCH_2000_US));
}

/* `size` numbers of 8 bytes, `stride` bytes apart, as an array of integers or, with `bytes` 8,
 * of the same bits; NULL when one does not fit, at which `culprit` then points. */
static inline char *gputel_put_array(char *out, int bytes, uint32_t oid, const char *cells,
                                     ptrdiff_t size, ptrdiff_t stride, const char **culprit)
{
    char *start = out;
    out = gputel_put32(out + 4, size ? 1 : 0); /* dimensions */
    out = gputel_put32(out, 0); /* NULLs */
    out = gputel_put32(out, oid);
    if (size) {
        out = gputel_put32(out, (uint32_t)size);
        out = gputel_put32(out, 1); /* the first index */
    }
    for (ptrdiff_t i = 0; i < size; i++) {
        out = gputel_put_integer(out, bytes, cells + i * stride);
        if (!out) {
            *culprit = cells + i * stride;
            return NULL;
        }
    }
    gputel_put32(start, (uint32_t)(out - start - 4));
    return out;
}

static inline char *gputel_put_bytes(char *out, const char *data, ptrdiff_t size)
{
    out = gputel_put32(out, (uint32_t)size);
    memcpy(out, data, (size_t)size);
    return out + size;
}

#endif
