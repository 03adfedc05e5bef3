/* ECC and what becomes of bad memory. Without ECC all of it is NOT_SUPPORTED. */
#include "driver.h"


#define PROFILE (gpu->model.profile)
#define VALID_ERROR(type) ((unsigned)(type) < NVML_MEMORY_ERROR_TYPE_COUNT)
#define VALID_COUNTER(type) ((unsigned)(type) < NVML_ECC_COUNTER_TYPE_COUNT)
#define ROW_REMAPPER_BANKS 640

/* A GeForce could switch ECC on, but has it off. */
nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, nvmlEnableState_t *current,
                                  nvmlEnableState_t *pending)
{
    CACHED_CALL(nvmlDeviceGetEccMode, current && pending);
    *current = *pending = sim_has(PROFILE, SIM_ECC) ? NVML_FEATURE_ENABLED
                                                    : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDefaultEccMode(nvmlDevice_t device, nvmlEnableState_t *defaultMode)
{
    CACHED_CALL(nvmlDeviceGetDefaultEccMode, defaultMode);
    *defaultMode = sim_has(PROFILE, SIM_ECC) ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

static uint64_t errors(const sim_model *model, nvmlMemoryErrorType_t error,
                       nvmlEccCounterType_t counter)
{
    if (error == NVML_MEMORY_ERROR_TYPE_CORRECTED)
        return counter == NVML_VOLATILE_ECC ? model->sbe_volatile : model->sbe_aggregate;
    return counter == NVML_VOLATILE_ECC ? model->dbe_volatile : model->dbe_aggregate;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                         nvmlEccCounterType_t counterType,
                                         unsigned long long *eccCounts)
{
    DEVICE_CALL(nvmlDeviceGetTotalEccErrors,
                eccCounts && VALID_ERROR(errorType) && VALID_COUNTER(counterType));
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    *eccCounts = errors(&gpu->model, errorType, counterType);
    return NVML_SUCCESS;
}

/* All errors of the simulation are in the DRAM. */
nvmlReturn_t nvmlDeviceGetDetailedEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                            nvmlEccCounterType_t counterType,
                                            nvmlEccErrorCounts_t *eccCounts)
{
    DEVICE_CALL(nvmlDeviceGetDetailedEccErrors,
                eccCounts && VALID_ERROR(errorType) && VALID_COUNTER(counterType));
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    *eccCounts = (nvmlEccErrorCounts_t){
        .deviceMemory = errors(&gpu->model, errorType, counterType)};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryErrorCounter(nvmlDevice_t device, nvmlMemoryErrorType_t errorType,
                                             nvmlEccCounterType_t counterType,
                                             nvmlMemoryLocation_t locationType,
                                             unsigned long long *count)
{
    DEVICE_CALL(nvmlDeviceGetMemoryErrorCounter,
                count && VALID_ERROR(errorType) && VALID_COUNTER(counterType) &&
                    (unsigned)locationType < NVML_MEMORY_LOCATION_COUNT);
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    /* Since Ampere the caches and registers are counted as one, SRAM. */
    REQUIRE(locationType == NVML_MEMORY_LOCATION_DRAM ||
            locationType == NVML_MEMORY_LOCATION_SRAM);
    *count = locationType == NVML_MEMORY_LOCATION_DRAM
                 ? errors(&gpu->model, errorType, counterType)
                 : 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSramEccErrorStatus(nvmlDevice_t device,
                                             nvmlEccSramErrorStatus_t *status)
{
    DEVICE_CALL(nvmlDeviceGetSramEccErrorStatus, status);
    if (status->version != NVML_STRUCT_VERSION(EccSramErrorStatus, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    *status = (nvmlEccSramErrorStatus_t){.version = status->version};
    return NVML_SUCCESS;
}

/* Pages were retired before Ampere; since then rows are remapped. */
nvmlReturn_t nvmlDeviceGetRetiredPages(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                       unsigned int *pageCount, unsigned long long *addresses)
{
    (void)addresses;
    DEVICE_CALL(nvmlDeviceGetRetiredPages,
                pageCount && (unsigned)cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetRetiredPages_v2(nvmlDevice_t device, nvmlPageRetirementCause_t cause,
                                          unsigned int *pageCount, unsigned long long *addresses,
                                          unsigned long long *timestamps)
{
    (void)addresses;
    (void)timestamps;
    DEVICE_CALL(nvmlDeviceGetRetiredPages_v2,
                pageCount && (unsigned)cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetRetiredPagesPendingStatus(nvmlDevice_t device,
                                                    nvmlEnableState_t *isPending)
{
    DEVICE_CALL(nvmlDeviceGetRetiredPagesPendingStatus, isPending);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrRows,
                                       unsigned int *uncRows, unsigned int *isPending,
                                       unsigned int *failureOccurred)
{
    DEVICE_CALL(nvmlDeviceGetRemappedRows, corrRows && uncRows && isPending && failureOccurred);
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    *corrRows = gpu->model.remapped_correctable;
    *uncRows = gpu->model.remapped_uncorrectable;
    *isPending = gpu->model.remap_pending;
    *failureOccurred = 0;
    return NVML_SUCCESS;
}

/* A bank with a remapped row has less room for more. */
nvmlReturn_t nvmlDeviceGetRowRemapperHistogram(nvmlDevice_t device,
                                               nvmlRowRemapperHistogramValues_t *values)
{
    DEVICE_CALL(nvmlDeviceGetRowRemapperHistogram, values);
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    unsigned touched = gpu->model.remapped_correctable + gpu->model.remapped_uncorrectable;
    touched = touched < ROW_REMAPPER_BANKS ? touched : ROW_REMAPPER_BANKS;
    *values = (nvmlRowRemapperHistogramValues_t){
        .max = ROW_REMAPPER_BANKS - touched,
        .high = touched,
    };
    return NVML_SUCCESS;
}
