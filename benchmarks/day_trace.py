"""A day of one simulated H100: what the codec's bytes per sample are measured on.

The fast and the medium metric set at 1 Hz and the slow one every 30 s, as a collector that is
asked for one sample a second has them. Times are what the sampler writes: the tick, late by
what waking a thread takes, in whole microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gputel.batch import DTYPES, Batch
from gputel.catalog import SET_BY_CADENCE, Cadence, MetricSet
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


@dataclass(frozen=True)
class Trace:
    """All rows of one metric set, as in a `Batch`, which holds fewer; `masks` bool[c, n]."""

    metric_set: MetricSet
    time_ns: npt.NDArray[np.int64]
    columns: tuple[npt.NDArray[Any], ...]
    masks: npt.NDArray[np.bool_]

    def chunks(self, rows: int) -> Iterator[Batch]:
        """Cut into batches of `rows`."""
        for start in range(0, len(self.time_ns), rows):
            yield self._cut(start, start + rows)

    def between(self, start_ns: int, end_ns: int) -> Batch:
        """The rows in [start_ns, end_ns)."""
        first, last = np.searchsorted(self.time_ns, [start_ns, end_ns]).tolist()
        return self._cut(first, last)

    def _cut(self, first: int, last: int) -> Batch:
        part = slice(first, last)
        times = self.time_ns[part]
        return Batch(
            self.metric_set,
            times,
            np.arange(first, first + len(times), dtype=np.int64),
            tuple(column[part] for column in self.columns),
            np.packbits(self.masks[:, part], axis=1, bitorder="little"),
        )

    def sealed(self) -> Iterator[Batch]:
        """Cut as the store does."""
        return self.chunks(CHUNK_S // PERIODS_S[self.metric_set.cadence])

    def series(self) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[Any]]]:
        """(metric, times in ns, values) of each metric that has a value."""
        for metric, column, mask in zip(
            self.metric_set.metrics, self.columns, self.masks, strict=True
        ):
            if mask.any():
                yield metric.name, self.time_ns[mask], column[mask]


def day(model: str = "h100", seconds: int = DAY_S) -> list[Trace]:
    """One trace a metric set."""
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
    return [_trace(cadence, rings[SET_BY_CADENCE[cadence]], random) for cadence in PERIODS_S]


def _trace(cadence: Cadence, rows: _Rows, random: np.random.Generator) -> Trace:
    metric_set = SET_BY_CADENCE[cadence]
    n = len(rows.values)
    late_us = random.exponential(LATENESS_MEAN_US, n).astype(np.int64)
    times = T0 + np.arange(n, dtype=np.int64) * PERIODS_S[cadence] * NS_PER_S + late_us * NS_PER_US
    columns, masks = [], []
    for metric, values in zip(metric_set.metrics, zip(*rows.values, strict=True), strict=True):
        masks.append([value is not None for value in values])
        present = [0 if value is None else value for value in values]
        columns.append(np.array(present, DTYPES[metric.storage.value]))
    return Trace(metric_set, times, tuple(columns), np.array(masks))


def samples(batch: Batch) -> int:
    """Values that are there: of one metric at one time each."""
    return sum(int(batch.mask(j).sum()) for j in range(len(batch.columns)))
