/* GPM: what happened on average between two samples. */
#include "driver.h"

#include <math.h>

#define PROFILE (gpu->model.profile)
#define MIB 1048576.0
#define SAMPLES_MAX 4096

/* A sample's handle is its place and generation, so that one freed is recognised:
 *
 *   bit  63        32 31      0
 *        +-----------+---------+
 *        | generation| place   |      generations begin with 1
 *        +-----------+---------+
 */
typedef struct {
    bool used, filled;
    unsigned generation;
    unsigned gpu, incarnation;
    sim_integrals sum;
} gpm_sample;

static gpm_sample samples[SAMPLES_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* With the lock held; NULL for a handle that is none. */
static gpm_sample *sample_of(nvmlGpmSample_t handle)
{
    uintptr_t place = (uintptr_t)handle & 0xFFFFFFFF;
    if (place >= SAMPLES_MAX || !samples[place].used ||
        samples[place].generation != (uintptr_t)handle >> 32)
        return NULL;
    return &samples[place];
}

nvmlReturn_t nvmlGpmQueryDeviceSupport(nvmlDevice_t device, nvmlGpmSupport_t *gpmSupport)
{
    CACHED_CALL(nvmlGpmQueryDeviceSupport, gpmSupport);
    if (gpmSupport->version != NVML_GPM_SUPPORT_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    gpmSupport->isSupportedDevice = (unsigned)sim_has(PROFILE, SIM_GPM);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmQueryIfStreamingEnabled(nvmlDevice_t device, unsigned int *state)
{
    DEVICE_CALL(nvmlGpmQueryIfStreamingEnabled, state);
    REQUIRE(sim_has(PROFILE, SIM_GPM));
    *state = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGpmSampleAlloc(nvmlGpmSample_t *gpmSample)
{
    HOST_CALL(nvmlGpmSampleAlloc, gpmSample);
    nvmlReturn_t result = NVML_ERROR_MEMORY;
    pthread_mutex_lock(&lock);
    for (uintptr_t i = 0; i < SAMPLES_MAX && result != NVML_SUCCESS; i++)
        if (!samples[i].used) {
            samples[i] = (gpm_sample){.used = true, .generation = samples[i].generation + 1};
            *gpmSample = (nvmlGpmSample_t)((uintptr_t)samples[i].generation << 32 | i);
            result = NVML_SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t nvmlGpmSampleFree(nvmlGpmSample_t gpmSample)
{
    HOST_CALL(nvmlGpmSampleFree, gpmSample);
    pthread_mutex_lock(&lock);
    gpm_sample *sample = sample_of(gpmSample);
    if (sample)
        sample->used = false;
    pthread_mutex_unlock(&lock);
    return sample ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t gpmSample)
{
    DEVICE_CALL(nvmlGpmSampleGet, gpmSample);
    REQUIRE(sim_has(PROFILE, SIM_GPM));
    pthread_mutex_lock(&lock);
    gpm_sample *sample = sample_of(gpmSample);
    if (sample) {
        sample->filled = true;
        sample->gpu = gpu->number;
        sample->incarnation = gpu->incarnation;
        sample->sum = gpu->model.integrals;
    }
    pthread_mutex_unlock(&lock);
    return sample ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

/* MIG is off: there is no instance. */
nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpuInstanceId,
                                 nvmlGpmSample_t gpmSample)
{
    (void)gpuInstanceId;
    DEVICE_CALL(nvmlGpmMigSampleGet, gpmSample);
    return NVML_ERROR_NOT_SUPPORTED;
}

/* ---- Metrics ----------------------------------------------------------------------------- */

#define IN(sum, member) ((sum)->member)
#define SHARE(member) (100 * (IN(to, member) - IN(from, member)) / ns)
#define RATE(member) ((IN(to, member) - IN(from, member)) / MIB / (ns / 1e9))

/* Percent, or MiB/s. NaN when no time lies between the samples. */
static nvmlReturn_t metric_value(const sim_profile *profile, const sim_integrals *from,
                                 const sim_integrals *to, unsigned id, double *value)
{
    double ns = (double)to->time_ns - (double)from->time_ns;
    switch (id) {
    case NVML_GPM_METRIC_GRAPHICS_UTIL:
        *value = SHARE(graphics);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_UTIL:
        *value = SHARE(sm);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_SM_OCCUPANCY:
        *value = SHARE(occupancy);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_INTEGER_UTIL:
        *value = SHARE(integer);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_ANY_TENSOR_UTIL:
    case NVML_GPM_METRIC_HMMA_TENSOR_UTIL: /* jobs multiply in 16 bits */
        *value = SHARE(tensor);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_DFMA_TENSOR_UTIL:
    case NVML_GPM_METRIC_IMMA_TENSOR_UTIL:
        *value = ns ? 0 : NAN;
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_DRAM_BW_UTIL:
        *value = SHARE(dram);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP64_UTIL:
        *value = SHARE(fp64);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP32_UTIL:
        *value = SHARE(fp32);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_FP16_UTIL:
        *value = SHARE(fp16);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_TX_PER_SEC:
        *value = RATE(pcie_tx);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_PCIE_RX_PER_SEC:
        *value = RATE(pcie_rx);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC:
        *value = RATE(nvlink_rx);
        return NVML_SUCCESS;
    case NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC:
        *value = RATE(nvlink_tx);
        return NVML_SUCCESS;
    default:
        break;
    }
    /* One metric for each engine and each link, all with the same share. */
    if (id - NVML_GPM_METRIC_NVDEC_0_UTIL < profile->decoders)
        *value = SHARE(decoder);
    else if (id - NVML_GPM_METRIC_NVJPG_0_UTIL < profile->jpegs)
        *value = SHARE(jpeg);
    else if (id - NVML_GPM_METRIC_NVOFA_0_UTIL < profile->ofas)
        *value = SHARE(ofa);
    else if (id - NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC < 2 * profile->nvlinks)
        *value = (id % 2 ? RATE(nvlink_tx) : RATE(nvlink_rx)) / profile->nvlinks;
    else
        return NVML_ERROR_NOT_SUPPORTED;
    return NVML_SUCCESS;
}

static void name_metric(nvmlGpmMetric_t *metric)
{
    bool rate = metric->metricId >= NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC ||
                metric->metricId == NVML_GPM_METRIC_PCIE_TX_PER_SEC ||
                metric->metricId == NVML_GPM_METRIC_PCIE_RX_PER_SEC;
    metric->metricInfo.shortName = "gpm";
    metric->metricInfo.longName = rate ? "Traffic" : "Utilization";
    metric->metricInfo.unit = rate ? "MiB/sec" : "%";
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *metricsGet)
{
    HOST_CALL(nvmlGpmMetricsGet, metricsGet);
    if (metricsGet->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    /* Newer headers have longer arrays: numMetrics says how long this one is. */
    if (metricsGet->numMetrics == 0 || metricsGet->numMetrics > 1024)
        return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    const gpm_sample *from = sample_of(metricsGet->sample1), *to = sample_of(metricsGet->sample2);
    bool comparable = from && to && from->filled && to->filled && from->gpu == to->gpu &&
                      from->incarnation == to->incarnation &&
                      from->sum.time_ns <= to->sum.time_ns;
    for (unsigned i = 0; comparable && i < metricsGet->numMetrics; i++) {
        nvmlGpmMetric_t *metric = &metricsGet->metrics[i];
        metric->value = 0;
        metric->nvmlReturn = metric_value(sim.config.profile, &from->sum, &to->sum,
                                          metric->metricId, &metric->value);
        name_metric(metric);
    }
    pthread_mutex_unlock(&lock);
    return comparable ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}
