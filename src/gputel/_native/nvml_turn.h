/* Who may ask which GPU: so that a call that does not return stops no other GPU.
 *
 *   turn      one number for all: a thread that sweeps holds it. `abandon` takes it away from
 *             a thread that is stuck in a call, and the next thread goes on with the sweep.
 *   claim     one flag a GPU: the thread that has set it is the only one to ask this GPU, and
 *             to use its buffers, however long its call takes, even without the turn.
 *
 *     thread A   claim 0 .. finish  claim 1 .. call hangs ...................... finish
 *     watchdog                                     abandon
 *     thread B                                         claim 2 .. claim 3 .. (1 is busy)
 *
 * When A's call returns, its row still counts, for it was merely slow; A sees that the turn
 * is not its own and ends. If the GPU was given up meanwhile (`detach`), its generation has
 * changed and the row is discarded. Rows are written, and all of this changes, under one lock
 * that is held for nanoseconds and never during a call. A sweep takes it once a GPU: to write
 * the row of one and to claim the next.
 */
#ifndef GPUTEL_NVML_TURN_H
#define GPUTEL_NVML_TURN_H

#include <sched.h>

#include "nvml_plan.h"

#define GPUTEL_NOBODY (-1)
#define GPUTEL_LOG_MAX 1024

typedef struct {
    _Atomic int locked;
    _Atomic uint64_t turn;
    _Atomic int current; /* the device that the turn's thread has claimed */
    _Atomic int closing;
    _Atomic int entries;
    uint64_t overflow; /* notes that found no room */
    gputel_note log[GPUTEL_LOG_MAX];
} gputel_turns;

/* PERF(lock): uncontended but for a takeover; a mutex costs three times as much, twice a GPU. */
static inline void gputel_lock(gputel_turns *turns)
{
    while (atomic_exchange_explicit(&turns->locked, 1, memory_order_acquire))
        sched_yield();
}

static inline void gputel_unlock(gputel_turns *turns)
{
    atomic_store_explicit(&turns->locked, 0, memory_order_release);
}

static inline int gputel_has_turn(gputel_turns *turns, uint64_t turn)
{
    return atomic_load_explicit(&turns->turn, memory_order_acquire) == turn;
}

/* PERF(flags): changed under the lock only, so that a locked instruction would buy nothing. */
static inline int gputel_flag(_Atomic int *flag)
{
    return atomic_load_explicit(flag, memory_order_relaxed);
}

static inline void gputel_set_flag(_Atomic int *flag, int value)
{
    atomic_store_explicit(flag, value, memory_order_relaxed);
}

/* Is the GPU free, and the turn the caller's? Then the GPU is, too. The call's clock starts:
 * whatever the thread does until `finish` is under watch. Under the lock. */
static inline int gputel_claim(
    gputel_turns *turns, gputel_core *core, uint64_t turn, int slot, uint64_t now_ticks)
{
    gputel_device *device = &core->device[slot];

    if (!gputel_has_turn(turns, turn) || gputel_flag(&device->busy))
        return 0;
    gputel_set_flag(&device->busy, 1);
    device->notes = 0;
    device->claimed_ticks = now_ticks;
    atomic_store_explicit(&device->since_ticks, now_ticks, memory_order_relaxed);
    atomic_store_explicit(&turns->current, slot, memory_order_relaxed);
    return 1;
}

/* How far a sweep is. GPUs that were slow the last time come last: they delay no other. */
typedef struct {
    int slot;
    int slow;   /* is it the turn of the slow ones? */
    int passed; /* slow ones that were passed over */
} gputel_round;

/* The next GPU that is attached and not yet asked for this tick; GPUTEL_NOBODY after the last.
 * Under the lock. */
static inline int gputel_next(
    gputel_core *core, int plan, int64_t time_ns, gputel_round *round)
{
    for (;;) {
        while (round->slot < core->used) {
            int slot = round->slot++;
            gputel_device *device = &core->device[slot];

            if (!gputel_flag(&device->attached) ||
                gputel_reading_of(&core->plan[plan], slot)->attempted_ns == time_ns)
                continue;
            if (device->is_slow == round->slow)
                return slot;
            round->passed++;
        }
        if (round->slow || !round->passed)
            return GPUTEL_NOBODY;
        round->slow = 1;
        round->slot = 0;
    }
}

/* The end of `claim`, under the lock: is the turn still the caller's? */
static inline int gputel_finish(gputel_turns *turns, gputel_core *core, uint64_t turn, int slot)
{
    gputel_device *device = &core->device[slot];
    int mine = gputel_has_turn(turns, turn);

    atomic_store_explicit(&device->since_ticks, 0, memory_order_relaxed);
    gputel_set_flag(&device->busy, 0);
    if (mine) {
        device->is_slow = 0;
        atomic_store_explicit(&turns->current, GPUTEL_NOBODY, memory_order_relaxed);
    }
    return mine;
}

static inline void gputel_detach_locked(gputel_device *device)
{
    gputel_set_flag(&device->attached, 0);
    device->generation++;
}

static inline void gputel_log(gputel_turns *turns, const gputel_note *note)
{
    int entries = turns->entries;

    if (entries == GPUTEL_LOG_MAX) {
        turns->overflow++;
        return;
    }
    turns->log[entries] = *note;
    turns->entries = entries + 1;
}

/* How long the call in progress lasts, 0 when there is none. The stamps of two cores may differ
 * by a little, so the difference is signed. */
static inline int64_t gputel_age_ticks(gputel_core *core, int slot)
{
    uint64_t since = core->device[slot].since_ticks;

    return since ? (int64_t)(gputel_ticks(&core->base) - since) : 0;
}

/* Take the turn from a thread that is in a call for longer than `limit_ticks`; 0 when none is. */
static inline int gputel_abandon(gputel_turns *turns, gputel_core *core, int64_t limit_ticks)
{
    int slot, taken = 0;

    gputel_lock(turns);
    slot = turns->current;
    if (slot != GPUTEL_NOBODY && gputel_age_ticks(core, slot) >= limit_ticks) {
        core->device[slot].is_slow = 1;
        turns->current = GPUTEL_NOBODY;
        turns->turn++;
        taken = 1;
    }
    gputel_unlock(turns);
    return taken;
}

#endif
