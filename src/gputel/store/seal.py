"""Sealing: a hot partition becomes chunks and minutes, and is dropped in one transaction.

Writers of that partition (late data) wait until it is done and then make it anew; readers
go on, except for the moment of the drop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np

from gputel import wire
from gputel.batch import Batch
from gputel.catalog import MetricSet
from gputel.errors import FrameTooLarge
from gputel.store import chunks, hot
from gputel.store.chunks import Chunk
from gputel.store.hot import Rows
from gputel.store.merge import I64_MIN, RowKey
from gputel.store.partitions import Partitions
from gputel.store.times import DAY_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: Enough for the columns to compress well, few enough for a query of minutes to stay small.
SAMPLES_A_CHUNK: Final = 4096
ROWS_A_STEP: Final = 65_536
GPUS_A_STEP: Final = 1000
LOCK_TIMEOUT: Final = "2s"


@dataclass(slots=True)
class Sealed:
    """What one partition became."""

    rows: int = 0
    chunks: int = 0


async def seal_partition(
    store: Store,
    partitions: Partitions,
    metric_set: MetricSet,
    name: str,
    lower: datetime,
    upper: datetime,
) -> Sealed | None:
    """Seal the hot partition `name` of [lower, upper); None: locked by others, try later."""
    lower_ns, upper_ns = to_ns(lower), to_ns(upper)
    minutes = np.arange(lower_ns, upper_ns, MINUTE_NS, dtype=np.int64)
    await partitions.ensure({"sample_chunk": [minutes], "rollup_1m": [minutes]})
    done = Sealed()
    try:
        async with store.session() as session, session.transaction():
            await session.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            await session.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
            after = I64_MIN
            while gpu_ids := await _gpu_ids(session, name, after):
                for gpu_id in gpu_ids:
                    await _seal_gpu(session, metric_set, name, gpu_id, done)
                after = gpu_ids[-1]
            await session.execute(f"DROP TABLE {name}")
            await session.execute("DELETE FROM store_partition WHERE name = $1", name)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return None
    except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
        # Retention was faster.
        log.info("%s is not sealed: %s", name, error)
        return None
    return done


async def _gpu_ids(session: Connection, name: str, after: int) -> list[int]:
    found = await session.fetch(
        f"SELECT DISTINCT gpu_id FROM {name} WHERE gpu_id > $1 ORDER BY gpu_id LIMIT {GPUS_A_STEP}",
        after,
    )
    return [row[0] for row in found]


async def _seal_gpu(
    session: Connection, metric_set: MetricSet, name: str, gpu_id: int, done: Sealed
) -> None:
    metrics = metric_set.metrics
    after = RowKey(0, I64_MIN, I64_MIN)
    while True:
        rows = await hot.read(
            session,
            name,
            metrics,
            "gpu_id = $1 AND time >= $2 AND (time, epoch, sequence) > ($2, $3, $4)",
            [gpu_id, to_datetime(after.time_ns), after.epoch, after.sequence],
            f"ORDER BY time, epoch, sequence LIMIT {ROWS_A_STEP}",
        )
        if len(rows):
            items = [
                (gpu_id, Chunk.of(epoch, batch, *_span(batch), payload))
                for epoch, piece in _pieces(rows)
                for batch, payload in encode(metric_set, piece)
            ]
            await chunks.write(session, items)
            done.rows += len(rows)
            done.chunks += len(items)
        if len(rows) < ROWS_A_STEP:
            return
        after = RowKey(int(rows.time_ns[-1]), int(rows.epoch[-1]), int(rows.sequence[-1]))


def _span(batch: Batch) -> tuple[int, int]:
    return int(batch.time_ns.min()), int(batch.time_ns.max())


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(epoch, rows) of one epoch, few enough for a chunk and within a day."""
    for epoch in np.unique(rows.epoch).tolist():
        of_epoch = rows.take(rows.epoch == epoch)
        days = of_epoch.time_ns // DAY_NS
        for day in np.unique(days).tolist():
            of_day = of_epoch.take(days == day)
            for start in range(0, len(of_day), SAMPLES_A_CHUNK):
                yield epoch, of_day.take(slice(start, start + SAMPLES_A_CHUNK))


def encode(metric_set: MetricSet, rows: Rows) -> Iterator[tuple[Batch, bytes]]:
    """Chunks of `rows`, whose columns are all of the set's; halved where one is too large."""
    batch = Batch(
        metric_set,
        rows.time_ns,
        rows.sequence,
        rows.columns,
        np.array([np.packbits(mask, bitorder="little") for mask in rows.valid], np.uint8),
    )
    try:
        payload = wire.encode_batch(batch)
    except FrameTooLarge:
        half = len(rows) // 2
        assert half, "one sample always fits a chunk"
        yield from encode(metric_set, rows.take(slice(half)))
        yield from encode(metric_set, rows.take(slice(half, len(rows))))
    else:
        yield batch, payload


assert SAMPLES_A_CHUNK <= ROWS_A_STEP
