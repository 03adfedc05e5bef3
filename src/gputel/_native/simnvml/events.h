/* Event sets, of devices and of the system, and waiting for anything to change. */
#ifndef GPUTEL_SIM_EVENTS_H
#define GPUTEL_SIM_EVENTS_H

#include "driver.h"

#define SIM_EVENT_SETS_MAX 64
#define SIM_EVENTS_MAX 256 /* that wait in one set */

/* Put an event into all sets that registered for it; the GPU is locked. */
void sim_event_post(const sim_gpu *gpu, unsigned long long type, unsigned long long data);
void sim_system_event_post(const sim_gpu *gpu, unsigned long long type);

/* A GPU was removed: no set listens to it any more. */
void sim_events_forget(const sim_gpu *gpu);

/* The driver was loaded anew: no set exists any more. */
void sim_events_clear(void);

unsigned long long sim_events_dropped(void);
void sim_events_dropped_reset(void);

/* A count that grows whenever waiting threads should look again: the time was set, a fault
 * was injected, an event came, the library was shut down. */
unsigned long long sim_changes(void);
void sim_changed(void);

/* Wait until the count is no longer `seen`, or CLOCK_MONOTONIC is at `until_ns`. */
void sim_wait_for_change(unsigned long long seen, uint64_t until_ns);

/* The reading of CLOCK_MONOTONIC when driver time will be `time_ns`, or a little later;
 * never for a manual clock. */
uint64_t sim_monotonic_at(uint64_t time_ns);

#endif
