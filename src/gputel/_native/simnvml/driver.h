/* The state of the simulated driver, and how a call of the API enters and leaves it.
 *
 *   nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
 *   {
 *       DEVICE_CALL(nvmlDeviceGetPowerUsage, power);      counted, delayed, checked, faulted;
 *       *power = gpu->model.seen.power_average_mw;        `gpu` is locked and up to date
 *       return NVML_SUCCESS;                              and unlocked at any return
 *   }
 *
 * Locks, in this order: the users, GPUs by number, the host, the event queues or GPM samples.
 */
#ifndef GPUTEL_SIM_DRIVER_H
#define GPUTEL_SIM_DRIVER_H

#include "clock.h"
#include "model.h"

#include <pthread.h>

/* Incarnations of one GPU that have handles of their own; an older handle comes to life
 * again after so many removals. */
#define SIM_INCARNATIONS 16

/* What a handle points to. It is never read by a caller. */
struct nvmlDevice_st {
    unsigned char number, incarnation;
    unsigned char instance; /* 0: the GPU; else a MIG instance of it, counted from 1 */
};

/* What can have faults: a GPU, and the host for calls that concern none. */
typedef struct {
    pthread_mutex_t lock;
    uint64_t due_ns; /* driver time at which its state changes next */
    sim_fault_set faults;
} sim_target;

typedef struct {
    char uuid[NVML_DEVICE_UUID_ASCII_LEN];
    unsigned char uuid_bytes[NVML_DEVICE_UUID_BINARY_LEN];
    char serial[NVML_DEVICE_SERIAL_BUFFER_SIZE];
    unsigned domain, bus;
    char bus_id[NVML_DEVICE_PCI_BUS_ID_BUFFER_SIZE]; /* 00000000:1B:00.0 */
} sim_identity;

typedef struct {
    _Alignas(64) sim_target target; /* the first member: see sim_gpu_of_target */
    unsigned number;                /* of the slot; the index shifts when others are removed */
    _Atomic unsigned incarnation;   /* a handle is looked up without the lock */
    bool removed;
    bool persistence;
    sim_identity identity;
    sim_model model;
} sim_gpu;

typedef struct {
    _Atomic unsigned users; /* nvmlInit calls without their nvmlShutdown */
    _Atomic bool watchful;  /* calls are timed or delayed */
    _Atomic bool timing;
    sim_config config;
    sim_target host;
    sim_gpu gpus[SIM_GPUS_MAX];
    _Atomic uint64_t calls[SIM_FUNCTIONS];
    _Atomic uint64_t inside_ns;
} sim_driver;

extern sim_driver sim;
extern struct nvmlDevice_st sim_handles[SIM_GPUS_MAX][SIM_INCARNATIONS];
extern struct nvmlDevice_st sim_mig_handles[SIM_GPUS_MAX][SIM_MIG_MAX];

/* ---- Calls --------------------------------------------------------------------------------- */

/* Where a function gets its answer: from the library's memory, so that it answers for a lost
 * GPU too, or from the GPU. */
typedef enum { SIM_FROM_MEMORY, SIM_FROM_GPU } sim_reach;

typedef struct {
    sim_target *held;
    uint64_t entered_ns; /* 0: not timed */
} sim_call;

nvmlReturn_t sim_enter_gpu(sim_call *call, sim_function function, sim_reach reach,
                           nvmlDevice_t device, sim_gpu **gpu);
nvmlReturn_t sim_enter_host(sim_call *call, sim_function function);
void sim_leave(sim_call *call);

/* What the host's faults in force make of a call; it returns when they let it. */
nvmlReturn_t sim_host_faulted(sim_function function);

/* Let go of the GPU before a call looks at others. */
void sim_release(sim_call *call);

/* What follows in the call is waiting, not time inside the driver. */
void sim_stop_timing(sim_call *call);

#define SIM_ENTER_GPU(function, reach, valid) \
    __attribute__((cleanup(sim_leave))) sim_call call = {0}; \
    sim_gpu *gpu; \
    nvmlReturn_t entered = sim_enter_gpu(&call, SIM_##function, reach, device, &gpu); \
    if (entered != NVML_SUCCESS) \
        return entered; \
    if (!(valid)) \
        return NVML_ERROR_INVALID_ARGUMENT; \
    (void)gpu

/* Of the argument `device`; `valid` says whether the other arguments are. */
#define DEVICE_CALL(function, valid) SIM_ENTER_GPU(function, SIM_FROM_GPU, valid)
#define CACHED_CALL(function, valid) SIM_ENTER_GPU(function, SIM_FROM_MEMORY, valid)

#define HOST_CALL(function, valid) \
    __attribute__((cleanup(sim_leave))) sim_call call = {0}; \
    nvmlReturn_t entered = sim_enter_host(&call, SIM_##function); \
    if (entered != NVML_SUCCESS) \
        return entered; \
    if (!(valid)) \
        return NVML_ERROR_INVALID_ARGUMENT

/* What a feature that the model lacks answers. */
#define REQUIRE(condition) \
    do { \
        if (!(condition)) \
            return NVML_ERROR_NOT_SUPPORTED; \
    } while (0)

/* Copy a text with its end; what callers' buffers are for. */
nvmlReturn_t sim_copy_text(char *buffer, unsigned length, const char *text);

/* ---- Devices ------------------------------------------------------------------------------- */

/* The handle of its present incarnation. */
nvmlDevice_t sim_handle(const sim_gpu *gpu);

/* The slot that a handle, of whatever incarnation, belongs to; NULL for anything else. */
sim_gpu *sim_gpu_of(nvmlDevice_t device);

/* Bring a locked GPU up to `now`. */
void sim_gpu_advance(sim_gpu *gpu, uint64_t now_ns);

/* Whether it can be seen now; takes its lock. `lookup` becomes what looking it up answers. */
bool sim_gpu_visible(sim_gpu *gpu, nvmlReturn_t *lookup);

/* Index of a visible GPU: those before it that can be seen. */
unsigned sim_gpu_index(const sim_gpu *gpu);

/* Its domain, bus and device number in one, as nvidia-smi's board id. */
static inline unsigned sim_board_id(const sim_gpu *gpu)
{
    return gpu->identity.domain << 16 | gpu->identity.bus << 8;
}

/* ---- MIG ----------------------------------------------------------------------------------- */

/* The instance of a valid handle, NULL for a GPU's. */
const sim_mig_instance *sim_mig_instance_of(nvmlDevice_t device);

/* What MIG has to say of a call with this handle, of an instance or of a GPU that has some. */
nvmlReturn_t sim_mig_call(nvmlDevice_t device, sim_function function);

/* `uuid` has room for NVML_DEVICE_UUID_V2_BUFFER_SIZE. */
void sim_mig_uuid(const sim_gpu *gpu, const sim_mig_instance *instance, char *uuid);

/* NOT_FOUND when no instance has it. */
nvmlReturn_t sim_mig_handle_named(const char *uuid, nvmlDevice_t *device);

/* Put a fault on `gpu` (SIM_ANY: on all, and on the host where it has a meaning there).
 * False, and nothing done, when there is no room. */
bool sim_inject(const sim_fault *fault, int gpu);
void sim_clear_faults(void);

#endif
