"""Steps of sealing: the rows of a hot partition become chunks, minutes and hours.

A step takes some GPUs: in one transaction it reads their rows, writes what they become, and
deletes exactly the rows it read, which its snapshot guarantees. Nobody waits for a step. Readers
find each row once, before as after; late rows that arrive meanwhile are taken by the next pass;
what a killed step did is undone. `gputel.store.sealing` takes the steps, several at once.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final

import asyncpg
import numpy as np

from gputel import wire
from gputel.batch import Batch
from gputel.catalog import MetricSet
from gputel.errors import FrameTooLarge
from gputel.kernels import hot_places
from gputel.store import chunks, hot
from gputel.store.chunks import Chunk
from gputel.store.hot import Int64s, Rows
from gputel.store.merge import I64_MIN
from gputel.store.times import DAY_NS, to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection

#: Enough for the columns to compress well, few enough for a query of minutes to stay small.
SAMPLES_A_CHUNK: Final = 4096
#: A step takes as many GPUs as have about half of so many rows; of one that has more, a part.
ROWS_A_STEP: Final = 65_536
GPUS_A_STEP: Final = 1000
#: A row beside its cells: header, key, and its place in the page.
_ROW_BYTES: Final = 24 + 8 + 4 * 8 + 4

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


class Walk:
    """From GPU to GPU through a partition; steps may be taken at once, each has GPUs of its own."""

    #: After so many failed steps the rest is left for the next round.
    FAILURES_MAX: ClassVar = 2

    def __init__(self, metric_set: MetricSet, name: str, *, distributed: bool) -> None:
        self.name = name
        self.rows = 0
        self.chunks = 0
        self.failures = 0
        self.under_way = 0  # steps
        self.over = False  # all steps are taken, if not done
        self.dropped = False
        self.metric_set = metric_set
        self._distributed = distributed
        self._after = I64_MIN
        self._rows_a_gpu = 0.0  # 0: not known yet
        self._rows_left = 0.0  # as far as its size tells

    async def take(self, session: Connection) -> list[int]:
        """The GPUs of the next step, ascending; none: that was all. One at a time may ask."""
        if not self._rows_a_gpu:
            await self._measure(session)
        # Smaller ones at the end, so that those that are taken at once end together.
        rows = min(ROWS_A_STEP / 2, max(ROWS_A_STEP / 8, self._rows_left / 2))
        gpus = max(1, min(GPUS_A_STEP, int(rows / self._rows_a_gpu)))
        gpu_ids = await self._gpu_ids_after(session, gpus)
        self._rows_left -= len(gpu_ids) * self._rows_a_gpu
        self._after = gpu_ids[-1] if gpu_ids else self._after
        return gpu_ids

    async def end(self, session: Connection) -> None:
        """All steps are done."""

    async def close(self) -> None:
        """No step is taken any more."""

    async def _measure(self, session: Connection) -> None:
        """How many rows has a GPU, and how many are there?"""
        self._rows_a_gpu = float(ROWS_A_STEP)
        for gpu_id in await self._gpu_ids_after(session, 1):
            query = f"SELECT FROM {self.name} WHERE gpu_id = $1 LIMIT {ROWS_A_STEP}"
            rows = await session.fetchval(f"SELECT count(*) FROM ({query}) AS r", gpu_id)
            self._rows_a_gpu = float(max(1, rows))
        # Of what is elsewhere the size is not known.
        self._rows_left = (
            math.inf if self._distributed else await rows_in(session, self.metric_set, self.name)
        )

    async def step(self, session: Connection, gpu_ids: list[int]) -> None:
        """Seal the rows of these GPUs.

        CONTENDED and others of asyncpg's, RowCorrupt: nothing is done, or only some GPUs are.
        """
        if not await self._step(session, gpu_ids):
            self._rows_a_gpu *= 2
            for gpu_id in gpu_ids:
                await self._step_through(session, gpu_id)

    async def _gpu_ids_after(self, session: Connection, count: int) -> list[int]:
        query = _GPU_IDS_DISTRIBUTED if self._distributed else _GPU_IDS
        found = await session.fetch(query.format(table=self.name), self._after, count)
        return [row[0] for row in found]

    async def _step(self, session: Connection, gpu_ids: list[int]) -> bool:
        """Seal all rows of some GPUs; False, and nothing is done: there are too many."""
        where, between = "gpu_id BETWEEN $1 AND $2", [gpu_ids[0], gpu_ids[-1]]
        async with session.transaction(isolation="repeatable_read"):
            await session.execute(_UNHURRIED)
            gpu_id, rows = await hot.read_gpus(
                session,
                self.name,
                self.metric_set,
                self.metric_set.metrics,
                where,
                between,
                f"LIMIT {ROWS_A_STEP}",
            )
            if len(rows) == ROWS_A_STEP:
                return False
            items = await asyncio.to_thread(chunks_by_gpu, self.metric_set, gpu_id, rows)
            await self._keep_newest(session, sorted({one for one, _ in items}))
            # First what tells whether another process is at the same.
            await session.execute(f"DELETE FROM {self.name} WHERE {where}", *between)
            await chunks.write(session, items)
        self._count(rows, items)
        if len(rows):
            self._rows_a_gpu = len(rows) / len(gpu_ids)
        return True

    async def _step_through(self, session: Connection, gpu_id: int) -> None:
        """Seal the rows of one GPU, of which there are many."""
        while await self._step_of_first(session, gpu_id):
            pass

    async def _step_of_first(self, session: Connection, gpu_id: int) -> bool:
        """Seal the first rows of one GPU; False: that was all of it."""
        async with session.transaction(isolation="repeatable_read"):
            await session.execute(_UNHURRIED)
            rows = await hot.read(
                session,
                self.name,
                self.metric_set,
                self.metric_set.metrics,
                "gpu_id = $1",
                [gpu_id],
                f"ORDER BY time, epoch, sequence LIMIT {ROWS_A_STEP}",
            )
            if not len(rows):
                return False
            items = await asyncio.to_thread(
                chunks_by_gpu, self.metric_set, np.full(len(rows), gpu_id), rows
            )
            await self._keep_newest(session, [gpu_id])
            await session.execute(
                f"DELETE FROM {self.name} WHERE gpu_id = $1 "
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
            session, self.metric_set, self.name, gpu_ids, distributed=self._distributed
        )

    def _count(self, rows: Rows, items: list[tuple[int, Chunk]]) -> None:
        self.rows += len(rows)
        self.chunks += len(items)


async def rows_in(session: Connection, metric_set: MetricSet, name: str) -> float:
    """About how many rows a partition has; 0 where it is gone."""
    size_bytes = await session.fetchval("SELECT pg_relation_size(to_regclass($1))", name)
    return (size_bytes or 0) / (_ROW_BYTES + hot_places(metric_set.storages)[-1])


def chunks_by_gpu(metric_set: MetricSet, gpu_id: Int64s, rows: Rows) -> list[tuple[int, Chunk]]:
    """The rows of some GPUs, in any order, as chunks."""
    later, same = np.diff(gpu_id), np.diff(rows.time_ns) > 0
    # PERF(items): nearly always they are in order.
    if not ((later > 0) | ((later == 0) & same)).all():
        order = np.lexsort((rows.sequence, rows.epoch, rows.time_ns, gpu_id))
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
