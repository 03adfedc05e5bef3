"""MIG instances as slots of the NVML source."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from gputel.catalog import Cadence
from gputel.inventory import EventKind, Gpu
from gputel.limits import MIB
from gputel.sources import nvml_roster
from gputel.sources.nvml_mig import mig_instances, mig_parent, whole_of
from support.simulation import Sim, simulated
from support.sweeping import Rig

MIG = "gpus=2,model=h100,profile=training,clock=manual,mig=0:3g.40gb+2g.20gb"


@pytest.mark.parametrize("twin", [False, True])
@simulated(MIG, start=False)
def test_an_instance_is_swept_beside_its_gpu(twin: bool):
    rig = Rig(Sim(), twin=twin)
    whole, other, *instances = rig.gpus
    assert [gpu.mig_parent for gpu in (whole, other)] == ["", ""]
    assert [(gpu.mig_profile, gpu.mig_instance) for gpu in instances] == [
        ("3g.40gb", 1),
        ("2g.20gb", 3),
    ]
    for gpu in instances:
        assert gpu.uuid.startswith("MIG-")
        same = dataclasses.replace(
            whole,
            uuid=gpu.uuid,
            model=f"{whole.model} MIG {gpu.mig_profile}",
            memory_total_bytes=gpu.memory_total_bytes,
            mig_parent=whole.uuid,
            mig_profile=gpu.mig_profile,
            mig_instance=gpu.mig_instance,
        )
        assert gpu == same
    assert rig.source.description.startswith("2 NVIDIA H100")
    rig.advance(60)
    rows = rig.sweep(Cadence.FAST)
    used = [rows[slot]["memory_used_bytes"] for slot in (0, 2, 3)]
    assert used[0] > used[1] > used[2] > 0
    assert "power_watts" in rows[0]
    assert "gpu_utilization_percent" in rows[1]
    assert "gpu_utilization_percent" not in rows[0], "under MIG it is of no one"
    assert {name for name in rows[2] if not name.startswith("memory_")} == set()
    assert rig.kinds() == []
    parent = mig_parent(instances[0].uuid)
    assert parent == (whole.uuid, 1)


GPM = {
    "graphics_engine_active_ratio", "sm_active_ratio", "sm_occupancy_ratio", "tensor_active_ratio",
    "dram_active_ratio", "fp64_active_ratio", "fp32_active_ratio", "fp16_active_ratio",
}  # fmt: skip
TRAFFIC = {"pcie_tx_bytes_per_second", "pcie_rx_bytes_per_second"}


@pytest.mark.parametrize("twin", [False, True])
@simulated(MIG, start=False)
def test_gpm_of_an_instance_is_asked_of_its_gpu(twin: bool):
    sim = Sim()
    rig = Rig(sim, twin=twin)
    rig.advance(60)
    rig.sweep(Cadence.MEDIUM)
    rows = rig.sweep(Cadence.MEDIUM)
    assert set(rows[0]) > GPM | TRAFFIC
    for slot in (2, 3):
        assert set(rows[slot]) == GPM, "what goes over PCIe is the GPU's"
        assert rows[slot]["sm_active_ratio"] == rows[0]["sm_active_ratio"] > 0
    assert sim.calls("nvmlGpmMigSampleGet") == 4
    costs = {cost.call: cost for cost in rig.source.call_costs()}
    assert costs["nvmlGpmSampleGet"].calls == 8
    rig.source.close()


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("fault", ["not_supported", "no_function"])
@simulated(f"{MIG},fault={{fault}}=nvmlGpmMigSampleGet", start=False)
def test_a_driver_without_gpm_of_instances_is_asked_once(twin: bool, fault: str):
    sim = Sim()
    rig = Rig(sim, twin=twin)
    for _ in range(4):
        rows = rig.sweep(Cadence.MEDIUM)
    assert rows[2] == rows[3] == {}
    assert set(rows[0]) > GPM
    assert sim.calls("nvmlGpmMigSampleGet") == 2, "once an instance"
    assert rig.kinds() == []


@pytest.mark.parametrize("twin", [False, True])
@simulated(MIG, start=False)
def test_gpm_of_an_instance_goes_on_when_its_gpu_is_back_under_another_handle(twin: bool):
    sim = Sim()
    rig = Rig(sim, twin=twin)
    rig.sweep(Cadence.MEDIUM)
    assert sim.inject("remove@0+5:gpu=0")
    rig.sweep(Cadence.MEDIUM)
    for _ in range(12):
        rig.sweep(Cadence.SLOW)
    rig.sweep(Cadence.MEDIUM)
    rows = rig.sweep(Cadence.MEDIUM)
    assert set(rows[2]) == set(rows[3]) == GPM
    assert rig.kinds().count(EventKind.RESTORED) == 3


@simulated(MIG.replace("mig=", "fault=no_function=nvmlDeviceGetMigMode,mig="), start=False)
def test_a_driver_that_tells_no_gpu_of_an_instance_has_no_gpm_of_it():
    whole = pynvml.nvmlInit() or pynvml.nvmlDeviceGetHandleByIndex(0)
    assert whole_of(pynvml, whole) is None, "it is no instance"
    instance = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, 0)
    found = whole_of(pynvml, instance)
    assert pynvml.nvmlDeviceGetUUID(found) == pynvml.nvmlDeviceGetUUID(whole)


def not_found(_: str) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)


@simulated(MIG, start=False)
def test_an_instance_that_is_destroyed_is_removed_and_comes_back():
    rig = Rig(Sim())
    destroyed = pytest.MonkeyPatch()
    destroyed.setattr(nvml_roster, "mig_instances", lambda *_: iter(()))
    destroyed.setattr(pynvml, "nvmlDeviceGetHandleByUUID", not_found)
    rig.sweep(Cadence.SLOW)
    gone = list(rig.source.events())
    assert [(event.kind, event.gpu_uuid) for event in gone] == [
        (EventKind.REMOVED, rig.gpus[2].uuid),
        (EventKind.REMOVED, rig.gpus[3].uuid),
    ]
    assert set(rig.sweep(Cadence.FAST)) == {0, 1}
    assert rig.kinds() == []
    destroyed.undo()
    rig.sweep(Cadence.SLOW)
    rows = rig.sweep(Cadence.FAST)
    assert set(rows) == {0, 1, 2, 3}
    assert rig.kinds() == [EventKind.RESTORED, EventKind.RESTORED]
    assert len(rig.source.open()) == 4, "it has its old slot"


class Refused(Exception):
    """An NVML error."""


class OldDriver:
    """A driver before 470: no profile in the name; the second device shares an instance."""

    NVMLError = Refused
    devices = ((1, 3), (1, 3), (5, 2))  # GPU instance, compute slices

    def nvmlDeviceGetMigMode(self, _: Any) -> list[int]:
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, _: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: Any, index: int) -> int:
        if index == 1 or index > 3:
            raise Refused  # places in between may be empty
        return min(index, 2)

    def nvmlDeviceGetGpuInstanceId(self, device: int) -> int:
        return self.devices[device][0]

    def nvmlDeviceGetUUID(self, device: int) -> bytes:
        return f"MIG-GPU-1/{self.devices[device][0]}/0".encode()

    def nvmlDeviceGetName(self, _: int) -> bytes:
        return b"A100-SXM4-40GB"

    def nvmlDeviceGetAttributes(self, device: int) -> Any:
        slices = self.devices[device][1]
        size = {3: 20_096, 2: 9_984}[slices]
        return SimpleNamespace(gpuInstanceSliceCount=slices, memorySizeMB=size)


def test_profiles_of_a_driver_that_does_not_name_them() -> None:
    gpu = Gpu(uuid="GPU-1", node="n", index=0, memory_total_bytes=40_536 * MIB)
    found = [instance for _, instance in mig_instances(OldDriver(), 0, gpu)]
    assert [(i.uuid, i.mig_profile, i.mig_instance) for i in found] == [
        ("MIG-GPU-1/1/0", "3g.20gb", 1),
        ("MIG-GPU-1/5/0", "2g.10gb", 5),
    ]


def test_a_driver_without_mig_has_no_instances() -> None:
    class Plain(OldDriver):
        def nvmlDeviceGetMigMode(self, _: Any) -> list[int]:
            raise Refused

    gpu = Gpu(uuid="GPU-1", node="n", index=0)
    assert list(mig_instances(Plain(), 0, gpu)) == []
