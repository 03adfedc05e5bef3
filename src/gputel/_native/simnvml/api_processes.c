/* Processes with a context on a device, what they use, and accounting. */
#include "driver.h"


#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define NO_INSTANCE 0xFFFFFFFFu
#define PROCESSES_MAX 1 /* a GPU of the simulation runs one job at a time */
#define CONTEXT_BYTES (8ULL << 20) /* of the driver, in the device's memory but no process's */

static uint64_t process_bytes(const sim_gpu *gpu)
{
    return SEEN.memory_used_bytes > CONTEXT_BYTES ? SEEN.memory_used_bytes - CONTEXT_BYTES : 0;
}

/* The compute process, if there is one: its number in `count`, and whether there is room. */
static nvmlReturn_t count_processes(unsigned pid, const void *infos, unsigned *count)
{
    unsigned room = infos ? *count : 0;
    *count = pid != 0;
    return room < *count ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

static nvmlReturn_t list_v1(const sim_gpu *gpu, unsigned pid, unsigned *count,
                            nvmlProcessInfo_v1_t *infos)
{
    nvmlReturn_t result = count_processes(pid, infos, count);
    if (result == NVML_SUCCESS && *count)
        *infos = (nvmlProcessInfo_v1_t){.pid = pid, .usedGpuMemory = process_bytes(gpu)};
    return result;
}

static nvmlReturn_t list_v2(const sim_gpu *gpu, unsigned pid, unsigned *count,
                            nvmlProcessInfo_v2_t *infos)
{
    nvmlReturn_t result = count_processes(pid, infos, count);
    if (result == NVML_SUCCESS && *count)
        *infos = (nvmlProcessInfo_v2_t){
            .pid = pid,
            .usedGpuMemory = process_bytes(gpu),
            .gpuInstanceId = NO_INSTANCE,
            .computeInstanceId = NO_INSTANCE,
        };
    return result;
}

/* Jobs compute; none draws, and none goes through MPS. */
#define LIST(function, info, list, pid) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *infoCount, info *infos) \
    { \
        DEVICE_CALL(function, infoCount); \
        return list(gpu, pid, infoCount, infos); \
    }

#define COMPUTE sim_model_pid(&gpu->model)
LIST(nvmlDeviceGetComputeRunningProcesses_v3, nvmlProcessInfo_t, list_v2, COMPUTE)
LIST(nvmlDeviceGetComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, list_v2, COMPUTE)
LIST(nvmlDeviceGetComputeRunningProcesses, nvmlProcessInfo_v1_t, list_v1, COMPUTE)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, nvmlProcessInfo_t, list_v2, 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlProcessInfo_v2_t, list_v2, 0)
LIST(nvmlDeviceGetGraphicsRunningProcesses, nvmlProcessInfo_v1_t, list_v1, 0)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, nvmlProcessInfo_t, list_v2, 0)
LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, nvmlProcessInfo_v2_t, list_v2, 0)
LIST(nvmlDeviceGetMPSComputeRunningProcesses, nvmlProcessInfo_v1_t, list_v1, 0)

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
                                                   nvmlProcessDetailList_t *plist)
{
    DEVICE_CALL(nvmlDeviceGetRunningProcessDetailList, plist);
    if (plist->version != NVML_STRUCT_VERSION(ProcessDetailList, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE(PROFILE->architecture >= NVML_DEVICE_ARCH_HOPPER);
    enum { MODE_COMPUTE, MODE_GRAPHICS, MODE_MPS, MODES };
    if (plist->mode >= MODES)
        return NVML_ERROR_INVALID_ARGUMENT;
    unsigned pid = plist->mode == MODE_COMPUTE ? sim_model_pid(&gpu->model) : 0;
    nvmlReturn_t result = count_processes(pid, plist->procArray, &plist->numProcArrayEntries);
    if (result == NVML_SUCCESS && plist->numProcArrayEntries)
        *plist->procArray = (nvmlProcessDetail_v1_t){
            .pid = pid,
            .usedGpuMemory = process_bytes(gpu),
            .gpuInstanceId = NO_INSTANCE,
            .computeInstanceId = NO_INSTANCE,
        };
    return result;
}

/* ---- Utilization ------------------------------------------------------------------------- */

/* The newest sample in which a process ran, if it is newer than `seen_us`. */
static const sim_utilization_sample *busy_sample(const sim_gpu *gpu, uint64_t seen_us)
{
    const sim_utilization_sample *newest = sim_model_utilization(&gpu->model);
    bool some = newest->pid && newest->gpu && sim_unix_us(newest->time_ns) > seen_us;
    return some ? newest : NULL;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
                                             nvmlProcessUtilizationSample_t *utilization,
                                             unsigned int *processSamplesCount,
                                             unsigned long long lastSeenTimeStamp)
{
    DEVICE_CALL(nvmlDeviceGetProcessUtilization, processSamplesCount);
    unsigned room = utilization ? *processSamplesCount : 0;
    *processSamplesCount = PROCESSES_MAX;
    if (room < PROCESSES_MAX)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    const sim_utilization_sample *busy = busy_sample(gpu, lastSeenTimeStamp);
    *processSamplesCount = busy != NULL;
    if (!busy)
        return NVML_ERROR_NOT_FOUND;
    *utilization = (nvmlProcessUtilizationSample_t){
        .pid = busy->pid,
        .timeStamp = sim_unix_us(busy->time_ns),
        .smUtil = busy->gpu,
        .memUtil = busy->memory,
        .encUtil = busy->encoder,
        .decUtil = busy->decoder,
    };
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(
    nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *procesesUtilInfo)
{
    DEVICE_CALL(nvmlDeviceGetProcessesUtilizationInfo, procesesUtilInfo);
    nvmlProcessesUtilizationInfo_t *info = procesesUtilInfo;
    if (info->version != NVML_STRUCT_VERSION(ProcessesUtilizationInfo, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    unsigned room = info->procUtilArray ? info->processSamplesCount : 0;
    info->processSamplesCount = PROCESSES_MAX;
    if (room < PROCESSES_MAX)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    const sim_utilization_sample *busy = busy_sample(gpu, info->lastSeenTimeStamp);
    info->processSamplesCount = busy != NULL;
    if (!busy)
        return NVML_ERROR_NOT_FOUND;
    *info->procUtilArray = (nvmlProcessUtilizationInfo_v1_t){
        .timeStamp = sim_unix_us(busy->time_ns),
        .pid = busy->pid,
        .smUtil = busy->gpu,
        .memUtil = busy->memory,
        .encUtil = busy->encoder,
        .decUtil = busy->decoder,
        .jpgUtil = busy->jpeg,
        .ofaUtil = busy->ofa,
    };
    return NVML_SUCCESS;
}

/* ---- Accounting -------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetAccountingMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    CACHED_CALL(nvmlDeviceGetAccountingMode, mode);
    *mode = sim.config.accounting ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAccountingBufferSize(nvmlDevice_t device, unsigned int *bufferSize)
{
    CACHED_CALL(nvmlDeviceGetAccountingBufferSize, bufferSize);
    *bufferSize = SIM_PIDS_MAX;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAccountingPids(nvmlDevice_t device, unsigned int *count,
                                         unsigned int *pids)
{
    DEVICE_CALL(nvmlDeviceGetAccountingPids, count);
    REQUIRE(sim.config.accounting);
    unsigned room = pids ? *count : 0;
    *count = 0;
    while (*count < SIM_PIDS_MAX && gpu->model.accounts[*count].pid)
        ++*count;
    if (room < *count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < *count; i++)
        pids[i] = gpu->model.accounts[i].pid;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetAccountingStats(nvmlDevice_t device, unsigned int pid,
                                          nvmlAccountingStats_t *stats)
{
    DEVICE_CALL(nvmlDeviceGetAccountingStats, stats);
    REQUIRE(sim.config.accounting);
    for (unsigned i = 0; pid && i < SIM_PIDS_MAX; i++) {
        const sim_account *account = &gpu->model.accounts[i];
        if (account->pid != pid)
            continue;
        double ns = account->active_ns ? (double)account->active_ns : 1;
        *stats = (nvmlAccountingStats_t){
            .gpuUtilization = (unsigned)(100 * account->graphics / ns),
            .memoryUtilization = (unsigned)(100 * account->dram / ns),
            .maxMemoryUsage = account->memory_max_bytes,
            .time = account->running ? 0 : account->active_ns / 1000000,
            .startTime = sim_unix_us(account->start_ns),
            .isRunning = account->running,
        };
        return NVML_SUCCESS;
    }
    return NVML_ERROR_NOT_FOUND;
}
