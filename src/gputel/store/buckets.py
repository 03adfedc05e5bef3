"""Aggregates by buckets of time, from the coarsest tier that can tell them.

    step            read from
    hours           rollup_1h, rollup_1h_part, hot rows
    minutes         rollup_1m, hot rows
    anything else   chunks, hot rows

Buckets begin at multiples of the step since 1970. What is said of one does not depend on where
it was read, but for the last bits of sums, which depend on the order of adding. As in
PostgreSQL, NaN is greater than every number.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from gputel.catalog import Metric, MetricSet
from gputel.clock import NS_PER_US
from gputel.errors import QueryInvalid
from gputel.store import hot
from gputel.store.hot import Rows
from gputel.store.merge import I64_MIN, RowKey
from gputel.store.read import read_hot, read_set
from gputel.store.times import HOUR_NS, MINUTE_NS, to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection

STEP_NS_MIN: Final = 1_000_000
#: Points in memory at a time, and rows that one question may take when no rollup answers it.
POINTS_A_STEP: Final = 262_144
RAW_ROWS_MAX: Final = 8_388_608
I64_MAX: Final = 2**63 - 1

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

# Of a fixed width in binary, as _CELL is.
_ROLLUP: Final = """
SELECT date_bin($1, r.{unit}, timestamptz 'epoch'), v.metric_id, sum(v.n)::bigint, min(v.min),
       max(v.max), sum(v.sum)
FROM {table} r
CROSS JOIN LATERAL unnest(r.metric_ids, r.n, r.min, r.max, r.sum)
    AS v (metric_id, n, min, max, sum)
WHERE r.gpu_id = $2 AND r.{unit} >= $3 AND r.{unit} < $4 AND v.n > 0 AND v.metric_id = ANY($5)
GROUP BY 1, 2
"""
_CELL: Final = np.dtype(
    [("fields", ">i2")]
    + [
        (name, code)
        for field, type in (
            ("time", ">i8"),
            ("metric_id", ">i2"),
            ("n", ">i8"),
            ("min", ">f8"),
            ("max", ">f8"),
            ("sum", ">f8"),
        )
        for name, code in ((f"{field}_length", ">i4"), (field, type))
    ]
)


class Aggregate(Enum):
    """What becomes of the values in a bucket."""

    AVG = "avg"
    MIN = "min"
    MAX = "max"
    SUM = "sum"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Grid:
    """`count` buckets of `step_ns` from `start_ns`, a multiple of it."""

    start_ns: int
    step_ns: int
    count: int

    @classmethod
    def around(cls, start_ns: int, end_ns: int, step_ns: int) -> Grid:
        """The whole buckets that [start_ns, end_ns) touches; start < end."""
        assert step_ns >= STEP_NS_MIN
        first = start_ns // step_ns
        return cls(first * step_ns, step_ns, -(-end_ns // step_ns) - first)

    @property
    def end_ns(self) -> int:
        """The end of the last bucket."""
        return self.start_ns + self.count * self.step_ns


class Buckets:
    """Statistics of one metric: arrays over the buckets of a grid.

    Where n is 0, the others are what adding changes nothing: min NaN, max -infinity, sum 0.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._n = np.zeros(grid.count, np.int64)
        self._min = np.full(grid.count, np.nan)
        self._max = np.full(grid.count, -np.inf)
        self._sum = np.zeros(grid.count)

    def add_values(self, time_ns: Int64s, values: npt.NDArray[np.generic]) -> None:
        """Values in the order of time."""
        if not len(time_ns):
            return
        at = (time_ns - self._grid.start_ns) // self._grid.step_ns
        first = np.flatnonzero(np.diff(at, prepend=-1))
        doubles = values.astype(np.float64)
        with np.errstate(all="ignore"):  # infinities of both signs sum up to NaN
            self.add(
                at[first],
                np.diff(first, append=len(at)),
                np.fmin.reduceat(doubles, first),
                np.maximum.reduceat(doubles, first),
                np.add.reduceat(doubles, first),
            )

    def add(self, at: Int64s, n: Int64s, low: Floats, high: Floats, total: Floats) -> None:
        """What is known of the buckets `at`, each named once."""
        self._n[at] += n
        self._min[at] = np.fmin(self._min[at], low)
        self._max[at] = np.maximum(self._max[at], high)
        with np.errstate(all="ignore"):
            self._sum[at] += total

    def result(self, aggregate: Aggregate) -> tuple[Int64s, npt.NDArray[np.generic]]:
        """(beginnings of the buckets that hold a value, what they come to)."""
        some = self._n > 0
        time_ns = self._grid.start_ns + np.flatnonzero(some) * self._grid.step_ns
        if aggregate is Aggregate.AVG:
            return time_ns, self._sum[some] / self._n[some]
        values = {
            Aggregate.MIN: self._min,
            Aggregate.MAX: self._max,
            Aggregate.SUM: self._sum,
            Aggregate.COUNT: self._n,
        }[aggregate]
        return time_ns, values[some]


async def read_buckets(
    connection: Connection,
    gpu_id: int,
    groups: Sequence[tuple[MetricSet, Sequence[Metric]]],
    grid: Grid,
) -> dict[Metric, Buckets]:
    """The buckets of each metric. QueryInvalid: too many samples would have to be decoded."""
    found = {metric: Buckets(grid) for _, metrics in groups for metric in metrics}
    tables = _rollups(grid.step_ns)
    for table, unit in tables:
        await _add_rollup(connection, gpu_id, table, unit, grid, found)
    for metric_set, metrics in groups:
        await _add_rows(connection, gpu_id, metric_set, metrics, grid, found, chunks=not tables)
    return found


def _rollups(step_ns: int) -> tuple[tuple[str, str], ...]:
    """(table, column of its time) of what holds a step of this length already summed up."""
    if step_ns % HOUR_NS == 0:
        return ("rollup_1h", "hour"), ("rollup_1h_part", "hour")
    if step_ns % MINUTE_NS == 0:
        return (("rollup_1m", "minute"),)
    return ()


async def _add_rollup(
    connection: Connection,
    gpu_id: int,
    table: str,
    unit: str,
    grid: Grid,
    found: dict[Metric, Buckets],
) -> None:
    output = io.BytesIO()
    await connection.copy_from_query(
        _ROLLUP.format(table=table, unit=unit),
        timedelta(microseconds=grid.step_ns // NS_PER_US),
        gpu_id,
        to_datetime(grid.start_ns),
        to_datetime(grid.end_ns),
        [metric.id for metric in found],
        output=output,
        format="binary",
    )
    cells = hot.copied(output.getbuffer(), _CELL)
    at = (hot.times_ns(cells["time"]) - grid.start_ns) // grid.step_ns
    for metric, buckets in found.items():
        own = cells["metric_id"] == metric.id
        of_metric = cells[own]
        buckets.add(at[own], *(of_metric[name] for name in ("n", "min", "max", "sum")))


async def _add_rows(
    connection: Connection,
    gpu_id: int,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    grid: Grid,
    found: dict[Metric, Buckets],
    *,
    chunks: bool,
) -> None:
    read = read_set if chunks else read_hot
    first: RowKey | None = RowKey(grid.start_ns, I64_MIN, I64_MIN)
    taken = 0
    while first is not None:
        if taken > RAW_ROWS_MAX:
            raise QueryInvalid(
                "step",
                f"more than {RAW_ROWS_MAX} samples would have to be read one by one",
                allowed=("whole minutes, which are summed up already", "a shorter time"),
            )
        rows = await read(
            connection, gpu_id, metric_set, metrics, first, grid.end_ns, POINTS_A_STEP
        )
        rows, first = _complete(rows)
        for metric, column, mask in zip(metrics, rows.columns, rows.valid, strict=True):
            found[metric].add_values(rows.time_ns[mask], column[mask])
        taken += len(rows)


def _complete(rows: Rows) -> tuple[Rows, RowKey | None]:
    """The rows of which none is missing, and the key behind them; None: that was all."""
    reached = np.cumsum(rows.points())
    if not len(rows) or reached[-1] < POINTS_A_STEP:
        return rows, None
    n = int(np.searchsorted(reached, POINTS_A_STEP)) + 1
    time_ns, epoch, sequence = (
        int(keys[n - 1]) for keys in (rows.time_ns, rows.epoch, rows.sequence)
    )
    if sequence == I64_MAX:
        return rows.take(slice(n)), RowKey(time_ns, epoch + 1, I64_MIN)
    return rows.take(slice(n)), RowKey(time_ns, epoch, sequence + 1)
