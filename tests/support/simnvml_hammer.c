/* All functions of the simulated driver from many threads at once, with good and bad arguments,
 * while faults come and go and the library is shut down and started again.
 *
 *   hammer SECONDS
 *
 * Prints the calls made. What it looks for, the sanitizers and the answers tell: an answer that
 * is no nvmlReturn, an energy that is absurd, a thread that does not come back.
 */
#include "nvml_abi.h"
#include "simnvml/simnvml.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define THREADS 8
#define GPUS 6
#define ROOM 512 /* of arrays; a page of them, for the largest structs */

typedef nvmlReturn_t (*generic)(uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t);

static atomic_bool done;
static atomic_ullong calls, wrong;

static unsigned next(unsigned *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

static void check(nvmlReturn_t result)
{
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    if (result != NVML_ERROR_UNKNOWN && (result < 0 || result > NVML_ERROR_INVALID_STATE))
        atomic_fetch_add(&wrong, 1);
}

/* A buffer that any struct or array fits in; its first words serve as version and count. */
typedef union {
    unsigned words[ROOM * 64];
    nvmlGpmMetricsGet_t gpm;
    nvmlProcessesUtilizationInfo_t use;
    nvmlProcessDetailList_t processes;
    nvmlSystemEventSetWaitRequest_t wait;
    nvmlFieldValue_t fields[ROOM];
} scratch;

#define DEVICE(function, ...) check(function(device, __VA_ARGS__))

static void read_device(nvmlDevice_t device, unsigned random, scratch *s, scratch *t)
{
    unsigned n = random % 24, count = random % 40;
    unsigned *a = s->words, *b = t->words;
    memset(s, 0, 4096);
    DEVICE(nvmlDeviceGetPowerUsage, a);
    DEVICE(nvmlDeviceGetUtilizationRates, (nvmlUtilization_t *)a);
    DEVICE(nvmlDeviceGetMemoryInfo, (nvmlMemory_t *)a);
    DEVICE(nvmlDeviceGetClockInfo, (nvmlClockType_t)n, a);
    DEVICE(nvmlDeviceGetClock, (nvmlClockType_t)(n % 5), (nvmlClockId_t)(n % 6), a);
    DEVICE(nvmlDeviceGetTemperature, NVML_TEMPERATURE_GPU, a);
    DEVICE(nvmlDeviceGetTemperatureThreshold, (nvmlTemperatureThresholds_t)n, a);
    DEVICE(nvmlDeviceGetViolationStatus, (nvmlPerfPolicyType_t)n, (nvmlViolationTime_t *)a);
    DEVICE(nvmlDeviceGetTotalEccErrors, (nvmlMemoryErrorType_t)(n % 3),
           (nvmlEccCounterType_t)(n % 3), (unsigned long long *)a);
    DEVICE(nvmlDeviceGetRemappedRows, a, a + 1, a + 2, a + 3);
    DEVICE(nvmlDeviceGetNvLinkState, n, (nvmlEnableState_t *)a);
    DEVICE(nvmlDeviceGetNvLinkRemotePciInfo_v2, n, (nvmlPciInfo_t *)a);
    DEVICE(nvmlDeviceGetPciInfo_v3, (nvmlPciInfo_t *)a);
    DEVICE(nvmlDeviceGetIndex, a);
    DEVICE(nvmlDeviceGetName, (char *)a, n * 4);
    DEVICE(nvmlDeviceGetUUID, (char *)a, n * 4);
    DEVICE(nvmlDeviceGetCpuAffinity, n, (unsigned long *)a);
    DEVICE(nvmlDeviceSetPersistenceMode, (nvmlEnableState_t)(n % 2));
    *b = count;
    DEVICE(nvmlDeviceGetComputeRunningProcesses_v3, b, count ? (nvmlProcessInfo_t *)a : NULL);
    *b = count;
    DEVICE(nvmlDeviceGetProcessUtilization, (nvmlProcessUtilizationSample_t *)a, b, 0);
    *b = count;
    DEVICE(nvmlDeviceGetSupportedGraphicsClocks, 2619, b, a);
    *b = count;
    DEVICE(nvmlDeviceGetSamples, (nvmlSamplingType_t)(n % 12), 0, (nvmlValueType_t *)a, b,
           count ? (nvmlSample_t *)(a + 2) : NULL);
    *b = count;
    DEVICE(nvmlDeviceGetTopologyNearestGpus, NVML_TOPOLOGY_NODE, b, (nvmlDevice_t *)a);
    for (unsigned i = 0; i < count; i++) {
        s->fields[i].fieldId = (random + i * 7) % 320;
        s->fields[i].scopeId = n % 3 ? n : 0xFFFFFFFF;
    }
    DEVICE(nvmlDeviceGetFieldValues, (int)count, s->fields);
}

static void use_gpm(nvmlDevice_t device, scratch *s)
{
    nvmlGpmSample_t first = NULL, second = NULL;
    check(nvmlGpmSampleAlloc(&first));
    check(nvmlGpmSampleAlloc(&second));
    check(nvmlGpmSampleGet(device, first));
    check(nvmlGpmSampleGet(device, second));
    s->gpm.version = NVML_GPM_METRICS_GET_VERSION;
    s->gpm.numMetrics = 100;
    s->gpm.sample1 = first;
    s->gpm.sample2 = second;
    for (unsigned i = 0; i < 100; i++)
        s->gpm.metrics[i].metricId = i + 1;
    check(nvmlGpmMetricsGet(&s->gpm));
    check(nvmlGpmSampleFree(first));
    check(nvmlGpmSampleFree(second));
    check(nvmlGpmSampleFree(second));
}

static void use_events(nvmlDevice_t device, unsigned random, scratch *s)
{
    nvmlEventSet_t set = NULL;
    nvmlEventData_t data;
    check(nvmlEventSetCreate(&set));
    check(nvmlDeviceRegisterEvents(device, nvmlEventTypeXidCriticalError, set));
    check(nvmlEventSetWait_v2(set, &data, random % 3));
    check(nvmlEventSetFree(set));
    check(nvmlEventSetWait_v2(set, &data, 0));
    nvmlSystemEventSetCreateRequest_t made = {
        .version = NVML_STRUCT_VERSION(SystemEventSetCreateRequest, 1)};
    check(nvmlSystemEventSetCreate(&made));
    s->wait = (nvmlSystemEventSetWaitRequest_t){
        .version = NVML_STRUCT_VERSION(SystemEventSetWaitRequest, 1),
        .set = made.set,
        .data = (nvmlSystemEventData_v1_t *)(s->words + 64),
        .dataSize = 8,
    };
    check(nvmlSystemEventSetWait(&s->wait));
    nvmlSystemEventSetFreeRequest_t freed = {
        .version = NVML_STRUCT_VERSION(SystemEventSetFreeRequest, 1), .set = made.set};
    check(nvmlSystemEventSetFree(&freed));
}

static const struct {
    const char *name;
    void (*function)(void);
} functions[] = {
#define ENTRY(name, arguments) {#name, (void (*)(void))name},
    NVML_FUNCTIONS(ENTRY)
};

/* Every function with NULL, or with a handle and then NULL, for its arguments. */
static void pass_nothing(nvmlDevice_t device)
{
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        const char *name = functions[i].name;
        generic function = (generic)functions[i].function;
        if (strcmp(name, "nvmlShutdown") == 0 || strncmp(name, "nvmlInit", 8) == 0)
            continue;
        check(function(0, 0, 0, 0, 0, 0));
        bool of_device = strncmp(name, "nvmlDevice", 10) == 0 &&
                         !strstr(name, "GetHandleBy") && !strstr(name, "GetCount");
        if (of_device)
            check(function((uintptr_t)device, 0, 0, 0, 0, 0));
    }
}

static void inject(unsigned random)
{
    static const char *const kinds[] = {
        "lost@0+0.002",     "fallen@0+0.002",    "hang@0+0.002", "xid=31",       "ecc_sbe=1",
        "remove@0.001+0.002", "energy_reset",    "slow=50@0+0.002", "ecc_dbe=1", "restore",
        "not_supported=186@0+0.01", "no_function=nvmlDeviceGetName@0+0.01",
    };
    char fault[128];
    snprintf(fault, sizeof fault, "%s:gpu=%u", kinds[random % 12], random / 12 % GPUS);
    gputelSimInject(fault); /* refused while nobody uses the library, or when there is no room */
}

static void *hammer(void *seed)
{
    unsigned state = (unsigned)(uintptr_t)seed;
    scratch *s = calloc(1, sizeof *s), *t = calloc(1, sizeof *t);
    while (!atomic_load(&done)) {
        unsigned random = next(&state);
        nvmlDevice_t device = NULL;
        unsigned count = 0;
        unsigned long long energy = 0;
        check(nvmlInit_v2());
        check(nvmlDeviceGetCount_v2(&count));
        check(nvmlDeviceGetHandleByIndex_v2(random % (GPUS + 1), &device));
        for (int i = 0; i < 20; i++)
            read_device(device, next(&state), s, t);
        if (nvmlDeviceGetTotalEnergyConsumption(device, &energy) == NVML_SUCCESS &&
            energy > 100000000ULL)
            atomic_fetch_add(&wrong, 1);
        use_gpm(device, s);
        use_events(device, random, s);
        pass_nothing(device);
        if (random % 4 == 0)
            inject(random / 4);
        if (random % 32 == 1)
            gputelSimInject("hang@0+0.002:function=nvmlInit");
        if (random % 64 == 0)
            gputelSimClearFaults();
        check(nvmlShutdown());
    }
    free(s);
    free(t);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    for (uintptr_t i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, hammer, (void *)(i * 7919 + 1)))
            return 2;
    nanosleep(&pause, NULL);
    atomic_store(&done, true);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("%llu calls, %llu wrong\n", atomic_load(&calls), atomic_load(&wrong));
    return atomic_load(&wrong) != 0;
}
