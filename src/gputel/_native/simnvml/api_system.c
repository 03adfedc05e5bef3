/* Calls that concern the host, and looking devices up. */
#include "driver.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    HOST_CALL(nvmlSystemGetDriverVersion, version);
    return sim_copy_text(version, length, sim.config.driver);
}

/* The interface is 12 before driver 580, and 13 from there on. */
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    HOST_CALL(nvmlSystemGetNVMLVersion, version);
    char text[NVML_SYSTEM_NVML_VERSION_BUFFER_SIZE];
    snprintf(text, sizeof text, "%d.%s", sim.config.branch < 580 ? 12 : 13, sim.config.driver);
    return sim_copy_text(version, length, text);
}

/* The CUDA version that came with each branch, as 1000 * major + 10 * minor. */
static int cuda_version(void)
{
    static const struct {
        unsigned branch;
        int cuda;
    } releases[] = {{590, 13010}, {580, 13000}, {575, 12090}, {570, 12080}, {565, 12070},
                    {560, 12060}, {555, 12050}, {550, 12040}, {545, 12030}, {535, 12020}};
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++)
        if (sim.config.branch >= releases[i].branch)
            return releases[i].cuda;
    return 12000;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *cudaDriverVersion)
{
    HOST_CALL(nvmlSystemGetCudaDriverVersion, cudaDriverVersion);
    *cudaDriverVersion = cuda_version();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *cudaDriverVersion)
{
    HOST_CALL(nvmlSystemGetCudaDriverVersion_v2, cudaDriverVersion);
    *cudaDriverVersion = cuda_version();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetDriverBranch(nvmlSystemDriverBranchInfo_t *branchInfo,
                                       unsigned int length)
{
    HOST_CALL(nvmlSystemGetDriverBranch, branchInfo);
    if (branchInfo->version != NVML_STRUCT_VERSION(SystemDriverBranchInfo, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    char text[16];
    snprintf(text, sizeof text, "r%u_00", sim.config.branch);
    unsigned room = length < sizeof branchInfo->branch ? length : sizeof branchInfo->branch;
    return sim_copy_text(branchInfo->branch, room, text);
}

/* The first word of its command line, as far as it fits. */
nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
    HOST_CALL(nvmlSystemGetProcessName, name && length);
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return NVML_ERROR_NOT_FOUND;
    size_t read = fread(name, 1, length - 1, file);
    fclose(file);
    name[read] = '\0';
    return read ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlUnitGetCount(unsigned int *unitCount)
{
    HOST_CALL(nvmlUnitGetCount, unitCount);
    *unitCount = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlGetExcludedDeviceCount(unsigned int *deviceCount)
{
    HOST_CALL(nvmlGetExcludedDeviceCount, deviceCount);
    *deviceCount = 0;
    return NVML_SUCCESS;
}

/* ---- Confidential computing, off --------------------------------------------------------- */

nvmlReturn_t nvmlSystemGetConfComputeCapabilities(nvmlConfComputeSystemCaps_t *capabilities)
{
    HOST_CALL(nvmlSystemGetConfComputeCapabilities, capabilities);
    REQUIRE(sim_has(sim.config.profile, SIM_CONFIDENTIAL));
    *capabilities = (nvmlConfComputeSystemCaps_t){0};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeState(nvmlConfComputeSystemState_t *state)
{
    HOST_CALL(nvmlSystemGetConfComputeState, state);
    REQUIRE(sim_has(sim.config.profile, SIM_CONFIDENTIAL));
    *state = (nvmlConfComputeSystemState_t){0};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeSettings(nvmlSystemConfComputeSettings_t *settings)
{
    HOST_CALL(nvmlSystemGetConfComputeSettings, settings);
    REQUIRE(sim_has(sim.config.profile, SIM_CONFIDENTIAL));
    if (settings->version != NVML_STRUCT_VERSION(SystemConfComputeSettings, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    *settings = (nvmlSystemConfComputeSettings_t){.version = settings->version};
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetConfComputeGpusReadyState(unsigned int *isAcceptingWork)
{
    HOST_CALL(nvmlSystemGetConfComputeGpusReadyState, isAcceptingWork);
    REQUIRE(sim_has(sim.config.profile, SIM_CONFIDENTIAL));
    *isAcceptingWork = 0;
    return NVML_SUCCESS;
}

/* ---- Looking devices up ------------------------------------------------------------------ */

static unsigned count_visible(void)
{
    unsigned count = 0;
    nvmlReturn_t lookup;
    for (unsigned i = 0; i < sim.config.gpus; i++)
        count += sim_gpu_visible(&sim.gpus[i], &lookup);
    return count;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *deviceCount)
{
    HOST_CALL(nvmlDeviceGetCount_v2, deviceCount);
    *deviceCount = count_visible();
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *deviceCount)
{
    HOST_CALL(nvmlDeviceGetCount, deviceCount);
    *deviceCount = count_visible();
    return NVML_SUCCESS;
}

static nvmlReturn_t by_index(unsigned index, nvmlDevice_t *device)
{
    nvmlReturn_t lookup;
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        if (!sim_gpu_visible(&sim.gpus[i], &lookup) || index--)
            continue;
        *device = sim_handle(&sim.gpus[i]);
        return lookup;
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByIndex_v2, device);
    return by_index(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByIndex, device);
    return by_index(index, device);
}

typedef int (*matches)(const sim_identity *identity, const void *wanted);

static nvmlReturn_t by_identity(matches match, const void *wanted, nvmlDevice_t *device)
{
    nvmlReturn_t lookup;
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        sim_gpu *gpu = &sim.gpus[i];
        if (!match(&gpu->identity, wanted) || !sim_gpu_visible(gpu, &lookup))
            continue;
        *device = sim_handle(gpu);
        return lookup;
    }
    return NVML_ERROR_NOT_FOUND;
}

static int uuid_matches(const sim_identity *identity, const void *uuid)
{
    return strcasecmp(identity->uuid, uuid) == 0;
}

static int uuid_bytes_match(const sim_identity *identity, const void *bytes)
{
    return memcmp(identity->uuid_bytes, bytes, sizeof identity->uuid_bytes) == 0;
}

static int serial_matches(const sim_identity *identity, const void *serial)
{
    return strcmp(identity->serial, serial) == 0;
}

/* "1b:00.0", "0000:1B:00.0" and "00000000:1B:00.0" are one device. */
static int bus_id_matches(const sim_identity *identity, const void *bus_id)
{
    unsigned domain = 0, bus, device, function = 0;
    char rest;
    const char *text = bus_id;
    if (sscanf(text, "%x:%x:%x.%x%c", &domain, &bus, &device, &function, &rest) != 4) {
        domain = 0;
        if (sscanf(text, "%x:%x.%x%c", &bus, &device, &function, &rest) != 3)
            return 0;
    }
    return domain == identity->domain && bus == identity->bus && device == 0 && function == 0;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByUUID, uuid && device);
    if (strncasecmp(uuid, "MIG-", 4) == 0)
        return sim_mig_handle_named(uuid, device);
    return by_identity(uuid_matches, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByUUIDV, uuid && device);
    if (uuid->version != NVML_STRUCT_VERSION(UUID, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (uuid->type == NVML_UUID_TYPE_BINARY)
        return by_identity(uuid_bytes_match, uuid->value.bytes, device);
    if (uuid->type != NVML_UUID_TYPE_ASCII)
        return NVML_ERROR_INVALID_ARGUMENT;
    char text[NVML_DEVICE_UUID_ASCII_LEN + 1];
    snprintf(text, sizeof text, "%.*s", NVML_DEVICE_UUID_ASCII_LEN, uuid->value.str);
    return by_identity(uuid_matches, text, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleBySerial, serial && device);
    if (!sim_has(sim.config.profile, SIM_SERIAL))
        return NVML_ERROR_NOT_FOUND;
    return by_identity(serial_matches, serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *pciBusId, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByPciBusId_v2, pciBusId && device);
    return by_identity(bus_id_matches, pciBusId, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *pciBusId, nvmlDevice_t *device)
{
    HOST_CALL(nvmlDeviceGetHandleByPciBusId, pciBusId && device);
    return by_identity(bus_id_matches, pciBusId, device);
}

nvmlReturn_t nvmlSystemGetTopologyGpuSet(unsigned int cpuNumber, unsigned int *count,
                                         nvmlDevice_t *deviceArray)
{
    (void)cpuNumber; /* all GPUs are near all CPUs */
    HOST_CALL(nvmlSystemGetTopologyGpuSet, count && (*count == 0 || deviceArray));
    unsigned room = *count, found = 0;
    nvmlReturn_t lookup;
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        if (!sim_gpu_visible(&sim.gpus[i], &lookup))
            continue;
        if (found < room)
            deviceArray[found] = sim_handle(&sim.gpus[i]);
        found++;
    }
    *count = room && room < found ? room : found;
    return NVML_SUCCESS;
}
