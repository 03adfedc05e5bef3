"""The simulator: deterministic, complete, physical."""

from __future__ import annotations

import numpy as np
import pytest

from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.errors import InputError
from gputel.kernels import Columns, Ring, Sealed
from gputel.sources import SourceSettings, open_source
from gputel.sources.sim import Simulator

NOW_NS = 1_800_000_000_000_000_000
STEP_NS = 100_000_000


def run(cadence: Cadence, sweeps: int, *, model: str = "h100", seed: int = 1) -> list[Sealed]:
    source = Simulator(node="n", gpus=2, model=model, seed=seed, periods_ns={})
    rings = {s: Ring(s.storages, 4096) for s in METRIC_SETS}
    for tick in range(sweeps):
        source.sweep(cadence, NOW_NS + tick * STEP_NS, rings)
    metric_set = SET_BY_CADENCE[cadence]
    columns = Columns(metric_set.storages, 2, 2048)
    columns.drain(rings[metric_set])
    return columns.seal()


def column(part: Sealed, name: str) -> list[float]:
    names = [metric.name for metric in SET_BY_CADENCE[Cadence.FAST].metrics]
    values: list[float] = part.columns[names.index(name)].tolist()
    return values


def test_the_same_seed_gives_the_same_rows() -> None:
    for left, right in zip(run(Cadence.FAST, 50), run(Cadence.FAST, 50), strict=True):
        for a, b in zip(left.columns, right.columns, strict=True):
            assert np.array_equal(a, b)
    other = run(Cadence.FAST, 50, seed=2)[0]
    assert column(other, "power_watts") != column(run(Cadence.FAST, 50)[0], "power_watts")


def test_energy_is_the_integral_of_power() -> None:
    part = run(Cadence.FAST, 1000)[0]
    energy = column(part, "energy_millijoules")
    power = column(part, "power_instant_watts")
    assert energy == sorted(energy)
    assert energy[-1] - energy[0] == pytest.approx(sum(power[1:]) * 100, rel=1e-4)
    assert max(power) <= 700


def test_memory_adds_up() -> None:
    for part in run(Cadence.FAST, 200):
        for used, free, reserved in zip(
            column(part, "memory_used_bytes"),
            column(part, "memory_free_bytes"),
            column(part, "memory_reserved_bytes"),
            strict=True,
        ):
            assert used + free + reserved == 80 * 2**30
            assert min(used, free, reserved) >= 0


@pytest.mark.parametrize("cadence", [Cadence.FAST, Cadence.MEDIUM, Cadence.SLOW])
def test_a_data_centre_gpu_has_every_metric_and_a_consumer_one_not(cadence: Cadence) -> None:
    valid = np.atleast_1d(run(cadence, 3)[0].valid.any(axis=1))
    missing = {
        metric.name
        for metric, there in zip(SET_BY_CADENCE[cadence].metrics, valid, strict=True)
        if not there
    }
    assert missing <= {"fan_speed_percent"}
    assert run(cadence, 3, model="4090")[0].valid.any(axis=1).sum() < valid.sum()


def test_a_source_is_opened_by_its_kind() -> None:
    gpus = open_source(SourceSettings(kind="sim", gpus=3, node="n"), {}).open()
    assert [gpu.index for gpu in gpus] == [0, 1, 2]
    assert len({gpu.uuid for gpu in gpus}) == len({gpu.pci_bus_id for gpu in gpus}) == 3
    with pytest.raises(InputError, match="no profile"):
        open_source(SourceSettings(kind="sim", model="Voodoo 2"), {})
