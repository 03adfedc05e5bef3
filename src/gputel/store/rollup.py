"""Per-minute statistics of samples, and their way into `rollup_1m`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gputel.catalog import Metric
from gputel.store.hot import Rows
from gputel.store.times import MINUTE_NS, to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection


class Bucket(NamedTuple):
    """One GPU, metric and minute."""

    gpu_id: int
    metric_id: int
    minute_ns: int
    n: int
    min: float
    max: float
    sum: float


def buckets(gpu_id: int, metrics: Sequence[Metric], rows: Rows) -> list[Bucket]:
    """The statistics of `rows`, whose columns are `metrics`."""
    found = []
    for metric, column, mask in zip(metrics, rows.columns, rows.valid, strict=True):
        if not mask.any():
            continue
        minute = rows.time_ns[mask] // MINUTE_NS
        order = np.argsort(minute, kind="stable")
        values: npt.NDArray[np.float64] = column[mask].astype(np.float64)[order]
        minutes, first = np.unique(minute[order], return_index=True)
        counts = np.diff(np.append(first, len(values)))
        found += [
            Bucket(gpu_id, metric.id, m * MINUTE_NS, n, low, high, total)
            for m, n, low, high, total in zip(
                minutes.tolist(),
                counts.tolist(),
                np.minimum.reduceat(values, first).tolist(),
                np.maximum.reduceat(values, first).tolist(),
                np.add.reduceat(values, first).tolist(),
                strict=True,
            )
        ]
    return found


def merged(items: Sequence[Bucket]) -> list[Bucket]:
    """One bucket a key, sorted by key: one statement can't touch a row twice, and writers
    that lock rows in one order don't deadlock."""
    by_key: dict[tuple[int, int, int], Bucket] = {}
    for item in items:
        key = item[:3]
        other = by_key.get(key)
        if other is not None:
            item = Bucket(
                *key,
                item.n + other.n,
                min(item.min, other.min),
                max(item.max, other.max),
                item.sum + other.sum,
            )
        by_key[key] = item
    return [by_key[key] for key in sorted(by_key)]


async def add(connection: Connection, items: Sequence[Bucket]) -> None:
    """Add to what the minutes hold already."""
    if not items:
        return
    gpu, metric, minute, n, low, high, total = zip(*merged(items), strict=True)
    await connection.execute(
        "INSERT INTO rollup_1m AS r (gpu_id, metric_id, minute, n, min, max, sum) "
        "SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::timestamptz[], $4::bigint[], "
        "$5::float8[], $6::float8[], $7::float8[]) "
        "ON CONFLICT (gpu_id, metric_id, minute) DO UPDATE SET n = r.n + excluded.n, "
        "min = least(r.min, excluded.min), max = greatest(r.max, excluded.max), "
        "sum = r.sum + excluded.sum",
        gpu,
        metric,
        [to_datetime(time_ns) for time_ns in minute],
        n,
        low,
        high,
        total,
    )
