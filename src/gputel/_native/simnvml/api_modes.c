/* Modes and virtualization: what an administrator sets. The driver knows them by heart. */
#include "driver.h"

#include <string.h>
#include <unistd.h>

#define PROFILE (gpu->model.profile)

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    CACHED_CALL(nvmlDeviceGetPersistenceMode, mode);
    *mode = gpu->persistence ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    CACHED_CALL(nvmlDeviceSetPersistenceMode,
                mode == NVML_FEATURE_DISABLED || mode == NVML_FEATURE_ENABLED);
    if (geteuid() != 0)
        return NVML_ERROR_NO_PERMISSION;
    gpu->persistence = mode == NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDisplayMode(nvmlDevice_t device, nvmlEnableState_t *display)
{
    CACHED_CALL(nvmlDeviceGetDisplayMode, display);
    *display = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDisplayActive(nvmlDevice_t device, nvmlEnableState_t *isActive)
{
    CACHED_CALL(nvmlDeviceGetDisplayActive, isActive);
    *isActive = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeMode(nvmlDevice_t device, nvmlComputeMode_t *mode)
{
    CACHED_CALL(nvmlDeviceGetComputeMode, mode);
    *mode = NVML_COMPUTEMODE_DEFAULT;
    return NVML_SUCCESS;
}

/* Driver models are Windows'. */
nvmlReturn_t nvmlDeviceGetDriverModel_v2(nvmlDevice_t device, nvmlDriverModel_t *current,
                                         nvmlDriverModel_t *pending)
{
    CACHED_CALL(nvmlDeviceGetDriverModel_v2, current || pending);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetDriverModel(nvmlDevice_t device, nvmlDriverModel_t *current,
                                      nvmlDriverModel_t *pending)
{
    CACHED_CALL(nvmlDeviceGetDriverModel, current || pending);
    return NVML_ERROR_NOT_SUPPORTED;
}

/* Operation modes were Kepler's. */
nvmlReturn_t nvmlDeviceGetGpuOperationMode(nvmlDevice_t device, nvmlGpuOperationMode_t *current,
                                           nvmlGpuOperationMode_t *pending)
{
    CACHED_CALL(nvmlDeviceGetGpuOperationMode, current && pending);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetAPIRestriction(nvmlDevice_t device, nvmlRestrictedAPI_t apiType,
                                         nvmlEnableState_t *isRestricted)
{
    CACHED_CALL(nvmlDeviceGetAPIRestriction,
                isRestricted && (unsigned)apiType < NVML_RESTRICTED_API_COUNT);
    REQUIRE(apiType == NVML_RESTRICTED_API_SET_APPLICATION_CLOCKS);
    *isRestricted = NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

/* ---- Virtualization ---------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetVirtualizationMode(nvmlDevice_t device,
                                             nvmlGpuVirtualizationMode_t *pVirtualMode)
{
    CACHED_CALL(nvmlDeviceGetVirtualizationMode, pVirtualMode);
    *pVirtualMode = NVML_GPU_VIRTUALIZATION_MODE_NONE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHostVgpuMode(nvmlDevice_t device, nvmlHostVgpuMode_t *pHostVgpuMode)
{
    CACHED_CALL(nvmlDeviceGetHostVgpuMode, pHostVgpuMode);
    return NVML_ERROR_NOT_SUPPORTED;
}

/* No licence is needed without vGPU. */
nvmlReturn_t nvmlDeviceGetGridLicensableFeatures_v4(
    nvmlDevice_t device, nvmlGridLicensableFeatures_t *pGridLicensableFeatures)
{
    CACHED_CALL(nvmlDeviceGetGridLicensableFeatures_v4, pGridLicensableFeatures);
    memset(pGridLicensableFeatures, 0, sizeof *pGridLicensableFeatures);
    return NVML_SUCCESS;
}

/* ---- Confidential computing, off --------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device,
                                                 nvmlConfComputeMemSizeInfo_t *memInfo)
{
    CACHED_CALL(nvmlDeviceGetConfComputeMemSizeInfo, memInfo);
    REQUIRE(sim_has(PROFILE, SIM_CONFIDENTIAL));
    memInfo->protectedMemSizeKib = 0;
    memInfo->unprotectedMemSizeKib = PROFILE->memory_bytes / 1024;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetConfComputeProtectedMemoryUsage(nvmlDevice_t device,
                                                          nvmlMemory_t *memory)
{
    CACHED_CALL(nvmlDeviceGetConfComputeProtectedMemoryUsage, memory);
    REQUIRE(sim_has(PROFILE, SIM_CONFIDENTIAL));
    *memory = (nvmlMemory_t){0};
    return NVML_SUCCESS;
}
