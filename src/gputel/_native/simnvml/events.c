#include "events.h"

#include <errno.h>
#include <string.h>

#define MS 1000000ULL
#define TICK_NS (10 * MS) /* of the coarse clock at most */
#define WHOLE_DEVICE 0xFFFFFFFFu
#define SYSTEM_EVENTS (nvmlSystemEventTypeGpuDriverUnbind | nvmlSystemEventTypeGpuDriverBind)

typedef struct {
    nvmlDevice_t device; /* NULL: of the system */
    unsigned board;
    unsigned long long type, data;
} event;

/* A set's handle is its place and generation, so that a stale one is recognised:
 *
 *   bit  63        32 31         8 7    0
 *        +-----------+------------+------+
 *        | generation| kind       | place|      kind 1: of devices, 2: of the system
 *        +-----------+------------+------+
 */
typedef enum { FREE, OF_DEVICES, OF_SYSTEM } set_kind;

typedef struct {
    set_kind kind;
    unsigned generation;
    unsigned long long types[SIM_GPUS_MAX]; /* of the system: the first alone */
    event queue[SIM_EVENTS_MAX];
    unsigned first, count;
} event_set;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed;
static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static unsigned long long changes;
static event_set sets[SIM_EVENT_SETS_MAX];
static unsigned long long dropped;

/* ---- Changes ------------------------------------------------------------------------------- */

static void prepare(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

unsigned long long sim_changes(void)
{
    pthread_mutex_lock(&lock);
    unsigned long long seen = changes;
    pthread_mutex_unlock(&lock);
    return seen;
}

static void change_locked(void)
{
    pthread_once(&prepared, prepare);
    changes++;
    pthread_cond_broadcast(&changed);
}

void sim_changed(void)
{
    pthread_mutex_lock(&lock);
    change_locked();
    pthread_mutex_unlock(&lock);
}

static void wait_locked(unsigned long long seen, uint64_t until_ns)
{
    pthread_once(&prepared, prepare);
    struct timespec until = {(time_t)(until_ns / 1000000000), (long)(until_ns % 1000000000)};
    int result = 0;
    while (changes == seen && result != ETIMEDOUT)
        result = until_ns == SIM_FOR_EVER ? pthread_cond_wait(&changed, &lock)
                                          : pthread_cond_timedwait(&changed, &lock, &until);
}

void sim_wait_for_change(unsigned long long seen, uint64_t until_ns)
{
    pthread_mutex_lock(&lock);
    wait_locked(seen, until_ns);
    pthread_mutex_unlock(&lock);
}

uint64_t sim_monotonic_at(uint64_t time_ns)
{
    if (sim_time.manual || time_ns == SIM_FOR_EVER)
        return SIM_FOR_EVER;
    uint64_t now = sim_now();
    return sim_read_clock(CLOCK_MONOTONIC) + (time_ns > now ? time_ns - now : 0) + TICK_NS;
}

/* ---- Queues -------------------------------------------------------------------------------- */

static void push(event_set *set, event item)
{
    if (set->count == SIM_EVENTS_MAX) {
        set->first = (set->first + 1) % SIM_EVENTS_MAX;
        set->count--;
        dropped++;
    }
    set->queue[(set->first + set->count++) % SIM_EVENTS_MAX] = item;
}

static event pop(event_set *set)
{
    event item = set->queue[set->first];
    set->first = (set->first + 1) % SIM_EVENTS_MAX;
    set->count--;
    return item;
}

static void post(set_kind kind, unsigned number, event item)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < SIM_EVENT_SETS_MAX; i++)
        if (sets[i].kind == kind && sets[i].types[number] & item.type)
            push(&sets[i], item);
    change_locked();
    pthread_mutex_unlock(&lock);
}

void sim_event_post(const sim_gpu *gpu, unsigned long long type, unsigned long long data)
{
    post(OF_DEVICES, gpu->number, (event){sim_handle(gpu), sim_board_id(gpu), type, data});
}

void sim_system_event_post(const sim_gpu *gpu, unsigned long long type)
{
    post(OF_SYSTEM, 0, (event){NULL, sim_board_id(gpu), type, 0});
}

void sim_events_forget(const sim_gpu *gpu)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < SIM_EVENT_SETS_MAX; i++)
        if (sets[i].kind == OF_DEVICES)
            sets[i].types[gpu->number] = 0;
    pthread_mutex_unlock(&lock);
}

void sim_events_clear(void)
{
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < SIM_EVENT_SETS_MAX; i++)
        sets[i].kind = FREE;
    change_locked();
    pthread_mutex_unlock(&lock);
}

unsigned long long sim_events_dropped(void)
{
    pthread_mutex_lock(&lock);
    unsigned long long count = dropped;
    pthread_mutex_unlock(&lock);
    return count;
}

void sim_events_dropped_reset(void)
{
    pthread_mutex_lock(&lock);
    dropped = 0;
    pthread_mutex_unlock(&lock);
}

/* ---- Sets ---------------------------------------------------------------------------------- */

static void *set_handle(unsigned place)
{
    return (void *)((uintptr_t)sets[place].generation << 32 | (uintptr_t)sets[place].kind << 8 |
                    place);
}

/* With the lock held. NULL for a handle that is none, or of the other kind. */
static event_set *set_of(const void *handle, set_kind kind)
{
    unsigned place = (uintptr_t)handle & 0xFF;
    if (place >= SIM_EVENT_SETS_MAX || sets[place].kind != kind || set_handle(place) != handle)
        return NULL;
    return &sets[place];
}

static void *set_create(set_kind kind)
{
    void *handle = NULL;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < SIM_EVENT_SETS_MAX && !handle; i++)
        if (sets[i].kind == FREE) {
            sets[i] = (event_set){.kind = kind, .generation = sets[i].generation + 1};
            handle = set_handle(i);
        }
    pthread_mutex_unlock(&lock);
    return handle;
}

static nvmlReturn_t set_free(const void *handle, set_kind kind)
{
    pthread_mutex_lock(&lock);
    event_set *set = set_of(handle, kind);
    if (set) {
        set->kind = FREE;
        change_locked(); /* who waits for it gives up */
    }
    pthread_mutex_unlock(&lock);
    return set ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

static nvmlReturn_t set_register(const void *handle, set_kind kind, unsigned number,
                                 unsigned long long types)
{
    pthread_mutex_lock(&lock);
    event_set *set = set_of(handle, kind);
    if (set)
        set->types[number] |= types;
    pthread_mutex_unlock(&lock);
    return set ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

/* Bring all GPUs up to now, so that their events are in the queues; the driver time at which
 * the next one may come. */
static uint64_t advance_all(void)
{
    uint64_t next = SIM_FOR_EVER;
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        sim_gpu *gpu = &sim.gpus[i];
        pthread_mutex_lock(&gpu->target.lock);
        uint64_t now = sim_now();
        if (now >= gpu->target.due_ns)
            sim_gpu_advance(gpu, now);
        uint64_t turn = sim_fault_next(&gpu->target.faults);
        next = turn < next ? turn : next;
        next = gpu->model.next_sbe_ns < next ? gpu->model.next_sbe_ns : next;
        pthread_mutex_unlock(&gpu->target.lock);
    }
    return next;
}

/* Up to `room` events of the set, at least one unless it fails; their number in `taken`. */
static nvmlReturn_t set_wait(const void *handle, set_kind kind, unsigned timeout_ms,
                             event *events, unsigned room, unsigned *taken)
{
    uint64_t deadline_ns = sim_read_clock(CLOCK_MONOTONIC) + timeout_ms * MS;
    nvmlReturn_t result = NVML_ERROR_TIMEOUT;
    *taken = 0;
    for (bool late = false;;) {
        unsigned long long seen = sim_changes();
        uint64_t next_ns = sim_monotonic_at(advance_all());
        pthread_mutex_lock(&lock);
        event_set *set = set_of(handle, kind);
        if (!atomic_load(&sim.users))
            result = NVML_ERROR_UNINITIALIZED;
        else if (!set)
            result = NVML_ERROR_INVALID_ARGUMENT;
        else if (set->count)
            result = NVML_SUCCESS;
        while (result == NVML_SUCCESS && set->count && *taken < room)
            events[(*taken)++] = pop(set);
        if (result == NVML_ERROR_TIMEOUT && !late) {
            wait_locked(seen, next_ns < deadline_ns ? next_ns : deadline_ns);
            late = sim_read_clock(CLOCK_MONOTONIC) >= deadline_ns;
            pthread_mutex_unlock(&lock);
            continue;
        }
        pthread_mutex_unlock(&lock);
        return result;
    }
}

/* ---- The API ------------------------------------------------------------------------------- */

/* NOTE(leave): the time in a wait is no time inside the driver, so these calls end the timing
 * of the call before they wait. */

static unsigned long long supported_types(const sim_profile *profile)
{
    unsigned long long types = nvmlEventTypeXidCriticalError | nvmlEventTypeGpuUnavailableError;
    if (sim_has(profile, SIM_ECC))
        types |= nvmlEventTypeSingleBitEccError | nvmlEventTypeDoubleBitEccError |
                 nvmlEventTypeGpuRecoveryAction;
    return types;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
    HOST_CALL(nvmlEventSetCreate, set);
    *set = set_create(OF_DEVICES);
    return *set ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
    HOST_CALL(nvmlEventSetFree, set);
    return set_free(set, OF_DEVICES);
}

nvmlReturn_t nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *eventTypes)
{
    CACHED_CALL(nvmlDeviceGetSupportedEventTypes, eventTypes);
    *eventTypes = supported_types(gpu->model.profile);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long eventTypes,
                                      nvmlEventSet_t set)
{
    DEVICE_CALL(nvmlDeviceRegisterEvents, set);
    REQUIRE(!(eventTypes & ~supported_types(gpu->model.profile)));
    return set_register(set, OF_DEVICES, gpu->number, eventTypes);
}

static nvmlReturn_t wait_for_device(nvmlEventSet_t set, nvmlEventData_t *data,
                                    unsigned int timeoutms, bool instances)
{
    event item;
    unsigned taken;
    nvmlReturn_t result = set_wait(set, OF_DEVICES, timeoutms, &item, 1, &taken);
    if (result != NVML_SUCCESS)
        return result;
    data->device = item.device;
    data->eventType = item.type;
    data->eventData = item.data;
    if (instances) /* the first version of the struct ends before them */
        data->gpuInstanceId = data->computeInstanceId = WHOLE_DEVICE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data,
                                 unsigned int timeoutms)
{
    HOST_CALL(nvmlEventSetWait_v2, set && data);
    sim_stop_timing(&call);
    return wait_for_device(set, data, timeoutms, true);
}

nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms)
{
    HOST_CALL(nvmlEventSetWait, set && data);
    sim_stop_timing(&call);
    return wait_for_device(set, data, timeoutms, false);
}

nvmlReturn_t nvmlSystemEventSetCreate(nvmlSystemEventSetCreateRequest_t *request)
{
    HOST_CALL(nvmlSystemEventSetCreate, request);
    if (request->version != NVML_STRUCT_VERSION(SystemEventSetCreateRequest, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    request->set = set_create(OF_SYSTEM);
    return request->set ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

nvmlReturn_t nvmlSystemEventSetFree(nvmlSystemEventSetFreeRequest_t *request)
{
    HOST_CALL(nvmlSystemEventSetFree, request);
    if (request->version != NVML_STRUCT_VERSION(SystemEventSetFreeRequest, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    return set_free(request->set, OF_SYSTEM);
}

nvmlReturn_t nvmlSystemRegisterEvents(nvmlSystemRegisterEventRequest_t *request)
{
    HOST_CALL(nvmlSystemRegisterEvents, request);
    if (request->version != NVML_STRUCT_VERSION(SystemRegisterEventRequest, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE(!(request->eventTypes & ~(unsigned long long)SYSTEM_EVENTS));
    return set_register(request->set, OF_SYSTEM, 0, request->eventTypes);
}

nvmlReturn_t nvmlSystemEventSetWait(nvmlSystemEventSetWaitRequest_t *request)
{
    HOST_CALL(nvmlSystemEventSetWait, request);
    if (request->version != NVML_STRUCT_VERSION(SystemEventSetWaitRequest, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (!request->data || request->dataSize == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    sim_stop_timing(&call);
    event items[SIM_EVENTS_MAX];
    unsigned room = request->dataSize < SIM_EVENTS_MAX ? request->dataSize : SIM_EVENTS_MAX;
    nvmlReturn_t result =
        set_wait(request->set, OF_SYSTEM, request->timeoutms, items, room, &request->numEvent);
    for (unsigned i = 0; i < request->numEvent; i++)
        request->data[i] = (nvmlSystemEventData_v1_t){items[i].type, items[i].board};
    return result;
}
