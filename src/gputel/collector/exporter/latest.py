"""The latest value of every metric of every GPU, for the exporter: a scrape asks no driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from gputel.batch import Batch
from gputel.catalog import Cadence, Metric
from gputel.clock import NS_PER_S
from gputel.inventory import Gpu

STALE_S: Final = 60.0


class Latest:
    """One slot a GPU. A value is stale some time after it last *arrived*: a replay carries
    old times."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self.gpus = list(gpus)
        self._values: list[dict[Metric, tuple[int | float, int]]] = [{} for _ in gpus]

    def update(self, slot: int, batch: Batch, now_ns: int) -> None:
        """Take the newest valid value of each column; `now_ns` is monotonic."""
        values = self._values[slot]
        n = len(batch)
        last, bit = (n - 1) // 8, (n - 1) % 8
        for j, metric in enumerate(batch.metric_set.metrics):
            if batch.valid[j, last] >> bit & 1:
                values[metric] = (batch.columns[j][n - 1].item(), now_ns)
            elif batch.valid[j].any():
                row = int(np.flatnonzero(batch.mask(j))[-1])
                values[metric] = (batch.columns[j][row].item(), now_ns)

    def rows(self, metric: Metric, now_ns: int) -> Iterator[tuple[Gpu, int | float]]:
        """Every GPU that has a fresh value of `metric`."""
        # A slow metric is refreshed twice a minute: it lives for three of its periods.
        stale_ns = int(STALE_S * (2 if metric.cadence is Cadence.SLOW else 1) * NS_PER_S)
        for gpu, values in zip(self.gpus, self._values, strict=True):
            found = values.get(metric)
            if found is not None and now_ns - found[1] <= stale_ns:
                yield gpu, found[0]
