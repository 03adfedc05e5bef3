/* The functions of NVML that the simulated driver exports and the native sampler may call.
 *
 * One list, because three things must agree: the prototypes, the types of pointers to them
 * (`nvmlInit_v2_fn`), and the counters of the simulator. Each returns nvmlReturn_t; a name
 * without a version is the oldest form of it. tests/differential/test_nvml_abi.py declares
 * the list again on top of NVIDIA's header, whose compiler then compares the signatures.
 */
#ifndef GPUTEL_NVML_FUNCTIONS_H
#define GPUTEL_NVML_FUNCTIONS_H

#define NVML_FUNCTIONS(F) \
    /* Library */ \
    F(nvmlInit_v2, (void)) \
    F(nvmlInit, (void)) \
    F(nvmlInitWithFlags, (unsigned int flags)) \
    F(nvmlShutdown, (void)) \
    /* System */ \
    F(nvmlSystemGetDriverVersion, (char *version, unsigned int length)) \
    F(nvmlSystemGetNVMLVersion, (char *version, unsigned int length)) \
    F(nvmlSystemGetCudaDriverVersion, (int *cudaDriverVersion)) \
    F(nvmlSystemGetCudaDriverVersion_v2, (int *cudaDriverVersion)) \
    F(nvmlSystemGetProcessName, (unsigned int pid, char *name, unsigned int length)) \
    F(nvmlSystemGetDriverBranch, \
      (nvmlSystemDriverBranchInfo_t *branchInfo, unsigned int length)) \
    F(nvmlSystemGetTopologyGpuSet, \
      (unsigned int cpuNumber, unsigned int *count, nvmlDevice_t *deviceArray)) \
    F(nvmlSystemGetConfComputeCapabilities, (nvmlConfComputeSystemCaps_t *capabilities)) \
    F(nvmlSystemGetConfComputeState, (nvmlConfComputeSystemState_t *state)) \
    F(nvmlSystemGetConfComputeSettings, (nvmlSystemConfComputeSettings_t *settings)) \
    F(nvmlSystemGetConfComputeGpusReadyState, (unsigned int *isAcceptingWork)) \
    F(nvmlUnitGetCount, (unsigned int *unitCount)) \
    F(nvmlGetExcludedDeviceCount, (unsigned int *deviceCount)) \
    /* Handles */ \
    F(nvmlDeviceGetCount_v2, (unsigned int *deviceCount)) \
    F(nvmlDeviceGetCount, (unsigned int *deviceCount)) \
    F(nvmlDeviceGetHandleByIndex_v2, (unsigned int index, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleByIndex, (unsigned int index, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleByUUID, (const char *uuid, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleByUUIDV, (const nvmlUUID_t *uuid, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleBySerial, (const char *serial, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleByPciBusId_v2, (const char *pciBusId, nvmlDevice_t *device)) \
    F(nvmlDeviceGetHandleByPciBusId, (const char *pciBusId, nvmlDevice_t *device)) \
    /* Who the device is */ \
    F(nvmlDeviceGetName, (nvmlDevice_t device, char *name, unsigned int length)) \
    F(nvmlDeviceGetUUID, (nvmlDevice_t device, char *uuid, unsigned int length)) \
    F(nvmlDeviceGetSerial, (nvmlDevice_t device, char *serial, unsigned int length)) \
    F(nvmlDeviceGetIndex, (nvmlDevice_t device, unsigned int *index)) \
    F(nvmlDeviceGetMinorNumber, (nvmlDevice_t device, unsigned int *minorNumber)) \
    F(nvmlDeviceGetBrand, (nvmlDevice_t device, nvmlBrandType_t *type)) \
    F(nvmlDeviceGetPciInfo_v3, (nvmlDevice_t device, nvmlPciInfo_t *pci)) \
    F(nvmlDeviceGetPciInfo_v2, (nvmlDevice_t device, nvmlPciInfo_t *pci)) \
    F(nvmlDeviceGetPciInfo, (nvmlDevice_t device, nvmlPciInfo_t *pci)) \
    F(nvmlDeviceGetPciInfoExt, (nvmlDevice_t device, nvmlPciInfoExt_t *pci)) \
    F(nvmlDeviceGetVbiosVersion, (nvmlDevice_t device, char *version, unsigned int length)) \
    F(nvmlDeviceGetBoardId, (nvmlDevice_t device, unsigned int *boardId)) \
    F(nvmlDeviceGetBoardPartNumber, \
      (nvmlDevice_t device, char *partNumber, unsigned int length)) \
    F(nvmlDeviceGetInforomVersion, \
      (nvmlDevice_t device, nvmlInforomObject_t object, char *version, unsigned int length)) \
    F(nvmlDeviceGetInforomImageVersion, \
      (nvmlDevice_t device, char *version, unsigned int length)) \
    F(nvmlDeviceGetInforomConfigurationChecksum, (nvmlDevice_t device, unsigned int *checksum)) \
    F(nvmlDeviceValidateInforom, (nvmlDevice_t device)) \
    F(nvmlDeviceGetModuleId, (nvmlDevice_t device, unsigned int *moduleId)) \
    F(nvmlDeviceGetArchitecture, (nvmlDevice_t device, nvmlDeviceArchitecture_t *arch)) \
    F(nvmlDeviceGetCudaComputeCapability, (nvmlDevice_t device, int *major, int *minor)) \
    F(nvmlDeviceGetMultiGpuBoard, (nvmlDevice_t device, unsigned int *multiGpuBool)) \
    F(nvmlDeviceOnSameBoard, (nvmlDevice_t device1, nvmlDevice_t device2, int *onSameBoard)) \
    F(nvmlDeviceGetAttributes_v2, (nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)) \
    F(nvmlDeviceGetAttributes, (nvmlDevice_t device, nvmlDeviceAttributes_t *attributes)) \
    F(nvmlDeviceGetNumGpuCores, (nvmlDevice_t device, unsigned int *numCores)) \
    F(nvmlDeviceGetMemoryBusWidth, (nvmlDevice_t device, unsigned int *busWidth)) \
    F(nvmlDeviceGetBusType, (nvmlDevice_t device, nvmlBusType_t *type)) \
    F(nvmlDeviceGetIrqNum, (nvmlDevice_t device, unsigned int *irqNum)) \
    F(nvmlDeviceGetPowerSource, (nvmlDevice_t device, nvmlPowerSource_t *powerSource)) \
    F(nvmlDeviceGetGspFirmwareVersion, (nvmlDevice_t device, char *version)) \
    F(nvmlDeviceGetGspFirmwareMode, \
      (nvmlDevice_t device, unsigned int *isEnabled, unsigned int *defaultMode)) \
    /* Modes */ \
    F(nvmlDeviceGetPersistenceMode, (nvmlDevice_t device, nvmlEnableState_t *mode)) \
    F(nvmlDeviceSetPersistenceMode, (nvmlDevice_t device, nvmlEnableState_t mode)) \
    F(nvmlDeviceGetDisplayMode, (nvmlDevice_t device, nvmlEnableState_t *display)) \
    F(nvmlDeviceGetDisplayActive, (nvmlDevice_t device, nvmlEnableState_t *isActive)) \
    F(nvmlDeviceGetComputeMode, (nvmlDevice_t device, nvmlComputeMode_t *mode)) \
    F(nvmlDeviceGetDriverModel_v2, \
      (nvmlDevice_t device, nvmlDriverModel_t *current, nvmlDriverModel_t *pending)) \
    F(nvmlDeviceGetDriverModel, \
      (nvmlDevice_t device, nvmlDriverModel_t *current, nvmlDriverModel_t *pending)) \
    F(nvmlDeviceGetGpuOperationMode, \
      (nvmlDevice_t device, nvmlGpuOperationMode_t *current, nvmlGpuOperationMode_t *pending)) \
    F(nvmlDeviceGetAPIRestriction, \
      (nvmlDevice_t device, nvmlRestrictedAPI_t apiType, nvmlEnableState_t *isRestricted)) \
    F(nvmlDeviceGetVirtualizationMode, \
      (nvmlDevice_t device, nvmlGpuVirtualizationMode_t *pVirtualMode)) \
    F(nvmlDeviceGetHostVgpuMode, (nvmlDevice_t device, nvmlHostVgpuMode_t *pHostVgpuMode)) \
    F(nvmlDeviceGetGridLicensableFeatures_v4, \
      (nvmlDevice_t device, nvmlGridLicensableFeatures_t *pGridLicensableFeatures)) \
    F(nvmlDeviceGetConfComputeMemSizeInfo, \
      (nvmlDevice_t device, nvmlConfComputeMemSizeInfo_t *memInfo)) \
    F(nvmlDeviceGetConfComputeProtectedMemoryUsage, (nvmlDevice_t device, nvmlMemory_t *memory)) \
    /* Utilization and memory */ \
    F(nvmlDeviceGetUtilizationRates, (nvmlDevice_t device, nvmlUtilization_t *utilization)) \
    F(nvmlDeviceGetMemoryInfo, (nvmlDevice_t device, nvmlMemory_t *memory)) \
    F(nvmlDeviceGetMemoryInfo_v2, (nvmlDevice_t device, nvmlMemory_v2_t *memory)) \
    F(nvmlDeviceGetBAR1MemoryInfo, (nvmlDevice_t device, nvmlBAR1Memory_t *bar1Memory)) \
    F(nvmlDeviceGetEncoderUtilization, \
      (nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs)) \
    F(nvmlDeviceGetDecoderUtilization, \
      (nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs)) \
    F(nvmlDeviceGetJpgUtilization, \
      (nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs)) \
    F(nvmlDeviceGetOfaUtilization, \
      (nvmlDevice_t device, unsigned int *utilization, unsigned int *samplingPeriodUs)) \
    F(nvmlDeviceGetEncoderCapacity, \
      (nvmlDevice_t device, nvmlEncoderType_t encoderQueryType, unsigned int *encoderCapacity)) \
    F(nvmlDeviceGetEncoderStats, \
      (nvmlDevice_t device, unsigned int *sessionCount, unsigned int *averageFps, unsigned int \
       *averageLatency)) \
    F(nvmlDeviceGetEncoderSessions, \
      (nvmlDevice_t device, unsigned int *sessionCount, nvmlEncoderSessionInfo_t *sessionInfos)) \
    F(nvmlDeviceGetFBCStats, (nvmlDevice_t device, nvmlFBCStats_t *fbcStats)) \
    /* Clocks and performance */ \
    F(nvmlDeviceGetClockInfo, (nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)) \
    F(nvmlDeviceGetMaxClockInfo, \
      (nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)) \
    F(nvmlDeviceGetClock, \
      (nvmlDevice_t device, nvmlClockType_t clockType, nvmlClockId_t clockId, unsigned int \
       *clockMHz)) \
    F(nvmlDeviceGetApplicationsClock, \
      (nvmlDevice_t device, nvmlClockType_t clockType, unsigned int *clockMHz)) \
    F(nvmlDeviceGetDefaultApplicationsClock, \
      (nvmlDevice_t device, nvmlClockType_t clockType, unsigned int *clockMHz)) \
    F(nvmlDeviceGetMaxCustomerBoostClock, \
      (nvmlDevice_t device, nvmlClockType_t clockType, unsigned int *clockMHz)) \
    F(nvmlDeviceGetSupportedMemoryClocks, \
      (nvmlDevice_t device, unsigned int *count, unsigned int *clocksMHz)) \
    F(nvmlDeviceGetSupportedGraphicsClocks, \
      (nvmlDevice_t device, unsigned int memoryClockMHz, unsigned int *count, unsigned int \
       *clocksMHz)) \
    F(nvmlDeviceGetAutoBoostedClocksEnabled, \
      (nvmlDevice_t device, nvmlEnableState_t *isEnabled, nvmlEnableState_t *defaultIsEnabled)) \
    F(nvmlDeviceGetAdaptiveClockInfoStatus, \
      (nvmlDevice_t device, unsigned int *adaptiveClockStatus)) \
    F(nvmlDeviceGetCurrentClocksEventReasons, \
      (nvmlDevice_t device, unsigned long long *clocksEventReasons)) \
    F(nvmlDeviceGetCurrentClocksThrottleReasons, \
      (nvmlDevice_t device, unsigned long long *clocksThrottleReasons)) \
    F(nvmlDeviceGetSupportedClocksEventReasons, \
      (nvmlDevice_t device, unsigned long long *supportedClocksEventReasons)) \
    F(nvmlDeviceGetSupportedClocksThrottleReasons, \
      (nvmlDevice_t device, unsigned long long *supportedClocksThrottleReasons)) \
    F(nvmlDeviceGetPerformanceState, (nvmlDevice_t device, nvmlPstates_t *pState)) \
    F(nvmlDeviceGetPowerState, (nvmlDevice_t device, nvmlPstates_t *pState)) \
    F(nvmlDeviceGetSupportedPerformanceStates, \
      (nvmlDevice_t device, nvmlPstates_t *pstates, unsigned int size)) \
    F(nvmlDeviceGetViolationStatus, \
      (nvmlDevice_t device, nvmlPerfPolicyType_t perfPolicyType, nvmlViolationTime_t *violTime)) \
    /* Power and temperature */ \
    F(nvmlDeviceGetPowerUsage, (nvmlDevice_t device, unsigned int *power)) \
    F(nvmlDeviceGetTotalEnergyConsumption, (nvmlDevice_t device, unsigned long long *energy)) \
    F(nvmlDeviceGetPowerManagementMode, (nvmlDevice_t device, nvmlEnableState_t *mode)) \
    F(nvmlDeviceGetPowerManagementLimit, (nvmlDevice_t device, unsigned int *limit)) \
    F(nvmlDeviceGetPowerManagementLimitConstraints, \
      (nvmlDevice_t device, unsigned int *minLimit, unsigned int *maxLimit)) \
    F(nvmlDeviceGetPowerManagementDefaultLimit, \
      (nvmlDevice_t device, unsigned int *defaultLimit)) \
    F(nvmlDeviceGetEnforcedPowerLimit, (nvmlDevice_t device, unsigned int *limit)) \
    F(nvmlDeviceGetTemperature, \
      (nvmlDevice_t device, nvmlTemperatureSensors_t sensorType, unsigned int *temp)) \
    F(nvmlDeviceGetTemperatureV, (nvmlDevice_t device, nvmlTemperature_t *temperature)) \
    F(nvmlDeviceGetTemperatureThreshold, \
      (nvmlDevice_t device, nvmlTemperatureThresholds_t thresholdType, unsigned int *temp)) \
    F(nvmlDeviceGetMarginTemperature, \
      (nvmlDevice_t device, nvmlMarginTemperature_t *marginTempInfo)) \
    F(nvmlDeviceGetFanSpeed, (nvmlDevice_t device, unsigned int *speed)) \
    F(nvmlDeviceGetFanSpeed_v2, (nvmlDevice_t device, unsigned int fan, unsigned int *speed)) \
    F(nvmlDeviceGetFanSpeedRPM, (nvmlDevice_t device, nvmlFanSpeedInfo_t *fanSpeed)) \
    F(nvmlDeviceGetTargetFanSpeed, \
      (nvmlDevice_t device, unsigned int fan, unsigned int *targetSpeed)) \
    F(nvmlDeviceGetMinMaxFanSpeed, \
      (nvmlDevice_t device, unsigned int *minSpeed, unsigned int *maxSpeed)) \
    F(nvmlDeviceGetFanControlPolicy_v2, \
      (nvmlDevice_t device, unsigned int fan, nvmlFanControlPolicy_t *policy)) \
    F(nvmlDeviceGetNumFans, (nvmlDevice_t device, unsigned int *numFans)) \
    /* Errors of memory */ \
    F(nvmlDeviceGetEccMode, \
      (nvmlDevice_t device, nvmlEnableState_t *current, nvmlEnableState_t *pending)) \
    F(nvmlDeviceGetDefaultEccMode, (nvmlDevice_t device, nvmlEnableState_t *defaultMode)) \
    F(nvmlDeviceGetTotalEccErrors, \
      (nvmlDevice_t device, nvmlMemoryErrorType_t errorType, nvmlEccCounterType_t counterType, \
       unsigned long long *eccCounts)) \
    F(nvmlDeviceGetDetailedEccErrors, \
      (nvmlDevice_t device, nvmlMemoryErrorType_t errorType, nvmlEccCounterType_t counterType, \
       nvmlEccErrorCounts_t *eccCounts)) \
    F(nvmlDeviceGetMemoryErrorCounter, \
      (nvmlDevice_t device, nvmlMemoryErrorType_t errorType, nvmlEccCounterType_t counterType, \
       nvmlMemoryLocation_t locationType, unsigned long long *count)) \
    F(nvmlDeviceGetSramEccErrorStatus, (nvmlDevice_t device, nvmlEccSramErrorStatus_t *status)) \
    F(nvmlDeviceGetRetiredPages, \
      (nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *pageCount, unsigned \
       long long *addresses)) \
    F(nvmlDeviceGetRetiredPages_v2, \
      (nvmlDevice_t device, nvmlPageRetirementCause_t cause, unsigned int *pageCount, unsigned \
       long long *addresses, unsigned long long *timestamps)) \
    F(nvmlDeviceGetRetiredPagesPendingStatus, \
      (nvmlDevice_t device, nvmlEnableState_t *isPending)) \
    F(nvmlDeviceGetRemappedRows, \
      (nvmlDevice_t device, unsigned int *corrRows, unsigned int *uncRows, unsigned int \
       *isPending, unsigned int *failureOccurred)) \
    F(nvmlDeviceGetRowRemapperHistogram, \
      (nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values)) \
    /* PCIe, NVLink, topology */ \
    F(nvmlDeviceGetPcieThroughput, \
      (nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *value)) \
    F(nvmlDeviceGetPcieReplayCounter, (nvmlDevice_t device, unsigned int *value)) \
    F(nvmlDeviceGetCurrPcieLinkGeneration, (nvmlDevice_t device, unsigned int *currLinkGen)) \
    F(nvmlDeviceGetCurrPcieLinkWidth, (nvmlDevice_t device, unsigned int *currLinkWidth)) \
    F(nvmlDeviceGetMaxPcieLinkGeneration, (nvmlDevice_t device, unsigned int *maxLinkGen)) \
    F(nvmlDeviceGetMaxPcieLinkWidth, (nvmlDevice_t device, unsigned int *maxLinkWidth)) \
    F(nvmlDeviceGetGpuMaxPcieLinkGeneration, \
      (nvmlDevice_t device, unsigned int *maxLinkGenDevice)) \
    F(nvmlDeviceGetPcieLinkMaxSpeed, (nvmlDevice_t device, unsigned int *maxSpeed)) \
    F(nvmlDeviceGetPcieSpeed, (nvmlDevice_t device, unsigned int *pcieSpeed)) \
    F(nvmlDeviceGetNvLinkState, \
      (nvmlDevice_t device, unsigned int link, nvmlEnableState_t *isActive)) \
    F(nvmlDeviceGetNvLinkVersion, \
      (nvmlDevice_t device, unsigned int link, unsigned int *version)) \
    F(nvmlDeviceGetNvLinkCapability, \
      (nvmlDevice_t device, unsigned int link, nvmlNvLinkCapability_t capability, unsigned int \
       *capResult)) \
    F(nvmlDeviceGetNvLinkRemotePciInfo_v2, \
      (nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)) \
    F(nvmlDeviceGetNvLinkRemotePciInfo, \
      (nvmlDevice_t device, unsigned int link, nvmlPciInfo_t *pci)) \
    F(nvmlDeviceGetNvLinkRemoteDeviceType, \
      (nvmlDevice_t device, unsigned int link, nvmlIntNvLinkDeviceType_t *pNvLinkDeviceType)) \
    F(nvmlDeviceGetNvLinkErrorCounter, \
      (nvmlDevice_t device, unsigned int link, nvmlNvLinkErrorCounter_t counter, unsigned long \
       long *counterValue)) \
    F(nvmlDeviceGetTopologyCommonAncestor, \
      (nvmlDevice_t device1, nvmlDevice_t device2, nvmlGpuTopologyLevel_t *pathInfo)) \
    F(nvmlDeviceGetTopologyNearestGpus, \
      (nvmlDevice_t device, nvmlGpuTopologyLevel_t level, unsigned int *count, nvmlDevice_t \
       *deviceArray)) \
    F(nvmlDeviceGetP2PStatus, \
      (nvmlDevice_t device1, nvmlDevice_t device2, nvmlGpuP2PCapsIndex_t p2pIndex, \
       nvmlGpuP2PStatus_t *p2pStatus)) \
    F(nvmlDeviceGetCpuAffinity, \
      (nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet)) \
    F(nvmlDeviceGetCpuAffinityWithinScope, \
      (nvmlDevice_t device, unsigned int cpuSetSize, unsigned long *cpuSet, \
       nvmlAffinityScope_t scope)) \
    F(nvmlDeviceGetMemoryAffinity, \
      (nvmlDevice_t device, unsigned int nodeSetSize, unsigned long *nodeSet, \
       nvmlAffinityScope_t scope)) \
    F(nvmlDeviceGetNumaNodeId, (nvmlDevice_t device, unsigned int *node)) \
    F(nvmlDeviceGetGpuFabricInfo, (nvmlDevice_t device, nvmlGpuFabricInfo_t *gpuFabricInfo)) \
    F(nvmlDeviceGetGpuFabricInfoV, (nvmlDevice_t device, nvmlGpuFabricInfoV_t *gpuFabricInfo)) \
    /* Fields and samples */ \
    F(nvmlDeviceGetFieldValues, \
      (nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values)) \
    F(nvmlDeviceClearFieldValues, \
      (nvmlDevice_t device, int valuesCount, nvmlFieldValue_t *values)) \
    F(nvmlDeviceGetSamples, \
      (nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long lastSeenTimeStamp, \
       nvmlValueType_t *sampleValType, unsigned int *sampleCount, nvmlSample_t *samples)) \
    /* GPM */ \
    F(nvmlGpmQueryDeviceSupport, (nvmlDevice_t device, nvmlGpmSupport_t *gpmSupport)) \
    F(nvmlGpmQueryIfStreamingEnabled, (nvmlDevice_t device, unsigned int *state)) \
    F(nvmlGpmSampleAlloc, (nvmlGpmSample_t *gpmSample)) \
    F(nvmlGpmSampleFree, (nvmlGpmSample_t gpmSample)) \
    F(nvmlGpmSampleGet, (nvmlDevice_t device, nvmlGpmSample_t gpmSample)) \
    F(nvmlGpmMigSampleGet, \
      (nvmlDevice_t device, unsigned int gpuInstanceId, nvmlGpmSample_t gpmSample)) \
    F(nvmlGpmMetricsGet, (nvmlGpmMetricsGet_t *metricsGet)) \
    /* Processes */ \
    F(nvmlDeviceGetComputeRunningProcesses_v3, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos)) \
    F(nvmlDeviceGetComputeRunningProcesses_v2, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v2_t *infos)) \
    F(nvmlDeviceGetComputeRunningProcesses, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos)) \
    F(nvmlDeviceGetGraphicsRunningProcesses_v3, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos)) \
    F(nvmlDeviceGetGraphicsRunningProcesses_v2, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v2_t *infos)) \
    F(nvmlDeviceGetGraphicsRunningProcesses, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos)) \
    F(nvmlDeviceGetMPSComputeRunningProcesses_v3, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_t *infos)) \
    F(nvmlDeviceGetMPSComputeRunningProcesses_v2, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v2_t *infos)) \
    F(nvmlDeviceGetMPSComputeRunningProcesses, \
      (nvmlDevice_t device, unsigned int *infoCount, nvmlProcessInfo_v1_t *infos)) \
    F(nvmlDeviceGetRunningProcessDetailList, \
      (nvmlDevice_t device, nvmlProcessDetailList_t *plist)) \
    F(nvmlDeviceGetProcessUtilization, \
      (nvmlDevice_t device, nvmlProcessUtilizationSample_t *utilization, unsigned int \
       *processSamplesCount, unsigned long long lastSeenTimeStamp)) \
    F(nvmlDeviceGetProcessesUtilizationInfo, \
      (nvmlDevice_t device, nvmlProcessesUtilizationInfo_t *procesesUtilInfo)) \
    F(nvmlDeviceGetAccountingMode, (nvmlDevice_t device, nvmlEnableState_t *mode)) \
    F(nvmlDeviceGetAccountingStats, \
      (nvmlDevice_t device, unsigned int pid, nvmlAccountingStats_t *stats)) \
    F(nvmlDeviceGetAccountingPids, \
      (nvmlDevice_t device, unsigned int *count, unsigned int *pids)) \
    F(nvmlDeviceGetAccountingBufferSize, (nvmlDevice_t device, unsigned int *bufferSize)) \
    /* Events */ \
    F(nvmlEventSetCreate, (nvmlEventSet_t *set)) \
    F(nvmlEventSetFree, (nvmlEventSet_t set)) \
    F(nvmlDeviceRegisterEvents, \
      (nvmlDevice_t device, unsigned long long eventTypes, nvmlEventSet_t set)) \
    F(nvmlDeviceGetSupportedEventTypes, (nvmlDevice_t device, unsigned long long *eventTypes)) \
    F(nvmlEventSetWait_v2, (nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms)) \
    F(nvmlEventSetWait, (nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeoutms)) \
    F(nvmlSystemEventSetCreate, (nvmlSystemEventSetCreateRequest_t *request)) \
    F(nvmlSystemEventSetFree, (nvmlSystemEventSetFreeRequest_t *request)) \
    F(nvmlSystemRegisterEvents, (nvmlSystemRegisterEventRequest_t *request)) \
    F(nvmlSystemEventSetWait, (nvmlSystemEventSetWaitRequest_t *request)) \
    /* MIG */ \
    F(nvmlDeviceGetMigMode, \
      (nvmlDevice_t device, unsigned int *currentMode, unsigned int *pendingMode)) \
    F(nvmlDeviceIsMigDeviceHandle, (nvmlDevice_t device, unsigned int *isMigDevice)) \
    F(nvmlDeviceGetMaxMigDeviceCount, (nvmlDevice_t device, unsigned int *count)) \
    F(nvmlDeviceGetMigDeviceHandleByIndex, \
      (nvmlDevice_t device, unsigned int index, nvmlDevice_t *migDevice)) \
    F(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, \
      (nvmlDevice_t migDevice, nvmlDevice_t *device)) \
    F(nvmlDeviceGetGpuInstanceId, (nvmlDevice_t device, unsigned int *id)) \
    F(nvmlDeviceGetComputeInstanceId, (nvmlDevice_t device, unsigned int *id))

#define NVML_PROTOTYPE(name, arguments) nvmlReturn_t name arguments;
#define NVML_POINTER_TYPE(name, arguments) typedef nvmlReturn_t(*name##_fn) arguments;

#ifndef NVML_FUNCTIONS_ONLY
NVML_FUNCTIONS(NVML_PROTOTYPE)
NVML_FUNCTIONS(NVML_POINTER_TYPE)
const char *nvmlErrorString(nvmlReturn_t result);
#endif

#endif
