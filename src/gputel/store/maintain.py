"""What keeps the tables in shape: partitions ahead, sealing, retention.

One process of all does it, the one that holds an advisory lock. Every step is a short
transaction of its own; locks that readers could feel are waited for only briefly, and what
could not be locked is tried again in the next round.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np

from gputel.catalog import METRIC_SETS
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import DatabaseUnavailable
from gputel.store import schema, seal
from gputel.store.connection import translated
from gputel.store.partitions import Partitions
from gputel.store.settings import StoreSettings
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

PERIOD_S: Final = 30.0
LOCK_TIMEOUT: Final = "2s"
DELETE_ROWS_A_STEP: Final = 10_000
AHEAD_SPANS: Final = 2


@dataclass(slots=True)
class MaintenanceCounts:
    """What was done since the start."""

    rounds: int = 0
    sealed_partitions: int = 0
    sealed_rows: int = 0
    sealed_chunks: int = 0
    dropped_partitions: int = 0
    deleted_rows: int = 0
    postponed: int = 0


class Maintainer:
    """The background work of one process."""

    def __init__(self, store: Store, settings: StoreSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._partitions = Partitions(store, settings)
        self.counts = MaintenanceCounts()

    async def run(self) -> None:
        """Work until cancelled; while another process does it, stand by."""
        away = False
        while True:
            try:
                async with self._lock() as ours:
                    while ours():
                        await self.round()
                        away = False
                        await self._clock.sleep(PERIOD_S)
            except DatabaseUnavailable as error:
                if not away:
                    log.info("maintenance waits: %s", error)
                away = True
            except asyncpg.PostgresError as error:
                log.warning("maintenance failed and is tried again: %s", error)
            await self._clock.sleep(PERIOD_S)

    @contextlib.asynccontextmanager
    async def _lock(self) -> AsyncGenerator[Callable[[], bool]]:
        """Yields a question: is the lock ours, and its session still there?"""
        session = await self._store.dedicated()
        try:
            with translated(self._store.settings):
                ours = await session.fetchval(
                    "SELECT pg_try_advisory_lock($1, $2)", schema.LOCK_CLASS, schema.LOCK_MAINTAIN
                )
            yield lambda: bool(ours) and not session.is_closed()
        finally:
            # Ending the session gives the lock back.
            session.terminate()

    async def round(self) -> None:
        """Everything that is due now."""
        self._partitions.forget()
        await self._make_ahead()
        await self._seal()
        await self._retain()
        self.counts.rounds += 1

    async def _make_ahead(self) -> None:
        now_ns = self._clock.time_ns()
        hot = {schema.hot_table(metric_set) for metric_set in METRIC_SETS}
        needs = {}
        for parent in (*hot, "sample_chunk", "rollup_1m", "process_sample"):
            span_ns = self._partitions.span_ns(parent)
            needs[parent] = [now_ns + np.arange(AHEAD_SPANS, dtype=np.int64) * span_ns]
        await self._partitions.ensure(needs)

    async def _seal(self) -> None:
        """Hot partitions whose time has passed, and which have not just been made for old data."""
        before = to_datetime(self._clock.time_ns()) - timedelta(
            minutes=self._settings.seal_after_minutes
        )
        for metric_set in METRIC_SETS:
            async with self._store.session() as session:
                due = await session.fetch(
                    "SELECT name, lower, upper FROM store_partition WHERE parent = $1 "
                    "AND upper <= $2 AND created_at <= $2 ORDER BY lower",
                    schema.hot_table(metric_set),
                    before,
                )
            for name, lower, upper in due:
                done = await seal.seal_partition(
                    self._store, self._partitions, metric_set, name, lower, upper
                )
                if done is None:
                    self.counts.postponed += 1
                    continue
                self.counts.sealed_partitions += 1
                self.counts.sealed_rows += done.rows
                self.counts.sealed_chunks += done.chunks
                await asyncio.sleep(0)

    async def _retain(self) -> None:
        raw = timedelta(days=self._settings.raw_retention_days)
        minute = timedelta(days=self._settings.minute_retention_days)
        for metric_set in METRIC_SETS:
            await self._drop_old(schema.hot_table(metric_set), raw)
        await self._drop_old("sample_chunk", raw)
        await self._drop_old("process_sample", raw)
        await self._drop_old("rollup_1m", minute)
        await self._delete_old("event", "event_id", "time", minute)
        await self._delete_old("dead_letter", "dead_letter_id", "created_at", minute)

    async def _drop_old(self, parent: str, keep: timedelta) -> None:
        before = to_datetime(self._clock.time_ns()) - keep
        # A chunk belongs to the day of its first sample and may reach into the next.
        reach = timedelta(days=1) if parent == "sample_chunk" else timedelta()
        async with self._store.session() as session:
            old = await session.fetch(
                "SELECT name FROM store_partition WHERE parent = $1 AND upper <= $2 "
                "AND created_at <= $3 ORDER BY lower",
                parent,
                before - reach,
                before,
            )
            for (name,) in old:
                if await drop_partition(session, name):
                    self.counts.dropped_partitions += 1
                else:
                    self.counts.postponed += 1

    async def _delete_old(self, table: str, key: str, column: str, keep: timedelta) -> None:
        before = to_datetime(self._clock.time_ns()) - keep
        async with self._store.session() as session:
            while True:
                done = await session.execute(
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {table} "
                    f"WHERE {column} < $1 LIMIT {DELETE_ROWS_A_STEP})",
                    before,
                )
                deleted = int(done.rsplit(" ", 1)[1])
                self.counts.deleted_rows += deleted
                if deleted < DELETE_ROWS_A_STEP:
                    return


async def drop_partition(session: Connection, name: str) -> bool:
    """Drop one partition; False when readers would have to wait for it too long."""
    try:
        async with session.transaction():
            await session.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            await session.execute(f"DROP TABLE IF EXISTS {name}")
            await session.execute("DELETE FROM store_partition WHERE name = $1", name)
    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
        return False
    return True
