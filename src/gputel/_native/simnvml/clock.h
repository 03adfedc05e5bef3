/* Driver time: nanoseconds since the simulated driver was loaded, real or set by a test. */
#ifndef GPUTEL_SIM_CLOCK_H
#define GPUTEL_SIM_CLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Unix time of driver time 0 under a manual clock: 2023-11-14 22:13:20 UTC. */
#define SIM_MANUAL_UNIX_NS 1700000000000000000ULL

typedef struct {
    bool manual;
    clockid_t id;
    uint64_t origin_ns;      /* of the clock `id`, at driver time 0 */
    uint64_t unix_origin_ns; /* Unix time at driver time 0 */
    _Atomic uint64_t manual_ns;
} sim_clock;

extern sim_clock sim_time;

static inline uint64_t sim_read_clock(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Start driver time. `anchor_unix_ns` is the Unix time at which it is 0, or 0 for now. False
 * when the anchor is in the future, or longer ago than `age_max_ns`. */
bool sim_clock_start(bool manual, uint64_t refresh_ns, uint64_t anchor_unix_ns,
                     uint64_t age_max_ns);

static inline uint64_t sim_now(void)
{
    if (sim_time.manual)
        return atomic_load_explicit(&sim_time.manual_ns, memory_order_acquire);
    return sim_read_clock(sim_time.id) - sim_time.origin_ns;
}

/* Microseconds of Unix time, as the driver stamps its samples. */
static inline uint64_t sim_unix_us(uint64_t time_ns)
{
    return (sim_time.unix_origin_ns + time_ns) / 1000;
}

/* Let `ns` of real time pass, burning CPU or sleeping. */
void sim_pass(uint64_t ns, bool spin);

#endif
