/* GPM: what happened on average between two samples. */
#include "driver.h"

#include <math.h>

#define PROFILE (gpu->model.profile)
#define MIB 1048576.0
#define SAMPLES_MAX 4096
#define METRICS_MAX 1024 /* in one call */

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
    int instance; /* the MIG instance's number; WHOLE_GPU */
    sim_integrals sum;
} gpm_sample;

#define WHOLE_GPU (-1)

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

static nvmlReturn_t take_sample(const sim_gpu *gpu, int instance, nvmlGpmSample_t gpmSample)
{
    pthread_mutex_lock(&lock);
    gpm_sample *sample = sample_of(gpmSample);
    if (sample) {
        sample->filled = true;
        sample->gpu = gpu->number;
        sample->instance = instance;
        sample->incarnation = gpu->incarnation;
        sample->sum = gpu->model.integrals;
    }
    pthread_mutex_unlock(&lock);
    return sample ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlGpmSampleGet(nvmlDevice_t device, nvmlGpmSample_t gpmSample)
{
    DEVICE_CALL(nvmlGpmSampleGet, gpmSample);
    REQUIRE(sim_has(PROFILE, SIM_GPM));
    return take_sample(gpu, WHOLE_GPU, gpmSample);
}

/* An instance is as busy as its GPU; what goes over PCIe and NVLink is not told by instance. */
nvmlReturn_t nvmlGpmMigSampleGet(nvmlDevice_t device, unsigned int gpuInstanceId,
                                 nvmlGpmSample_t gpmSample)
{
    DEVICE_CALL(nvmlGpmMigSampleGet, gpmSample);
    REQUIRE(sim_has(PROFILE, SIM_GPM) && sim.config.mig[gpu->number].on);
    for (unsigned i = 0; i < sim.config.mig[gpu->number].count; i++)
        if (sim.config.mig[gpu->number].instances[i].id == gpuInstanceId)
            return take_sample(gpu, (int)gpuInstanceId, gpmSample);
    return NVML_ERROR_INVALID_ARGUMENT;
}

/* ---- Metrics ----------------------------------------------------------------------------- */

typedef enum { PERCENT, RATE, NEVER } metric_form;

typedef struct {
    unsigned id;
    metric_form form;
    size_t integral; /* offset in sim_integrals */
    const char *short_name, *long_name;
} metric;

#define OF(member) offsetof(sim_integrals, member)

/* Jobs multiply in 16 bits, so that HMMA is all of the tensor cores' work. */
static const metric metrics[] = {
    {NVML_GPM_METRIC_GRAPHICS_UTIL, PERCENT, OF(graphics), "Graphics Util", "Graphics engine"},
    {NVML_GPM_METRIC_SM_UTIL, PERCENT, OF(sm), "SM Util", "SMs busy"},
    {NVML_GPM_METRIC_SM_OCCUPANCY, PERCENT, OF(occupancy), "SM Occupancy", "Warps resident"},
    {NVML_GPM_METRIC_INTEGER_UTIL, PERCENT, OF(integer), "Integer Util", "Integer pipe"},
    {NVML_GPM_METRIC_ANY_TENSOR_UTIL, PERCENT, OF(tensor), "Tensor Util", "Tensor cores"},
    {NVML_GPM_METRIC_DFMA_TENSOR_UTIL, NEVER, 0, "DFMA Util", "Tensor cores, FP64"},
    {NVML_GPM_METRIC_HMMA_TENSOR_UTIL, PERCENT, OF(tensor), "HMMA Util", "Tensor cores, FP16"},
    {NVML_GPM_METRIC_IMMA_TENSOR_UTIL, NEVER, 0, "IMMA Util", "Tensor cores, integer"},
    {NVML_GPM_METRIC_DRAM_BW_UTIL, PERCENT, OF(dram), "DRAM BW Util", "Memory bandwidth"},
    {NVML_GPM_METRIC_FP64_UTIL, PERCENT, OF(fp64), "FP64 Util", "FP64 pipe"},
    {NVML_GPM_METRIC_FP32_UTIL, PERCENT, OF(fp32), "FP32 Util", "FP32 pipe"},
    {NVML_GPM_METRIC_FP16_UTIL, PERCENT, OF(fp16), "FP16 Util", "FP16 pipe"},
    {NVML_GPM_METRIC_PCIE_TX_PER_SEC, RATE, OF(pcie_tx), "PCIe TX", "PCIe sent"},
    {NVML_GPM_METRIC_PCIE_RX_PER_SEC, RATE, OF(pcie_rx), "PCIe RX", "PCIe received"},
    {NVML_GPM_METRIC_NVDEC_0_UTIL, PERCENT, OF(decoder), "NVDEC Util", "Decoder"},
    {NVML_GPM_METRIC_NVJPG_0_UTIL, PERCENT, OF(jpeg), "NVJPG Util", "JPEG decoder"},
    {NVML_GPM_METRIC_NVOFA_0_UTIL, PERCENT, OF(ofa), "NVOFA Util", "Optical flow"},
    {NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, RATE, OF(nvlink_rx), "NVLink RX", "All links"},
    {NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, RATE, OF(nvlink_tx), "NVLink TX", "All links"},
    {NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC, RATE, OF(nvlink_rx), "NVLink RX", "One link"},
    {NVML_GPM_METRIC_NVLINK_L0_TX_PER_SEC, RATE, OF(nvlink_tx), "NVLink TX", "One link"},
};

/* Engines and links of a kind share one row: the id of the first of them. `parts` becomes the
 * number over which its integral is spread. */
static unsigned first_of_kind(const sim_profile *profile, unsigned id, unsigned *parts)
{
    *parts = 1;
    if (id - NVML_GPM_METRIC_NVDEC_0_UTIL < profile->decoders)
        return NVML_GPM_METRIC_NVDEC_0_UTIL;
    if (id - NVML_GPM_METRIC_NVJPG_0_UTIL < profile->jpegs)
        return NVML_GPM_METRIC_NVJPG_0_UTIL;
    if (id - NVML_GPM_METRIC_NVOFA_0_UTIL < profile->ofas)
        return NVML_GPM_METRIC_NVOFA_0_UTIL;
    if (id - NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC < 2 * profile->nvlinks) {
        *parts = profile->nvlinks;
        return NVML_GPM_METRIC_NVLINK_L0_RX_PER_SEC + id % 2;
    }
    return id;
}

static double integral(const sim_integrals *sum, const metric *row)
{
    return *(const double *)((const char *)sum + row->integral);
}

/* Percent, or MiB/s; NaN when no time lies between the samples. */
static double average(const metric *row, const sim_integrals *from, const sim_integrals *to)
{
    double ns = (double)(to->time_ns - from->time_ns);
    if (ns == 0)
        return NAN;
    double growth = row->form == NEVER ? 0 : integral(to, row) - integral(from, row);
    return row->form == RATE ? growth / MIB / (ns / 1e9) : 100 * growth / ns;
}

static void fill_metric(const sim_profile *profile, const gpm_sample *from, const gpm_sample *to,
                        nvmlGpmMetric_t *answer)
{
    unsigned parts;
    unsigned id = first_of_kind(profile, answer->metricId, &parts);
    answer->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
    for (size_t i = 0; i < sizeof metrics / sizeof *metrics; i++) {
        const metric *row = &metrics[i];
        if (row->id != id || (row->form == RATE && to->instance != WHOLE_GPU))
            continue;
        answer->nvmlReturn = NVML_SUCCESS;
        answer->value = average(row, &from->sum, &to->sum) / parts;
        answer->metricInfo.shortName = (char *)row->short_name;
        answer->metricInfo.longName = (char *)row->long_name;
        answer->metricInfo.unit = row->form == RATE ? "MiB/sec" : "%";
    }
}

nvmlReturn_t nvmlGpmMetricsGet(nvmlGpmMetricsGet_t *metricsGet)
{
    HOST_CALL(nvmlGpmMetricsGet, metricsGet);
    if (metricsGet->version != NVML_GPM_METRICS_GET_VERSION)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    /* Newer headers have longer arrays: numMetrics says how long this one is. */
    if (metricsGet->numMetrics == 0 || metricsGet->numMetrics > METRICS_MAX)
        return NVML_ERROR_INVALID_ARGUMENT;
    pthread_mutex_lock(&lock);
    const gpm_sample *from = sample_of(metricsGet->sample1), *to = sample_of(metricsGet->sample2);
    bool comparable = from && to && from->filled && to->filled && from->gpu == to->gpu &&
                      from->incarnation == to->incarnation && from->instance == to->instance &&
                      from->sum.time_ns <= to->sum.time_ns;
    for (unsigned i = 0; comparable && i < metricsGet->numMetrics; i++)
        fill_metric(sim.config.profile, from, to, &metricsGet->metrics[i]);
    pthread_mutex_unlock(&lock);
    return comparable ? NVML_SUCCESS : NVML_ERROR_INVALID_ARGUMENT;
}
