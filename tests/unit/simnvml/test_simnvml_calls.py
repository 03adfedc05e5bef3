"""The simulated driver through nvidia-ml-py: initialisation, look-ups, arguments, models."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Any

import pynvml
import pytest

from support.simulation import Sim, simulated

GIB = 1 << 30
MODELS = ["a100", "h100", "b200", "rtx4090"]


def code(call: Any, *arguments: Any) -> int:
    """The nvmlReturn of a call of pynvml; 0 when it succeeds."""
    try:
        call(*arguments)
    except pynvml.NVMLError as error:
        return int(error.value)
    return 0


@simulated("gpus=3", start=False)
def test_init_is_counted():
    assert code(pynvml.nvmlDeviceGetCount) in {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    }
    pynvml.nvmlInit()
    pynvml.nvmlInit()
    pynvml.nvmlShutdown()
    assert pynvml.nvmlDeviceGetCount() == 3
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()
    assert code(pynvml.nvmlDeviceGetName, device) == pynvml.NVML_ERROR_UNINITIALIZED
    assert code(pynvml.nvmlShutdown) == pynvml.NVML_ERROR_UNINITIALIZED
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetName(device)  # the driver lived on, and so does the handle


@simulated("gpus=64,seed=7")
def test_every_lookup_finds_the_same_device():
    uuids = set()
    for index in range(64):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(device)
        uuids.add(uuid)
        bus_id = pynvml.nvmlDeviceGetPciInfo(device).busId
        found = [
            pynvml.nvmlDeviceGetHandleByUUID(uuid),
            pynvml.nvmlDeviceGetHandleByUUID(uuid.upper().replace("GPU", "gpu")),
            pynvml.nvmlDeviceGetHandleByPciBusId(bus_id),
            pynvml.nvmlDeviceGetHandleByPciBusId(bus_id.lower()),
            pynvml.nvmlDeviceGetHandleBySerial(pynvml.nvmlDeviceGetSerial(device)),
        ]
        assert {pynvml.nvmlDeviceGetIndex(other) for other in found} == {index}
    assert len(uuids) == 64
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 64) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    for lookup in (pynvml.nvmlDeviceGetHandleByUUID, pynvml.nvmlDeviceGetHandleByPciBusId):
        assert code(lookup, "GPU-nobody") == pynvml.NVML_ERROR_NOT_FOUND


@simulated("gpus=1")
def test_bad_arguments_are_refused(sim: Sim):
    nvml = sim.library
    address = ctypes.cast(pynvml.nvmlDeviceGetHandleByIndex(0), ctypes.c_void_p).value or 0
    device = ctypes.c_void_p(address)
    out = ctypes.c_uint()
    assert nvml.nvmlDeviceGetPowerUsage(device, None) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    for garbage in (0, 1, 8, address + 1, address + 2, address - 1, 2**64 - 1, address + 10**6):
        handle = ctypes.c_void_p(garbage)
        said = nvml.nvmlDeviceGetPowerUsage(handle, ctypes.byref(out))
        assert said == pynvml.NVML_ERROR_INVALID_ARGUMENT, hex(garbage)
    for call in (nvml.nvmlEventSetFree, nvml.nvmlGpmSampleFree):
        for garbage in (1, 255, 0x100, 1 << 32, 2**64 - 1, address):
            assert call(ctypes.c_void_p(garbage)) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    buffer = ctypes.create_string_buffer(8)
    assert nvml.nvmlDeviceGetName(device, buffer, 8) == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert buffer.raw == bytes(8)
    memory = pynvml.c_nvmlMemory_v2_t()
    memory.version = 7
    said = nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(memory))
    assert said == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert code(pynvml.nvmlDeviceGetClockInfo, device, 99) == pynvml.NVML_ERROR_INVALID_ARGUMENT
    assert code(pynvml.nvmlDeviceGetTemperature, device, 5) == pynvml.NVML_ERROR_INVALID_ARGUMENT


@simulated("gpus=1")
def test_a_short_array_says_how_long_it_must_be(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    count = ctypes.c_uint(0)
    clock = ctypes.c_uint(pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_MEM))
    call = sim.library.nvmlDeviceGetSupportedGraphicsClocks
    said = call(device, clock, ctypes.byref(count), None)
    assert said == pynvml.NVML_ERROR_INSUFFICIENT_SIZE
    clocks = (ctypes.c_uint * count.value)()
    assert call(device, clock, ctypes.byref(count), clocks) == 0
    assert list(clocks) == sorted(set(clocks), reverse=True)
    assert clocks[0] == pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM)


@pytest.mark.parametrize("model", MODELS)
@simulated("gpus=2,model={model},profile=training,clock=manual")
def test_a_model_has_what_it_has(model: str, sim: Sim):
    geforce = model == "rtx4090"
    sim.advance(120)
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    has = {
        "GPM": pynvml.nvmlGpmQueryDeviceSupport(device).isSupportedDevice == 1,
        "ECC": code(pynvml.nvmlDeviceGetTotalEccErrors, device, 0, 0) == 0,
        "MIG": code(pynvml.nvmlDeviceGetMigMode, device) == 0,
        "fan": code(pynvml.nvmlDeviceGetFanSpeed, device) == 0,
        "NVLink": code(pynvml.nvmlDeviceGetNvLinkState, device, 0) == 0,
        "memory sensor": field(device, pynvml.NVML_FI_DEV_MEMORY_TEMP).nvmlReturn == 0,
        "PCIe bytes": field(device, pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES).nvmlReturn == 0,
        "serial": code(pynvml.nvmlDeviceGetSerial, device) == 0,
        "retired pages": code(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, device) == 0,
    }
    hopper = model in {"h100", "b200"}
    assert has == {
        "GPM": hopper,
        "ECC": not geforce,
        "MIG": not geforce,
        "fan": geforce,
        "NVLink": not geforce,
        "memory sensor": not geforce,
        "PCIe bytes": hopper,
        "serial": not geforce,
        "retired pages": False,
    }
    links = field(device, pynvml.NVML_FI_DEV_NVLINK_LINK_COUNT).value.uiVal
    assert links == {"a100": 12, "h100": 18, "b200": 18, "rtx4090": 0}[model]
    total = pynvml.nvmlDeviceGetMemoryInfo(device).total
    assert round(total / GIB) == {"a100": 80, "h100": 80, "b200": 179, "rtx4090": 24}[model]


def field(device: Any, identifier: int, scope: int = 0) -> Any:
    return pynvml.nvmlDeviceGetFieldValues(device, [(identifier, scope)])[0]


@simulated("gpus=1,profile=training,clock=manual")
def test_functions_and_fields_agree(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    for _ in range(40):
        sim.advance(7.3)
        energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
        assert field(device, pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION).value.ullVal == energy
        average = field(device, pynvml.NVML_FI_DEV_POWER_AVERAGE).value.uiVal
        assert average == pynvml.nvmlDeviceGetPowerUsage(device)
        first = pynvml.nvmlDeviceGetMemoryInfo(device)
        second = pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2)
        assert first.used == second.used + second.reserved
        assert second.used + second.reserved + second.free == second.total == first.total
        violation = pynvml.nvmlDeviceGetViolationStatus(device, pynvml.NVML_PERF_POLICY_POWER)
        power_ns = field(device, pynvml.NVML_FI_DEV_PERF_POLICY_POWER).value.ullVal
        assert violation.violationTime == power_ns
        links = [
            field(device, pynvml.NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES, link) for link in range(18)
        ]
        assert {link.nvmlReturn for link in links} == {pynvml.NVML_ERROR_NOT_SUPPORTED}
        data = pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX
        total = field(device, data, 0xFFFFFFFF).value.ullVal
        by_link = sum(field(device, data, link).value.ullVal for link in range(18))
        assert 0 <= total - by_link <= 18  # each is cut to whole KiB
    assert field(device, 9999).nvmlReturn == pynvml.NVML_ERROR_INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("driver", "thermal", "other"), [("575.57.08", 251, 269), ("580.95.05", 269, 251)]
)
@simulated("gpus=64,seed=5,profile=training,clock=manual,driver={driver}")
def test_fields_above_250_depend_on_the_driver(driver: str, thermal: int, other: int, sim: Sim):
    sim.advance(300)
    counters = []
    for index in range(64):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        expected = pynvml.nvmlDeviceGetViolationStatus(device, pynvml.NVML_PERF_POLICY_THERMAL)
        found, missing = pynvml.nvmlDeviceGetFieldValues(device, [thermal, other])
        assert (found.fieldId, found.value.ullVal) == (thermal, expected.violationTime)
        assert missing.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
        counters.append(found.value.ullVal)
    assert max(counters) > 0


@simulated("gpus=2,profile=training,clock=manual")
def test_processes_come_with_jobs(sim: Sim):
    sim.advance(110)
    me, parent = os.getpid(), os.getppid()
    for index in range(2):
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        (process,) = pynvml.nvmlDeviceGetComputeRunningProcesses(device)
        assert process.pid == (me, parent)[index]
        memory = pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2)
        assert 0.9 * memory.used < process.usedGpuMemory < memory.used
        assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(device) == []
        assert pynvml.nvmlDeviceGetMPSComputeRunningProcesses(device) == []
        (used,) = pynvml.nvmlDeviceGetProcessUtilization(device, 0)
        assert used.pid == process.pid
        assert used.smUtil == pynvml.nvmlDeviceGetUtilizationRates(device).gpu
        newer = (device, used.timeStamp)
        assert code(pynvml.nvmlDeviceGetProcessUtilization, *newer) == pynvml.NVML_ERROR_NOT_FOUND
    assert "python" in pynvml.nvmlSystemGetProcessName(me)
    assert code(pynvml.nvmlSystemGetProcessName, 2**22 + 1) == pynvml.NVML_ERROR_NOT_FOUND


@simulated("gpus=1,profile=idle,clock=manual")
def test_an_idle_gpu_is_idle(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.advance(3600)
    assert pynvml.nvmlDeviceGetUtilizationRates(device).gpu == 0
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(device) == []
    assert pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2).used == 0
    reasons = pynvml.nvmlDeviceGetCurrentClocksEventReasons(device)
    assert reasons == pynvml.nvmlClocksEventReasonGpuIdle
    assert 69_000 < pynvml.nvmlDeviceGetPowerUsage(device) < 73_000


@simulated("gpus=1,accounting=on,pids=4242,profile=training,clock=manual")
def test_accounting_follows_the_process(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.advance(200)
    assert pynvml.nvmlDeviceGetAccountingPids(device) == [4242]
    stats = pynvml.nvmlDeviceGetAccountingStats(device, 4242)
    assert stats.isRunning == 1
    assert 50 < stats.gpuUtilization <= 100
    used = pynvml.nvmlDeviceGetMemoryInfo(device, pynvml.nvmlMemory_v2).used
    assert stats.maxMemoryUsage == used > 0
    missing = code(pynvml.nvmlDeviceGetAccountingStats, device, 1)
    assert missing == pynvml.NVML_ERROR_NOT_FOUND


@simulated("gpus=8")
def test_topology_is_one_of_a_node():
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(8)]
    nearest = pynvml.nvmlDeviceGetTopologyNearestGpus(devices[0], pynvml.NVML_TOPOLOGY_HOSTBRIDGE)
    assert [pynvml.nvmlDeviceGetIndex(device) for device in nearest] == [1, 2, 3]
    far = pynvml.nvmlDeviceGetTopologyCommonAncestor(devices[0], devices[7])
    assert far == pynvml.NVML_TOPOLOGY_NODE
    nvlink = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    assert pynvml.nvmlDeviceGetP2PStatus(devices[0], devices[7], nvlink) == 0


@pytest.mark.parametrize("wait", ["spin", "sleep"])
@simulated("gpus=1,latency.nvmlDeviceGetName=0,latency_us=2000,timing=on,wait={wait}")
def test_latency_timing_and_counters(wait: str, sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.ResetCounters()
    cpu_s = time.thread_time()
    for _ in range(5):
        pynvml.nvmlDeviceGetPowerUsage(device)
        pynvml.nvmlDeviceGetName(device)
    assert sim.calls("nvmlDeviceGetPowerUsage") == sim.calls("nvmlDeviceGetName") == 5
    assert sim.calls() == 10
    assert sim.calls("no such function") == 0
    assert sim.InsideNs() >= 5 * 2_000_000
    if wait == "sleep":
        assert time.thread_time() - cpu_s < 0.01
