"""The physics: grids, energy, buffers, GPM, determinism."""

from __future__ import annotations

import ctypes
import itertools
import math
import subprocess
import sys
import time
from typing import Any

import pynvml
import pytest

from support.simulation import NS_PER_S, Sim, environment, simulated

STEP_S = 0.02
UNIX_0_US = 1_700_000_000_000_000


def samples(device: Any, kind: int, seen_us: int = 0) -> list[tuple[int, int]]:
    """(driver time in us, value) of each sample in a buffer of the driver."""
    _, found = pynvml.nvmlDeviceGetSamples(device, kind, seen_us)
    return [(sample.timeStamp, sample.sampleValue.uiVal) for sample in found]


def energy_mj(device: Any) -> int:
    return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))


@pytest.mark.parametrize("model", ["a100", "h100", "b200", "rtx4090"])
@simulated("gpus=2,profile=training,clock=manual,model={model}")
def test_energy_is_the_integral_of_power(model: str, sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(1)
    seen_us, integral_mj, first_mj = 0, 0.0, energy_mj(device)
    for _ in range(200):
        sim.advance(1)
        new = samples(device, pynvml.NVML_TOTAL_POWER_SAMPLES, seen_us)
        assert len(new) == 50
        times = [time for time, _ in new]
        assert all(later - earlier == 20_000 for earlier, later in itertools.pairwise(times))
        integral_mj += sum(milliwatts * STEP_S for _, milliwatts in new)
        seen_us = times[-1]
        assert abs(integral_mj - (energy_mj(device) - first_mj)) <= 1
    limit_mw = pynvml.nvmlDeviceGetEnforcedPowerLimit(device)
    assert 0.3 * limit_mw * 200 < integral_mj < limit_mw * 200


@simulated("gpus=1,profile=training,clock=manual")
def test_readings_change_on_their_grids_alone(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.advance(60)
    changed: dict[str, list[int]] = {"power": [], "energy": [], "utilization": []}
    before: dict[str, Any] = {}
    for millisecond in range(60_000, 66_000):
        now = {
            "power": pynvml.nvmlDeviceGetFieldValues(device, [pynvml.NVML_FI_DEV_POWER_INSTANT])[
                0
            ].value.uiVal,
            "energy": energy_mj(device),
            "utilization": samples(device, pynvml.NVML_GPU_UTILIZATION_SAMPLES)[-1],
        }
        for name, value in now.items():
            if before.get(name) != value:
                changed[name].append(millisecond)
        before = now
        sim.advance(0.001)
    first = {name: times[0] for name, times in changed.items()}
    assert set(first.values()) == {60_000}
    assert all(time % 100 == 0 for time in changed["power"])
    assert len(changed["power"]) > 50
    assert changed["energy"] == list(range(60_000, 66_000, 20))
    assert len(changed["utilization"]) in {36, 37}  # six a second


@pytest.mark.parametrize(
    ("refresh_ms", "grid_ms"), [(1, 1), (7, 7), (10, 10), (50, 50), (250, 250)]
)
@simulated("gpus=1,profile=training,clock=manual,refresh_ms={refresh_ms}")
def test_refresh_is_configurable(refresh_ms: int, grid_ms: int, sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.advance(60)
    values = []
    for _ in range(2000):
        values.append(pynvml.nvmlDeviceGetFieldValues(device, [186])[0].value.uiVal)
        sim.advance(0.001)
    start_ms = 60_000
    changes = [start_ms + i for i in range(1, 2000) if values[i] != values[i - 1]]
    assert all(time % grid_ms == 0 for time in changes)
    assert len(changes) > 0.7 * 2000 / grid_ms


@simulated("gpus=1,profile=training,clock=manual")
def test_buffers_keep_what_they_hold(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_NotFound):
        samples(device, pynvml.NVML_GPU_UTILIZATION_SAMPLES)
    sim.advance(300)
    kinds = {
        pynvml.NVML_TOTAL_POWER_SAMPLES: 120,
        pynvml.NVML_GPU_UTILIZATION_SAMPLES: 72,
        pynvml.NVML_MEMORY_UTILIZATION_SAMPLES: 72,
        pynvml.NVML_PROCESSOR_CLK_SAMPLES: 72,
        pynvml.NVML_MEMORY_CLK_SAMPLES: 72,
    }
    for kind, size in kinds.items():
        kept = samples(device, kind)
        times = [time for time, _ in kept]
        assert len(kept) == size
        assert times == sorted(set(times))
        assert 0 <= UNIX_0_US + 300_000_000 - times[-1] < 200_000
        assert samples(device, kind, times[-4]) == kept[-3:]
        with pytest.raises(pynvml.NVMLError_NotFound):
            samples(device, kind, times[-1])
    newest = samples(device, pynvml.NVML_GPU_UTILIZATION_SAMPLES)[-1][1]
    assert pynvml.nvmlDeviceGetUtilizationRates(device).gpu == newest


def gpm(first: Any, second: Any, *metrics: int) -> list[Any]:
    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(metrics)
    request.sample1, request.sample2 = first, second
    for place, metric in enumerate(metrics):
        request.metrics[place].metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    return list(request.metrics)[: len(metrics)]


@simulated("gpus=2,profile=training,clock=manual")
def test_gpm_agrees_with_the_counters(sim: Sim):
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    sim.advance(120)
    first, second = pynvml.nvmlGpmSampleAlloc(), pynvml.nvmlGpmSampleAlloc()
    fields = [
        pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES,
        (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, 0xFFFFFFFF),
    ]

    def counters() -> list[int]:
        return [v.value.ullVal for v in pynvml.nvmlDeviceGetFieldValues(device, fields)]

    before = counters()
    pynvml.nvmlGpmSampleGet(device, first)
    sim.advance(10)
    pynvml.nvmlGpmSampleGet(device, second)
    after = counters()
    graphics, sm, tensor, pcie, nvlink, link, unknown = gpm(
        first,
        second,
        pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
        pynvml.NVML_GPM_METRIC_SM_UTIL,
        pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
        pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
        pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,
        pynvml.NVML_GPM_METRIC_NVLINK_L17_TX_PER_SEC,
        333,
    )
    assert 90 < graphics.value <= 100
    assert 0 < tensor.value < sm.value < graphics.value
    assert math.isclose(pcie.value, (after[0] - before[0]) / 10 / 2**20, rel_tol=1e-6)
    assert math.isclose(nvlink.value, (after[1] - before[1]) / 10 / 2**10, rel_tol=1e-3)
    assert math.isclose(link.value * 18, nvlink.value)
    assert unknown.nvmlReturn == pynvml.NVML_ERROR_NOT_SUPPORTED
    assert graphics.metricInfo.unit.decode() == "%"
    (same,) = gpm(second, second, pynvml.NVML_GPM_METRIC_SM_UTIL)
    assert math.isnan(same.value)

    refused = pynvml.NVMLError_InvalidArgument
    with pytest.raises(refused):  # the wrong way round
        gpm(second, first, pynvml.NVML_GPM_METRIC_SM_UTIL)
    pynvml.nvmlGpmSampleGet(pynvml.nvmlDeviceGetHandleByIndex(1), second)
    with pytest.raises(refused):  # of two devices
        gpm(first, second, pynvml.NVML_GPM_METRIC_SM_UTIL)
    pynvml.nvmlGpmSampleFree(first)
    with pytest.raises(refused):
        pynvml.nvmlGpmSampleFree(first)
    fresh = pynvml.nvmlGpmSampleAlloc()  # in the place of the freed one
    for sample in (first, fresh):  # freed; never filled
        with pytest.raises(refused):
            gpm(sample, second, pynvml.NVML_GPM_METRIC_SM_UTIL)


@simulated("gpus=1,model=a100")
def test_no_gpm_before_hopper():
    device = pynvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlGpmSampleGet(device, pynvml.nvmlGpmSampleAlloc())


@simulated("gpus=1,profile=idle")
def test_gpm_samples_are_bounded(sim: Sim):
    sample = ctypes.c_void_p()
    alloc = sim.library.nvmlGpmSampleAlloc
    for _ in range(4096):
        assert alloc(ctypes.byref(sample)) == 0
    assert alloc(ctypes.byref(sample)) == pynvml.NVML_ERROR_MEMORY
    assert sim.library.nvmlGpmSampleFree(sample) == 0
    assert alloc(ctypes.byref(sample)) == 0


@simulated("gpus=16,profile=training,clock=manual,seed=3")
def test_temperature_lags_behind_power_and_heat_throttles(sim: Sim):
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(16)]
    idle = [pynvml.nvmlDeviceGetTemperature(device, 0) for device in devices]
    assert all(24 <= celsius <= 45 for celsius in idle)
    for _ in range(120):  # the same job on all GPUs begins
        sim.advance(1)
        if pynvml.nvmlDeviceGetPowerUsage(devices[0]) > 500_000:
            break
    young = [pynvml.nvmlDeviceGetTemperature(device, 0) for device in devices]
    sim.advance(80)
    warm = [pynvml.nvmlDeviceGetTemperature(device, 0) for device in devices]
    assert all(a < b < c for a, b, c in zip(idle, young, warm, strict=True))
    assert max(warm) <= 89  # the hardware slowdown is never reached
    assert max(warm) - min(warm) > 5


@simulated("gpus=64,profile=training,clock=manual,seed=5")
def test_event_reasons_match_their_counters(sim: Sim):
    devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(64)]
    reasons = {"power": 0, "thermal": 0}
    for device in devices:
        assert pynvml.nvmlDeviceGetSupportedClocksEventReasons(device) & 0x21 == 0x21
    sim.advance(160)
    before = [violations(device) for device in devices]
    for _ in range(300):
        sim.advance(0.1)
        for device in devices:
            mask = pynvml.nvmlDeviceGetCurrentClocksEventReasons(device)
            reasons["power"] += bool(mask & pynvml.nvmlClocksEventReasonSwPowerCap)
            reasons["thermal"] += bool(mask & pynvml.nvmlClocksEventReasonSwThermalSlowdown)
    grown = [
        sum(later[kind] - earlier[kind] for earlier, later in
            zip(before, map(violations, devices), strict=True))
        for kind in (0, 1)
    ]  # fmt: skip
    for kind, counted in zip(("power", "thermal"), grown, strict=True):
        assert counted > 0, kind
        # One reading stands for a tenth of a second of steps.
        assert math.isclose(reasons[kind] * 0.1, counted / NS_PER_S, rel_tol=0.25), kind


def violations(device: Any) -> tuple[int, int]:
    power = pynvml.nvmlDeviceGetViolationStatus(device, pynvml.NVML_PERF_POLICY_POWER)
    thermal = pynvml.nvmlDeviceGetViolationStatus(device, pynvml.NVML_PERF_POLICY_THERMAL)
    return power.violationTime, thermal.violationTime


TRACE = """
import ctypes, pynvml, sys
pynvml.nvmlInit()
library = ctypes.CDLL("libnvidia-ml.so.1")
library.gputelSimAdvance.argtypes = [ctypes.c_ulonglong]
for step in map(int, sys.argv[1:]):
    library.gputelSimAdvance(step)
for index in range(pynvml.nvmlDeviceGetCount()):
    device = pynvml.nvmlDeviceGetHandleByIndex(index)
    print(
        pynvml.nvmlDeviceGetUUID(device),
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device),
        pynvml.nvmlDeviceGetUtilizationRates(device).gpu,
        pynvml.nvmlDeviceGetTemperature(device, 0),
        pynvml.nvmlDeviceGetMemoryInfo(device).used,
    )
"""


def trace(config: str, *steps_s: float) -> str:
    steps = [str(round(step * NS_PER_S)) for step in steps_s]
    return subprocess.run(
        [sys.executable, "-c", TRACE, *steps],
        env=environment(config),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_deterministic_by_seed_index_and_time() -> None:
    config = "gpus=8,clock=manual,seed=11"
    whole = trace(config, 600)
    assert whole == trace(config, 600)
    # However the time was cut into steps, and whatever else was asked for.
    assert whole == trace(config, 0.013, 99.987, 0.25, 400, 99.75)
    # A GPU's history does not depend on its neighbours.
    assert whole.splitlines()[:2] == trace("gpus=2,clock=manual,seed=11", 600).splitlines()
    other = trace("gpus=8,clock=manual,seed=12", 600)
    assert not set(whole.split()) & {word for word in other.split() if word.startswith("GPU-")}
    assert whole != other


@simulated("gpus=1,clock=manual")
def test_the_manual_clock(sim: Sim):
    assert sim.Time() == 0
    sim.advance(1.5)
    assert sim.Time() == 1_500_000_000
    assert sim.library.gputelSimSetTime(1_400_000_000) == -1  # never back
    assert sim.library.gputelSimAdvance(25 * 3600 * NS_PER_S) == -1
    assert sim.library.gputelSimSetTime(1_600_000_000) == 0


@simulated("gpus=1,clock=real")
def test_the_real_clock_moves_by_itself(sim: Sim):
    assert sim.library.gputelSimAdvance(1) == -1
    first = sim.Time()
    while sim.Time() == first:  # the kernel's tick
        pass


def test_processes_with_one_anchor_see_one_history() -> None:
    start = time.time()
    config = f"gpus=2,profile=training,anchor={int(start) - 1000}"
    first, second = trace(config).split(), trace(config).split()
    elapsed_s = time.time() - start + 1
    for place in (1, 6):  # the energies
        grown_mj = int(second[place]) - int(first[place])
        assert int(first[place]) > 1000 * 69_000
        assert 0 <= grown_mj <= elapsed_s * 700_000
