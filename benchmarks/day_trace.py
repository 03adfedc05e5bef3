"""A day of one simulated H100: what the codec's bytes per sample are measured on.

The fast and the medium metric set at 1 Hz and the slow one every 30 s, as a collector that is
asked for one sample a second has them. Times are what the sampler writes: the tick, late by
what waking a thread takes, in whole microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, NS_PER_US
from gputel.sources.sim import Simulator

DAY_S = 86_400
PERIODS_S = {Cadence.FAST: 1, Cadence.MEDIUM: 1, Cadence.SLOW: 30}
# As the store seals them: an hour of the hot table, at 1 Hz, is one chunk a GPU and set.
CHUNK_S = 3600
T0 = 1_752_871_354 * NS_PER_S
LATENESS_MEAN_US = 150.0
SEED = 1


class _Rows:
    """Takes the rows of one metric set where a ring would."""

    def __init__(self) -> None:
        self.values: list[list[float | None]] = []

    def push(self, time_ns: int, gpu: int, sequence: int, lateness_us: int, values: Any) -> bool:
        self.values.append(values)
        return True


def day(model: str = "h100", seconds: int = DAY_S) -> list[Batch]:
    """One batch a metric set, all of it; `chunks` cuts them."""
    simulator = Simulator(
        node="day",
        gpus=1,
        model=model,
        seed=SEED,
        periods_ns={cadence: period * NS_PER_S for cadence, period in PERIODS_S.items()},
    )
    simulator.open()
    rings: Any = {SET_BY_CADENCE[cadence]: _Rows() for cadence in PERIODS_S}
    for second in range(seconds):
        for cadence, period in PERIODS_S.items():
            if second % period == 0:
                simulator.sweep(cadence, T0 + second * NS_PER_S, rings)
    random = np.random.default_rng(SEED)
    return [_batch(cadence, rings[SET_BY_CADENCE[cadence]], random) for cadence in PERIODS_S]


def _batch(cadence: Cadence, rows: _Rows, random: np.random.Generator) -> Batch:
    metric_set = SET_BY_CADENCE[cadence]
    n = len(rows.values)
    late_us = random.exponential(LATENESS_MEAN_US, n).astype(np.int64)
    times = T0 + np.arange(n, dtype=np.int64) * PERIODS_S[cadence] * NS_PER_S + late_us * NS_PER_US
    columns, masks = [], []
    for metric, values in zip(metric_set.metrics, zip(*rows.values, strict=True), strict=True):
        masks.append([value is not None for value in values])
        present = [0 if value is None else value for value in values]
        columns.append(np.array(present, DTYPES[metric.storage.value]))
    valid = np.packbits(np.array(masks), axis=1, bitorder="little")
    return Batch(metric_set, times, np.arange(n, dtype=np.int64), tuple(columns), valid)


def chunks(batch: Batch, seconds: int) -> Iterator[Batch]:
    """`batch` in pieces of `seconds`, each at least one row long."""
    rows = max(seconds // PERIODS_S[batch.metric_set.cadence], 1)
    masks = [batch.mask(j) for j in range(len(batch.columns))]
    for start in range(0, len(batch), rows):
        part = slice(start, start + rows)
        bits = np.array([mask[part] for mask in masks])
        yield Batch(
            batch.metric_set,
            batch.time_ns[part],
            batch.sequence[part],
            tuple(column[part] for column in batch.columns),
            np.packbits(bits, axis=1, bitorder="little"),
        )


def samples(batch: Batch) -> int:
    """Values that are there: of one metric at one time each."""
    return sum(int(batch.mask(j).sum()) for j in range(len(batch.columns)))


def values_of(batch: Batch) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[Any]]]:
    """(metric, times in ns, values) of each metric that has one."""
    for j, metric in enumerate(batch.metric_set.metrics):
        mask = batch.mask(j)
        if mask.any():
            yield metric.name, batch.time_ns[mask], batch.columns[j][mask]
