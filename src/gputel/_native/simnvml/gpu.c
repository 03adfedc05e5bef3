/* The GPUs of the simulated driver: their handles, and what faults do to them. */
#include "driver.h"
#include "events.h"

#define XID_DOUBLE_BIT_ECC 48
#define XID_FALLEN_OFF_THE_BUS 79

sim_driver sim;

struct nvmlDevice_st sim_handles[SIM_GPUS_MAX][SIM_INCARNATIONS];
struct nvmlDevice_st sim_mig_handles[SIM_GPUS_MAX][SIM_MIG_MAX];

nvmlDevice_t sim_handle(const sim_gpu *gpu)
{
    return &sim_handles[gpu->number][gpu->incarnation % SIM_INCARNATIONS];
}

static bool is_in(nvmlDevice_t device, const void *handles, size_t bytes)
{
    uintptr_t offset = (uintptr_t)device - (uintptr_t)handles;
    return offset < bytes && offset % sizeof *device == 0;
}

sim_gpu *sim_gpu_of(nvmlDevice_t device)
{
    if (!is_in(device, sim_handles, sizeof sim_handles) &&
        !is_in(device, sim_mig_handles, sizeof sim_mig_handles))
        return NULL;
    return device->number < sim.config.gpus ? &sim.gpus[device->number] : NULL;
}

static void restore(sim_gpu *gpu)
{
    gpu->removed = false;
    gpu->incarnation++;
    sim_model_reset(&gpu->model);
    sim_system_event_post(gpu, nvmlSystemEventTypeGpuDriverBind);
}

static void end_removals(sim_gpu *gpu)
{
    sim_fault_set *faults = &gpu->target.faults;
    for (unsigned i = 0; i < faults->count; i++)
        if (faults->entries[i].kind == SIM_FAULT_REMOVE && faults->entries[i].started)
            faults->entries[i].ended = true;
    faults->in_force &= ~(1u << SIM_FAULT_REMOVE);
    if (gpu->removed)
        restore(gpu);
}

/* A fault of one function changes its answers, not the GPU. */
static bool of_one_function(const sim_fault *fault)
{
    return fault->function != SIM_ANY;
}

static void begin_fault(sim_gpu *gpu, const sim_fault *fault)
{
    if (of_one_function(fault))
        return;
    switch (fault->kind) {
    case SIM_FAULT_XID:
        sim_event_post(gpu, nvmlEventTypeXidCriticalError, fault->value);
        break;
    case SIM_FAULT_ECC_SBE:
        sim_model_correct_errors(&gpu->model, fault->value);
        sim_event_post(gpu, nvmlEventTypeSingleBitEccError, fault->value);
        break;
    case SIM_FAULT_ECC_DBE:
        sim_model_fail_memory(&gpu->model, fault->value);
        sim_event_post(gpu, nvmlEventTypeDoubleBitEccError, fault->value);
        sim_event_post(gpu, nvmlEventTypeXidCriticalError, XID_DOUBLE_BIT_ECC);
        break;
    case SIM_FAULT_ENERGY_RESET:
        gpu->model.energy_nj = 0;
        break;
    case SIM_FAULT_FALLEN:
        sim_event_post(gpu, nvmlEventTypeXidCriticalError, XID_FALLEN_OFF_THE_BUS);
        sim_event_post(gpu, nvmlEventTypeGpuUnavailableError, 0);
        break;
    case SIM_FAULT_LOST:
        sim_event_post(gpu, nvmlEventTypeGpuUnavailableError, 0);
        break;
    case SIM_FAULT_RESET_REQUIRED:
        sim_event_post(gpu, nvmlEventTypeGpuRecoveryAction, NVML_GPU_RECOVERY_ACTION_GPU_RESET);
        break;
    case SIM_FAULT_REMOVE:
        gpu->removed = true;
        sim_events_forget(gpu);
        sim_system_event_post(gpu, nvmlSystemEventTypeGpuDriverUnbind);
        break;
    case SIM_FAULT_RESTORE:
        end_removals(gpu);
        break;
    default: /* the others change answers alone */
        break;
    }
}

static void end_fault(sim_gpu *gpu, const sim_fault *fault)
{
    bool reset = fault->kind == SIM_FAULT_LOST || fault->kind == SIM_FAULT_FALLEN ||
                 fault->kind == SIM_FAULT_RESET_REQUIRED;
    if (reset && !of_one_function(fault))
        sim_model_reset(&gpu->model);
    if (fault->kind == SIM_FAULT_REMOVE && gpu->removed)
        restore(gpu);
}

static void turn_fault(sim_gpu *gpu, uint64_t now_ns)
{
    const sim_fault *fault = sim_fault_turn(&gpu->target.faults, now_ns);
    if (SIM_FAULT_LASTS(fault->kind) && fault->ended)
        end_fault(gpu, fault);
    else
        begin_fault(gpu, fault);
}

void sim_gpu_advance(sim_gpu *gpu, uint64_t now_ns)
{
    sim_model *model = &gpu->model;
    for (;;) {
        uint64_t step = model->time_ns + model->step_ns;
        uint64_t fault = sim_fault_next(&gpu->target.faults);
        uint64_t next = step < fault ? step : fault;
        next = model->next_sbe_ns < next ? model->next_sbe_ns : next;
        if (next > now_ns) {
            gpu->target.due_ns = next;
            return;
        }
        if (next == fault) {
            turn_fault(gpu, next);
        } else if (next == model->next_sbe_ns) {
            sim_model_correct_errors(model, 1);
            sim_model_draw_sbe(model);
            sim_event_post(gpu, nvmlEventTypeSingleBitEccError, 1);
        } else {
            sim_model_step(model);
        }
    }
}

bool sim_gpu_visible(sim_gpu *gpu, nvmlReturn_t *lookup)
{
    pthread_mutex_lock(&gpu->target.lock);
    uint64_t now = sim_now();
    if (now >= gpu->target.due_ns)
        sim_gpu_advance(gpu, now);
    bool visible = !gpu->removed;
    *lookup = NVML_SUCCESS;
    const sim_fault_set *faults = &gpu->target.faults;
    for (unsigned i = 0; i < faults->count; i++)
        if (faults->entries[i].kind == SIM_FAULT_LOST && faults->entries[i].started &&
            !faults->entries[i].ended && !of_one_function(&faults->entries[i]))
            *lookup = faults->entries[i].lookup;
    pthread_mutex_unlock(&gpu->target.lock);
    return visible;
}

unsigned sim_gpu_index(const sim_gpu *gpu)
{
    unsigned index = 0;
    nvmlReturn_t lookup;
    for (sim_gpu *other = sim.gpus; other < gpu; other++)
        index += sim_gpu_visible(other, &lookup);
    return index;
}

static bool concerns_host(const sim_fault *fault)
{
    return SIM_FAULT_OF_HOST(fault->kind) && fault->field == SIM_ANY;
}

static bool put(sim_target *target, const sim_fault *fault)
{
    pthread_mutex_lock(&target->lock);
    bool added = sim_fault_add(&target->faults, fault);
    target->due_ns = 0;
    pthread_mutex_unlock(&target->lock);
    return added;
}

bool sim_inject(const sim_fault *fault, int gpu)
{
    bool added = true;
    if (gpu != SIM_ANY)
        added = put(&sim.gpus[gpu].target, fault);
    bool all = gpu == SIM_ANY && fault->function != SIM_nvmlInit_v2;
    for (unsigned i = 0; all && i < sim.config.gpus; i++)
        added &= put(&sim.gpus[i].target, fault);
    if (gpu == SIM_ANY && concerns_host(fault))
        added &= put(&sim.host, fault);
    sim_changed();
    return added;
}

void sim_clear_faults(void)
{
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        sim_gpu *gpu = &sim.gpus[i];
        pthread_mutex_lock(&gpu->target.lock);
        for (unsigned j = 0; j < gpu->target.faults.count; j++) {
            sim_fault *fault = &gpu->target.faults.entries[j];
            if (fault->started && !fault->ended) {
                fault->ended = true;
                end_fault(gpu, fault);
            }
        }
        gpu->target.faults = (sim_fault_set){0};
        gpu->target.due_ns = 0;
        pthread_mutex_unlock(&gpu->target.lock);
    }
    pthread_mutex_lock(&sim.host.lock);
    sim.host.faults = (sim_fault_set){0};
    pthread_mutex_unlock(&sim.host.lock);
    sim_changed();
}
