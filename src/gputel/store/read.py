"""Rows of one GPU and metric set, from the hot table and from chunks, in bounded steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from gputel import wire
from gputel.catalog import Metric, MetricSet
from gputel.clock import NS_PER_US
from gputel.store import cells, hot, schema
from gputel.store.hot import Rows
from gputel.store.merge import I64_MIN, RowKey, from_key, in_order
from gputel.store.times import DAY_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection

HOT_ROWS_A_STEP: Final = 65_536
CHUNKS_A_STEP: Final = 1024
CHUNK_SAMPLES_A_STEP: Final = 131_072

_CHUNKS: Final = """
SELECT t0, epoch, first_sequence, payload FROM (
    SELECT t0, epoch, first_sequence, payload, samples,
           sum(samples) OVER (ORDER BY t0, epoch, first_sequence) AS total
    FROM sample_chunk
    WHERE gpu_id = $1 AND set_id = $2 AND t0 >= $3 AND t0 < $4 AND t1 >= $5
      AND (t0, epoch, first_sequence) > ($3, $6, $7)
    ORDER BY t0, epoch, first_sequence LIMIT $8
) AS c WHERE total - samples < $9 ORDER BY t0, epoch, first_sequence
"""


def ceil_us(time_ns: int) -> int:
    """The next whole microsecond: stored times are whole ones."""
    return -(-time_ns // NS_PER_US) * NS_PER_US


async def read_set(
    connection: Connection,
    gpu_id: int,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    first: RowKey,
    end_ns: int,
    points: int,
) -> Rows:
    """At least the first `points` points from `first` to before `end_ns`, or all of them.

    In order; only rows that hold one of `metrics`. What is not returned comes after at
    least `points` of those that are.
    """
    rows = await read_hot(connection, gpu_id, metric_set, metrics, first, end_ns, points)
    pieces = [
        rows,
        *await _read_chunks(connection, gpu_id, metric_set, metrics, first, end_ns, points),
    ]
    return in_order(hot.concatenate(pieces))


async def read_hot(
    connection: Connection,
    gpu_id: int,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    first: RowKey,
    end_ns: int,
    points: int,
) -> Rows:
    """As `read_set`, of the hot table only."""
    some = " OR ".join(map(cells.has, metrics))
    step = min(points, HOT_ROWS_A_STEP)
    pieces: list[Rows] = []
    found, key, comparison = 0, first, ">="
    while True:
        block = await hot.read(
            connection,
            schema.hot_table(metric_set),
            metric_set,
            metrics,
            f"gpu_id = $1 AND time >= $2 AND time < $3 "
            f"AND (time, epoch, sequence) {comparison} ($2, $4, $5) AND ({some})",
            [gpu_id, to_datetime(key.time_ns), to_datetime(end_ns), key.epoch, key.sequence],
            f"ORDER BY time, epoch, sequence LIMIT {step}",
        )
        pieces.append(block)
        found += int(block.points().sum())
        if len(block) < step or found >= points:
            return hot.concatenate(pieces)
        key = RowKey(int(block.time_ns[-1]), int(block.epoch[-1]), int(block.sequence[-1]))
        comparison = ">"


async def _read_chunks(
    connection: Connection,
    gpu_id: int,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    first: RowKey,
    end_ns: int,
    points: int,
) -> list[Rows]:
    pieces: list[Rows] = []
    # A chunk spans less than a day, so none that begins earlier reaches `first`.
    after = RowKey(first.time_ns - DAY_NS, I64_MIN, I64_MIN)
    while True:
        found = await connection.fetch(
            _CHUNKS,
            gpu_id,
            metric_set.id,
            to_datetime(after.time_ns),
            to_datetime(end_ns),
            to_datetime(first.time_ns),
            after.epoch,
            after.sequence,
            CHUNKS_A_STEP,
            CHUNK_SAMPLES_A_STEP,
        )
        for _, epoch, _, payload in found:
            rows = hot.from_batch(wire.decode_chunk(payload), epoch, metrics)
            rows = from_key(rows, first, end_ns)
            some = rows.points() > 0
            pieces.append(rows if some.all() else rows.take(some))
        if not found:
            return pieces
        t0, epoch, sequence, _ = found[-1]
        after = RowKey(to_ns(t0), epoch, sequence)
        # What is still to come begins at `after` or later.
        complete = sum(int(piece.points()[piece.time_ns < after.time_ns].sum()) for piece in pieces)
        if complete >= points:
            return pieces
