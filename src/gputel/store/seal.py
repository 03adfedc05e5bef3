"""Sealing: a hot partition becomes chunks, minutes and hours, and is dropped when it is empty.

A step takes some GPUs: in one transaction it reads their rows, writes what they become, and
deletes exactly the rows it read, which its snapshot guarantees. Nobody waits for a step. Readers
find each row once, before as after; late rows that arrive meanwhile are taken by the next pass;
what a killed step did is undone. Only the empty partition is locked, for a moment, to drop it.
"""

from __future__ import annotations

import asyncio
import itertools
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
from gputel.errors import FrameTooLarge, RowCorrupt
from gputel.store import chunks, citus, hot
from gputel.store.chunks import Chunk
from gputel.store.hot import Int64s, Rows
from gputel.store.merge import I64_MIN
from gputel.store.partitions import Partitions, drop_partition
from gputel.store.times import DAY_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: Enough for the columns to compress well, few enough for a query of minutes to stay small.
SAMPLES_A_CHUNK: Final = 4096
#: A step takes as many GPUs as have about half of so many rows; of one that has more, a part.
ROWS_A_STEP: Final = 65_536
GPUS_A_STEP: Final = 1000
#: PERF(seal): while one step is encoded, the server sends the rows of another.
STEPS_AT_ONCE: Final = 2

# PERF(seal): a step that a crash of the server undoes, as it would one that was under way, is taken
# again: its rows are hot then, as they were, for the log has all of it or nothing. What drops the
# partition is waited for, and with it all that was before.
_UNHURRIED: Final = "SET LOCAL synchronous_commit = off"

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
    walk = _Walk(metric_set, name)
    try:
        ended = await asyncio.gather(
            *(walk.work(store) for _ in range(STEPS_AT_ONCE)), return_exceptions=True
        )
        for error in filter(None, ended):
            raise error
        async with store.session() as session:
            walk.done.dropped = await drop_partition(session, name, only_empty=True)
    except CONTENDED as error:
        log.debug("sealing of %s is put off: %s", name, error)
    except asyncpg.UniqueViolationError as error:
        log.warning("%s holds rows that were sealed before, and is left: %s", name, error)
    except RowCorrupt as error:
        log.error("%s is left: %s", name, error)
    except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
        # Retention was faster.
        log.info("%s is not sealed: %s", name, error)
    return walk.done


class _Walk:
    """From GPU to GPU through a partition, several steps at once, each with GPUs of its own."""

    def __init__(self, metric_set: MetricSet, name: str) -> None:
        self._metric_set = metric_set
        self._name = name
        self._distributed = False
        self._after = I64_MIN
        self._gpus = 1  # of the next step
        self._taking = asyncio.Lock()
        self.done = Sealed()

    async def work(self, store: Store) -> None:
        """Step by step, until no GPU is left."""
        async with store.session() as session:
            self._distributed = await citus.installed(session)
            while gpu_ids := await self._take(session):
                if not await self._step(session, gpu_ids):
                    self._gpus = max(1, self._gpus // 2)
                    for gpu_id in gpu_ids:
                        while await self._step_through(session, gpu_id):
                            pass

    async def _take(self, session: Connection) -> list[int]:
        """The next GPUs, ascending."""
        async with self._taking:
            gpu_ids_after = _GPU_IDS_DISTRIBUTED if self._distributed else _GPU_IDS
            found = await session.fetch(
                gpu_ids_after.format(table=self._name), self._after, self._gpus
            )
            gpu_ids = [row[0] for row in found]
            self._after = gpu_ids[-1] if gpu_ids else self._after
        return gpu_ids

    async def _step(self, session: Connection, gpu_ids: list[int]) -> bool:
        """Seal all rows of some GPUs; False, and nothing is done: there are too many."""
        where, between = "gpu_id BETWEEN $1 AND $2", [gpu_ids[0], gpu_ids[-1]]
        async with session.transaction(isolation="repeatable_read"):
            await session.execute(_UNHURRIED)
            gpu_id, rows = await hot.read_gpus(
                session,
                self._name,
                self._metric_set,
                self._metric_set.metrics,
                where,
                between,
                f"LIMIT {ROWS_A_STEP}",
            )
            if len(rows) == ROWS_A_STEP:
                return False
            items = await asyncio.to_thread(_items, self._metric_set, gpu_id, rows)
            await self._keep_newest(session, np.unique(gpu_id).tolist())
            # First what tells whether another process is at the same.
            await session.execute(f"DELETE FROM {self._name} WHERE {where}", *between)
            await chunks.write(session, items)
        self._count(rows, items)
        if len(rows):
            self._gpus = max(1, min(GPUS_A_STEP, ROWS_A_STEP // 2 * len(gpu_ids) // len(rows)))
        return True

    async def _step_through(self, session: Connection, gpu_id: int) -> bool:
        """Seal the first rows of one GPU; False: that was all of it."""
        async with session.transaction(isolation="repeatable_read"):
            await session.execute(_UNHURRIED)
            rows = await hot.read(
                session,
                self._name,
                self._metric_set,
                self._metric_set.metrics,
                "gpu_id = $1",
                [gpu_id],
                f"ORDER BY time, epoch, sequence LIMIT {ROWS_A_STEP}",
            )
            if not len(rows):
                return False
            items = await asyncio.to_thread(
                _items, self._metric_set, np.full(len(rows), gpu_id), rows
            )
            await self._keep_newest(session, [gpu_id])
            await session.execute(
                f"DELETE FROM {self._name} WHERE gpu_id = $1 "
                "AND (time, epoch, sequence) <= ($2, $3, $4)",
                gpu_id,
                to_datetime(int(rows.time_ns[-1])),
                int(rows.epoch[-1]),
                int(rows.sequence[-1]),
            )
            await chunks.write(session, items)
        self._count(rows, items)
        return len(rows) == ROWS_A_STEP

    async def _keep_newest(self, session: Connection, gpu_ids: list[int]) -> None:
        await hot.keep_newest(
            session, self._metric_set, self._name, gpu_ids, distributed=self._distributed
        )

    def _count(self, rows: Rows, items: list[tuple[int, Chunk]]) -> None:
        self.done.rows += len(rows)
        self.done.chunks += len(items)


def _items(metric_set: MetricSet, gpu_id: Int64s, rows: Rows) -> list[tuple[int, Chunk]]:
    """The rows of some GPUs, in any order, as chunks."""
    order = np.lexsort((rows.sequence, rows.epoch, rows.time_ns, gpu_id))
    if (np.diff(order) != 1).any():
        gpu_id, rows = gpu_id[order], rows.take(order)
    bounds = [0, *(np.flatnonzero(np.diff(gpu_id)) + 1).tolist(), len(gpu_id)]
    return [
        (int(gpu_id[first]), chunk)
        for first, end in itertools.pairwise(bounds if len(gpu_id) else [])
        for chunk in chunks_of(metric_set, rows.take(slice(first, end)))
    ]


def chunks_of(metric_set: MetricSet, rows: Rows) -> Iterator[Chunk]:
    """`rows` of one GPU, whose columns are all of the set's, as chunks."""
    for epoch, piece in _pieces(rows):
        for batch, payload in encode(metric_set, piece):
            first_ns, last_ns = int(batch.time_ns.min()), int(batch.time_ns.max())
            yield Chunk.of(epoch, batch, first_ns, last_ns, payload)


def _pieces(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """(epoch, rows) of one epoch, few enough for a chunk and within a day."""
    for epoch, of_epoch in _alike(rows, rows.epoch):
        for _, of_day in _alike(of_epoch, of_epoch.time_ns // DAY_NS):
            for start in range(0, len(of_day), SAMPLES_A_CHUNK):
                yield epoch, of_day.take(slice(start, start + SAMPLES_A_CHUNK))


def _alike(rows: Rows, labels: Int64s) -> Iterator[tuple[int, Rows]]:
    """(label, its rows), by label."""
    # PERF(alike): nearly always there is one label, and nothing is copied by a mask.
    if len(rows) and (labels == labels[0]).all():
        yield int(labels[0]), rows
        return
    for label in np.unique(labels).tolist():
        yield label, rows.take(labels == label)


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
