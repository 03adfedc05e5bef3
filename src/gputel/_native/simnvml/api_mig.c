/* MIG: instances that stay as they were configured. They share what their GPU does, by their
 * part of it. */
#include "driver.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PROFILE (gpu->model.profile)
#define MIG (sim_mig_of(gpu))

static const sim_mig *sim_mig_of(const sim_gpu *gpu)
{
    return &sim.config.mig[gpu->number];
}

const sim_mig_instance *sim_mig_instance_of(nvmlDevice_t device)
{
    return device->instance ? &sim.config.mig[device->number].instances[device->instance - 1]
                            : NULL;
}

nvmlReturn_t sim_mig_call(nvmlDevice_t device, sim_function function)
{
    const sim_mig *mig = &sim.config.mig[device->number];
    if (device->instance > mig->count)
        return NVML_ERROR_INVALID_ARGUMENT;
    switch (function) {
    case SIM_nvmlDeviceGetUUID:
    case SIM_nvmlDeviceGetName:
    case SIM_nvmlDeviceGetMemoryInfo:
    case SIM_nvmlDeviceGetMemoryInfo_v2:
    case SIM_nvmlDeviceGetAttributes:
    case SIM_nvmlDeviceGetAttributes_v2:
    case SIM_nvmlDeviceIsMigDeviceHandle:
    case SIM_nvmlDeviceGetDeviceHandleFromMigDeviceHandle:
    case SIM_nvmlDeviceGetGpuInstanceId:
    case SIM_nvmlDeviceGetComputeInstanceId:
        return NVML_SUCCESS;
    case SIM_nvmlDeviceGetUtilizationRates:
    case SIM_nvmlDeviceGetEncoderUtilization:
    case SIM_nvmlDeviceGetDecoderUtilization:
        return NVML_ERROR_NOT_SUPPORTED; /* nor does the whole GPU know it while MIG is on */
    default:
        return device->instance ? NVML_ERROR_NOT_SUPPORTED : NVML_SUCCESS;
    }
}

/* "MIG-" and the GPU's own, with the instance in place of its last two digits. */
void sim_mig_uuid(const sim_gpu *gpu, const sim_mig_instance *instance, char *uuid)
{
    const char *own = gpu->identity.uuid + strlen("GPU-");
    int kept = (int)strlen(own) - 2;
    snprintf(uuid, NVML_DEVICE_UUID_V2_BUFFER_SIZE, "MIG-%.*s%02x", kept, own, instance->id);
}

nvmlReturn_t sim_mig_handle_named(const char *uuid, nvmlDevice_t *device)
{
    char own[NVML_DEVICE_UUID_V2_BUFFER_SIZE];
    nvmlReturn_t lookup;
    for (unsigned i = 0; i < sim.config.gpus; i++)
        for (unsigned j = 0; j < sim.config.mig[i].count; j++) {
            sim_mig_uuid(&sim.gpus[i], &sim.config.mig[i].instances[j], own);
            if (strcasecmp(own, uuid) != 0 || !sim_gpu_visible(&sim.gpus[i], &lookup))
                continue;
            *device = &sim_mig_handles[i][j];
            return lookup;
        }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *currentMode,
                                  unsigned int *pendingMode)
{
    CACHED_CALL(nvmlDeviceGetMigMode, currentMode && pendingMode);
    REQUIRE(sim_has(PROFILE, SIM_MIG));
    *currentMode = *pendingMode = MIG->on;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *isMigDevice)
{
    CACHED_CALL(nvmlDeviceIsMigDeviceHandle, isMigDevice);
    *isMigDevice = device->instance != 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    CACHED_CALL(nvmlDeviceGetMaxMigDeviceCount, count);
    *count = sim_has(PROFILE, SIM_MIG) ? SIM_MIG_MAX : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                 nvmlDevice_t *migDevice)
{
    CACHED_CALL(nvmlDeviceGetMigDeviceHandleByIndex, migDevice && index < SIM_MIG_MAX);
    REQUIRE(sim_has(PROFILE, SIM_MIG));
    if (index >= MIG->count)
        return NVML_ERROR_NOT_FOUND;
    *migDevice = &sim_mig_handles[gpu->number][index];
    return NVML_SUCCESS;
}

/* A handle of the device itself is no MIG handle. */
nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t migDevice,
                                                          nvmlDevice_t *whole)
{
    nvmlDevice_t device = migDevice;
    CACHED_CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, whole && device->instance);
    *whole = sim_handle(gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    CACHED_CALL(nvmlDeviceGetGpuInstanceId, id);
    REQUIRE(device->instance);
    *id = sim_mig_instance_of(device)->id;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    CACHED_CALL(nvmlDeviceGetComputeInstanceId, id);
    REQUIRE(device->instance);
    *id = 0;
    return NVML_SUCCESS;
}

static nvmlReturn_t attributes_of(const sim_gpu *gpu, nvmlDevice_t device,
                                  nvmlDeviceAttributes_t *attributes)
{
    REQUIRE(device->instance);
    const sim_mig_profile *profile = sim_mig_instance_of(device)->profile;
    *attributes = (nvmlDeviceAttributes_t){
        .gpuInstanceSliceCount = profile->slices,
        .computeInstanceSliceCount = profile->slices,
        .memorySizeMB = PROFILE->memory_bytes / SIM_MIG_EIGHTHS * profile->eighths >> 20,
    };
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    CACHED_CALL(nvmlDeviceGetAttributes_v2, attributes);
    return attributes_of(gpu, device, attributes);
}

nvmlReturn_t nvmlDeviceGetAttributes(nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)
{
    CACHED_CALL(nvmlDeviceGetAttributes, attributes);
    return attributes_of(gpu, device, attributes);
}
