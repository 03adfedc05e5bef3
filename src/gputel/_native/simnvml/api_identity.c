/* Who a device is. The library knows it by heart, and answers for a GPU that is lost, too. */
#include "driver.h"

#include <stdio.h>
#include <string.h>

#define PROFILE (gpu->model.profile)

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetName, name);
    const sim_mig_instance *instance = sim_mig_instance_of(device);
    char text[NVML_DEVICE_NAME_V2_BUFFER_SIZE];
    if (!instance)
        return sim_copy_text(name, length, PROFILE->name);
    snprintf(text, sizeof text, "%s MIG %s", PROFILE->name, instance->profile->name);
    return sim_copy_text(name, length, text);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetUUID, uuid);
    const sim_mig_instance *instance = sim_mig_instance_of(device);
    char text[NVML_DEVICE_UUID_V2_BUFFER_SIZE];
    if (!instance)
        return sim_copy_text(uuid, length, gpu->identity.uuid);
    sim_mig_uuid(gpu, instance, text);
    return sim_copy_text(uuid, length, text);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetSerial, serial);
    REQUIRE(sim_has(PROFILE, SIM_SERIAL));
    return sim_copy_text(serial, length, gpu->identity.serial);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    CACHED_CALL(nvmlDeviceGetIndex, index);
    sim_release(&call);
    *index = sim_gpu_index(gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minorNumber)
{
    CACHED_CALL(nvmlDeviceGetMinorNumber, minorNumber);
    *minorNumber = gpu->number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetModuleId(nvmlDevice_t device, unsigned int *moduleId)
{
    CACHED_CALL(nvmlDeviceGetModuleId, moduleId);
    REQUIRE(!sim_has(PROFILE, SIM_GEFORCE));
    *moduleId = gpu->number % 8 + 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *type)
{
    CACHED_CALL(nvmlDeviceGetBrand, type);
    *type = PROFILE->brand;
    return NVML_SUCCESS;
}

/* `legacy` alone for the oldest form of the struct, which ends before busId. */
static void fill_pci(const sim_gpu *gpu, nvmlPciInfo_t *pci, bool legacy)
{
    const sim_identity *identity = &gpu->identity;
    nvmlPciInfo_t info = {
        .domain = identity->domain,
        .bus = identity->bus,
        .pciDeviceId = PROFILE->pci_device_id,
        .pciSubSystemId = PROFILE->pci_subsystem_id,
    };
    snprintf(info.busIdLegacy, sizeof info.busIdLegacy, "%04X:%02X:00.0",
             identity->domain & 0xFFFF, identity->bus & 0xFF);
    memcpy(info.busId, identity->bus_id, sizeof info.busId);
    memcpy(pci, &info, legacy ? offsetof(nvmlPciInfo_t, busId) : sizeof info);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    CACHED_CALL(nvmlDeviceGetPciInfo_v3, pci);
    fill_pci(gpu, pci, false);
    return NVML_SUCCESS;
}

/* The structs of _v2 and of the first form have reserved words where busId is now. */
nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    CACHED_CALL(nvmlDeviceGetPciInfo_v2, pci);
    fill_pci(gpu, pci, true);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    CACHED_CALL(nvmlDeviceGetPciInfo, pci);
    fill_pci(gpu, pci, true);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_t *pci)
{
    CACHED_CALL(nvmlDeviceGetPciInfoExt, pci);
    if (pci->version != NVML_STRUCT_VERSION(PciInfoExt, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    pci->domain = gpu->identity.domain;
    pci->bus = gpu->identity.bus;
    pci->device = 0;
    pci->pciDeviceId = PROFILE->pci_device_id;
    pci->pciSubSystemId = PROFILE->pci_subsystem_id;
    pci->baseClass = 3; /* display controller: 3D for compute boards, VGA else */
    pci->subClass = sim_has(PROFILE, SIM_GEFORCE) ? 0 : 2;
    memcpy(pci->busId, gpu->identity.bus_id, sizeof pci->busId);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetVbiosVersion(nvmlDevice_t device, char *version, unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetVbiosVersion, version);
    return sim_copy_text(version, length, PROFILE->vbios);
}

nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned int *boardId)
{
    CACHED_CALL(nvmlDeviceGetBoardId, boardId);
    *boardId = sim_board_id(gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBoardPartNumber(nvmlDevice_t device, char *partNumber,
                                          unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetBoardPartNumber, partNumber);
    REQUIRE(*PROFILE->part_number);
    return sim_copy_text(partNumber, length, PROFILE->part_number);
}

nvmlReturn_t nvmlDeviceGetInforomVersion(nvmlDevice_t device, nvmlInforomObject_t object,
                                         char *version, unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetInforomVersion, version && (unsigned)object < NVML_INFOROM_COUNT);
    REQUIRE(object == NVML_INFOROM_OEM ||
            (object == NVML_INFOROM_ECC && sim_has(PROFILE, SIM_ECC)));
    return sim_copy_text(version, length, object == NVML_INFOROM_OEM ? "2.1" : "7.16");
}

nvmlReturn_t nvmlDeviceGetInforomImageVersion(nvmlDevice_t device, char *version,
                                              unsigned int length)
{
    CACHED_CALL(nvmlDeviceGetInforomImageVersion, version);
    return sim_copy_text(version, length, PROFILE->inforom);
}

nvmlReturn_t nvmlDeviceGetInforomConfigurationChecksum(nvmlDevice_t device,
                                                       unsigned int *checksum)
{
    CACHED_CALL(nvmlDeviceGetInforomConfigurationChecksum, checksum);
    REQUIRE(sim_has(PROFILE, SIM_SERIAL));
    *checksum = PROFILE->pci_device_id ^ PROFILE->pci_subsystem_id;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceValidateInforom(nvmlDevice_t device)
{
    CACHED_CALL(nvmlDeviceValidateInforom, true);
    REQUIRE(sim_has(PROFILE, SIM_SERIAL));
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *arch)
{
    CACHED_CALL(nvmlDeviceGetArchitecture, arch);
    *arch = PROFILE->architecture;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    CACHED_CALL(nvmlDeviceGetCudaComputeCapability, major && minor);
    *major = PROFILE->compute_major;
    *minor = PROFILE->compute_minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMultiGpuBoard(nvmlDevice_t device, unsigned int *multiGpuBool)
{
    CACHED_CALL(nvmlDeviceGetMultiGpuBoard, multiGpuBool);
    *multiGpuBool = 0;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceOnSameBoard(nvmlDevice_t device1, nvmlDevice_t device2, int *onSameBoard)
{
    nvmlDevice_t device = device1;
    CACHED_CALL(nvmlDeviceOnSameBoard, onSameBoard && sim_gpu_of(device2));
    *onSameBoard = sim_gpu_of(device2) == gpu;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetNumGpuCores(nvmlDevice_t device, unsigned int *numCores)
{
    CACHED_CALL(nvmlDeviceGetNumGpuCores, numCores);
    *numCores = PROFILE->cores;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryBusWidth(nvmlDevice_t device, unsigned int *busWidth)
{
    CACHED_CALL(nvmlDeviceGetMemoryBusWidth, busWidth);
    *busWidth = PROFILE->memory_bus_bits;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBusType(nvmlDevice_t device, nvmlBusType_t *type)
{
    CACHED_CALL(nvmlDeviceGetBusType, type);
    *type = NVML_BUS_TYPE_PCIE;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetIrqNum(nvmlDevice_t device, unsigned int *irqNum)
{
    CACHED_CALL(nvmlDeviceGetIrqNum, irqNum);
    *irqNum = 120 + gpu->number;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerSource(nvmlDevice_t device, nvmlPowerSource_t *powerSource)
{
    CACHED_CALL(nvmlDeviceGetPowerSource, powerSource);
    *powerSource = NVML_POWER_SOURCE_AC;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetGspFirmwareVersion(nvmlDevice_t device, char *version)
{
    CACHED_CALL(nvmlDeviceGetGspFirmwareVersion, version);
    return sim_copy_text(version, NVML_GSP_FIRMWARE_VERSION_BUF_SIZE, sim.config.driver);
}

nvmlReturn_t nvmlDeviceGetGspFirmwareMode(nvmlDevice_t device, unsigned int *isEnabled,
                                          unsigned int *defaultMode)
{
    CACHED_CALL(nvmlDeviceGetGspFirmwareMode, isEnabled && defaultMode);
    *isEnabled = *defaultMode = 1;
    return NVML_SUCCESS;
}
