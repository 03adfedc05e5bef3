/* Clocks, performance states, and why clocks are low. */
#include "driver.h"

#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define STEP_MHZ 15
#define VALID_CLOCK(type) ((unsigned)(type) < NVML_CLOCK_COUNT)

static unsigned current_mhz(const sim_gpu *gpu, nvmlClockType_t type)
{
    return type == NVML_CLOCK_MEM     ? SEEN.memory_mhz
           : type == NVML_CLOCK_VIDEO ? SEEN.video_mhz
                                      : SEEN.sm_mhz;
}

static unsigned max_mhz(const sim_profile *profile, nvmlClockType_t type)
{
    return type == NVML_CLOCK_MEM     ? profile->memory_mhz
           : type == NVML_CLOCK_VIDEO ? profile->video_max_mhz
                                      : profile->sm_max_mhz;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                    unsigned int *clock)
{
    DEVICE_CALL(nvmlDeviceGetClockInfo, clock && VALID_CLOCK(type));
    *clock = current_mhz(gpu, type);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type,
                                       unsigned int *clock)
{
    CACHED_CALL(nvmlDeviceGetMaxClockInfo, clock && VALID_CLOCK(type));
    *clock = max_mhz(PROFILE, type);
    return NVML_SUCCESS;
}

/* Applications clocks exist for graphics and memory, and not on consumer boards. */
static bool has_application_clock(const sim_profile *profile, nvmlClockType_t type)
{
    return !sim_has(profile, SIM_GEFORCE) && type != NVML_CLOCK_VIDEO;
}

nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                nvmlClockId_t clockId, unsigned int *clockMHz)
{
    DEVICE_CALL(nvmlDeviceGetClock, clockMHz && VALID_CLOCK(clockType) &&
                                        (unsigned)clockId < NVML_CLOCK_ID_COUNT);
    if (clockId == NVML_CLOCK_ID_CURRENT) {
        *clockMHz = current_mhz(gpu, clockType);
        return NVML_SUCCESS;
    }
    REQUIRE(clockId == NVML_CLOCK_ID_CUSTOMER_BOOST_MAX ||
            has_application_clock(PROFILE, clockType));
    *clockMHz = max_mhz(PROFILE, clockType);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                            unsigned int *clockMHz)
{
    CACHED_CALL(nvmlDeviceGetApplicationsClock, clockMHz && VALID_CLOCK(clockType));
    REQUIRE(has_application_clock(PROFILE, clockType));
    *clockMHz = max_mhz(PROFILE, clockType);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device,
                                                   nvmlClockType_t clockType,
                                                   unsigned int *clockMHz)
{
    CACHED_CALL(nvmlDeviceGetDefaultApplicationsClock, clockMHz && VALID_CLOCK(clockType));
    REQUIRE(has_application_clock(PROFILE, clockType));
    *clockMHz = max_mhz(PROFILE, clockType);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, nvmlClockType_t clockType,
                                                unsigned int *clockMHz)
{
    CACHED_CALL(nvmlDeviceGetMaxCustomerBoostClock, clockMHz && VALID_CLOCK(clockType));
    *clockMHz = max_mhz(PROFILE, clockType);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count,
                                                unsigned int *clocksMHz)
{
    CACHED_CALL(nvmlDeviceGetSupportedMemoryClocks, count);
    unsigned room = clocksMHz ? *count : 0;
    *count = PROFILE->memory_mhz == PROFILE->memory_idle_mhz ? 1 : 2;
    if (room < *count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    clocksMHz[0] = PROFILE->memory_mhz;
    if (*count == 2)
        clocksMHz[1] = PROFILE->memory_idle_mhz;
    return NVML_SUCCESS;
}

/* From the highest down, 15 MHz apart. */
nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device,
                                                  unsigned int memoryClockMHz,
                                                  unsigned int *count, unsigned int *clocksMHz)
{
    CACHED_CALL(nvmlDeviceGetSupportedGraphicsClocks, count);
    if (memoryClockMHz != PROFILE->memory_mhz && memoryClockMHz != PROFILE->memory_idle_mhz)
        return NVML_ERROR_NOT_FOUND;
    unsigned room = clocksMHz ? *count : 0;
    *count = (PROFILE->sm_max_mhz - PROFILE->sm_idle_mhz) / STEP_MHZ + 1;
    if (room < *count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        clocksMHz[i] = PROFILE->sm_max_mhz - i * STEP_MHZ;
    return NVML_SUCCESS;
}

/* Auto boost ended with Pascal. */
nvmlReturn_t nvmlDeviceGetAutoBoostedClocksEnabled(nvmlDevice_t device,
                                                   nvmlEnableState_t *isEnabled,
                                                   nvmlEnableState_t *defaultIsEnabled)
{
    CACHED_CALL(nvmlDeviceGetAutoBoostedClocksEnabled, isEnabled && defaultIsEnabled);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetAdaptiveClockInfoStatus(nvmlDevice_t device,
                                                  unsigned int *adaptiveClockStatus)
{
    CACHED_CALL(nvmlDeviceGetAdaptiveClockInfoStatus, adaptiveClockStatus);
    *adaptiveClockStatus = 1;
    return NVML_SUCCESS;
}

/* ---- Why clocks are low ------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *clocksEventReasons)
{
    DEVICE_CALL(nvmlDeviceGetCurrentClocksEventReasons, clocksEventReasons);
    *clocksEventReasons = SEEN.event_reasons;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *clocksThrottleReasons)
{
    DEVICE_CALL(nvmlDeviceGetCurrentClocksThrottleReasons, clocksThrottleReasons);
    *clocksThrottleReasons = SEEN.event_reasons;
    return NVML_SUCCESS;
}

#define ALL_REASONS \
    (nvmlClocksEventReasonGpuIdle | nvmlClocksEventReasonApplicationsClocksSetting | \
     nvmlClocksEventReasonSwPowerCap | nvmlClocksThrottleReasonHwSlowdown | \
     nvmlClocksEventReasonSyncBoost | nvmlClocksEventReasonSwThermalSlowdown | \
     nvmlClocksThrottleReasonHwThermalSlowdown | nvmlClocksThrottleReasonHwPowerBrakeSlowdown | \
     nvmlClocksEventReasonDisplayClockSetting)

nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(
    nvmlDevice_t device, unsigned long long *supportedClocksEventReasons)
{
    CACHED_CALL(nvmlDeviceGetSupportedClocksEventReasons, supportedClocksEventReasons);
    *supportedClocksEventReasons = ALL_REASONS;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedClocksThrottleReasons(
    nvmlDevice_t device, unsigned long long *supportedClocksThrottleReasons)
{
    CACHED_CALL(nvmlDeviceGetSupportedClocksThrottleReasons, supportedClocksThrottleReasons);
    *supportedClocksThrottleReasons = ALL_REASONS;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device,
                                          nvmlPerfPolicyType_t perfPolicyType,
                                          nvmlViolationTime_t *violTime)
{
    DEVICE_CALL(nvmlDeviceGetViolationStatus, violTime);
    switch (perfPolicyType) {
    case NVML_PERF_POLICY_POWER:
        violTime->violationTime = SEEN.power_violation_ns;
        break;
    case NVML_PERF_POLICY_THERMAL:
        violTime->violationTime = SEEN.thermal_violation_ns;
        break;
    case NVML_PERF_POLICY_LOW_UTILIZATION:
        violTime->violationTime = SEEN.idle_ns;
        break;
    case NVML_PERF_POLICY_TOTAL_BASE_CLOCKS:
        violTime->violationTime = SEEN.below_base_ns;
        break;
    case NVML_PERF_POLICY_SYNC_BOOST:
    case NVML_PERF_POLICY_BOARD_LIMIT:
    case NVML_PERF_POLICY_RELIABILITY:
    case NVML_PERF_POLICY_TOTAL_APP_CLOCKS:
        violTime->violationTime = 0;
        break;
    default:
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    violTime->referenceTime = sim_unix_us(gpu->model.time_ns);
    return NVML_SUCCESS;
}

/* ---- Performance states ------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *pState)
{
    DEVICE_CALL(nvmlDeviceGetPerformanceState, pState);
    *pState = (nvmlPstates_t)SEEN.pstate;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, nvmlPstates_t *pState)
{
    DEVICE_CALL(nvmlDeviceGetPowerState, pState);
    *pState = (nvmlPstates_t)SEEN.pstate;
    return NVML_SUCCESS;
}

/* `size` is in bytes; what is left of the array is filled with UNKNOWN. */
nvmlReturn_t nvmlDeviceGetSupportedPerformanceStates(nvmlDevice_t device, nvmlPstates_t *pstates,
                                                     unsigned int size)
{
    CACHED_CALL(nvmlDeviceGetSupportedPerformanceStates, pstates);
    static const nvmlPstates_t geforce[] = {NVML_PSTATE_0, NVML_PSTATE_2, NVML_PSTATE_8};
    unsigned count = sim_has(PROFILE, SIM_GEFORCE) ? 3 : 1;
    unsigned room = size / (unsigned)sizeof *pstates;
    if (room < count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < room && i < NVML_MAX_GPU_PERF_PSTATES; i++)
        pstates[i] = i < count ? geforce[i] : NVML_PSTATE_UNKNOWN;
    return NVML_SUCCESS;
}
