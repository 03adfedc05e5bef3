/* Entering and leaving a call: counted, timed, delayed, checked and, when asked for, faulted. */
#include "driver.h"
#include "events.h"

#include <string.h>

#define COUNT(counter, n) atomic_fetch_add_explicit(&(counter), (n), memory_order_relaxed)
#define PRESENT(flag) __builtin_expect(atomic_load_explicit(&(flag), memory_order_acquire), 1)
#define RARE(flag) __builtin_expect(atomic_load_explicit(&(flag), memory_order_relaxed), 0)

static void host_advance(uint64_t now_ns)
{
    while (sim_fault_turn(&sim.host.faults, now_ns))
        ;
    sim.host.due_ns = sim_fault_next(&sim.host.faults);
}

static void delay(sim_call *call, sim_function function)
{
    if (atomic_load_explicit(&sim.timing, memory_order_relaxed))
        call->entered_ns = sim_read_clock(CLOCK_MONOTONIC);
    uint64_t latency_ns = sim.config.latency_ns[function];
    if (latency_ns)
        sim_pass(latency_ns, sim.config.spin);
}

static const sim_fault *in_force(const sim_target *target, sim_fault_kind kind, int function)
{
    const sim_fault_set *faults = &target->faults;
    if (!(faults->in_force & 1u << kind))
        return NULL;
    for (unsigned i = 0; i < faults->count; i++) {
        const sim_fault *fault = &faults->entries[i];
        if (fault->kind == kind && fault->started && !fault->ended && fault->field == SIM_ANY &&
            (fault->function == function || (fault->function == SIM_ANY && !SIM_IS_INIT(function))))
            return fault;
    }
    return NULL;
}

static void refresh(sim_target *target)
{
    uint64_t now = sim_now();
    if (now < target->due_ns)
        return;
    if (target == &sim.host)
        host_advance(now);
    else
        sim_gpu_advance((sim_gpu *)target, now);
}

/* Stay as long as a hang lasts. False when the library was shut down meanwhile; nvmlInit comes
 * before there is one to shut down. */
static bool hang(sim_target *target, sim_function function)
{
    const sim_fault *fault;
    while ((fault = in_force(target, SIM_FAULT_HANG, function))) {
        unsigned long long seen = sim_changes();
        uint64_t until_ns = sim_monotonic_at(fault->end_ns);
        pthread_mutex_unlock(&target->lock);
        sim_wait_for_change(seen, until_ns);
        pthread_mutex_lock(&target->lock);
        if (!atomic_load(&sim.users) && !SIM_IS_INIT(function))
            return false;
        refresh(target);
    }
    return true;
}

/* What the faults in force make of a call. */
static nvmlReturn_t faulted(sim_target *target, sim_function function, sim_reach reach)
{
    if (in_force(target, SIM_FAULT_NO_FUNCTION, function))
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    if (!hang(target, function))
        return NVML_ERROR_UNINITIALIZED;
    const sim_fault *slow = in_force(target, SIM_FAULT_SLOW, function);
    if (slow) {
        uint64_t slow_ns = slow->value * 1000;
        pthread_mutex_unlock(&target->lock);
        sim_pass(slow_ns, false);
        pthread_mutex_lock(&target->lock);
        refresh(target);
    }
    if (in_force(target, SIM_FAULT_REMOVE, function))
        return NVML_ERROR_GPU_IS_LOST;
    if (in_force(target, SIM_FAULT_NOT_SUPPORTED, function))
        return NVML_ERROR_NOT_SUPPORTED;
    if (reach == SIM_FROM_MEMORY)
        return NVML_SUCCESS;
    if (in_force(target, SIM_FAULT_LOST, function))
        return NVML_ERROR_GPU_IS_LOST;
    /* Drivers answer one way in some functions and the other way in the rest. */
    if (in_force(target, SIM_FAULT_FALLEN, function))
        return function % 2 ? NVML_ERROR_UNKNOWN : NVML_ERROR_GPU_IS_LOST;
    if (in_force(target, SIM_FAULT_RESET_REQUIRED, function))
        return NVML_ERROR_RESET_REQUIRED;
    return NVML_SUCCESS;
}

nvmlReturn_t sim_enter_gpu(sim_call *call, sim_function function, sim_reach reach,
                           nvmlDevice_t device, sim_gpu **gpu)
{
    COUNT(sim.calls[function], 1);
    if (RARE(sim.watchful))
        delay(call, function);
    if (!PRESENT(sim.users))
        return NVML_ERROR_UNINITIALIZED;
    sim_gpu *found = *gpu = sim_gpu_of(device);
    if (!found)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_target *target = call->held = &found->target;
    pthread_mutex_lock(&target->lock);
    uint64_t now = sim_now();
    if (now >= target->due_ns)
        sim_gpu_advance(found, now);
    if (__builtin_expect(target->faults.in_force, 0)) {
        nvmlReturn_t result = faulted(target, function, reach);
        if (result != NVML_SUCCESS)
            return result;
    }
    if (__builtin_expect(sim.config.mig[found->number].on | device->instance, 0)) {
        nvmlReturn_t result = sim_mig_call(device, function);
        if (result != NVML_SUCCESS || device->instance)
            return result;
    }
    if (device->incarnation != found->incarnation % SIM_INCARNATIONS)
        return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_SUCCESS;
}

nvmlReturn_t sim_enter_host(sim_call *call, sim_function function)
{
    COUNT(sim.calls[function], 1);
    if (RARE(sim.watchful))
        delay(call, function);
    if (!PRESENT(sim.users))
        return NVML_ERROR_UNINITIALIZED;
    return sim_host_faulted(function);
}

nvmlReturn_t sim_host_faulted(sim_function function)
{
    /* The lock is not kept: these calls look at many GPUs, or at none. */
    pthread_mutex_lock(&sim.host.lock);
    refresh(&sim.host);
    nvmlReturn_t result = NVML_SUCCESS;
    if (sim.host.faults.in_force)
        result = faulted(&sim.host, function, SIM_FROM_MEMORY);
    pthread_mutex_unlock(&sim.host.lock);
    return result;
}

void sim_stop_timing(sim_call *call)
{
    if (call->entered_ns)
        COUNT(sim.inside_ns, sim_read_clock(CLOCK_MONOTONIC) - call->entered_ns);
    call->entered_ns = 0;
}

void sim_release(sim_call *call)
{
    if (call->held)
        pthread_mutex_unlock(&call->held->lock);
    call->held = NULL;
}

void sim_leave(sim_call *call)
{
    sim_release(call);
    sim_stop_timing(call);
}

nvmlReturn_t sim_copy_text(char *buffer, unsigned length, const char *text)
{
    size_t size = strlen(text) + 1;
    if (length < size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(buffer, text, size);
    return NVML_SUCCESS;
}
