"""What keeps the tables in shape: partitions ahead, sealing, folding, merging, retention.

One process of all does it, the one that holds an advisory lock. Every step is a short
transaction of its own; locks that others could feel are waited for only briefly, and what
could not be locked is tried again in the next round.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np
import numpy.typing as npt

from gputel.catalog import METRIC_SETS
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import DatabaseUnavailable
from gputel.store import fold, schema, seal
from gputel.store.connection import translated
from gputel.store.partitions import Partitions, drop_partition
from gputel.store.rechunk import SMALL_SAMPLES, Pass
from gputel.store.sealing import Due, Sealed, Sealing, some_at_once
from gputel.store.settings import StoreSettings
from gputel.store.times import DAY_NS, HOUR_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.observe import Telemetry
    from gputel.store.connection import Store

log = logging.getLogger(__name__)

PERIOD_S: Final = 30.0
DELETE_ROWS_A_STEP: Final = 10_000
AHEAD_SPANS: Final = 2
#: Merging takes at most this many GPUs and sets in one round.
MERGES_A_ROUND: Final = 256
#: How often a partition is searched for small chunks, while its day lasts and afterwards.
MERGE_PERIOD: Final = timedelta(hours=1)
MERGE_PERIOD_ENDED: Final = timedelta(days=1)
#: Of what comes behind the steps of sealing: each leaves a core idle at times.
REST_AT_ONCE: Final = 2

#: Of each count the name of its metric and what that says.
_METRICS: Final = {
    "rounds": ("gputel_store_maintenance_rounds", "Rounds of maintenance"),
    "sealed_partitions": (
        "gputel_store_sealed_partitions",
        "Hot partitions dropped because everything in them was sealed",
    ),
    "sealed_rows": ("gputel_store_sealed_rows", "Hot rows turned into chunks"),
    "sealed_chunks": ("gputel_store_sealed_chunks", "Chunks that hot rows were turned into"),
    "folded_parts": (
        "gputel_store_folded_parts",
        "Parts of hours summed up into rollup_1h",
    ),
    "merged_chunks": ("gputel_store_merged_chunks", "Small chunks merged into larger ones"),
    "written_chunks": ("gputel_store_written_chunks", "Chunks that small ones were merged into"),
    "dropped_partitions": (
        "gputel_store_dropped_partitions",
        "Partitions dropped by retention",
    ),
    "deleted_rows": (
        "gputel_store_deleted_rows",
        "Events and dead letters deleted by retention",
    ),
    "postponed": (
        "gputel_store_postponed_steps",
        "Steps of maintenance put off because others would have waited",
    ),
}


@dataclass(slots=True)
class MaintenanceCounts:
    """What was done since the start."""

    rounds: int = 0
    sealed_partitions: int = 0
    sealed_rows: int = 0
    sealed_chunks: int = 0
    #: Parts of hours that went into `rollup_1h`.
    folded_parts: int = 0
    #: Small chunks, and what was made of them.
    merged_chunks: int = 0
    written_chunks: int = 0
    dropped_partitions: int = 0
    deleted_rows: int = 0
    postponed: int = 0

    def describe(self, telemetry: Telemetry) -> None:
        """Make a counter of each."""
        for field, (name, help) in _METRICS.items():
            telemetry.observe_counter(name, help, partial(getattr, self, field))


class Maintainer:
    """The background work of one process."""

    def __init__(self, store: Store, settings: StoreSettings, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._partitions = Partitions(store, settings)
        self._passes: dict[str, Pass] = {}
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
        """Everything that is due now; partitions of the time ahead are made meanwhile."""
        self._partitions.forget()
        due = await self._due()
        # First of all: what is frozen must have a place for what comes late.
        await self._partitions.ensure(self._needs_of(due))
        ahead = asyncio.create_task(self._partitions.ensure(self._needs_ahead()))
        try:
            if self._store.cluster:
                # What is made there locks shards, on which a step's transaction may have a hold.
                await ahead
            # The sets' together: one after the other would leave a core idle at the end of each.
            for hour in _by_hour(due) or [[]]:
                sealing = Sealing(self._store, hour, ahead)
                try:
                    await sealing.steps()
                    rest = (*sealing.drops(), self._fold, self._merge, self._retain)
                    # Citus locks a table's shards in no order that two at once could keep to.
                    await some_at_once(1 if self._store.cluster else REST_AT_ONCE, rest)
                finally:
                    self._count(sealing.sealed())
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)
        self.counts.rounds += 1

    def _count(self, sealed: Sequence[Sealed]) -> None:
        for done in sealed:
            self.counts.sealed_rows += done.rows
            self.counts.sealed_chunks += done.chunks
            if done.dropped:
                self.counts.sealed_partitions += 1
            else:
                self.counts.postponed += 1

    def _needs_ahead(self) -> Mapping[str, Sequence[npt.NDArray[np.int64]]]:
        """Times in partitions that are needed soon."""
        now_ns = self._clock.time_ns()
        hot = {schema.hot_table(metric_set) for metric_set in METRIC_SETS}
        needs = {}
        for parent in ("sample_chunk", "rollup_1m", *hot, "rollup_1h", "process_sample"):
            span_ns = self._partitions.span_ns(parent)
            needs[parent] = [now_ns + np.arange(AHEAD_SPANS, dtype=np.int64) * span_ns]
        return needs

    def _needs_of(self, due: Sequence[Due]) -> Mapping[str, Sequence[npt.NDArray[np.int64]]]:
        """Times in partitions into which `due` is sealed."""
        minutes = [
            np.arange(to_ns(one.lower), to_ns(one.upper), MINUTE_NS, dtype=np.int64) for one in due
        ]
        return {"sample_chunk": minutes, "rollup_1m": minutes}

    async def _due(self) -> list[Due]:
        """Hot partitions whose time has passed, and which have not just been made for old data."""
        sets = {schema.hot_table(metric_set): metric_set for metric_set in METRIC_SETS}
        async with self._store.session() as session:
            due = await session.fetch(
                "SELECT parent, name, lower, upper FROM store_partition WHERE upper <= $2 "
                "AND created_at <= $2 AND parent = ANY($1) "
                "ORDER BY upper, array_position($1, parent)",
                list(sets),
                self._settled(),
            )
        return [Due(sets[parent], name, lower, upper) for parent, name, lower, upper in due]

    def _settled(self) -> datetime:
        """What was measured before this has come, but for what is late."""
        now = to_datetime(self._clock.time_ns())
        return now - timedelta(minutes=self._settings.seal_after_minutes)

    async def _fold(self) -> None:
        try:
            self.counts.folded_parts += await fold.fold_hours(
                self._store, self._partitions, self._settled() - timedelta(hours=1)
            )
        except (*seal.CONTENDED, asyncpg.CheckViolationError):
            self.counts.postponed += 1

    async def _merge(self) -> None:
        """Go on merging small chunks where that is due, a bounded number of GPUs."""
        left = MERGES_A_ROUND
        for name, lower, upper in await self._merges_due():
            one = self._passes.get(name)
            if one is None:
                # What is merged of a day that goes on is whole hours.
                before_ns = to_ns(self._settled()) // HOUR_NS * HOUR_NS
                ended = upper <= self._settled()
                before = upper + timedelta(days=1) if ended else to_datetime(before_ns)
                one = Pass(name, before, 1 if ended else SMALL_SAMPLES, to_ns(self._settled()))
                self._passes[name] = one
                # A chunk may reach into the next day, and what it becomes begin there.
                days = np.arange(to_ns(lower), to_ns(upper) + DAY_NS, HOUR_NS, dtype=np.int64)
                await self._partitions.ensure({"sample_chunk": [days]})
            while left and not one.over:
                merged, written = one.merged, one.written
                await one.advance(self._store)
                self.counts.merged_chunks += one.merged - merged
                self.counts.written_chunks += one.written - written
                left -= 1
            if one.over:
                await self._end_pass(one)

    async def _merges_due(self) -> list[tuple[str, datetime, datetime]]:
        now = to_datetime(self._clock.time_ns())
        settled = self._settled()
        async with self._store.session() as session:
            found = await session.fetch(
                "SELECT name, lower, upper FROM store_partition WHERE parent = 'sample_chunk' "
                "AND lower < $1 AND created_at <= $1 AND (merged_at IS NULL OR merged_at <= "
                "CASE WHEN upper > $1 THEN $2 WHEN merged_at < upper THEN $1 ELSE $3 END) "
                "ORDER BY lower",
                settled,
                now - MERGE_PERIOD,
                now - MERGE_PERIOD_ENDED,
            )
        due = [(name, lower, upper) for name, lower, upper in found]
        self._passes = {name: self._passes[name] for name, _, _ in due if name in self._passes}
        return due

    async def _end_pass(self, one: Pass) -> None:
        del self._passes[one.name]
        async with self._store.session() as session:
            await session.execute(
                "UPDATE store_partition SET merged_at = $2 WHERE name = $1",
                one.name,
                to_datetime(one.began_ns),
            )
            if one.merged:
                # New chunks, and what is merged later, take the place of those that are gone.
                with contextlib.suppress(asyncpg.UndefinedTableError):
                    await session.execute(f"VACUUM {one.name}")

    async def _retain(self) -> None:
        raw = timedelta(days=self._settings.raw_retention_days)
        minute = timedelta(days=self._settings.minute_retention_days)
        hour = timedelta(days=self._settings.hour_retention_days)
        for metric_set in METRIC_SETS:
            await self._drop_old(schema.hot_table(metric_set), raw)
        await self._drop_old("sample_chunk", raw)
        await self._drop_old("process_sample", raw)
        await self._drop_old("rollup_1m", minute)
        await self._drop_old("rollup_1h", hour)
        await self._delete_old("event", "(gpu_id, event_id)", "time", minute)
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
                    f"DELETE FROM {table} WHERE {key} IN (SELECT {key.strip('()')} FROM {table} "
                    f"WHERE {column} < $1 LIMIT {DELETE_ROWS_A_STEP})",
                    before,
                )
                deleted = int(done.rsplit(" ", 1)[1])
                self.counts.deleted_rows += deleted
                if deleted < DELETE_ROWS_A_STEP:
                    return


def _by_hour(due: Sequence[Due]) -> list[list[Due]]:
    """What ends together, and so is sealed together; the first one first."""
    return [list(hour) for _, hour in groupby(due, key=lambda one: one.upper)]
