"""The driver's own samples: each once, whatever happens between two calls."""

from __future__ import annotations

from typing import Any

import pytest

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.kernels import Sealed
from support.simulation import Sim, simulated
from support.sweeping import Rig

DRAIN = SET_BY_CADENCE[Cadence.DRAIN]
POWER = [metric.name for metric in DRAIN.metrics].index("power_sample_watts")
USE = [metric.name for metric in DRAIN.metrics].index("gpu_utilization_sample_percent")
STREAMS = ((POWER, 0, 1000), (USE, 1, 1))  # column, nvmlSamplingType_t, units a stored unit
Samples = list[tuple[int, float]]  # (driver's time in ns, value)


def drained(rig: Rig, column: int) -> Samples:
    """What the ring holds for GPU 0, valid cells of `column` only."""
    part = rig.take(Cadence.DRAIN).get(0)
    return [] if part is None else valid_cells(part, column)


def valid_cells(part: Sealed, column: int) -> Samples:
    """The valid cells of one column."""
    rows = [i for i in range(len(part.time_ns)) if part.valid[column][i // 8] >> (i % 8) & 1]
    return [(int(part.time_ns[i]), part.columns[column][i].item()) for i in rows]


def buffered(rig: Rig, kind: int, scale: float) -> Samples:
    """What the driver's buffer holds for GPU 0."""
    nvml: Any = rig.source._nvml
    handle = nvml.nvmlDeviceGetHandleByUUID(rig.gpus[0].uuid)
    try:
        _, samples = nvml.nvmlDeviceGetSamples(handle, kind, 0)
    except nvml.NVMLError:
        return []
    return [(s.timeStamp * 1000, s.sampleValue.uiVal / scale) for s in samples]


@pytest.mark.parametrize("twin", [False, True])
@simulated("gpus=1,clock=manual,profile=training", start=False)
def test_every_sample_once_over_the_loss_of_the_gpu(twin: bool) -> None:
    sim = Sim()
    rig = Rig(sim, twin=twin)
    rig.source.sweep(Cadence.DRAIN, rig.clock.time_ns(), rig.rings)
    assert drained(rig, POWER) == [], "what was before our start is not ours"
    start_ns = {kind: max(buffered(rig, kind, 1), default=(0,))[0] for kind in (0, 1)}
    seen: dict[int, Samples] = {POWER: [], USE: []}
    truth: dict[int, set[tuple[int, float]]] = {POWER: set(), USE: set()}
    for step in range(200):
        rig.advance((0.05, 0.3, 0.7, 1.0)[step % 4])
        there = {column: buffered(rig, kind, scale) for column, kind, scale in STREAMS}
        rig.source.sweep(Cadence.DRAIN, rig.clock.time_ns(), rig.rings)
        part = rig.take(Cadence.DRAIN).get(0)
        if part is None:
            continue  # lost: what the driver forgets meanwhile is out of reach
        for column, kind, _ in STREAMS:
            truth[column] |= {s for s in there[column] if s[0] > start_ns[kind]}
            seen[column] += valid_cells(part, column)
        if step in (60, 130):
            assert sim.inject("lost@0+1.2")
    for column, samples in seen.items():
        times = [time_ns for time_ns, _ in samples]
        assert times == sorted(set(times)), "in order, none twice"
        assert set(samples) >= truth[column], "none lost that the driver still had"
        assert len(samples) > 100
    assert rig.source.counts()["sample_time"] == 0


@simulated("gpus=1,clock=manual,profile=training", start=False)
def test_a_restarted_collector_takes_no_sample_again() -> None:
    sim = Sim()
    first = Rig(sim)
    seen: Samples = []
    for _ in range(10):
        first.advance(1)
        first.source.sweep(Cadence.DRAIN, first.clock.time_ns(), first.rings)
        seen += drained(first, POWER)
    first.source.close()
    second = Rig(sim, clock=first.clock)
    for _ in range(10):
        second.source.sweep(Cadence.DRAIN, second.clock.time_ns(), second.rings)
        seen += drained(second, POWER)
        second.advance(1)
    times = [time_ns for time_ns, _ in seen]
    assert times == sorted(set(times))
    assert len(times) > 100
