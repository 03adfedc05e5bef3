/* nvmlDeviceGetSamples: what the driver itself has sampled, from its own buffers. */
#include "driver.h"

#define PROFILE (gpu->model.profile)

/* A buffer of the model: how many samples it keeps, how many were ever taken. */
typedef struct {
    unsigned size;
    uint64_t taken;
} buffer;

static buffer buffer_of(const sim_model *model, nvmlSamplingType_t type)
{
    if (type == NVML_TOTAL_POWER_SAMPLES)
        return (buffer){SIM_POWER_SAMPLES, model->power_count};
    return (buffer){SIM_UTILIZATION_SAMPLES, model->utilization_count};
}

static uint64_t sample_time(const sim_model *model, nvmlSamplingType_t type, uint64_t number)
{
    if (type == NVML_TOTAL_POWER_SAMPLES)
        return model->power[number % SIM_POWER_SAMPLES].time_ns;
    return model->utilization[number % SIM_UTILIZATION_SAMPLES].time_ns;
}

static unsigned sample_value(const sim_model *model, nvmlSamplingType_t type, uint64_t number)
{
    const sim_utilization_sample *use = &model->utilization[number % SIM_UTILIZATION_SAMPLES];
    switch (type) {
    case NVML_TOTAL_POWER_SAMPLES:
        return model->power[number % SIM_POWER_SAMPLES].power_mw;
    case NVML_GPU_UTILIZATION_SAMPLES:
        return use->gpu;
    case NVML_MEMORY_UTILIZATION_SAMPLES:
        return use->memory;
    case NVML_ENC_UTILIZATION_SAMPLES:
        return use->encoder;
    case NVML_DEC_UTILIZATION_SAMPLES:
        return use->decoder;
    case NVML_JPG_UTILIZATION_SAMPLES:
        return use->jpeg;
    case NVML_OFA_UTILIZATION_SAMPLES:
        return use->ofa;
    case NVML_PROCESSOR_CLK_SAMPLES:
        return use->sm_mhz;
    default: /* NVML_MEMORY_CLK_SAMPLES */
        return use->memory_mhz;
    }
}

/* The oldest kept sample that is newer than `seen_us`; buffers are short, and mostly the few
 * newest are asked for. */
static uint64_t first_after(const sim_model *model, nvmlSamplingType_t type, buffer kept,
                            uint64_t seen_us)
{
    uint64_t oldest = kept.taken > kept.size ? kept.taken - kept.size : 0;
    uint64_t number = kept.taken;
    while (number > oldest && sim_unix_us(sample_time(model, type, number - 1)) > seen_us)
        number--;
    return number;
}

nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
                                  unsigned long long lastSeenTimeStamp,
                                  nvmlValueType_t *sampleValType, unsigned int *sampleCount,
                                  nvmlSample_t *samples)
{
    DEVICE_CALL(nvmlDeviceGetSamples, sampleValType && sampleCount &&
                                          (!samples || *sampleCount) &&
                                          (unsigned)type < NVML_SAMPLINGTYPE_COUNT);
    REQUIRE(type != NVML_MODULE_POWER_SAMPLES);
    const sim_model *model = &gpu->model;
    buffer kept = buffer_of(model, type);
    *sampleValType = NVML_VALUE_TYPE_UNSIGNED_INT;
    if (!samples) {
        *sampleCount = kept.size;
        return NVML_SUCCESS;
    }
    uint64_t number = first_after(model, type, kept, lastSeenTimeStamp);
    uint64_t count = kept.taken - number;
    count = count < *sampleCount ? count : *sampleCount;
    *sampleCount = (unsigned)count;
    for (uint64_t i = 0; i < count; i++) {
        samples[i].timeStamp = sim_unix_us(sample_time(model, type, number + i));
        samples[i].sampleValue.ullVal = 0;
        samples[i].sampleValue.uiVal = sample_value(model, type, number + i);
    }
    return count ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
