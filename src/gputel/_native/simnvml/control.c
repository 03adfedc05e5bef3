/* simnvml.h: how a test steers the simulation. And the texts of errors. */
#include "simnvml.h"

#include "driver.h"
#include "events.h"

#include <stdio.h>

#define STEP_NS_MAX (24ULL * 3600 * 1000000000)

unsigned long long gputelSimTime(void)
{
    return sim_now();
}

int gputelSimSetTime(unsigned long long time_ns)
{
    uint64_t now = sim_now();
    if (!sim_time.manual || time_ns < now || time_ns - now > STEP_NS_MAX)
        return -1;
    atomic_store_explicit(&sim_time.manual_ns, time_ns, memory_order_release);
    sim_changed();
    return 0;
}

int gputelSimAdvance(unsigned long long step_ns)
{
    return step_ns > STEP_NS_MAX ? -1 : gputelSimSetTime(sim_now() + step_ns);
}

int gputelSimInject(const char *fault)
{
    char problem[256];
    sim_fault parsed;
    int gpu;
    if (!sim_fault_parse(fault, &parsed, &gpu, problem, sizeof problem)) {
        fprintf(stderr, "gputelSimInject: %s: %s\n", fault, problem);
        return -1;
    }
    if (!atomic_load(&sim.users) || gpu >= (int)sim.config.gpus) {
        fprintf(stderr, "gputelSimInject: %s: there is no such GPU\n", fault);
        return -1;
    }
    uint64_t now = sim_now();
    parsed.start_ns += now;
    if (parsed.end_ns != SIM_FOR_EVER)
        parsed.end_ns += now;
    if (!sim_inject(&parsed, gpu)) {
        fprintf(stderr, "gputelSimInject: %s: a GPU can have %d\n", fault, SIM_FAULTS_MAX);
        return -1;
    }
    return 0;
}

void gputelSimClearFaults(void)
{
    sim_clear_faults();
}

unsigned long long gputelSimCalls(const char *function)
{
    unsigned long long calls = 0;
    int only = function ? sim_function_named(function) : SIM_ANY;
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        if (!function || i == only)
            calls += atomic_load_explicit(&sim.calls[i], memory_order_relaxed);
    return calls;
}

unsigned long long gputelSimInsideNs(void)
{
    return atomic_load_explicit(&sim.inside_ns, memory_order_relaxed);
}

void gputelSimSetTiming(int on)
{
    atomic_store(&sim.timing, on != 0);
    atomic_store(&sim.watchful, true); /* delays look for themselves */
}

unsigned long long gputelSimEventsDropped(void)
{
    return sim_events_dropped();
}

void gputelSimResetCounters(void)
{
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        atomic_store_explicit(&sim.calls[i], 0, memory_order_relaxed);
    atomic_store_explicit(&sim.inside_ns, 0, memory_order_relaxed);
    sim_events_dropped_reset();
}

/* In our own words; clients show them and go by the codes. */
const char *nvmlErrorString(nvmlReturn_t result)
{
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNINITIALIZED: return "Uninitialized";
    case NVML_ERROR_INVALID_ARGUMENT: return "Invalid Argument";
    case NVML_ERROR_NOT_SUPPORTED: return "Not Supported";
    case NVML_ERROR_NO_PERMISSION: return "Insufficient Permissions";
    case NVML_ERROR_ALREADY_INITIALIZED: return "Already Initialized";
    case NVML_ERROR_NOT_FOUND: return "Not Found";
    case NVML_ERROR_INSUFFICIENT_SIZE: return "Insufficient Size";
    case NVML_ERROR_INSUFFICIENT_POWER: return "Insufficient External Power";
    case NVML_ERROR_DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case NVML_ERROR_TIMEOUT: return "Timeout";
    case NVML_ERROR_IRQ_ISSUE: return "Interrupt Request Issue";
    case NVML_ERROR_LIBRARY_NOT_FOUND: return "NVML Shared Library Not Found";
    case NVML_ERROR_FUNCTION_NOT_FOUND: return "Function Not Found";
    case NVML_ERROR_CORRUPTED_INFOROM: return "Corrupted infoROM";
    case NVML_ERROR_GPU_IS_LOST: return "GPU is lost";
    case NVML_ERROR_RESET_REQUIRED: return "GPU requires restart";
    case NVML_ERROR_OPERATING_SYSTEM: return "Operating System Call Failed";
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    case NVML_ERROR_IN_USE: return "In use by another client";
    case NVML_ERROR_MEMORY: return "Insufficient Memory";
    case NVML_ERROR_NO_DATA: return "No data";
    case NVML_ERROR_VGPU_ECC_NOT_SUPPORTED: return "ECC is not supported with vGPU";
    case NVML_ERROR_INSUFFICIENT_RESOURCES: return "Insufficient resources";
    case NVML_ERROR_FREQ_NOT_SUPPORTED: return "Frequency not supported";
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
    case NVML_ERROR_DEPRECATED: return "Deprecated";
    case NVML_ERROR_NOT_READY: return "Not ready";
    case NVML_ERROR_GPU_NOT_FOUND: return "No GPUs found";
    case NVML_ERROR_INVALID_STATE: return "Invalid state";
    default: return "Unknown Error";
    }
}
