"""Sealing: hot partitions become chunks, minutes and hours, and are dropped.

Each is frozen and sealed as a whole (gputel.store.frozen), or where that can't be in steps that
delete what they read (gputel.store.seal). Steps are drawn from one queue, by as many workers as
there may be at once: who finds nothing left in one partition goes on with the next. A partition is
locked for moments only: to freeze it, and to drop it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from gputel.catalog import MetricSet
from gputel.errors import DatabaseUnavailable, RowCorrupt
from gputel.store import citus
from gputel.store.frozen import FrozenWalk
from gputel.store.partitions import drop_partition
from gputel.store.seal import CONTENDED, Walk

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: PERF(seal): while one step is encoded, the server sends the rows of another and takes in what a
#: third one became.
STEPS_AT_ONCE: Final = 3


class Due(NamedTuple):
    """A hot partition of [lower, upper)."""

    metric_set: MetricSet
    name: str
    lower: datetime
    upper: datetime


class Sealed(NamedTuple):
    """What one partition became. `dropped`: it is gone, nothing was left in it."""

    rows: int
    chunks: int
    dropped: bool


class Sealing:
    """Some partitions on their way, as far as nobody is in the way.

    What their chunks and minutes go into is there already. `ahead` makes others beside the steps,
    and has locks until then that dropping needs.
    """

    def __init__(self, store: Store, due: Sequence[Due], ahead: Awaitable[object]) -> None:
        self._store = store
        self._ahead = ahead
        self._distributed = False
        self._untaken = deque(due)
        self._next: asyncio.Task[Walk] | None = None  # begun while steps of another are taken
        self._again: deque[Walk] = deque()  # what can't be sealed as a whole
        self._walk: Walk | None = None  # whose steps are taken now
        self._walks: list[Walk] = []
        self._taking = asyncio.Lock()

    async def steps(self) -> None:
        """Take all of them; why a partition is left is logged. DatabaseUnavailable."""
        async with self._store.session() as session:
            self._distributed = await citus.installed(session)
        self._begin_next()
        try:
            await some_at_once(STEPS_AT_ONCE, [self._work] * STEPS_AT_ONCE)
            await self._ahead
        finally:
            if self._next is not None:
                self._next.cancel()
                await asyncio.gather(self._next, return_exceptions=True)
            for walk in self._walks:
                await walk.close()

    def drops(self) -> list[Callable[[], Awaitable[None]]]:
        """What drops the partitions that are empty, one each; to be called when the steps are over.

        A step's snapshot, even one of another partition, would keep what is deleted from being
        pruned, and the look for rows would take longer than others may wait.
        """
        left = [walk for walk in self._walks if not walk.failures and not walk.dropped]
        return [partial(self._drop, walk) for walk in left]

    def sealed(self) -> list[Sealed]:
        """What each partition has become so far."""
        return [Sealed(walk.rows, walk.chunks, walk.dropped) for walk in self._walks]

    async def _drop(self, walk: Walk) -> None:
        async with self._store.session() as session:
            with _may_be_left(walk):
                walk.dropped = await drop_partition(session, walk.name, only_empty=True)

    async def _work(self) -> None:
        async with self._store.session() as session:
            while taken := await self._take(session):
                walk, gpu_ids = taken
                with _may_be_left(walk):
                    if gpu_ids:
                        await walk.step(session, gpu_ids)
                walk.under_way -= 1
                if walk.over and not walk.under_way:
                    await self._end(walk, session)

    async def _end(self, walk: Walk, session: Connection) -> None:
        with _may_be_left(walk):
            if not walk.failures:
                await self._ahead
                await walk.end(session)
        await walk.close()
        if walk.failures and isinstance(walk, FrozenWalk):
            self._walks.remove(walk)
            self._again.append(Walk(walk.metric_set, walk.name, distributed=False))
            self._walks.append(self._again[-1])

    async def _take(self, session: Connection) -> tuple[Walk, list[int]] | None:
        """The next step, without GPUs where a walk is over; None: all are taken."""
        async with self._taking:
            if self._walk is None:
                self._walk = await self._following()
            if self._walk is None:
                return None
            walk, gpu_ids = self._walk, list[int]()
            if walk.failures < walk.FAILURES_MAX:
                with _may_be_left(walk):
                    gpu_ids = await walk.take(session)
            if not gpu_ids:
                walk.over = True
                self._walk = None
            walk.under_way += 1
            return walk, gpu_ids

    async def _following(self) -> Walk | None:
        if self._again:
            return self._again.popleft()
        if self._next is None:
            return None
        walk = await self._next
        self._begin_next()
        return walk

    def _begin_next(self) -> None:
        self._next = None
        if self._untaken:
            self._next = asyncio.create_task(self._begin(self._untaken.popleft()))

    async def _begin(self, due: Due) -> Walk:
        walk = Walk(due.metric_set, due.name, distributed=self._distributed)
        if not self._distributed:
            try:
                walk = await FrozenWalk.open(self._store, due.metric_set, due.name) or walk
            except asyncpg.LockNotAvailableError:
                log.debug("%s is left: another maintainer has it", due.name)
                walk.failures = walk.FAILURES_MAX
            except DatabaseUnavailable as error:
                # The server may have no session more to give.
                log.info("%s is not sealed as a whole but in steps: %s", due.name, error)
        self._walks.append(walk)
        return walk


@contextlib.contextmanager
def _may_be_left(walk: Walk) -> Generator[None]:
    """Leave the partition for the next round where that is all that an error asks for."""
    try:
        yield
        return
    except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
        # Retention was faster.
        log.info("%s is not sealed: %s", walk.name, error)
    except (*CONTENDED, asyncpg.UniqueViolationError, RowCorrupt) as error:
        _log_left(walk, error)
    walk.failures += 1


def _log_left(walk: Walk, error: Exception) -> None:
    if isinstance(walk, FrozenWalk):
        log.info("%s is not sealed as a whole but in steps: %s", walk.name, error)
    elif isinstance(error, asyncpg.UniqueViolationError):
        log.warning("%s holds rows that were sealed before, and is left: %s", walk.name, error)
    elif isinstance(error, RowCorrupt):
        log.error("%s is left: %s", walk.name, error)
    else:
        log.debug("sealing of %s is put off: %s", walk.name, error)


async def some_at_once(count: int, work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Do all of it, to its end, `count` at a time; then raise the first error there was."""
    left = iter(work)
    errors: list[Exception] = []

    async def worker() -> None:
        for one in left:
            try:
                await one()
            except Exception as error:
                errors.append(error)

    await asyncio.gather(*(worker() for _ in range(count)))
    if errors:
        raise errors[0]
