/* Floats as decimal integers, where no bit is lost by it; the twin is gputel._reference.floats. */
#ifndef GPUTEL_FLOATS_H
#define GPUTEL_FLOATS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define GPUTEL_DECIMALS_MAX 9
#define GPUTEL_DECIMAL_INTEGER_MAX 0x1p53 /* every integer up to here is a f64 */
#define GPUTEL_DECIMALS_STEP 32

static const double gputel_powers[GPUTEL_DECIMALS_MAX + 1] = {
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9};

/* To the nearest integer, half to even: rint() where it is a function call. |x| < 2^62. */
static inline double gputel_nearest(double x)
{
    double size = fabs(x);
    double rounded = (size + 0x1p52) - 0x1p52;
    return copysign(size < 0x1p52 ? rounded : size, x);
}

static inline uint64_t gputel_f64_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, 8);
    return bits;
}

static inline uint32_t gputel_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Do k decimals give back the bits of all m values? Their integers are left in `integers`. */
static inline bool gputel_decimals_f64(const double *values, size_t m, int k, int64_t *integers)
{
    double power = gputel_powers[k];
    for (size_t at = 0; at < m; at += GPUTEL_DECIMALS_STEP) {
        size_t count = m - at < GPUTEL_DECIMALS_STEP ? m - at : GPUTEL_DECIMALS_STEP;
        uint64_t wrong = 0;
        for (size_t i = at; i < at + count; i++) {
            double scaled = values[i] * power;
            bool fits = fabs(scaled) <= GPUTEL_DECIMAL_INTEGER_MAX; /* no NaN does */
            integers[i] = (int64_t)gputel_nearest(fits ? scaled : 0);
            double back = (double)integers[i] / power;
            wrong |= (gputel_f64_bits(back) ^ gputel_f64_bits(values[i])) | !fits;
        }
        if (wrong)
            return false;
    }
    return true;
}

static inline bool gputel_decimals_f32(const float *values, size_t m, int k, int64_t *integers)
{
    double power = gputel_powers[k];
    for (size_t i = 0; i < m; i++) {
        double scaled = (double)values[i] * power;
        if (!(fabs(scaled) <= GPUTEL_DECIMAL_INTEGER_MAX))
            return false;
        integers[i] = (int64_t)gputel_nearest(scaled);
        float back = (float)((double)integers[i] / power);
        if (gputel_f32_bits(back) != gputel_f32_bits(values[i]))
            return false;
    }
    return true;
}

/* The fewest decimals that give back the bits of all m values, or -1. */
static inline int gputel_decimals(const void *values, bool wide, size_t m, int64_t *integers)
{
    for (int k = 0; k <= GPUTEL_DECIMALS_MAX; k++)
        if (wide ? gputel_decimals_f64(values, m, k, integers)
                 : gputel_decimals_f32(values, m, k, integers))
            return k;
    return -1;
}

#endif
