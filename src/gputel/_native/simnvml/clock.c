#include "clock.h"

#include <errno.h>

/* PERF(coarse): the coarse clock is read in a sixth of the time of the fine one and moves at
 * the kernel's tick, 1 to 10 ms; it does for values that change every 20 ms or slower. */
#define COARSE_REFRESH_NS 20000000ULL

sim_clock sim_time;

bool sim_clock_start(bool manual, uint64_t refresh_ns, uint64_t anchor_unix_ns,
                     uint64_t age_max_ns)
{
    sim_time.manual = manual;
    atomic_store(&sim_time.manual_ns, 0);
    if (manual) {
        sim_time.unix_origin_ns = anchor_unix_ns ? anchor_unix_ns : SIM_MANUAL_UNIX_NS;
        return true;
    }
    sim_time.id = refresh_ns < COARSE_REFRESH_NS ? CLOCK_MONOTONIC : CLOCK_MONOTONIC_COARSE;
    uint64_t now_unix_ns = sim_read_clock(CLOCK_REALTIME);
    uint64_t now_ns = sim_read_clock(sim_time.id);
    if (anchor_unix_ns == 0)
        anchor_unix_ns = now_unix_ns;
    if (anchor_unix_ns > now_unix_ns || now_unix_ns - anchor_unix_ns > age_max_ns)
        return false;
    /* May wrap when the machine was started after the anchor; differences are still right. */
    sim_time.origin_ns = now_ns - (now_unix_ns - anchor_unix_ns);
    sim_time.unix_origin_ns = anchor_unix_ns;
    return true;
}

void sim_pass(uint64_t ns, bool spin)
{
    uint64_t end = sim_read_clock(CLOCK_MONOTONIC) + ns;
    if (spin) {
        while (sim_read_clock(CLOCK_MONOTONIC) < end)
            ;
        return;
    }
    struct timespec until = {(time_t)(end / 1000000000), (long)(end % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}
