/* What the simulated libnvidia-ml.so.1 exports besides NVML: how a test steers it.
 *
 * All may be called from any thread, after nvmlInit was first called. Times are nanoseconds of
 * driver time, which is 0 when the simulated driver was loaded (the first nvmlInit, or
 * `anchor`). The text forms are documented in docs/reference/simulated-nvml.md.
 */
#ifndef GPUTEL_SIMNVML_H
#define GPUTEL_SIMNVML_H

#ifdef __cplusplus
extern "C" {
#endif

#define GPUTEL_SIM_API __attribute__((visibility("default")))

/* Load what GPUTEL_SIM describes, as nvmlInit does, but without the faults of nvmlInit. Its
 * nvmlReturn_t, with the reason on stderr when it is not 0. It may come before nvmlInit. */
GPUTEL_SIM_API int gputelSimCheck(void);

/* Driver time now. */
GPUTEL_SIM_API unsigned long long gputelSimTime(void);

/* Set driver time, which must have been configured with clock=manual. 0; or -1 without a
 * manual clock, for a time in the past, and for a step of more than a day. */
GPUTEL_SIM_API int gputelSimSetTime(unsigned long long time_ns);

/* Move driver time ahead, like gputelSimSetTime. */
GPUTEL_SIM_API int gputelSimAdvance(unsigned long long step_ns);

/* Add a fault, written as in GPUTEL_SIM behind `fault=`; its time counts from now. 0; or -1
 * with the reason on stderr. */
GPUTEL_SIM_API int gputelSimInject(const char *fault);

/* End all faults and forget those to come. What they did stays done. */
GPUTEL_SIM_API void gputelSimClearFaults(void);

/* Calls of one NVML function since the last reset, of all for NULL; 0 for an unknown name. */
GPUTEL_SIM_API unsigned long long gputelSimCalls(const char *function);

/* Wall nanoseconds that all threads spent inside NVML calls, waits for events left out;
 * counted only while timing is on (`timing=on`, or gputelSimSetTiming), because it costs two
 * readings of the clock a call. */
GPUTEL_SIM_API unsigned long long gputelSimInsideNs(void);
GPUTEL_SIM_API void gputelSimSetTiming(int on);

/* Events that a full event set had to forget, the oldest first. */
GPUTEL_SIM_API unsigned long long gputelSimEventsDropped(void);

/* Set all of these counters to 0. */
GPUTEL_SIM_API void gputelSimResetCounters(void);

#ifdef __cplusplus
}
#endif

#endif
