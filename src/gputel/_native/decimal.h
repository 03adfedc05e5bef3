/* Numbers as decimal text; the twin's are Python's own. What writes returns the size. */
#ifndef GPUTEL_DECIMAL_H
#define GPUTEL_DECIMAL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GPUTEL_U64_CHARS_MAX 20
#define GPUTEL_FIXED_LIMIT 0x1p43 /* its millionths are below 2^63 */
#define GPUTEL_FIXED_CHARS_MAX 21 /* -, 13 digits, the point and six more */

static inline size_t gputel_put_u64(char *out, uint64_t number)
{
    char digits[GPUTEL_U64_CHARS_MAX];
    size_t at = sizeof digits;
    do {
        digits[--at] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    memcpy(out, digits + at, sizeof digits - at);
    return sizeof digits - at;
}

static inline size_t gputel_put_i64(char *out, int64_t number)
{
    size_t sign = number < 0;
    *out = '-';
    return sign + gputel_put_u64(out + sign, sign ? -(uint64_t)number : (uint64_t)number);
}

/* The floor of number / divisor; divisor >= 1. */
static inline int64_t gputel_floor_divided(int64_t number, int64_t divisor)
{
    return number / divisor - (number % divisor < 0);
}

/* As `%f`, for |value| < GPUTEL_FIXED_LIMIT: the exact binary value, rounded to millionths half
 * to even. value = mantissa / 2^shift, so its millionths are 10^6 mantissa (73 bits) / 2^shift. */
static inline size_t gputel_put_fixed(char *out, double value)
{
    uint64_t bits, mantissa, millionths = 0;
    int exponent, shift;
    memcpy(&bits, &value, sizeof bits);
    exponent = (int)(bits >> 52 & 0x7FF);
    mantissa = bits & 0xFFFFFFFFFFFFFu;
    mantissa |= (uint64_t)(exponent > 0) << 52;
    shift = 1075 - (exponent ? exponent : 1);
    if (shift <= 73) { /* at 2^-74 even the largest is less than half a millionth */
        unsigned __int128 product = (unsigned __int128)mantissa * 1000000u;
        unsigned __int128 half = (unsigned __int128)1 << (shift - 1);
        unsigned __int128 rest = product & (2 * half - 1);
        millionths = (uint64_t)(product >> shift);
        millionths += rest > half || (rest == half && (millionths & 1));
    }
    size_t size = bits >> 63;
    *out = '-';
    size += gputel_put_u64(out + size, millionths / 1000000u);
    out[size] = '.';
    uint32_t fraction = (uint32_t)(millionths % 1000000u);
    for (size_t digit = 6; digit > 0; digit--, fraction /= 10)
        out[size + digit] = (char)('0' + fraction % 10);
    return size + 7;
}

#endif
