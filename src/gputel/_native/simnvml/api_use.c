/* Utilization, memory and the media engines. */
#include "driver.h"


#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define MIB (1ULL << 20)
#define PERIOD_US (SIM_UTILIZATION_PERIOD_NS / 1000)

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    DEVICE_CALL(nvmlDeviceGetUtilizationRates, utilization);
    const sim_utilization_sample *newest = sim_model_utilization(&gpu->model);
    utilization->gpu = newest->gpu;
    utilization->memory = newest->memory;
    return NVML_SUCCESS;
}

/* What a MIG instance has of the whole; all of it for a GPU. */
static unsigned long long part_of(nvmlDevice_t device, unsigned long long bytes)
{
    const sim_mig_instance *instance = sim_mig_instance_of(device);
    return instance ? bytes / SIM_MIG_EIGHTHS * instance->profile->eighths : bytes;
}

/* This form counts what the driver reserves as used. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    DEVICE_CALL(nvmlDeviceGetMemoryInfo, memory);
    memory->total = part_of(device, PROFILE->memory_bytes);
    memory->used = part_of(device, SEEN.memory_used_bytes) + part_of(device, PROFILE->reserved_bytes);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    DEVICE_CALL(nvmlDeviceGetMemoryInfo_v2, memory);
    if (memory->version != NVML_STRUCT_VERSION(Memory, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = part_of(device, PROFILE->memory_bytes);
    memory->reserved = part_of(device, PROFILE->reserved_bytes);
    memory->used = part_of(device, SEEN.memory_used_bytes);
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

/* A process maps a little for its channels. */
nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory)
{
    DEVICE_CALL(nvmlDeviceGetBAR1MemoryInfo, bar1Memory);
    bar1Memory->bar1Total = PROFILE->bar1_bytes;
    bar1Memory->bar1Used = (SEEN.memory_used_bytes ? 6 : 2) * MIB;
    bar1Memory->bar1Free = bar1Memory->bar1Total - bar1Memory->bar1Used;
    return NVML_SUCCESS;
}

#define ENGINE(function, member, present) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *utilization, \
                          unsigned int *samplingPeriodUs) \
    { \
        DEVICE_CALL(function, utilization && samplingPeriodUs); \
        REQUIRE(present); \
        *utilization = sim_model_utilization(&gpu->model)->member; \
        *samplingPeriodUs = PERIOD_US; \
        return NVML_SUCCESS; \
    }

ENGINE(nvmlDeviceGetEncoderUtilization, encoder, true)
ENGINE(nvmlDeviceGetDecoderUtilization, decoder, true)
ENGINE(nvmlDeviceGetJpgUtilization, jpeg, PROFILE->jpegs)
ENGINE(nvmlDeviceGetOfaUtilization, ofa, PROFILE->ofas)

nvmlReturn_t nvmlDeviceGetEncoderCapacity(nvmlDevice_t device, nvmlEncoderType_t encoderQueryType,
                                          unsigned int *encoderCapacity)
{
    DEVICE_CALL(nvmlDeviceGetEncoderCapacity,
                encoderCapacity && (unsigned)encoderQueryType <= NVML_ENCODER_QUERY_AV1);
    REQUIRE(PROFILE->encoders);
    *encoderCapacity = 100 - sim_model_utilization(&gpu->model)->encoder;
    return NVML_SUCCESS;
}

/* A job that encodes has one session. */
static bool encodes(const sim_gpu *gpu)
{
    return PROFILE->encoders && sim_model_utilization(&gpu->model)->encoder > 0;
}

#define SESSION_FPS 60
#define SESSION_LATENCY_US 3200

nvmlReturn_t nvmlDeviceGetEncoderStats(nvmlDevice_t device, unsigned int *sessionCount,
                                       unsigned int *averageFps, unsigned int *averageLatency)
{
    DEVICE_CALL(nvmlDeviceGetEncoderStats, sessionCount && averageFps && averageLatency);
    bool one = encodes(gpu);
    *sessionCount = one;
    *averageFps = one ? SESSION_FPS : 0;
    *averageLatency = one ? SESSION_LATENCY_US : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderSessions(nvmlDevice_t device, unsigned int *sessionCount,
                                          nvmlEncoderSessionInfo_t *sessionInfos)
{
    DEVICE_CALL(nvmlDeviceGetEncoderSessions, sessionCount);
    unsigned room = sessionInfos ? *sessionCount : 0;
    *sessionCount = encodes(gpu);
    if (*sessionCount == 0 || !sessionInfos)
        return NVML_SUCCESS;
    if (room == 0)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    *sessionInfos = (nvmlEncoderSessionInfo_t){
        .sessionId = gpu->model.jobs.job.number,
        .pid = sim_model_utilization(&gpu->model)->pid,
        .codecType = NVML_ENCODER_QUERY_HEVC,
        .hResolution = 3840,
        .vResolution = 2160,
        .averageFps = SESSION_FPS,
        .averageLatency = SESSION_LATENCY_US,
    };
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFBCStats(nvmlDevice_t device, nvmlFBCStats_t *fbcStats)
{
    DEVICE_CALL(nvmlDeviceGetFBCStats, fbcStats);
    *fbcStats = (nvmlFBCStats_t){0};
    return NVML_SUCCESS;
}
