"""Event sets of devices and of the system."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import pynvml
import pytest

from support.simulation import Sim, simulated

XID = pynvml.nvmlEventTypeXidCriticalError
SBE = pynvml.nvmlEventTypeSingleBitEccError
DBE = pynvml.nvmlEventTypeDoubleBitEccError
WHOLE_DEVICE = 0xFFFFFFFF


def listen(types: int, *indexes: int) -> Any:
    events = pynvml.nvmlEventSetCreate()
    for index in indexes:
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        pynvml.nvmlDeviceRegisterEvents(device, types, events)
    return events


def taken(events: Any, wait: Any = pynvml.nvmlEventSetWait_v2) -> list[tuple[int, int, int]]:
    """(index, type, data) of all that is there."""
    found: list[tuple[int, int, int]] = []
    while True:
        try:
            event = wait(events, 0)
        except pynvml.NVMLError_Timeout:
            return found
        index = pynvml.nvmlDeviceGetIndex(event.device)
        found.append((index, event.eventType, event.eventData))


@simulated("gpus=3,clock=manual,fault=xid=31@1:gpu=2,fault=xid=13@1:gpu=0,fault=xid=74@2")
def test_each_set_gets_what_it_asked_for(sim: Sim):
    all_gpus, first = listen(XID, 0, 1, 2), listen(XID, 0)
    sim.advance(1)
    assert sorted(taken(all_gpus)) == [(0, XID, 13), (2, XID, 31)]
    assert taken(first) == [(0, XID, 13)]
    late = listen(XID, 1)
    sim.advance(1)
    assert sorted(taken(all_gpus)) == [(0, XID, 74), (1, XID, 74), (2, XID, 74)]
    assert taken(late) == [(1, XID, 74)]
    pynvml.nvmlEventSetFree(first)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlEventSetWait_v2(first, 0)


@simulated("gpus=1,clock=manual,fault=ecc_sbe=3@1,fault=ecc_dbe=1@2")
def test_ecc_events_and_their_xid(sim: Sim):
    events = listen(SBE | DBE | XID, 0)
    sim.advance(2)
    assert taken(events) == [(0, SBE, 3), (0, DBE, 1), (0, XID, 48)]


@simulated("gpus=1,model=rtx4090")
def test_unsupported_types_are_refused():
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    supported = pynvml.nvmlDeviceGetSupportedEventTypes(device)
    assert supported & XID
    assert not supported & DBE
    events = pynvml.nvmlEventSetCreate()
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceRegisterEvents(device, XID | DBE, events)


@simulated("gpus=1,clock=manual,fault=xid=31@1")
def test_only_the_second_wait_knows_instances(sim: Sim):
    one, two = listen(XID, 0), listen(XID, 0)
    sim.advance(1)
    data = pynvml.c_nvmlEventData_t(gpuInstanceId=7, computeInstanceId=7)
    assert sim.library.nvmlEventSetWait_v2(one, ctypes.byref(data), 0) == 0
    assert (data.gpuInstanceId, data.computeInstanceId) == (WHOLE_DEVICE, WHOLE_DEVICE)
    data = pynvml.c_nvmlEventData_t(gpuInstanceId=7, computeInstanceId=7)
    assert sim.library.nvmlEventSetWait(two, ctypes.byref(data), 0) == 0
    assert (data.gpuInstanceId, data.computeInstanceId) == (7, 7)


@simulated("gpus=8,clock=real,fault=xid=31@0.3:gpu=5")
def test_a_waiting_thread_wakes_without_any_other_call(sim: Sim):
    events = listen(XID, *range(8))
    event = pynvml.nvmlEventSetWait_v2(events, 20_000)
    assert event.eventData == 31
    assert 300_000_000 <= sim.Time() < 5_000_000_000


@simulated("gpus=1,clock=real")
def test_a_wait_times_out():
    events = listen(XID, 0)
    before = time.perf_counter()
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait_v2(events, 80)
    assert 0.08 <= time.perf_counter() - before < 5


@pytest.mark.parametrize("end", ["inject", "advance", "free", "shutdown"])
@simulated("gpus=1,clock=manual,fault=xid=5@60")
def test_what_ends_a_wait(end: str, sim: Sim):
    events = listen(XID, 0)
    said: list[int] = []
    data = pynvml.c_nvmlEventData_t()

    def wait() -> None:
        said.append(sim.library.nvmlEventSetWait_v2(events, ctypes.byref(data), 60_000))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    if end == "inject":
        assert sim.inject("xid=99:gpu=0")
    elif end == "advance":
        sim.advance(60)
    elif end == "free":
        pynvml.nvmlEventSetFree(events)
    else:
        assert sim.library.nvmlShutdown() == 0
    thread.join(10)
    answer = {"free": pynvml.NVML_ERROR_INVALID_ARGUMENT, "shutdown": 1}.get(end, 0)
    assert said == [answer]
    assert data.eventData == {"inject": 99, "advance": 5}.get(end, 0)


@simulated("gpus=1,clock=manual")
def test_a_full_set_drops_the_oldest_and_counts(sim: Sim):
    events = listen(XID, 0)
    for number in range(300):
        assert sim.inject(f"xid={number}:gpu=0")
        pynvml.nvmlDeviceGetPowerUsage(pynvml.nvmlDeviceGetHandleByIndex(0))
    assert [data for _, _, data in taken(events)] == list(range(300 - 256, 300))
    assert sim.EventsDropped() == 44
    sim.ResetCounters()
    assert sim.EventsDropped() == 0


@simulated("gpus=1")
def test_sets_are_bounded():
    sets = [pynvml.nvmlEventSetCreate() for _ in range(64)]
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        pynvml.nvmlEventSetCreate()
    for events in sets:
        pynvml.nvmlEventSetFree(events)


@simulated("gpus=4,clock=manual,fault=remove@1+5:gpu=2,fault=xid=31@8:gpu=2")
def test_a_removed_gpu_must_register_again(sim: Sim):
    events = listen(XID, 2)
    sim.advance(7)
    again = listen(XID, 2)
    sim.advance(1)
    assert taken(events) == []
    assert taken(again) == [(2, XID, 31)]


class SystemSet(ctypes.Structure):
    """nvmlSystemEventSetCreateRequest_v1_t, and nvmlSystemEventSetFreeRequest_v1_t."""

    _fields_ = (("version", ctypes.c_uint), ("set", ctypes.c_void_p))


class SystemRegister(ctypes.Structure):
    """nvmlSystemRegisterEventRequest_v1_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("eventTypes", ctypes.c_ulonglong),
        ("set", ctypes.c_void_p),
    )


class SystemEvent(ctypes.Structure):
    """nvmlSystemEventData_v1_t."""

    _fields_ = (("eventType", ctypes.c_ulonglong), ("gpuId", ctypes.c_uint))


class SystemWait(ctypes.Structure):
    """nvmlSystemEventSetWaitRequest_v1_t."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("timeoutms", ctypes.c_uint),
        ("set", ctypes.c_void_p),
        ("data", ctypes.POINTER(SystemEvent)),
        ("dataSize", ctypes.c_uint),
        ("numEvent", ctypes.c_uint),
    )


def request(kind: type[Any], **members: Any) -> Any:
    return kind(version=ctypes.sizeof(kind) | 1 << 24, **members)


@simulated("gpus=4,clock=manual,fault=remove@1+5:gpu=2")
def test_unbinding_and_binding_are_events_of_the_system(sim: Sim):
    nvml = sim.library
    board = pynvml.nvmlDeviceGetBoardId(pynvml.nvmlDeviceGetHandleByIndex(2))
    made = request(SystemSet)
    assert nvml.nvmlSystemEventSetCreate(ctypes.byref(made)) == 0
    registered = request(SystemRegister, eventTypes=3, set=made.set)
    assert nvml.nvmlSystemRegisterEvents(ctypes.byref(registered)) == 0
    data = (SystemEvent * 4)()
    wait = request(SystemWait, timeoutms=0, set=made.set, data=data, dataSize=4)
    assert nvml.nvmlSystemEventSetWait(ctypes.byref(wait)) == pynvml.NVML_ERROR_TIMEOUT
    for event_type, step_s in ((1, 1), (2, 5)):
        sim.advance(step_s)
        assert nvml.nvmlSystemEventSetWait(ctypes.byref(wait)) == 0
        assert wait.numEvent == 1
        assert (data[0].eventType, data[0].gpuId) == (event_type, board)
    wrong = SystemSet(version=1)
    said = nvml.nvmlSystemEventSetCreate(ctypes.byref(wrong))
    assert said == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
    assert nvml.nvmlSystemEventSetFree(ctypes.byref(request(SystemSet, set=made.set))) == 0
