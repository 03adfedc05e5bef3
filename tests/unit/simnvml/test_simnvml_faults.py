"""Every kind of scripted fault."""

from __future__ import annotations

import threading
import time
from typing import Any

import pynvml
import pytest

from support.simulation import Sim, simulated

LOST = pynvml.NVML_ERROR_GPU_IS_LOST
UNKNOWN = pynvml.NVML_ERROR_UNKNOWN
OK = 0

READS = (
    pynvml.nvmlDeviceGetPowerUsage,
    pynvml.nvmlDeviceGetUtilizationRates,
    pynvml.nvmlDeviceGetMemoryInfo,
    pynvml.nvmlDeviceGetTotalEnergyConsumption,
    pynvml.nvmlDeviceGetCurrentClocksEventReasons,
    pynvml.nvmlDeviceGetPerformanceState,
)


def code(call: Any, *arguments: Any) -> int:
    try:
        call(*arguments)
    except pynvml.NVMLError as error:
        return int(error.value)
    return OK


def codes(device: Any) -> set[int]:
    return {code(read, device) for read in READS}


def devices() -> list[Any]:
    return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]


@simulated("gpus=3,clock=manual,fault=lost@10+20:gpu=1")
def test_lost_and_back(sim: Sim):
    one, two, three = devices()
    uuid = pynvml.nvmlDeviceGetUUID(two)
    sim.advance(9.999)
    assert codes(two) == {OK}
    energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(two)
    sim.advance(0.001)
    assert codes(two) == {LOST}
    assert codes(one) == codes(three) == {OK}
    assert pynvml.nvmlDeviceGetUUID(two) == uuid  # from the library's memory
    assert pynvml.nvmlDeviceGetIndex(pynvml.nvmlDeviceGetHandleByUUID(uuid)) == 1
    assert pynvml.nvmlDeviceGetCount() == 3
    sim.advance(20)
    assert codes(two) == {OK}
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(two) < energy  # it was reset


@pytest.mark.parametrize(("lookup", "answer"), [("ok", OK), ("lost", LOST), ("not_found", 6)])
@simulated("gpus=2,clock=manual,fault=lost@1:gpu=0:lookup={lookup}")
def test_lookups_of_a_lost_gpu(lookup: str, answer: int, sim: Sim):
    uuid = pynvml.nvmlDeviceGetUUID(devices()[0])
    sim.advance(1)
    assert code(pynvml.nvmlDeviceGetHandleByUUID, uuid) == answer
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 0) == answer
    assert code(pynvml.nvmlDeviceGetHandleByIndex, 1) == OK


@simulated("gpus=2,clock=manual,fault=reset_required@1:gpu=0")
def test_reset_required(sim: Sim):
    one, two = devices()
    sim.advance(1)
    assert codes(one) == {pynvml.NVML_ERROR_RESET_REQUIRED}
    assert codes(two) == {OK}
    assert code(pynvml.nvmlDeviceGetName, one) == OK
    sim.ClearFaults()
    assert codes(one) == {OK}


@simulated("gpus=1,clock=manual,fault=fallen@1:gpu=0")
def test_fallen_off_the_bus_answers_this_way_and_that(sim: Sim):
    (device,) = devices()
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(device, pynvml.nvmlEventTypeXidCriticalError, events)
    sim.advance(1)
    assert codes(device) == {LOST, UNKNOWN}
    assert code(pynvml.nvmlDeviceGetUUID, device) == OK
    event = pynvml.nvmlEventSetWait_v2(events, 0)
    assert event.eventData == 79


@simulated(
    "gpus=2,clock=manual,fault=no_function=nvmlDeviceGetMemoryInfo_v2@1,"
    "fault=not_supported=nvmlDeviceGetPowerUsage@1:gpu=0,fault=not_supported=186@1:gpu=0"
)
def test_a_function_or_a_field_is_missing(sim: Sim):
    one, two = devices()
    sim.advance(1)
    assert code(pynvml.nvmlDeviceGetPowerUsage, one) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetPowerUsage, two) == OK
    energy = pynvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION
    for device, power in ((one, pynvml.NVML_ERROR_NOT_SUPPORTED), (two, OK)):
        values = pynvml.nvmlDeviceGetFieldValues(device, [186, energy])
        assert [value.nvmlReturn for value in values] == [power, OK]
        missing = code(pynvml.nvmlDeviceGetMemoryInfo, device, pynvml.nvmlMemory_v2)
        assert missing == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        assert code(pynvml.nvmlDeviceGetMemoryInfo, device) == OK


@simulated("gpus=1,fault=no_function=nvmlSystemGetDriverVersion,"
           "fault=not_supported=nvmlSystemGetNVMLVersion")  # fmt: skip
def test_a_function_of_the_host_is_missing():
    missing = code(pynvml.nvmlSystemGetDriverVersion)
    assert missing == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert code(pynvml.nvmlSystemGetNVMLVersion) == pynvml.NVML_ERROR_NOT_SUPPORTED


@simulated("gpus=1,clock=manual,fault=energy_reset@30:gpu=0")
def test_energy_reset(sim: Sim):
    (device,) = devices()
    sim.advance(30 - 0.001)
    before = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    sim.advance(0.001)
    assert before > 29 * 60_000
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(device) < 0.03 * 700_000
    sim.advance(5)
    assert 0 < pynvml.nvmlDeviceGetTotalEnergyConsumption(device) < before


@simulated("gpus=2,clock=manual,fault=ecc_sbe=12@1:gpu=0,fault=ecc_dbe=2@2:gpu=0,"
           "fault=reset_required@10+1:gpu=0")  # fmt: skip
def test_ecc_errors(sim: Sim):
    one, two = devices()

    def errors(device: Any) -> list[int]:
        return [
            pynvml.nvmlDeviceGetTotalEccErrors(device, error, counter)
            for counter in (pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC)
            for error in (0, 1)
        ]

    start, other = errors(one), errors(two)
    assert start[:2] == [0, 0]
    sim.advance(2)
    assert [now - then for now, then in zip(errors(one), start, strict=True)] == [12, 2, 12, 2]
    assert errors(two) == other
    assert list(pynvml.nvmlDeviceGetRemappedRows(one))[1:] == [0, 1, 0]
    volatile = pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL
    assert pynvml.nvmlDeviceGetFieldValues(one, [volatile])[0].value.ullVal == 2
    detail = pynvml.nvmlDeviceGetDetailedEccErrors(one, 1, pynvml.NVML_VOLATILE_ECC)
    assert (detail.deviceMemory, detail.l2Cache) == (2, 0)
    sim.advance(10)  # a reset remaps the row and forgets what was volatile
    assert errors(one)[:2] == [0, 0]
    assert errors(one)[2:] == [start[2] + 12, start[3] + 2]
    assert list(pynvml.nvmlDeviceGetRemappedRows(one))[1:] == [1, 0, 0]


@simulated("gpus=4,clock=manual,fault=remove@10+20:gpu=1,fault=remove@50:gpu=0,"
           "fault=restore@60:gpu=0")  # fmt: skip
def test_remove_and_restore(sim: Sim):
    handles = devices()
    uuids = [pynvml.nvmlDeviceGetUUID(device) for device in handles]
    sim.advance(10)
    assert pynvml.nvmlDeviceGetCount() == 3
    assert [pynvml.nvmlDeviceGetUUID(device) for device in devices()] == uuids[:1] + uuids[2:]
    assert pynvml.nvmlDeviceGetIndex(handles[3]) == 2
    assert pynvml.nvmlDeviceGetMinorNumber(handles[3]) == 3
    missing = code(pynvml.nvmlDeviceGetHandleByUUID, uuids[1])
    assert missing == pynvml.NVML_ERROR_NOT_FOUND
    assert codes(handles[1]) == {LOST}
    sim.advance(20)
    assert pynvml.nvmlDeviceGetCount() == 4
    # The old handle is stale; the UUID finds the new one, whose counters begin anew.
    assert codes(handles[1]) == {pynvml.NVML_ERROR_INVALID_ARGUMENT}
    again = pynvml.nvmlDeviceGetHandleByUUID(uuids[1])
    assert codes(again) == {OK}
    energies = [pynvml.nvmlDeviceGetTotalEnergyConsumption(d) for d in (handles[0], again)]
    assert energies[1] < energies[0]
    sim.advance(20)
    assert pynvml.nvmlDeviceGetCount() == 3
    sim.advance(10)
    assert [pynvml.nvmlDeviceGetUUID(device) for device in devices()] == uuids


def started(call: Any) -> tuple[threading.Thread, list[int]]:
    """`call` in a thread of its own, and the list that its nvmlReturn comes into."""
    said: list[int] = []
    thread = threading.Thread(target=lambda: said.append(code(call)), daemon=True)
    thread.start()
    return thread, said


@simulated("gpus=2,clock=manual,fault=hang@1+5:gpu=0")
def test_a_hang_ends_with_its_time(sim: Sim):
    one, two = devices()
    sim.advance(1)
    thread, said = started(lambda: pynvml.nvmlDeviceGetPowerUsage(one))
    for _ in range(49):
        sim.advance(0.1)
        assert codes(two) == {OK}  # the others are not held up
        assert pynvml.nvmlDeviceGetCount() == 2
    thread.join(0.05)
    assert thread.is_alive()
    sim.advance(0.1)
    thread.join(10)
    assert said == [OK]


@simulated("gpus=2,clock=manual,fault=hang@1:gpu=0:function=nvmlDeviceGetPowerUsage")
def test_one_function_hangs_for_ever(sim: Sim):
    one, _ = devices()
    sim.advance(1)
    assert code(pynvml.nvmlDeviceGetUtilizationRates, one) == OK
    thread, said = started(lambda: pynvml.nvmlDeviceGetPowerUsage(one))
    sim.advance(3600)
    thread.join(0.05)
    assert thread.is_alive()
    sim.ClearFaults()
    thread.join(10)
    assert said == [OK]


@simulated("gpus=1,clock=manual,fault=hang")
def test_shutdown_ends_a_hang(sim: Sim):
    thread, said = started(lambda: pynvml.nvmlDeviceGetHandleByIndex(0))
    thread.join(0.05)
    assert thread.is_alive()
    assert sim.library.nvmlShutdown() == OK
    thread.join(10)
    assert said == [pynvml.NVML_ERROR_UNINITIALIZED]


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlInit_v2", "nvmlInitWithFlags"])
@simulated("gpus=1,clock=manual,fault=hang@0+5:function={name}", start=False)
def test_nvml_init_hangs_under_all_of_its_names(name: str):
    sim = Sim()
    threads = [started(call) for call in (sim.library.nvmlInit_v2, pynvml.nvmlInit)]
    for thread, _ in threads:
        thread.join(0.05)
        assert thread.is_alive()
    assert sim.library.nvmlSystemGetCudaDriverVersion(None) == pynvml.NVML_ERROR_UNINITIALIZED
    sim.advance(5)
    for thread, said in threads:
        thread.join(10)
        assert said == [OK]
    assert pynvml.nvmlDeviceGetCount() == 1
    assert codes(devices()[0]) == {OK}
    for shutdown in (OK, OK, pynvml.NVML_ERROR_UNINITIALIZED):
        assert sim.library.nvmlShutdown() == shutdown


@simulated("gpus=1,clock=manual,fault=hang:function=nvmlInit", start=False)
def test_nvml_init_hangs_until_its_faults_are_cleared():
    sim = Sim()
    assert sim.library.gputelSimCheck() == OK, "which does not hang"
    thread, said = started(pynvml.nvmlInit)
    sim.advance(3600)
    thread.join(0.05)
    assert thread.is_alive()
    assert sim.library.nvmlShutdown() == pynvml.NVML_ERROR_UNINITIALIZED
    sim.ClearFaults()
    thread.join(10)
    assert said == [OK]
    assert sim.inject("hang:function=nvmlInit")
    assert codes(devices()[0]) == {OK}, "of no other function"


@simulated("gpus=1,fault=hang@600:function=nvmlInit,fault=hang:function=nvmlSystemGetDriverVersion")
def test_other_faults_leave_nvml_init_alone(sim: Sim):
    assert sim.inject("hang@0+0.01")
    pynvml.nvmlInit()
    assert pynvml.nvmlDeviceGetCount() == 1


@simulated("gpus=1,fault=not_supported=nvmlInit@0+0.2", start=False)
def test_nvml_init_fails_and_is_tried_again():
    assert code(pynvml.nvmlInit) == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert code(pynvml.nvmlDeviceGetCount) == pynvml.NVML_ERROR_UNINITIALIZED
    deadline = time.monotonic() + 20
    while code(pynvml.nvmlInit) != OK:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert pynvml.nvmlDeviceGetCount() == 1


@simulated("gpus=1,clock=real")
def test_a_hang_in_real_time(sim: Sim):
    (device,) = devices()
    before = sim.Time()
    assert sim.inject("hang@0+0.3:gpu=0")
    pynvml.nvmlDeviceGetPowerUsage(device)
    assert 300_000_000 <= sim.Time() - before < 10_000_000_000
    pynvml.nvmlDeviceGetPowerUsage(device)


@simulated("gpus=1,clock=manual,fault=lost@1+5:gpu=0:function=nvmlDeviceGetPowerUsage")
def test_lost_to_one_function(sim: Sim):
    (device,) = devices()
    sim.advance(3)
    assert code(pynvml.nvmlDeviceGetPowerUsage, device) == LOST
    energy = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    sim.advance(5)
    assert codes(device) == {OK}
    assert pynvml.nvmlDeviceGetTotalEnergyConsumption(device) > energy  # no reset


@simulated("gpus=2,clock=manual,fault=slow=20000@1+1:gpu=0")
def test_slow(sim: Sim):
    one, two = devices()

    def best_s(device: Any) -> float:
        def timed() -> float:
            before = time.perf_counter()
            pynvml.nvmlDeviceGetPowerUsage(device)
            return time.perf_counter() - before

        return min(timed() for _ in range(5))

    sim.advance(1)
    assert best_s(one) >= 0.02
    assert best_s(two) < 0.02
    sim.advance(1)
    assert best_s(one) < 0.02


@simulated("gpus=2,clock=manual")
def test_injected_at_run_time(sim: Sim):
    one, two = devices()
    sim.advance(100)
    assert sim.inject("lost@5+5:gpu=1")  # five seconds from now
    assert sim.inject("reset_required:gpu=0")
    assert not sim.inject("lost:gpu=2")
    assert not sim.inject("nonsense")
    assert codes(one) == {pynvml.NVML_ERROR_RESET_REQUIRED}
    assert codes(two) == {OK}
    sim.advance(5)
    assert codes(two) == {LOST}
    sim.ClearFaults()
    assert codes(one) == codes(two) == {OK}
    for _ in range(32):
        assert sim.inject("xid=1@1:gpu=0")
    assert not sim.inject("xid=1@1:gpu=0")
    sim.advance(1)
    assert codes(one) == {OK}
    assert sim.inject("xid=1@1:gpu=0")  # those over make room
