"""Sealing of a frozen partition: by one transaction, which has nothing to delete.

    frozen     its constraint refuses new rows, which sinks store as chunks (gputel.store.late);
               readers see no difference
    read       by any number of sessions, whatever their snapshots: it does not change any more
    written    by one transaction, which holds the partition's line in `store_partition`
    dropped    at the end of that transaction

Who is killed leaves a frozen partition with all its rows to the next maintainer; who gives up thaws
it. Where others would wait too long for the drop, the same transaction deletes the rows instead,
and the next round drops what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np

from gputel.catalog import MetricSet
from gputel.errors import RowCorrupt
from gputel.store import chunks, hot, seal
from gputel.store.hot import Int64s, Rows
from gputel.store.partitions import DROP_WAIT_MS
from gputel.store.schema import FROZEN
from gputel.store.seal import Walk
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: What has more is sealed in steps that delete: for more than some seconds a transaction must not
#: keep the server from pruning what sinks update all the time.
ROWS_MAX: Final = 1_048_576
#: How often a lock is asked for, each time for DROP_WAIT_MS.
TRIES: Final = 3

_IS_FROZEN: Final = (
    "SELECT EXISTS (SELECT FROM pg_constraint "
    f"WHERE conrelid = to_regclass($1) AND conname = '{FROZEN}')"
)
# It is frozen, in the log as well, before the first late row that becomes a chunk.
_FREEZE: Final = f"""
SET LOCAL synchronous_commit = off;
SET LOCAL lock_timeout = {DROP_WAIT_MS};
ALTER TABLE {{}} ADD CONSTRAINT {FROZEN} CHECK (gputel_frozen()) NOT VALID
"""
_THAW: Final = f"""
SET LOCAL lock_timeout = {DROP_WAIT_MS};
ALTER TABLE IF EXISTS {{}} DROP CONSTRAINT IF EXISTS {FROZEN}
"""
# Whoever commits waits until all that was logged before is on disk.
_FLUSH: Final = "SELECT pg_logical_emit_message(true, 'gputel', 'flush')"


class FrozenWalk(Walk):
    """A walk through a partition that takes no rows any more; when a step fails, all are undone.

    Made by `open`; `close` it, whatever happens.
    """

    FAILURES_MAX = 1

    def __init__(self, metric_set: MetricSet, name: str, session: Connection) -> None:
        super().__init__(metric_set, name, distributed=False)
        self._session = session
        self._transaction = session.transaction()
        self._writing = asyncio.Lock()
        self._broken = False
        self._committed = False

    @classmethod
    async def open(cls, store: Store, metric_set: MetricSet, name: str) -> FrozenWalk | None:
        """Freeze a partition, and have its line; None: it is too large, in use, or gone.

        LockNotAvailableError: another maintainer has its line.
        """
        session = await store.dedicated()
        walk = cls(metric_set, name, session)
        try:
            if await walk._freeze() and await walk._take_line():
                return walk
        except BaseException:
            await walk.close()
            raise
        await walk.close()
        return None

    async def _freeze(self) -> bool:
        """Whether it takes no rows any more: who could still add some has ended."""
        self._rows_left = await seal.rows_in(self._session, self.metric_set, self.name)
        if self._rows_left > ROWS_MAX:
            return False
        for _ in range(TRIES):
            if await self._session.fetchval(_IS_FROZEN, self.name):
                return True
            try:
                async with self._session.transaction():
                    await self._session.execute(_FREEZE.format(self.name))
            except (asyncpg.LockNotAvailableError, asyncpg.DuplicateObjectError):
                continue
            except asyncpg.UndefinedTableError:
                return False
            return True
        return False

    async def _take_line(self) -> bool:
        """Begin the transaction; whether the partition is still the one that was frozen."""
        await self._transaction.start()
        line = await self._session.fetchval(
            "SELECT 1 FROM store_partition WHERE name = $1 FOR UPDATE NOWAIT", self.name
        )
        # Whoever had the line before may have sealed it, and a late frame made it anew.
        return line is not None and await self._session.fetchval(_IS_FROZEN, self.name)

    async def end(self, session: Connection) -> None:
        """All steps are written: drop the partition, and commit.

        RowCorrupt: there are rows that its index does not know of.
        """
        rows = await session.fetchval(f"SELECT count(*) FROM {self.name}")
        if rows != self.rows:
            found = f"{self.rows} of {rows} rows were found by the index"
            log.error("%s: %s: REINDEX TABLE %s", self.name, found, self.name)
            raise RowCorrupt(f"{self.name}: {found}")
        # PERF(frozen): the rest of the log is flushed before others have to wait for the commit.
        await session.execute(_FLUSH)
        dropped = await self._drop()
        if not dropped:
            await self._session.execute(f"DELETE FROM {self.name}")
        await self._transaction.commit()
        self._committed, self.dropped = True, dropped

    async def _drop(self) -> bool:
        await self._session.execute(f"SET LOCAL lock_timeout = {DROP_WAIT_MS}")
        for _ in range(TRIES):
            try:
                async with self._session.transaction():
                    await self._session.execute(
                        "DELETE FROM store_partition WHERE name = $1", self.name
                    )
                    await self._session.execute(f"DROP TABLE {self.name}")
            except asyncpg.LockNotAvailableError:
                continue
            return True
        return False

    async def close(self) -> None:
        """End the session; what was not committed is undone, and the partition as it was."""
        if not self._committed:
            self.rows = self.chunks = 0
        try:
            if self.failures and not self._committed:
                await self._transaction.rollback()
                with contextlib.suppress(asyncpg.LockNotAvailableError):
                    await self._session.execute(_THAW.format(self.name))
            await self._session.close(timeout=1)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._session.terminate()

    async def _step(self, session: Connection, gpu_ids: list[int]) -> bool:
        gpu_id, rows = await hot.read_gpus(
            session,
            self.name,
            self.metric_set,
            self.metric_set.metrics,
            "gpu_id BETWEEN $1 AND $2",
            [gpu_ids[0], gpu_ids[-1]],
            f"LIMIT {seal.ROWS_A_STEP}",
        )
        if len(rows) == seal.ROWS_A_STEP:
            return False
        await self._write(gpu_id, rows)
        return True

    async def _step_through(self, session: Connection, gpu_id: int) -> None:
        where, key = "gpu_id = $1", list[object]()
        while True:
            rows = await hot.read(
                session,
                self.name,
                self.metric_set,
                self.metric_set.metrics,
                where,
                [gpu_id, *key],
                f"ORDER BY time, epoch, sequence LIMIT {seal.ROWS_A_STEP}",
            )
            await self._write(np.full(len(rows), gpu_id), rows)
            if len(rows) < seal.ROWS_A_STEP:
                return
            where = "gpu_id = $1 AND (time, epoch, sequence) > ($2, $3, $4)"
            key = [to_datetime(int(rows.time_ns[-1])), int(rows.epoch[-1]), int(rows.sequence[-1])]

    async def _write(self, gpu_id: Int64s, rows: Rows) -> None:
        """What rows become, into the transaction; one session writes at a time."""
        items = await asyncio.to_thread(seal.chunks_by_gpu, self.metric_set, gpu_id, rows)
        async with self._writing:
            if self._broken:
                return
            self._broken = True
            await self._keep_newest(self._session, sorted({one for one, _ in items}))
            await chunks.write(self._session, items)
            self._broken = False
        self._count(rows, items)
