"""Sealing: a hot partition becomes chunks, minutes and hours, and is dropped when it is empty.

A step takes some GPUs: in one transaction it reads their rows, writes what they become, and
deletes exactly the rows it read, which its snapshot guarantees. Nobody waits for a step. Readers
find each row once, before as after; late rows that arrive meanwhile are taken by the next pass;
what a killed step did is undone. Only the empty partition is locked, for a moment, to drop it.
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
from gputel.store import chunks, citus, hot
from gputel.store.chunks import Chunk
from gputel.store.hot import Rows
from gputel.store.merge import I64_MIN
from gputel.store.partitions import Partitions, drop_partition
from gputel.store.times import DAY_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: Enough for the columns to compress well, few enough for a query of minutes to stay small.
SAMPLES_A_CHUNK: Final = 4096
#: A step ends with the GPU that reaches this; of one GPU it takes no more.
ROWS_A_STEP: Final = 65_536
GPUS_A_STEP: Final = 1000

#: Another transaction did the same, or was in the way: try again later.
CONTENDED: Final = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)

# From one GPU to the next by the index: the rows of each are not looked at.
_GPU_IDS: Final = """
WITH RECURSIVE found (gpu_id) AS (
    (SELECT gpu_id FROM {table} WHERE gpu_id > $1 ORDER BY gpu_id LIMIT 1)
    UNION ALL
    SELECT (SELECT t.gpu_id FROM {table} t WHERE t.gpu_id > f.gpu_id ORDER BY t.gpu_id LIMIT 1)
    FROM found f WHERE f.gpu_id IS NOT NULL
)
SELECT gpu_id FROM found WHERE gpu_id IS NOT NULL LIMIT $2
"""
# Citus knows no recursion over many shards: there, from one GPU that was ever seen to the next.
_GPU_IDS_DISTRIBUTED: Final = """
SELECT s.gpu_id FROM gpu_seen s CROSS JOIN LATERAL (
    SELECT 1 FROM {table} h WHERE h.gpu_id = s.gpu_id LIMIT 1
) AS h WHERE s.gpu_id > $1 ORDER BY s.gpu_id LIMIT $2
"""


@dataclass(slots=True)
class Sealed:
    """What one partition became. `dropped`: it is gone, nothing was left in it."""

    rows: int = 0
    chunks: int = 0
    dropped: bool = False


async def seal_partition(
    store: Store,
    partitions: Partitions,
    metric_set: MetricSet,
    name: str,
    lower: datetime,
    upper: datetime,
) -> Sealed:
    """Seal the hot partition `name` of [lower, upper), as far as nobody is in the way."""
    minutes = np.arange(to_ns(lower), to_ns(upper), MINUTE_NS, dtype=np.int64)
    await partitions.ensure({"sample_chunk": [minutes], "rollup_1m": [minutes]})
    done = Sealed()
    after: int | None = I64_MIN
    try:
        async with store.session() as session:
            distributed = await citus.installed(session)
            next_gpu_ids = (_GPU_IDS_DISTRIBUTED if distributed else _GPU_IDS).format(table=name)
            while after is not None:
                after = await _step(session, metric_set, name, next_gpu_ids, after, done)
            done.dropped = await drop_partition(session, name, only_empty=True)
    except CONTENDED as error:
        log.debug("sealing of %s is put off: %s", name, error)
    except asyncpg.UniqueViolationError as error:
        log.warning("%s holds rows that were sealed before, and is left: %s", name, error)
    except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
        # Retention was faster.
        log.info("%s is not sealed: %s", name, error)
    return done


async def _step(
    session: Connection,
    metric_set: MetricSet,
    name: str,
    next_gpu_ids: str,
    after: int,
    done: Sealed,
) -> int | None:
    """Seal some GPUs above `after`; returns the last one that is done, None at the end."""
    rows_read, items, whole = 0, list[tuple[int, Chunk]](), list[int]()
    async with session.transaction(isolation="repeatable_read"):
        gpu_ids = [row[0] for row in await session.fetch(next_gpu_ids, after, GPUS_A_STEP)]
        for gpu_id in gpu_ids:
            rows = await hot.read(
                session,
                name,
                metric_set.metrics,
                "gpu_id = $1",
                [gpu_id],
                f"ORDER BY time, epoch, sequence LIMIT {ROWS_A_STEP}",
            )
            items += [(gpu_id, chunk) for chunk in chunks_of(metric_set, rows)]
            rows_read += len(rows)
            if len(rows) == ROWS_A_STEP:
                await _delete_through(session, name, gpu_id, rows)
                break  # there may be more of it
            whole.append(gpu_id)
            after = gpu_id
            if rows_read >= ROWS_A_STEP:
                break
        # First what tells whether another process is at the same.
        await session.execute(f"DELETE FROM {name} WHERE gpu_id = ANY($1)", whole)
        await chunks.write(session, items)
    done.rows += rows_read
    done.chunks += len(items)
    return after if gpu_ids else None


async def _delete_through(session: Connection, name: str, gpu_id: int, rows: Rows) -> None:
    """Delete the rows of a GPU up to the last of `rows`."""
    await session.execute(
        f"DELETE FROM {name} WHERE gpu_id = $1 AND (time, epoch, sequence) <= ($2, $3, $4)",
        gpu_id,
        to_datetime(int(rows.time_ns[-1])),
        int(rows.epoch[-1]),
        int(rows.sequence[-1]),
    )


def chunks_of(metric_set: MetricSet, rows: Rows) -> Iterator[Chunk]:
    """`rows` of one GPU, whose columns are all of the set's, as chunks."""
    for epoch, piece in _pieces(rows):
        for batch, payload in encode(metric_set, piece):
            first_ns, last_ns = int(batch.time_ns.min()), int(batch.time_ns.max())
            yield Chunk.of(epoch, batch, first_ns, last_ns, payload)


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
