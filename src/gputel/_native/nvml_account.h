/* What a call has cost, and what its result means for the GPU.
 *
 * Every call is timed and its start is published (`since_ticks`), so that another thread can
 * see that it does not return. The end of a call is the start of the next one: what we do
 * between them, tens of nanoseconds, is accounted to the driver.
 *
 * PERF(timing): reading the clock costs as much as a cheap call. So where a GPU's whole sweep
 * took less than GPUTEL_CHEAP_NS the last time, its calls are timed in one sweep of
 * GPUTEL_TIMED_EVERY only, and count that many times; no driver of real GPUs is that cheap.
 * Between two such GPUs the clock is not read either, but once after the sweep.
 */
#ifndef GPUTEL_NVML_ACCOUNT_H
#define GPUTEL_NVML_ACCOUNT_H

#include "nvml_cells.h"

#define GPUTEL_CHEAP_NS 10000
#define GPUTEL_TIMED_EVERY 64

/* GPU number `slot` has been claimed, under the lock: begin, and decide whether its calls are
 * timed. */
static inline void gputel_reader_begin(gputel_reader *r)
{
    r->device = &r->core->device[r->slot];
    r->reading = gputel_reading_of(r->plan, r->slot);
    r->reading->attempted_ns = r->time_ns;
    r->generation = r->device->generation;
    r->start = r->device->claimed_ticks;
    if (!r->reading->is_cheap)
        r->weight = 1;
    else
        r->weight = ++r->reading->untimed % GPUTEL_TIMED_EVERY ? 0 : GPUTEL_TIMED_EVERY;
}

/* Before `finish`: was it cheap? The time is also the start of the next GPU's. */
static inline uint64_t gputel_timing_end(gputel_reader *r)
{
    uint64_t now;

    if (!r->weight)
        return r->device->claimed_ticks;
    now = gputel_ticks(&r->core->base);
    r->reading->is_cheap = now - r->device->claimed_ticks < r->core->cheap_ticks;
    return now;
}

/* After a sweep of `asked` GPUs, under the lock: when it was not cheap as a whole, all are timed
 * in the next. */
static inline void gputel_timing_check(gputel_reader *r, uint64_t start, int asked)
{
    if (asked && gputel_ticks(&r->core->base) - start >= asked * r->core->cheap_ticks)
        for (int slot = 0; slot < r->core->used; slot++)
            if (!atomic_load_explicit(&r->core->device[slot].busy, memory_order_relaxed))
                gputel_reading_of(r->plan, slot)->is_cheap = 0;
}

/* A call has returned well: account it, and begin the next. */
static inline void gputel_account_well(gputel_reader *r, int ask)
{
    gputel_add(&r->reading->calls[ask], 1);
    if (r->weight) {
        gputel_cost *cost = &r->reading->cost[ask];
        uint64_t now = gputel_ticks(&r->core->base);
        uint64_t ticks = now - r->start;

        r->start = now;
        atomic_store_explicit(&r->device->since_ticks, now, memory_order_relaxed);
        gputel_add(&cost->ticks, ticks * r->weight);
        if (ticks > gputel_get(&cost->ticks_max))
            atomic_store_explicit(&cost->ticks_max, ticks, memory_order_relaxed);
    }
}

static inline void gputel_account(gputel_reader *r, int ask, int outcome)
{
    gputel_account_well(r, ask);
    if (outcome != GPUTEL_OK)
        gputel_add(&r->reading->cost[ask].errors[outcome], 1);
}

/* What an answer means for its origin. A handle that answered and is now an invalid argument
 * says nothing of what is supported: like UNKNOWN, it is a sign that the GPU may be gone. */
static GPUTEL_COLD int gputel_judge_failure(gputel_reader *r, int origin, nvmlReturn_t code)
{
    int outcome = gputel_classify(code);

    if (code == NVML_ERROR_INVALID_ARGUMENT && r->reading->answered[origin])
        outcome = GPUTEL_TRANSIENT;
    if (outcome == GPUTEL_UNSUPPORTED) {
        r->reading->unsupported[origin] = 1;
        r->reading->fields_stale = r->reading->calls_stale = 1;
    }
    if (outcome == GPUTEL_TRANSIENT &&
        (code == NVML_ERROR_UNKNOWN || code == NVML_ERROR_INVALID_ARGUMENT))
        r->device->hopeless++;
    else
        r->device->others++;
    r->device->code = code;
    return outcome;
}

static inline int gputel_is_end(int outcome)
{
    return outcome == GPUTEL_LOST || outcome == GPUTEL_FATAL;
}

#endif
