/* The cheapest clock there is, for timing every driver call.
 *
 * PERF(ticks): clock_gettime twice a call costs as much as a simulated call; the time stamp
 * counter costs a third of that. It is used only where it is invariant (same rate in all
 * power states, on all cores), which CPUID says; elsewhere ticks are CLOCK_MONOTONIC's ns.
 * Its rate is measured against that clock from construction on, so that it needs no waiting:
 * by the time that anybody asks for nanoseconds, the base is long enough.
 */
#ifndef GPUTEL_NVML_TICKS_H
#define GPUTEL_NVML_TICKS_H

#include <stdint.h>
#include <time.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#endif

static inline uint64_t gputel_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

typedef struct {
    int counter; /* 1: time stamp counter, 0: nanoseconds */
    uint64_t ticks_start;
    uint64_t ns_start;
} gputel_ticks_base;

#define GPUTEL_TICKS_BASE_NS 1000000u /* too short a base says nothing of the rate */

static inline uint64_t gputel_ticks(const gputel_ticks_base *base)
{
#if defined(__x86_64__)
    if (base->counter)
        return __rdtsc();
#endif
    (void)base;
    return gputel_monotonic_ns();
}

static inline void gputel_ticks_init(gputel_ticks_base *base)
{
    base->counter = 0;
#if defined(__x86_64__)
    unsigned int a, b, c, d;
    if (__get_cpuid(0x80000007u, &a, &b, &c, &d))
        base->counter = (d >> 8) & 1;
#endif
    base->ns_start = gputel_monotonic_ns();
    base->ticks_start = gputel_ticks(base);
}

/* Nanoseconds a tick; measured anew at each call, which is for readers of statistics. */
static inline double gputel_ns_per_tick(const gputel_ticks_base *base)
{
    uint64_t ns = gputel_monotonic_ns() - base->ns_start;
    if (!base->counter)
        return 1.0;
    while (ns < GPUTEL_TICKS_BASE_NS)
        ns = gputel_monotonic_ns() - base->ns_start;
    return (double)ns / (double)(gputel_ticks(base) - base->ticks_start);
}

#endif
