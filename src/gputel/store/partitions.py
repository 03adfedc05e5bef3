"""Range partitions of the large tables: made when a time needs one, known by a list of our own.

A partition covers [lower, upper), aligned to the table's span and clipped where a neighbour
of another span (a changed setting) is in the way. There is no default partition: what has
no place makes one. Making is safe with several processes (advisory lock); the cache may be
behind, which the writer notices when PostgreSQL finds no partition.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg
import numpy as np
import numpy.typing as npt

from gputel.catalog import METRIC_SETS
from gputel.store import citus, schema
from gputel.store.settings import StoreSettings
from gputel.store.times import DAY_NS, MINUTE_NS, to_datetime, to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

CREATE_MAX: Final = 32  # partitions made in one transaction
HOUR_PARTITION_DAYS: Final = 30  # as migration 004 made them

#: To drop a partition its table's lock is needed, and whoever comes meanwhile queues behind us.
#: An insert may find us waiting for it twice, and once at the check: it is held for 50 ms at most.
DROP_WAIT_MS: Final = 15
#: Statements that go to many shards, and transactions of two phases, take longer.
DROP_WAIT_DISTRIBUTED_MS: Final = 500
#: How often one is looked through, and found to take too long, before it is vacuumed instead.
DROP_LOOKS: Final = 3

# PERF(drop): these are gone an hour after they are full. A vacuum of one, or an analyze, would only
# take a tenth of what sealing it costs, and keep the lock for seconds in which it can't be dropped.
_HOT: Final = frozenset(map(schema.hot_table, METRIC_SETS))

Bounds = tuple[int, int]  # [lower, upper) in ns


class Partitions:
    """Knows and makes the partitions of one database."""

    def __init__(self, store: Store, settings: StoreSettings) -> None:
        self._store = store
        hot_ns = settings.hot_partition_minutes * MINUTE_NS
        self._span_ns = {schema.hot_table(s): hot_ns for s in METRIC_SETS}
        self._span_ns |= dict.fromkeys(("sample_chunk", "rollup_1m", "process_sample"), DAY_NS)
        self._span_ns["rollup_1h"] = HOUR_PARTITION_DAYS * DAY_NS
        self._known: dict[str, list[Bounds]] = {}

    def span_ns(self, parent: str) -> int:
        """The span of a new partition of `parent`."""
        return self._span_ns[parent]

    def forget(self) -> None:
        """The cache is behind: read it anew at the next need."""
        self._known.clear()

    async def ensure(self, needs: Mapping[str, Iterable[npt.NDArray[np.int64]]]) -> int:
        """Make what the times (ns) of each table need; returns how many were made."""
        wanted = {parent: list(times) for parent, times in needs.items()}
        if self._missing(wanted):
            # Most likely another process has made them: who only looks waits for nobody.
            async with self._store.session() as session:
                self._known = await _load(session)
        made = 0
        while missing := self._missing(wanted):
            made += await self._make(missing[:CREATE_MAX])
        return made

    def _missing(
        self, wanted: Mapping[str, Sequence[npt.NDArray[np.int64]]]
    ) -> list[tuple[str, int]]:
        return [
            (parent, time_ns)
            for parent, times in wanted.items()
            for time_ns in self._uncovered(parent, times)
        ]

    def _uncovered(self, parent: str, pieces: Sequence[npt.NDArray[np.int64]]) -> Sequence[int]:
        """One time of each aligned span in which a time has no partition yet."""
        if not pieces:
            return []
        span = self._span_ns[parent]
        known = self._known.get(parent, [])
        every = np.concatenate(pieces)
        if known:
            lowers = np.array([lower for lower, _ in known])
            uppers = np.array([upper for _, upper in known])
            at = np.searchsorted(lowers, every, side="right") - 1
            every = every[(at < 0) | (every >= uppers[np.maximum(at, 0)])]
        _, first = np.unique(every // span, return_index=True)
        found: list[int] = every[first].tolist()
        return found

    async def _make(self, wanted: Sequence[tuple[str, int]]) -> int:
        try:
            return await self._make_in_one(wanted)
        except asyncpg.UniqueViolationError as error:
            # Of the catalogs', which must not look like one of the samples'.
            raise self._store.unavailable(error) from error
        except asyncpg.InternalServerError as error:
            # Citus: while it moves a shard it makes no tables.
            raise self._store.unavailable(error) from error

    async def _make_in_one(self, wanted: Sequence[tuple[str, int]]) -> int:
        made = 0
        async with self._store.session() as session, session.transaction():
            await session.execute(
                "SELECT pg_advisory_xact_lock($1, $2)", schema.LOCK_CLASS, schema.LOCK_PARTITIONS
            )
            known = await _load(session)
            for parent, time_ns in wanted:
                ranges = known.setdefault(parent, [])
                bounds = clip(ranges, time_ns, self._span_ns[parent])
                if bounds is not None:
                    await _create(session, parent, bounds)
                    bisect.insort(ranges, bounds)
                    made += 1
        self._known = known
        return made


def clip(known: Sequence[Bounds], time_ns: int, span_ns: int) -> Bounds | None:
    """The aligned range around `time_ns`, cut at its neighbours; None when it is covered."""
    lower = time_ns // span_ns * span_ns
    upper = lower + span_ns
    at = bisect.bisect_right(known, (time_ns, 2**63)) - 1
    if at >= 0:
        if time_ns < known[at][1]:
            return None
        lower = max(lower, known[at][1])
    if at + 1 < len(known):
        upper = min(upper, known[at + 1][0])
    return lower, upper


async def _load(session: Connection) -> dict[str, list[Bounds]]:
    known: dict[str, list[Bounds]] = {}
    for parent, lower, upper in await session.fetch(
        "SELECT parent, lower, upper FROM store_partition ORDER BY parent, lower"
    ):
        known.setdefault(parent, []).append((to_ns(lower), to_ns(upper)))
    return known


async def _create(session: Connection, parent: str, bounds: Bounds) -> None:
    lower, upper = (to_datetime(bound) for bound in bounds)
    name = f"{parent}_p{lower:%Y%m%d%H%M}"
    # ATTACH takes a lock that lets readers and writers of the parent go on; CREATE TABLE
    # ... PARTITION OF would not.
    options = "WITH (autovacuum_enabled = off)" if parent in _HOT else ""
    await session.execute(f"CREATE TABLE {name} (LIKE {parent} INCLUDING ALL) {options}")
    await session.execute(
        f"ALTER TABLE {parent} ATTACH PARTITION {name} "
        f"FOR VALUES FROM ('{lower.isoformat()}') TO ('{upper.isoformat()}')"
    )
    await session.execute(
        "INSERT INTO store_partition (name, parent, lower, upper) VALUES ($1, $2, $3, $4)",
        name,
        parent,
        lower,
        upper,
    )


async def drop_partition(session: Connection, name: str, *, only_empty: bool = False) -> bool:
    """Drop one partition; False when others would have to wait for it too long.

    `only_empty`: nor when there is a row in it.
    """
    distributed = await citus.installed(session)
    for _ in range(DROP_LOOKS):
        # PERF(drop): this look takes as long as it takes, nobody waits for it, and what is deleted
        # is pruned by it: the look for which others wait then takes a tenth.
        if only_empty and await session.fetchval(f"SELECT 1 FROM {name} LIMIT 1"):
            return False
        try:
            return await _drop(session, name, only_empty=only_empty, distributed=distributed)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
            return False
        except asyncpg.QueryCanceledError as error:
            # Too many deleted rows to look through while others wait: the next look prunes more.
            log.debug("%s is looked through again before it is dropped: %s", name, error)
    log.info("%s is vacuumed before it is dropped", name)
    await session.execute(f"VACUUM {name}")
    return False


async def _drop(session: Connection, name: str, *, only_empty: bool, distributed: bool) -> bool:
    wait_ms = DROP_WAIT_DISTRIBUTED_MS if distributed else DROP_WAIT_MS
    async with session.transaction():
        await session.execute(f"SET LOCAL lock_timeout = {wait_ms}")
        if distributed:
            await citus.lock_partition(session, name.rpartition("_p")[0], name)
        if only_empty:
            await session.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
            await session.execute(f"SET LOCAL statement_timeout = {wait_ms}")
            if await session.fetchval(f"SELECT 1 FROM {name} LIMIT 1"):
                return False
            await session.execute("SET LOCAL statement_timeout = 0")
        await session.execute(f"DROP TABLE IF EXISTS {name}")
        await session.execute("DELETE FROM store_partition WHERE name = $1", name)
    return True
