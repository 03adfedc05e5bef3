"""The NVML source on a driver that loses, refuses, resets and removes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gputel.catalog import METRIC_SETS, Cadence
from gputel.errors import SourceUnavailable
from gputel.inventory import Event, EventKind
from gputel.sources import SourceSettings, open_source
from gputel.sources.nvml import DriverWithoutGpu
from support.simulation import Sim, simulated
from support.sweeping import Rig

GONE = {EventKind.LOST, EventKind.RESTORED, EventKind.REMOVED, EventKind.ADDED}


def wait_for(rig: Rig, count: int, kinds: set[EventKind]) -> list[Event]:
    """Events of the driver's thread, in order."""
    found: list[Event] = []
    deadline = time.monotonic() + 20
    while len(found) < count and time.monotonic() < deadline:
        found += [event for event in rig.source.events() if event.kind in kinds]
        time.sleep(0.01)
    assert len(found) >= count, found
    return found


@pytest.mark.parametrize(
    "fault", ["lost@0+100", "lost@0+100:lookup=lost", "reset_required@0+100", "fallen@0+100"]
)
@simulated("gpus=3,clock=manual", start=False)
def test_a_gpu_is_lost_once_and_comes_back_by_its_uuid(fault: str) -> None:
    rig = Rig(Sim())
    assert list(rig.sweep(Cadence.FAST)) == [0, 1, 2]
    before = rig.sweep(Cadence.FAST)[1]["energy_millijoules"]
    assert rig.sim is not None
    assert rig.sim.inject(f"{fault}:gpu=1")
    told: list[EventKind] = []
    for _ in range(99):
        assert list(rig.sweep(Cadence.FAST)) == [0, 2]
        told += [kind for kind in rig.kinds() if kind in GONE]
    assert told == [EventKind.LOST]
    lookups = rig.sim.calls("nvmlDeviceGetHandleByUUID")
    assert 1 <= lookups <= 9, "with growing pauses"
    for _ in range(130):
        rows = rig.sweep(Cadence.FAST)
        told += [kind for kind in rig.kinds() if kind in GONE]
    assert told == [EventKind.LOST, EventKind.RESTORED]
    assert list(rows) == [0, 1, 2]
    assert rows[1]["energy_millijoules"] > before
    rig.source.close()


@simulated("gpus=3,clock=manual", start=False)
def test_a_gpu_that_is_removed_and_one_that_is_added() -> None:
    sim = Sim()
    rig = Rig(sim)
    rig.sweep(Cadence.SLOW)
    assert sim.inject("remove:gpu=0")
    told: list[EventKind] = []
    for _ in range(20):
        rows = rig.sweep(Cadence.SLOW, seconds=30)
        told += [kind for kind in rig.kinds() if kind in GONE]
    assert told == [EventKind.LOST, EventKind.REMOVED]
    assert list(rows) == [1, 2], "slots stay, whatever the driver's indexes do"
    assert sim.inject("restore:gpu=0")
    for _ in range(3):  # the inventory is looked at with each slow sweep
        rows = rig.sweep(Cadence.SLOW, seconds=30)
        told += [kind for kind in rig.kinds() if kind in GONE]
    assert told == [EventKind.LOST, EventKind.REMOVED, EventKind.RESTORED]
    assert list(rows) == [0, 1, 2]
    assert len(rig.source.open()) == 3


@simulated("gpus=3,clock=manual,fault=lost@0+50:gpu=1:lookup=lost", start=False)
def test_a_gpu_that_cannot_be_opened_at_the_start_is_found_later() -> None:
    rig = Rig(Sim())
    assert [gpu.index for gpu in rig.source.open()] == [0, 2]
    for _ in range(4):
        rows = rig.sweep(Cadence.SLOW, seconds=20)
    assert [gpu.index for gpu in rig.source.open()] == [0, 2, 1]
    assert list(rows) == [0, 1, 2]
    added = [event for event in rig.source.events() if event.kind is EventKind.ADDED]
    assert [event.gpu_uuid for event in added] == [rig.source.open()[2].uuid]


@simulated("gpus=2,clock=manual,fault=lost@0:lookup=lost", start=False)
def test_broken_gpus_are_not_replaced_by_simulated_ones() -> None:
    from support.simulation import LIBRARY

    with pytest.raises(DriverWithoutGpu, match="counts 2 GPUs and shows none"):
        open_source(SourceSettings(library=str(LIBRARY)), {})


@simulated("gpus=2,clock=manual", start=False)
def test_a_library_is_chosen_by_its_path() -> None:
    from support.simulation import LIBRARY

    source = open_source(SourceSettings(library=str(LIBRARY)), {})
    assert source.name == "nvml"
    source.close()
    with pytest.raises(SourceUnavailable, match=r"has loaded .* already"):
        open_source(SourceSettings(kind="nvml", library="/elsewhere.so"), {})


def test_a_library_that_does_not_exist_is_named() -> None:
    with pytest.raises(SourceUnavailable, match=r"source.library /nowhere/libx.so: "):
        open_source(SourceSettings(kind="nvml", library="/nowhere/libx.so"), {})


@simulated(
    "gpus=2,clock=manual,fault=not_supported=nvmlDeviceGetPowerUsage:gpu=0;"
    "fault=not_supported=186:gpu=1",
    start=False,
)
def test_what_is_not_supported_is_asked_once_and_again_after_a_loss() -> None:
    sim = Sim()
    rig = Rig(sim)
    sim.ResetCounters()
    for _ in range(10):
        rows = rig.sweep(Cadence.FAST)
    assert "power_watts" not in rows[0]
    assert "power_watts" in rows[1]
    assert "power_instant_watts" in rows[0]
    assert "power_instant_watts" not in rows[1]
    assert sim.calls("nvmlDeviceGetPowerUsage") == 11
    assert sim.calls("nvmlDeviceGetFieldValues") == 20
    assert sim.calls("nvmlDeviceGetUtilizationRates") == 20, "two metrics, one call"
    assert sim.calls("nvmlDeviceGetViolationStatus") == 0, "fields tell it"
    sim.ClearFaults()
    assert sim.inject("lost@0+1:gpu=0")
    rig.sweep(Cadence.FAST, seconds=0.5)
    rows = rig.sweep(Cadence.FAST, seconds=10)
    assert "power_watts" in rows[0], "a new driver may support it"


@simulated("gpus=1,clock=manual,fault=not_supported=nvmlDeviceGetFieldValues", start=False)
def test_without_field_values_the_old_calls_are_used() -> None:
    rig = Rig(Sim())
    rig.sweep(Cadence.FAST)
    row = rig.sweep(Cadence.FAST)[0]
    assert row["energy_millijoules"] > 0
    assert "power_violation_ns" in row
    assert "power_instant_watts" not in row


@simulated(
    "gpus=1,clock=manual,fault=no_function=nvmlDeviceGetMemoryInfo_v2;"
    "fault=no_function=nvmlDeviceGetCurrentClocksEventReasons",
    start=False,
)
def test_an_older_library_answers_with_older_functions() -> None:
    rig = Rig(Sim())
    row = rig.sweep(Cadence.FAST)[0]
    assert row["memory_used_bytes"] > 0
    assert "clock_event_reasons" in row
    assert "memory_reserved_bytes" not in row


@simulated("gpus=2,clock=manual", start=False)
def test_energy_that_goes_back_is_kept_and_told_once() -> None:
    sim = Sim()
    rig = Rig(sim)
    before = rig.sweep(Cadence.FAST, seconds=100)[0]["energy_millijoules"]
    assert sim.inject("energy_reset:gpu=0")
    after = rig.sweep(Cadence.FAST)[0]["energy_millijoules"]
    assert after < before
    (event,) = rig.source.events()
    assert (event.kind, event.gpu_uuid) == (EventKind.COUNTER_RESET, rig.gpus[0].uuid)
    assert event.message == f"energy_millijoules from {before} to {after}"
    rig.sweep(Cadence.FAST)
    assert rig.kinds() == []


@simulated("gpus=2,clock=manual", start=False)
def test_events_between_two_sweeps_are_seen() -> None:
    sim = Sim()
    rig = Rig(sim)
    assert rig.sweep(Cadence.SLOW)[1]["xid_last"] == 0
    for fault in ("xid=31:gpu=1", "xid=13:gpu=1", "ecc_dbe=2:gpu=0"):
        assert sim.inject(fault)
    rig.advance(0.1)
    found = wait_for(rig, 3, {EventKind.XID, EventKind.ECC})
    xids = [e for e in found if e.kind is EventKind.XID and e.gpu_uuid == rig.gpus[1].uuid]
    assert [event.code for event in xids] == [31, 13]
    assert any(e.kind is EventKind.ECC and e.gpu_uuid == rig.gpus[0].uuid for e in found)
    assert rig.sweep(Cadence.SLOW)[1]["xid_last"] == 13


@simulated("gpus=2,clock=manual", start=False)
def test_after_a_fatal_xid_the_gpu_is_not_asked() -> None:
    sim = Sim()
    rig = Rig(sim)
    rig.sweep(Cadence.FAST)
    assert sim.inject("xid=119:gpu=1")
    rig.advance(0.1)
    wait_for(rig, 1, {EventKind.LOST})
    sim.ResetCounters()
    for _ in range(50):
        assert list(rig.sweep(Cadence.FAST)) == [0]
    assert sim.calls("nvmlDeviceGetUtilizationRates") == 50
    assert sim.calls("nvmlDeviceGetHandleByUUID") == 0, "left alone for a minute"
    for _ in range(15):
        rows = rig.sweep(Cadence.FAST)
    assert list(rows) == [0, 1]


@simulated("gpus=2,clock=manual", start=False)
def test_processes_are_bounded_and_only_read_when_asked_for() -> None:
    sim = Sim()
    quiet = Rig(sim)
    quiet.sweep(Cadence.SLOW)
    assert sim.calls("nvmlDeviceGetComputeRunningProcesses_v3") == 0
    rig = Rig(sim, processes=True)
    samples: list[Any] = []
    for _ in range(60):
        rig.sweep(Cadence.SLOW, seconds=60)
        samples += rig.source.processes()
    assert samples
    uuids = {gpu.uuid for gpu in rig.gpus}
    assert {sample.gpu_uuid for sample in samples} <= uuids
    assert all(sample.pid > 0 for sample in samples)
    assert any(sample.memory_used_bytes for sample in samples)
    assert any(sample.sm_utilization_percent for sample in samples)
    assert list(rig.source.processes()) == []


@pytest.mark.parametrize("gone", ["_v3", "_v3 _v2"])
@simulated("gpus=1,clock=manual,profile=training", start=False)
def test_processes_fall_back_to_older_forms(gone: str) -> None:
    sim = Sim()
    rigs = [Rig(sim, processes=True)]
    for version in gone.split():
        for kind in ("Compute", "Graphics", "MPSCompute"):
            assert sim.inject(f"no_function=nvmlDeviceGet{kind}RunningProcesses{version}")
    rigs.append(Rig(sim, processes=True, clock=rigs[0].clock))
    found: list[list[tuple[int, int | None]]] = [[], []]
    for _ in range(30):
        rigs[0].advance(60)
        for rig, samples in zip(rigs, found, strict=True):
            rig.source.sweep(Cadence.SLOW, rig.clock.time_ns(), rig.rings)
            samples += [(s.pid, s.memory_used_bytes) for s in rig.source.processes()]
    assert found[1]


@simulated("gpus=2,clock=manual", start=False)
def test_a_gpu_is_released_and_opened_again() -> None:
    sim = Sim()
    for _ in range(3):
        rig = Rig(sim)
        for metric_set in METRIC_SETS:
            rig.sweep(metric_set.cadence)
        rig.source.close()
        rig.source.close()
