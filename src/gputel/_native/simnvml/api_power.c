/* Power, energy, temperatures and fans. */
#include "driver.h"


#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define FAN_MAX_RPM 3000
#define NJ_PER_MJ 1000000ULL

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
{
    DEVICE_CALL(nvmlDeviceGetPowerUsage, power);
    *power = SEEN.power_average_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy)
{
    DEVICE_CALL(nvmlDeviceGetTotalEnergyConsumption, energy);
    *energy = gpu->model.energy_nj / NJ_PER_MJ;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    CACHED_CALL(nvmlDeviceGetPowerManagementMode, mode);
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *limit)
{
    DEVICE_CALL(nvmlDeviceGetPowerManagementLimit, limit);
    *limit = PROFILE->power_default_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device,
                                                          unsigned int *minLimit,
                                                          unsigned int *maxLimit)
{
    CACHED_CALL(nvmlDeviceGetPowerManagementLimitConstraints, minLimit && maxLimit);
    *minLimit = PROFILE->power_min_mw;
    *maxLimit = PROFILE->power_max_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device,
                                                      unsigned int *defaultLimit)
{
    CACHED_CALL(nvmlDeviceGetPowerManagementDefaultLimit, defaultLimit);
    *defaultLimit = PROFILE->power_default_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit)
{
    DEVICE_CALL(nvmlDeviceGetEnforcedPowerLimit, limit);
    *limit = PROFILE->power_default_mw;
    return NVML_SUCCESS;
}

/* ---- Temperatures ------------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensorType,
                                      unsigned int *temp)
{
    DEVICE_CALL(nvmlDeviceGetTemperature, temp && sensorType == NVML_TEMPERATURE_GPU);
    *temp = (unsigned)SEEN.core_celsius;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    DEVICE_CALL(nvmlDeviceGetTemperatureV, temperature);
    if (temperature->version != NVML_STRUCT_VERSION(Temperature, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (temperature->sensorType != NVML_TEMPERATURE_GPU)
        return NVML_ERROR_INVALID_ARGUMENT;
    temperature->temperature = SEEN.core_celsius;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMarginTemperature(nvmlDevice_t device,
                                            nvmlMarginTemperature_t *marginTempInfo)
{
    DEVICE_CALL(nvmlDeviceGetMarginTemperature, marginTempInfo);
    if (marginTempInfo->version != NVML_STRUCT_VERSION(MarginTemperature, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE(PROFILE->architecture >= NVML_DEVICE_ARCH_ADA);
    marginTempInfo->marginTemperature = PROFILE->gpu_max_celsius - SEEN.core_celsius;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device,
                                               nvmlTemperatureThresholds_t thresholdType,
                                               unsigned int *temp)
{
    CACHED_CALL(nvmlDeviceGetTemperatureThreshold,
                temp && (unsigned)thresholdType < NVML_TEMPERATURE_THRESHOLD_COUNT);
    switch (thresholdType) {
    case NVML_TEMPERATURE_THRESHOLD_SHUTDOWN:
        *temp = (unsigned)PROFILE->shutdown_celsius;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_SLOWDOWN:
        *temp = (unsigned)PROFILE->slowdown_celsius;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_GPU_MAX:
        *temp = (unsigned)PROFILE->gpu_max_celsius;
        return NVML_SUCCESS;
    case NVML_TEMPERATURE_THRESHOLD_MEM_MAX:
        REQUIRE(sim_has(PROFILE, SIM_MEMORY_SENSOR));
        *temp = (unsigned)PROFILE->memory_max_celsius;
        return NVML_SUCCESS;
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* ---- Fans -------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetNumFans(nvmlDevice_t device, unsigned int *numFans)
{
    CACHED_CALL(nvmlDeviceGetNumFans, numFans);
    *numFans = PROFILE->fans;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFanSpeed(nvmlDevice_t device, unsigned int *speed)
{
    DEVICE_CALL(nvmlDeviceGetFanSpeed, speed);
    REQUIRE(PROFILE->fans);
    *speed = SEEN.fan_percent;
    return NVML_SUCCESS;
}

/* A board without fans has no fan 0 to ask for, but answers like the first form. */
#define REQUIRE_FAN(fan) \
    do { \
        REQUIRE(PROFILE->fans); \
        if ((fan) >= PROFILE->fans) \
            return NVML_ERROR_INVALID_ARGUMENT; \
    } while (0)

nvmlReturn_t nvmlDeviceGetFanSpeed_v2(nvmlDevice_t device, unsigned int fan, unsigned int *speed)
{
    DEVICE_CALL(nvmlDeviceGetFanSpeed_v2, speed);
    REQUIRE_FAN(fan);
    *speed = SEEN.fan_percent;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTargetFanSpeed(nvmlDevice_t device, unsigned int fan,
                                         unsigned int *targetSpeed)
{
    DEVICE_CALL(nvmlDeviceGetTargetFanSpeed, targetSpeed);
    REQUIRE_FAN(fan);
    *targetSpeed = SEEN.fan_percent;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFanSpeedRPM(nvmlDevice_t device, nvmlFanSpeedInfo_t *fanSpeed)
{
    DEVICE_CALL(nvmlDeviceGetFanSpeedRPM, fanSpeed);
    if (fanSpeed->version != NVML_STRUCT_VERSION(FanSpeedInfo, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE_FAN(fanSpeed->fan);
    fanSpeed->speed = SEEN.fan_percent * FAN_MAX_RPM / 100;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinMaxFanSpeed(nvmlDevice_t device, unsigned int *minSpeed,
                                         unsigned int *maxSpeed)
{
    CACHED_CALL(nvmlDeviceGetMinMaxFanSpeed, minSpeed && maxSpeed);
    REQUIRE(PROFILE->fans);
    *minSpeed = 30;
    *maxSpeed = 100;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetFanControlPolicy_v2(nvmlDevice_t device, unsigned int fan,
                                              nvmlFanControlPolicy_t *policy)
{
    CACHED_CALL(nvmlDeviceGetFanControlPolicy_v2, policy);
    REQUIRE_FAN(fan);
    *policy = 0; /* by temperature */
    return NVML_SUCCESS;
}
