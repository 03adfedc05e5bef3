"""An exporter fed by hand, for its tests and its benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gputel.batch import DTYPES, Batch
from gputel.catalog import BY_NAME, METRIC_SETS, SET_OF, MetricSet
from gputel.clock import NS_PER_S, ManualClock
from gputel.collector.exporter import Exporter, ExporterSettings
from gputel.collector.exporter.latest import all_now
from gputel.inventory import Gpu
from gputel.sources import Source

Values = Mapping[str, int | float]  # by metric name

FRESH_S = 10


def gpu(index: int = 0, **facts: object) -> Gpu:
    """A GPU of the golden page; `facts` replace what it has."""
    letter = "abcdef"[index % 6]
    known: dict[str, object] = {
        "uuid": f"GPU-{letter * 8}-0000-1111-2222-333333333333",
        "node": "node-1",
        "index": index,
        "device": f"nvidia{index}",
        "pci_bus_id": f"00000000:{index}A:00.0",
        "model": "NVIDIA H100 80GB HBM3",
        "driver_version": "550.54.15",
    }
    return Gpu(**{**known, **facts})  # type: ignore[arg-type]


def batch(metric_set: MetricSet, *rows: Values) -> Batch:
    """One sample a row; a metric that a row does not name is missing there."""
    n = len(rows)
    columns, masks = [], []
    for metric in metric_set.metrics:
        columns.append(
            np.array([row.get(metric.name, 0) for row in rows], DTYPES[metric.storage.value])
        )
        masks.append([metric.name in row for row in rows])
    valid = np.packbits(np.array(masks, np.bool_), axis=1, bitorder="little")
    time_ns = np.arange(n, dtype=np.int64) * 1000
    return Batch(metric_set, time_ns, np.arange(n, dtype=np.int64), tuple(columns), valid)


def batches(values: Values) -> list[Batch]:
    """One sample of each set that has a value."""
    by_set: dict[MetricSet, dict[str, int | float]] = {}
    for name, value in values.items():
        by_set.setdefault(SET_OF[BY_NAME[name]], {})[name] = value
    return [batch(metric_set, row) for metric_set, row in by_set.items()]


def exporting(
    gpus: Sequence[Gpu], settings: ExporterSettings | None = None, source: Source | None = None
) -> tuple[Exporter, ManualClock]:
    """An exporter of `gpus`, whose values stay fresh for FRESH_S."""
    clock = ManualClock()
    exporter = Exporter(settings or ExporterSettings(), clock, source=source)
    exporter.inventory(gpus)
    exporter.expect(dict.fromkeys(METRIC_SETS, FRESH_S * NS_PER_S))
    return exporter, clock


def feed(exporter: Exporter, clock: ManualClock, slot: int, values: Values) -> None:
    """One sample of `values` arrives now."""
    for part in batches(values):
        exporter.update(slot, part, all_now(clock.monotonic_ns()))
