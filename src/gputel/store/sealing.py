"""Sealing: hot partitions become chunks, minutes and hours, and are dropped when they are empty.

Their steps (gputel.store.seal) are drawn from one queue, by as many workers as there may be steps
at once: who finds nothing left in one partition goes on with the next. Only an empty partition is
locked, for a moment, to drop it.
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
from gputel.errors import RowCorrupt
from gputel.store import citus
from gputel.store.partitions import drop_partition
from gputel.store.seal import CONTENDED, Walk

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: PERF(seal): while one step is encoded, the server sends the rows of another.
STEPS_AT_ONCE: Final = 2


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

    `partitions`: makes those that chunks, minutes and hours go into, beside the first steps.
    """

    def __init__(self, store: Store, due: Sequence[Due], partitions: asyncio.Task[int]) -> None:
        self._store = store
        self._due = due
        self._partitions = partitions
        self._walks: list[Walk] = []
        self._untaken: deque[Walk] = deque()
        self._taking = asyncio.Lock()

    async def steps(self) -> None:
        """Take all of them; why a partition is left is logged. DatabaseUnavailable."""
        async with self._store.session() as session:
            distributed = await citus.installed(session)
        if distributed:
            # What is made there locks shards, on which a step's transaction may have a hold.
            await self._partitions
        for metric_set, name, _, _ in self._due:
            self._walks.append(Walk(metric_set, name, self._partitions, distributed=distributed))
        self._untaken.extend(self._walks)
        await some_at_once(1 + STEPS_AT_ONCE, (self._made, *[self._work] * STEPS_AT_ONCE))

    def drops(self) -> list[Callable[[], Awaitable[None]]]:
        """What drops the partitions that are empty, one each; to be called when the steps are over.

        A step's snapshot, even one of another partition, would keep what is deleted from being
        pruned, and the look for rows would take longer than others may wait.
        """
        return [partial(self._drop, walk) for walk in self._walks if not walk.failures]

    def sealed(self) -> list[Sealed]:
        """What each partition has become so far."""
        return [Sealed(walk.rows, walk.chunks, walk.dropped) for walk in self._walks]

    async def _drop(self, walk: Walk) -> None:
        async with self._store.session() as session:
            with _may_be_left(walk):
                walk.dropped = await drop_partition(session, walk.name, only_empty=True)

    async def _made(self) -> None:
        await self._partitions

    async def _work(self) -> None:
        async with self._store.session() as session:
            while step := await self._take(session):
                walk, gpu_ids = step
                with _may_be_left(walk):
                    await walk.step(session, gpu_ids)

    async def _take(self, session: Connection) -> tuple[Walk, list[int]] | None:
        """The next step; None: all are taken."""
        async with self._taking:
            while self._untaken:
                walk, gpu_ids = self._untaken[0], list[int]()
                if walk.failures < STEPS_AT_ONCE:
                    with _may_be_left(walk):
                        gpu_ids = await walk.take(session)
                if gpu_ids:
                    return walk, gpu_ids
                self._untaken.popleft()
            return None


@contextlib.contextmanager
def _may_be_left(walk: Walk) -> Generator[None]:
    """Leave the partition for the next round where that is all that an error asks for."""
    name = walk.name
    try:
        yield
        return
    except CONTENDED as error:
        log.debug("sealing of %s is put off: %s", name, error)
    except asyncpg.UniqueViolationError as error:
        log.warning("%s holds rows that were sealed before, and is left: %s", name, error)
    except RowCorrupt as error:
        log.error("%s is left: %s", name, error)
    except (asyncpg.UndefinedTableError, asyncpg.CheckViolationError) as error:
        # Retention was faster.
        log.info("%s is not sealed: %s", name, error)
    walk.failures += 1


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
