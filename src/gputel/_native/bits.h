/* Varints, zigzag and packed numbers; the twin is gputel._reference.bits.
 *
 * Numbers are packed in groups of 16: a group of width w is exactly 2 w bytes, so that each
 * begins on a byte, whether the numbers are one long run or blocks.
 *
 * A writer needs GPUTEL_SLACK_BYTES more room than it fills: words are stored whole.
 */
#ifndef GPUTEL_BITS_H
#define GPUTEL_BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers are copied to and from bytes as they lie in memory: little-endian only"
#endif

#define GPUTEL_GROUP 16
#define GPUTEL_WIDTH_MAX 64
#define GPUTEL_VARINT_BYTES_MAX 10
#define GPUTEL_SLACK_BYTES 16

/* Why a chunk is refused; codec.pyx has the words for it. */
typedef enum {
    GPUTEL_OK,
    GPUTEL_TRUNCATED,
    GPUTEL_VARINT_LONG,
    GPUTEL_VARINT_ABOVE,
    GPUTEL_PADDING,
    GPUTEL_WIDTH,
    GPUTEL_SERIES_TAG,
    GPUTEL_DIVISOR,
    GPUTEL_DIFFERENCES_OF_ONE,
    GPUTEL_LINK_SHIFT,
    GPUTEL_LINK_BASE,
    GPUTEL_COLUMN_TAG,
    GPUTEL_BITMAP,
    GPUTEL_DECIMALS,
    GPUTEL_F32_BITS,
    GPUTEL_TIMES,
    GPUTEL_SEQUENCES,
    GPUTEL_LEFT_OVER,
    GPUTEL_SET_ID,
    GPUTEL_SAMPLES,
    GPUTEL_LATEST,
    GPUTEL_RUNS,
    GPUTEL_METRIC_IDS,
    GPUTEL_METRIC_TWICE,
} gputel_refusal;

/* Reads front to back and never past `end`; `position` is where the last read began to fail. */
typedef struct {
    const uint8_t *data;
    size_t position;
    size_t end;
} gputel_cursor;

/* Leave the function with the refusal of what it called, if there is one. */
#define GPUTEL_TRY(call)                \
    do {                                \
        gputel_refusal refusal_ = call; \
        if (refusal_ != GPUTEL_OK)      \
            return refusal_;            \
    } while (0)

static inline uint64_t gputel_zigzag(int64_t number)
{
    return (uint64_t)number << 1 ^ (uint64_t)(number >> 63);
}

static inline int64_t gputel_unzigzag(uint64_t number)
{
    return (int64_t)(number >> 1 ^ (0 - (number & 1)));
}

/* Modulo 2^64, where C's own signed sums are undefined. */
static inline int64_t gputel_add(int64_t a, int64_t b)
{
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

static inline int64_t gputel_sub(int64_t a, int64_t b)
{
    return (int64_t)((uint64_t)a - (uint64_t)b);
}

static inline int64_t gputel_mul(int64_t a, int64_t b)
{
    return (int64_t)((uint64_t)a * (uint64_t)b);
}

static inline int gputel_width(uint64_t number)
{
    return number ? 64 - __builtin_clzll(number) : 0;
}

static inline size_t gputel_packed_bytes(size_t count, int width)
{
    return (count * (size_t)width + 7) / 8;
}

static inline size_t gputel_varint_bytes(uint64_t number)
{
    return (size_t)(gputel_width(number | 1) + 6) / 7;
}

static inline uint8_t *gputel_put_varint(uint8_t *out, uint64_t number)
{
    while (number >= 0x80) {
        *out++ = (uint8_t)(number | 0x80);
        number >>= 7;
    }
    *out++ = (uint8_t)number;
    return out;
}

static inline uint8_t *gputel_put_zigzag(uint8_t *out, int64_t number)
{
    return gputel_put_varint(out, gputel_zigzag(number));
}

static inline gputel_refusal gputel_get_byte(gputel_cursor *cursor, uint8_t *byte)
{
    if (cursor->position >= cursor->end)
        return GPUTEL_TRUNCATED;
    *byte = cursor->data[cursor->position++];
    return GPUTEL_OK;
}

static inline gputel_refusal gputel_get_varint(gputel_cursor *cursor, uint64_t *number)
{
    uint64_t value = 0;
    uint8_t byte;
    for (int shift = 0; shift < 64; shift += 7) {
        GPUTEL_TRY(gputel_get_byte(cursor, &byte));
        if (shift == 63 && byte > 1)
            return byte < 0x80 ? GPUTEL_VARINT_ABOVE : GPUTEL_VARINT_LONG;
        value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *number = value;
            return GPUTEL_OK;
        }
    }
    return GPUTEL_VARINT_LONG;
}

static inline gputel_refusal gputel_get_zigzag(gputel_cursor *cursor, int64_t *number)
{
    uint64_t folded;
    GPUTEL_TRY(gputel_get_varint(cursor, &folded));
    *number = gputel_unzigzag(folded);
    return GPUTEL_OK;
}

static inline gputel_refusal gputel_take(gputel_cursor *cursor, size_t size, const uint8_t **bytes)
{
    if (size > cursor->end - cursor->position)
        return GPUTEL_TRUNCATED;
    *bytes = cursor->data + cursor->position;
    cursor->position += size;
    return GPUTEL_OK;
}

/* Pack `count` numbers, of any count; returns the end. The bits above `width` are 0. */
static inline uint8_t *gputel_pack(uint8_t *out, const uint64_t *numbers, size_t count, int width)
{
    uint8_t *end = out + gputel_packed_bytes(count, width);
    uint64_t word = 0;
    int used = 0;
    for (size_t i = 0; i < count; i++) {
        word |= numbers[i] << used;
        used += width;
        if (used >= 64) {
            memcpy(out, &word, 8);
            out += 8;
            used -= 64;
            /* What did not fit; a shift by all 64 bits would be undefined. */
            word = used ? numbers[i] >> (width - used) : 0;
        }
    }
    memcpy(out, &word, 8);
    return end;
}

/* Unpack one group: 1 to 16 numbers at `packed`, after which `readable` bytes may be read. */
static inline gputel_refusal gputel_unpack(
    const uint8_t *packed, size_t readable, size_t count, int width, uint64_t *numbers)
{
    uint8_t copy[2 * GPUTEL_WIDTH_MAX + GPUTEL_SLACK_BYTES];
    size_t bytes = gputel_packed_bytes(count, width);
    uint64_t mask = width == 64 ? ~0ull : (1ull << width) - 1;
    if (bytes * 8 != count * (size_t)width && packed[bytes - 1] >> (count * (size_t)width & 7))
        return GPUTEL_PADDING;
    if (readable < bytes + GPUTEL_SLACK_BYTES) {
        memcpy(copy, packed, bytes);
        memset(copy + bytes, 0, GPUTEL_SLACK_BYTES);
        packed = copy;
    }
    if (width <= 57) {
        for (size_t i = 0; i < count; i++) {
            size_t bit = i * (size_t)width;
            uint64_t word;
            memcpy(&word, packed + bit / 8, 8);
            numbers[i] = word >> bit % 8 & mask;
        }
        return GPUTEL_OK;
    }
    for (size_t i = 0; i < count; i++) {
        size_t bit = i * (size_t)width;
        uint64_t low, high;
        memcpy(&low, packed + bit / 8, 8);
        high = packed[bit / 8 + 8];
        numbers[i] = (low >> bit % 8 | (bit % 8 ? high << (64 - bit % 8) : 0)) & mask;
    }
    return GPUTEL_OK;
}

#endif
