/* PCIe, NVLink, and where the GPUs are to each other and to the CPUs. */
#include "links.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define PCIE_WIDTH 16

/* ---- PCIe -------------------------------------------------------------------------------- */

/* In KB/s. The real call takes 20 ms, which `latency.nvmlDeviceGetPcieThroughput` asks for. */
nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter,
                                         unsigned int *value)
{
    DEVICE_CALL(nvmlDeviceGetPcieThroughput, value && (unsigned)counter < NVML_PCIE_UTIL_COUNT);
    double rate = counter == NVML_PCIE_UTIL_TX_BYTES ? SEEN.pcie_tx_rate : SEEN.pcie_rx_rate;
    *value = (unsigned)(rate / 1000);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPcieReplayCounter(nvmlDevice_t device, unsigned int *value)
{
    DEVICE_CALL(nvmlDeviceGetPcieReplayCounter, value);
    *value = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkGeneration(nvmlDevice_t device, unsigned int *currLinkGen)
{
    DEVICE_CALL(nvmlDeviceGetCurrPcieLinkGeneration, currLinkGen);
    *currLinkGen = SEEN.link_generation;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrPcieLinkWidth(nvmlDevice_t device, unsigned int *currLinkWidth)
{
    DEVICE_CALL(nvmlDeviceGetCurrPcieLinkWidth, currLinkWidth);
    *currLinkWidth = PCIE_WIDTH;
    return NVML_SUCCESS;
}

#define CONSTANT(function, value) \
    nvmlReturn_t function(nvmlDevice_t device, unsigned int *answer) \
    { \
        CACHED_CALL(function, answer); \
        *answer = (value); \
        return NVML_SUCCESS; \
    }

CONSTANT(nvmlDeviceGetMaxPcieLinkWidth, PCIE_WIDTH)
CONSTANT(nvmlDeviceGetMaxPcieLinkGeneration, PROFILE->pcie_generation)
CONSTANT(nvmlDeviceGetGpuMaxPcieLinkGeneration, PROFILE->pcie_generation)
CONSTANT(nvmlDeviceGetPcieLinkMaxSpeed, PROFILE->pcie_generation) /* 4: 16, 5: 32 GT/s */

/* Mbit/s of a lane. */
nvmlReturn_t nvmlDeviceGetPcieSpeed(nvmlDevice_t device, unsigned int *pcieSpeed)
{
    static const unsigned lane_mbps[] = {0, 2500, 5000, 8000, 16000, 32000};
    DEVICE_CALL(nvmlDeviceGetPcieSpeed, pcieSpeed);
    *pcieSpeed = lane_mbps[SEEN.link_generation];
    return NVML_SUCCESS;
}

/* ---- NVLink ------------------------------------------------------------------------------ */

uint64_t sim_link_bytes(const sim_gpu *gpu, unsigned link, sim_direction direction)
{
    uint64_t all = direction == SIM_TX ? SEEN.nvlink_tx_bytes : SEEN.nvlink_rx_bytes;
    if (link == UINT_MAX || PROFILE->nvlinks == 0)
        return all;
    /* The shares add up to the whole. */
    return (all + link) / PROFILE->nvlinks;
}

#define REQUIRE_LINK(link) \
    do { \
        REQUIRE(PROFILE->nvlinks); \
        if ((link) >= PROFILE->nvlinks) \
            return NVML_ERROR_INVALID_ARGUMENT; \
    } while (0)

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link,
                                      nvmlEnableState_t *isActive)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkState, isActive);
    REQUIRE_LINK(link);
    *isActive = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkVersion(nvmlDevice_t device, unsigned int link,
                                        unsigned int *version)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkVersion, version);
    REQUIRE_LINK(link);
    *version = PROFILE->nvlink_version;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkCapability(nvmlDevice_t device, unsigned int link,
                                           nvmlNvLinkCapability_t capability,
                                           unsigned int *capResult)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkCapability,
                capResult && (unsigned)capability < NVML_NVLINK_CAP_COUNT);
    REQUIRE_LINK(link);
    *capResult = capability != NVML_NVLINK_CAP_SLI_BRIDGE;
    return NVML_SUCCESS;
}

/* All links lead to the NVSwitches of the node, in turn. */
static void fill_switch(const sim_gpu *gpu, unsigned link, nvmlPciInfo_t *pci, bool legacy)
{
    unsigned bus = 5 + link % 6;
    nvmlPciInfo_t info = {.domain = gpu->identity.domain, .bus = bus, .pciDeviceId = 0x22A310DE};
    snprintf(info.busIdLegacy, sizeof info.busIdLegacy, "%04X:%02X:00.0", info.domain & 0xFFFF,
             bus);
    snprintf(info.busId, sizeof info.busId, "%08X:%02X:00.0", info.domain, bus);
    memcpy(pci, &info, legacy ? offsetof(nvmlPciInfo_t, busId) : sizeof info);
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo_v2(nvmlDevice_t device, unsigned int link,
                                                 nvmlPciInfo_t *pci)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2, pci);
    REQUIRE_LINK(link);
    fill_switch(gpu, link, pci, false);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemotePciInfo(nvmlDevice_t device, unsigned int link,
                                              nvmlPciInfo_t *pci)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkRemotePciInfo, pci);
    REQUIRE_LINK(link);
    fill_switch(gpu, link, pci, true);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNvLinkRemoteDeviceType(nvmlDevice_t device, unsigned int link,
                                                 nvmlIntNvLinkDeviceType_t *pNvLinkDeviceType)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkRemoteDeviceType, pNvLinkDeviceType);
    REQUIRE_LINK(link);
    *pNvLinkDeviceType = NVML_NVLINK_DEVICE_TYPE_SWITCH;
    return NVML_SUCCESS;
}

/* The links of the simulation are sound. */
nvmlReturn_t nvmlDeviceGetNvLinkErrorCounter(nvmlDevice_t device, unsigned int link,
                                             nvmlNvLinkErrorCounter_t counter,
                                             unsigned long long *counterValue)
{
    DEVICE_CALL(nvmlDeviceGetNvLinkErrorCounter,
                counterValue && (unsigned)counter < NVML_NVLINK_ERROR_COUNT);
    REQUIRE_LINK(link);
    *counterValue = 0;
    return NVML_SUCCESS;
}

/* ---- Fabric ------------------------------------------------------------------------------ */

nvmlReturn_t nvmlDeviceGetGpuFabricInfo(nvmlDevice_t device, nvmlGpuFabricInfo_t *gpuFabricInfo)
{
    DEVICE_CALL(nvmlDeviceGetGpuFabricInfo, gpuFabricInfo);
    bool fabric = sim_has(PROFILE, SIM_FABRIC);
    *gpuFabricInfo = (nvmlGpuFabricInfo_t){
        .status = NVML_SUCCESS,
        .state = fabric ? NVML_GPU_FABRIC_STATE_COMPLETED : NVML_GPU_FABRIC_STATE_NOT_SUPPORTED,
    };
    return NVML_SUCCESS;
}

#define HEALTHY(what) \
    (NVML_GPU_FABRIC_HEALTH_MASK_##what##_FALSE << NVML_GPU_FABRIC_HEALTH_MASK_SHIFT_##what)

nvmlReturn_t nvmlDeviceGetGpuFabricInfoV(nvmlDevice_t device, nvmlGpuFabricInfoV_t *gpuFabricInfo)
{
    DEVICE_CALL(nvmlDeviceGetGpuFabricInfoV, gpuFabricInfo);
    if (gpuFabricInfo->version != NVML_STRUCT_VERSION(GpuFabricInfo, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    bool fabric = sim_has(PROFILE, SIM_FABRIC);
    *gpuFabricInfo = (nvmlGpuFabricInfoV_t){
        .version = gpuFabricInfo->version,
        .status = NVML_SUCCESS,
        .state = fabric ? NVML_GPU_FABRIC_STATE_COMPLETED : NVML_GPU_FABRIC_STATE_NOT_SUPPORTED,
        .healthMask = fabric ? HEALTHY(DEGRADED_BW) | HEALTHY(ROUTE_RECOVERY) |
                                   HEALTHY(ROUTE_UNHEALTHY) | HEALTHY(ACCESS_TIMEOUT_RECOVERY)
                             : 0,
    };
    return NVML_SUCCESS;
}

/* ---- Topology: one socket, four GPUs at each host bridge --------------------------------- */

static nvmlGpuTopologyLevel_t common_ancestor(const sim_gpu *a, const sim_gpu *b)
{
    if (a == b)
        return NVML_TOPOLOGY_INTERNAL;
    return a->number / 4 == b->number / 4 ? NVML_TOPOLOGY_HOSTBRIDGE : NVML_TOPOLOGY_NODE;
}

nvmlReturn_t nvmlDeviceGetTopologyCommonAncestor(nvmlDevice_t device1, nvmlDevice_t device2,
                                                 nvmlGpuTopologyLevel_t *pathInfo)
{
    nvmlDevice_t device = device1;
    CACHED_CALL(nvmlDeviceGetTopologyCommonAncestor, pathInfo && sim_gpu_of(device2));
    *pathInfo = common_ancestor(gpu, sim_gpu_of(device2));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
                                              unsigned int *count, nvmlDevice_t *deviceArray)
{
    CACHED_CALL(nvmlDeviceGetTopologyNearestGpus, count && (*count == 0 || deviceArray));
    sim_release(&call);
    unsigned room = *count, found = 0;
    for (unsigned i = 0; i < sim.config.gpus; i++) {
        sim_gpu *other = &sim.gpus[i];
        nvmlReturn_t lookup;
        if (other == gpu || common_ancestor(gpu, other) != level ||
            !sim_gpu_visible(other, &lookup))
            continue;
        if (found < room)
            deviceArray[found] = sim_handle(other);
        found++;
    }
    *count = room && room < found ? room : found;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetP2PStatus(nvmlDevice_t device1, nvmlDevice_t device2,
                                    nvmlGpuP2PCapsIndex_t p2pIndex, nvmlGpuP2PStatus_t *p2pStatus)
{
    nvmlDevice_t device = device1;
    CACHED_CALL(nvmlDeviceGetP2PStatus, p2pStatus && sim_gpu_of(device2) &&
                                            (unsigned)p2pIndex < NVML_P2P_CAPS_INDEX_UNKNOWN);
    bool geforce = sim_has(PROFILE, SIM_GEFORCE);
    bool nvlink = p2pIndex == NVML_P2P_CAPS_INDEX_NVLINK;
    *p2pStatus = geforce || (nvlink && PROFILE->nvlinks == 0) ? NVML_P2P_STATUS_NOT_SUPPORTED
                                                              : NVML_P2P_STATUS_OK;
    return NVML_SUCCESS;
}

/* All GPUs are near all CPUs and to memory node 0. */
static void fill_cpus(unsigned words, unsigned long *set)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned bits = 8 * (unsigned)sizeof *set;
    memset(set, 0, words * sizeof *set);
    for (unsigned cpu = 0; (long)cpu < online && cpu < words * bits; cpu++)
        set[cpu / bits] |= 1UL << cpu % bits;
}

nvmlReturn_t nvmlDeviceGetCpuAffinity(nvmlDevice_t device, unsigned int cpuSetSize,
                                      unsigned long *cpuSet)
{
    CACHED_CALL(nvmlDeviceGetCpuAffinity, cpuSetSize && cpuSet);
    fill_cpus(cpuSetSize, cpuSet);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCpuAffinityWithinScope(nvmlDevice_t device, unsigned int cpuSetSize,
                                                 unsigned long *cpuSet, nvmlAffinityScope_t scope)
{
    CACHED_CALL(nvmlDeviceGetCpuAffinityWithinScope,
                cpuSetSize && cpuSet && scope <= NVML_AFFINITY_SCOPE_SOCKET);
    fill_cpus(cpuSetSize, cpuSet);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryAffinity(nvmlDevice_t device, unsigned int nodeSetSize,
                                         unsigned long *nodeSet, nvmlAffinityScope_t scope)
{
    CACHED_CALL(nvmlDeviceGetMemoryAffinity,
                nodeSetSize && nodeSet && scope <= NVML_AFFINITY_SCOPE_SOCKET);
    memset(nodeSet, 0, nodeSetSize * sizeof *nodeSet);
    nodeSet[0] = 1;
    return NVML_SUCCESS;
}

/* Of boards whose memory is a NUMA node, as Grace Hopper. */
nvmlReturn_t nvmlDeviceGetNumaNodeId(nvmlDevice_t device, unsigned int *node)
{
    CACHED_CALL(nvmlDeviceGetNumaNodeId, node);
    return NVML_ERROR_NOT_SUPPORTED;
}
