"""MIG instances of the simulated driver, through nvidia-ml-py."""

from __future__ import annotations

from typing import Any

import pynvml

from support.simulation import Sim, simulated

MIB = 1 << 20


def code(call: Any, *arguments: Any) -> int:
    """The nvmlReturn of a call of pynvml; 0 when it succeeds."""
    try:
        call(*arguments)
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


def instances(index: int) -> list[Any]:
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    found = []
    for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        refused = code(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, device, number)
        assert refused in {0, pynvml.NVML_ERROR_NOT_FOUND}
        if not refused:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(device, number))
    return found


@simulated("gpus=2,model=h100,mig=1:4g.40gb+3g.40gb")
def test_instances_are_named_numbered_and_found():
    assert pynvml.nvmlDeviceGetMigMode(pynvml.nvmlDeviceGetHandleByIndex(0)) == [0, 0]
    assert instances(0) == []
    whole = pynvml.nvmlDeviceGetHandleByIndex(1)
    assert pynvml.nvmlDeviceGetMigMode(whole) == [1, 1]
    assert not pynvml.nvmlDeviceIsMigDeviceHandle(whole)
    found = instances(1)
    assert [pynvml.nvmlDeviceGetGpuInstanceId(device) for device in found] == [1, 2]
    names = [pynvml.nvmlDeviceGetName(device) for device in found]
    assert [name.rpartition(" MIG ")[2] for name in names] == ["4g.40gb", "3g.40gb"]
    uuids = {pynvml.nvmlDeviceGetUUID(device) for device in found}
    assert len(uuids) == 2
    for device in found:
        assert pynvml.nvmlDeviceIsMigDeviceHandle(device)
        assert pynvml.nvmlDeviceGetComputeInstanceId(device) == 0
        uuid = pynvml.nvmlDeviceGetUUID(device)
        again = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        assert pynvml.nvmlDeviceGetUUID(again) == uuid
        parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
        assert pynvml.nvmlDeviceGetUUID(parent) == pynvml.nvmlDeviceGetUUID(whole)
    assert code(pynvml.nvmlDeviceGetHandleByUUID, "MIG-no") == pynvml.NVML_ERROR_NOT_FOUND
    refused = code(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, whole)
    assert refused == pynvml.NVML_ERROR_INVALID_ARGUMENT


@simulated("gpus=1,model=a100,profile=training,clock=manual,mig=0:3g.40gb+1g.10gb")
def test_an_instance_has_memory_of_its_own_and_nothing_of_the_board(sim: Sim):
    sim.advance(120)
    whole = pynvml.nvmlDeviceGetHandleByIndex(0)
    all_of_it = pynvml.nvmlDeviceGetMemoryInfo(whole, pynvml.nvmlMemory_v2)
    half, eighth = (
        pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2) for device in instances(0)
    )
    assert (half.total, eighth.total) == (all_of_it.total // 2, all_of_it.total // 8)
    assert 0 < eighth.used < half.used < all_of_it.used
    for device, part in zip(instances(0), (half, eighth), strict=True):
        assert pynvml.nvmlDeviceGetAttributes(device).memorySizeMB == part.total // MIB
        assert code(pynvml.nvmlDeviceGetPowerUsage, device) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetPowerUsage, whole) == 0
    refused = code(pynvml.nvmlDeviceGetUtilizationRates, whole)
    assert refused == pynvml.NVML_ERROR_NOT_SUPPORTED, "under MIG there is no utilization"


@simulated("gpus=1,model=h100,mig=0:1g.10gb")
def test_gpm_knows_the_instances_by_number():
    whole = pynvml.nvmlDeviceGetHandleByIndex(0)
    sample = pynvml.nvmlGpmSampleAlloc()
    assert code(pynvml.nvmlGpmMigSampleGet, whole, 7, sample) == 0
    wrong = code(pynvml.nvmlGpmMigSampleGet, whole, 3, sample)
    assert wrong == pynvml.NVML_ERROR_INVALID_ARGUMENT


@simulated("gpus=1,model=h100,profile=training,clock=manual,mig=0:3g.40gb+1g.10gb")
def test_gpm_of_an_instance_has_no_traffic(sim: Sim):
    whole = pynvml.nvmlDeviceGetHandleByIndex(0)
    first, second, other = (pynvml.nvmlGpmSampleAlloc() for _ in range(3))
    sim.advance(60)
    pynvml.nvmlGpmMigSampleGet(whole, 1, first)
    sim.advance(1)
    pynvml.nvmlGpmMigSampleGet(whole, 1, second)
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.sample1, request.sample2 = first, second
    asked = (pynvml.NVML_GPM_METRIC_SM_UTIL, pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC)
    request.numMetrics = len(asked)
    for item, metric in zip(request.metrics, asked, strict=False):
        item.metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    busy, sent = request.metrics[0], request.metrics[1]
    assert busy.nvmlReturn == 0
    assert busy.value > 0
    assert sent.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    pynvml.nvmlGpmMigSampleGet(whole, 7, other)
    request.sample2 = other
    refused = code(pynvml.nvmlGpmMetricsGet, request)
    assert refused == pynvml.NVML_ERROR_INVALID_ARGUMENT, "two instances have nothing in common"
