"""The native sweep writes what the readable one reads through nvidia-ml-py, at the same instant
of the same driver: every row, every value, every event."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gputel.catalog import METRIC_SETS, Cadence, MetricSet
from gputel.clock import ManualClock
from gputel.kernels import Sealed
from gputel.sources.nvml_events import EventWatch
from support.simulation import Sim, simulated
from support.sweeping import Rig

MODELS = ("a100", "h100", "b200", "rtx4090")
FAULTS = (
    "not_supported=186",
    "not_supported=138",
    "not_supported=75:gpu=1",
    "not_supported=nvmlDeviceGetFieldValues:gpu=2",
    "not_supported=nvmlDeviceGetMemoryInfo_v2",
    "not_supported=nvmlDeviceGetCurrentClocksEventReasons:gpu=0",
    "not_supported=nvmlDeviceGetSamples:gpu=1",
    "not_supported=nvmlGpmSampleGet:gpu=0",
    "no_function=nvmlDeviceGetRemappedRows",
    "energy_reset:gpu=0",
    "ecc_sbe=7:gpu=1",
    "lost@0+7:gpu=1",
    "reset_required@0+3:gpu=2",
    "fallen@0+5:gpu=0",
    "remove:gpu=0",
    "restore:gpu=0",
)


def compare(a: dict[int, Sealed], b: dict[int, Sealed], metric_set: MetricSet) -> int:
    """Cells compared."""
    assert a.keys() == b.keys(), metric_set.name
    cells = 0
    for slot, native in a.items():
        twin = b[slot]
        for name in ("time_ns", "sequence", "valid", "lateness_us"):
            left, right = getattr(native, name), getattr(twin, name)
            assert left.tobytes() == right.tobytes(), (metric_set.name, slot, name, left, right)
        for metric, x, y in zip(metric_set.metrics, native.columns, twin.columns, strict=True):
            assert x.tobytes() == y.tobytes(), (metric.name, slot, x, y)
            cells += len(x)
    return cells


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", [1, 2, 3])
@simulated("gpus=3,model={model},seed={seed},clock=manual", start=False)
def test_native_equals_twin(model: str, seed: int) -> None:
    sim = Sim()
    clock = ManualClock()
    with pytest.MonkeyPatch.context() as patch:
        # Without the events' threads: what they see, they see at their own time.
        patch.setattr(EventWatch, "start", lambda watch: None)
        native = Rig(sim, clock=clock)
        twin = Rig(sim, clock=clock, twin=True)
    chance = random.Random(seed)
    cells = 0
    for step in range(120):
        native.advance(chance.choice((0.01, 0.1, 0.5, 1, 5, 30)))
        if step > 10 and chance.random() < 0.15:
            assert sim.inject(chance.choice(FAULTS))
        for metric_set in METRIC_SETS:
            for rig in (native, twin):
                rig.source.sweep(metric_set.cadence, clock.time_ns(), rig.rings, step)
            cadence = metric_set.cadence
            cells += compare(native.take(cadence), twin.take(cadence), metric_set)
        assert native.source.events() == twin.source.events()
    assert cells > 3_000
    assert native.source.counts() == twin.source.counts()
    costs = [
        {(c.call, c.calls, tuple(sorted(c.errors.items()))) for c in rig.source.call_costs()}
        for rig in (native, twin)
    ]
    assert costs[0] == costs[1]


@pytest.mark.parametrize("model", MODELS)
@simulated("gpus=2,model={model},clock=manual,profile=training", start=False)
def test_an_answer_is_what_nvidia_ml_py_says(model: str) -> None:
    """Some metrics once more, by hand: the twin and the kernel share a plan."""
    rig = Rig(Sim())
    for _ in range(5):
        fast, medium = rig.sweep(Cadence.FAST), rig.sweep(Cadence.MEDIUM, seconds=0)
        for slot, gpu in enumerate(rig.gpus):
            nvml: Any = rig.source._nvml
            handle = nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            use = nvml.nvmlDeviceGetUtilizationRates(handle)
            memory = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
            assert fast[slot]["gpu_utilization_percent"] == use.gpu
            assert fast[slot]["memory_utilization_percent"] == use.memory
            assert fast[slot]["power_watts"] == nvml.nvmlDeviceGetPowerUsage(handle) / 1000
            energy_mj = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
            assert fast[slot]["energy_millijoules"] == energy_mj
            assert fast[slot]["memory_used_bytes"] == memory.used
            assert fast[slot]["memory_free_bytes"] == memory.free
            assert fast[slot]["memory_reserved_bytes"] == memory.reserved
            clock_mhz = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            assert fast[slot]["sm_clock_mhz"] == clock_mhz
            violation = nvml.nvmlDeviceGetViolationStatus(handle, nvml.NVML_PERF_POLICY_POWER)
            assert fast[slot]["power_violation_ns"] == violation.violationTime
            celsius = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            assert medium[slot]["gpu_temperature_celsius"] == celsius
