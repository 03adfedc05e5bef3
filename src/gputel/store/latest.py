"""The newest value of each metric, wherever it is: in a hot row or in a chunk.

    1. the newest hot row of each GPU, and its newest minute in chunks
    2. where a chunk may be newer than that row: the chunks of that minute
    3. for a metric that neither has: the newest row that has it, and the chunks of the newest
       minute that has it

Most GPUs need the first step only. What a GPU never had is not looked for (gpu.metric_ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from gputel import wire
from gputel.catalog import Metric, MetricSet
from gputel.store import cells, hot, schema
from gputel.store.times import DAY_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    import asyncpg

    from gputel.store.connection import Connection

#: Minutes of GPUs whose chunks are in memory at a time.
MINUTES_A_STEP: Final = 64

_CHUNKS: Final = """
SELECT w.gpu_id, w.minute, c.epoch, c.payload
FROM unnest($1::bigint[], $2::timestamptz[]) AS w (gpu_id, minute)
JOIN sample_chunk c ON c.gpu_id = w.gpu_id AND c.set_id = $3 AND c.t1 >= w.minute
    AND c.t0 < w.minute + interval '1 minute' AND c.t0 > w.minute - interval '1 day'
WHERE c.t0 >= $4 AND c.t0 < $5
"""


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest value of a metric of a GPU."""

    gpu_id: int
    metric: Metric
    time_ns: int
    value: float


class _Candidate(NamedTuple):
    """A value, by age: a later one is greater."""

    time_ns: int
    epoch: int
    sequence: int
    value: float


class _Wanted(NamedTuple):
    """A metric of a GPU whose newest value may be in the chunks of a minute."""

    gpu_id: int
    metric: Metric
    minute: datetime


async def latest_values(
    session: Connection,
    metric_set: MetricSet,
    metrics: Sequence[Metric],
    gpu_ids: Sequence[int] | None,
) -> list[Latest]:
    """The newest value of each of `metrics`, all of `metric_set`; of all GPUs where None."""
    found: dict[tuple[int, Metric], _Candidate] = {}
    recent: list[_Wanted] = []
    # What is found is the newest value when it is at least this late, or when nothing is here.
    since_ns: dict[tuple[int, Metric], int] = {}
    read = cells.reader(metric_set, metrics)
    nothing = [None] * len(metrics)
    for row in await _newest_rows(session, metric_set, gpu_ids):
        gpu_id, metric_ids, minute, time, epoch, sequence, row_cells = row
        row_ns = None if time is None else to_ns(time)
        in_chunks = minute is not None and (row_ns is None or not _is_after(row_ns, minute))
        late_ns = max(row_ns or 0, to_ns(minute) if in_chunks else 0)
        values = nothing if row_ns is None else read(row_cells)
        for metric, value in zip(metrics, values, strict=True):
            if metric.id not in metric_ids:
                continue
            if row_ns is not None and value is not None:
                found[gpu_id, metric] = _Candidate(row_ns, epoch, sequence, value)
                if not in_chunks:
                    continue
            if in_chunks:
                recent.append(_Wanted(gpu_id, metric, minute))
            since_ns[gpu_id, metric] = late_ns
    await _from_chunks(session, metric_set, recent, found)
    unsettled: dict[Metric, list[int]] = {}
    for (gpu_id, metric), time_ns in since_ns.items():
        newest = found.get((gpu_id, metric))
        if newest is None or newest.time_ns < time_ns:
            unsettled.setdefault(metric, []).append(gpu_id)
    wanted: list[_Wanted] = []
    for metric, ids in unsettled.items():
        wanted += await _newest_of(session, metric_set, metric, ids, found)
    await _from_chunks(session, metric_set, wanted, found)
    return [
        Latest(gpu_id, metric, newest.time_ns, newest.value)
        for (gpu_id, metric), newest in found.items()
    ]


def _is_after(time_ns: int, minute: datetime) -> bool:
    """Is the time later than anything in the minute?"""
    return time_ns >= to_ns(minute) + MINUTE_NS


async def _newest_rows(
    session: Connection, metric_set: MetricSet, gpu_ids: Sequence[int] | None
) -> Sequence[asyncpg.Record]:
    return await session.fetch(
        f"SELECT g.gpu_id, g.metric_ids, r.minute, h.time, h.epoch, h.sequence, h.cells "
        "FROM gpu_seen s JOIN gpu g USING (gpu_id) LEFT JOIN LATERAL ("
        f"SELECT * FROM {schema.hot_table(metric_set)} WHERE gpu_id = s.gpu_id "
        "ORDER BY time DESC, epoch DESC, sequence DESC LIMIT 1) h ON true "
        "LEFT JOIN LATERAL (SELECT minute FROM rollup_1m WHERE gpu_id = s.gpu_id "
        "ORDER BY minute DESC LIMIT 1) r ON true "
        "WHERE $1::bigint[] IS NULL OR s.gpu_id = ANY($1)",
        None if gpu_ids is None else list(gpu_ids),
    )


async def _newest_of(
    session: Connection,
    metric_set: MetricSet,
    metric: Metric,
    gpu_ids: Sequence[int],
    found: dict[tuple[int, Metric], _Candidate],
) -> list[_Wanted]:
    """Find the newest rows that hold `metric`; returns the minutes that may have it newer."""
    wanted = []
    for gpu_id, minute, time, epoch, sequence, row_cells in await session.fetch(
        "SELECT s.gpu_id, r.minute, h.time, h.epoch, h.sequence, h.cells "
        "FROM gpu_seen s LEFT JOIN LATERAL ("
        f"SELECT * FROM {schema.hot_table(metric_set)} "
        f"WHERE gpu_id = s.gpu_id AND {cells.has(metric)} "
        "ORDER BY time DESC, epoch DESC, sequence DESC LIMIT 1) h ON true "
        "LEFT JOIN LATERAL (SELECT minute FROM rollup_1m WHERE gpu_id = s.gpu_id "
        "AND (h.time IS NULL OR minute > h.time - interval '1 minute') "
        "AND n[array_position(metric_ids, $2::smallint)] > 0 "
        "ORDER BY minute DESC LIMIT 1) r ON true WHERE s.gpu_id = ANY($1::bigint[])",
        list(gpu_ids),
        metric.id,
    ):
        value = None if time is None else cells.value_in(row_cells, metric)
        if value is not None:
            newest = _Candidate(to_ns(time), epoch, sequence, value)
            found[gpu_id, metric] = max(found.get((gpu_id, metric), newest), newest)
        if minute is not None:
            wanted.append(_Wanted(gpu_id, metric, minute))
    return wanted


async def _from_chunks(
    session: Connection,
    metric_set: MetricSet,
    wanted: Sequence[_Wanted],
    found: dict[tuple[int, Metric], _Candidate],
) -> None:
    """Decode the chunks of the minutes wanted, and keep what is newer than what is found."""
    metrics: dict[tuple[int, datetime], list[Metric]] = {}
    for gpu_id, metric, minute in wanted:
        metrics.setdefault((gpu_id, minute), []).append(metric)
    places = sorted(metrics, key=lambda place: place[1])
    for start in range(0, len(places), MINUTES_A_STEP):
        step = places[start : start + MINUTES_A_STEP]
        for gpu_id, minute, epoch, payload in await session.fetch(
            _CHUNKS,
            [gpu_id for gpu_id, _ in step],
            [minute for _, minute in step],
            metric_set.id,
            # Beside the join, so that the planner leaves other days' partitions alone.
            to_datetime(to_ns(step[0][1]) - DAY_NS),
            to_datetime(to_ns(step[-1][1]) + MINUTE_NS),
        ):
            chosen = metrics[gpu_id, minute]
            for metric, newest in _newest_in(payload, epoch, chosen):
                key = (gpu_id, metric)
                found[key] = max(found.get(key, newest), newest)


def _newest_in(
    payload: bytes, epoch: int, metrics: Sequence[Metric]
) -> Iterator[tuple[Metric, _Candidate]]:
    """The newest value of each metric in a chunk that has one."""
    rows = hot.from_batch(wire.decode_chunk(payload), epoch, metrics)
    order = np.lexsort((rows.sequence, rows.time_ns))
    for metric, column, mask in zip(metrics, rows.columns, rows.valid, strict=True):
        at = order[mask[order]]
        if len(at):
            last = at[-1]
            time_ns, sequence = int(rows.time_ns[last]), int(rows.sequence[last])
            yield metric, _Candidate(time_ns, epoch, sequence, column[last].item())
