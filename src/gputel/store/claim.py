"""Which sink writes a partition of the topic: the one that holds its advisory lock.

The lock belongs to a session of its own and ends with it, so a second sink takes over as
soon as the first one's connection is gone. `sink_offset.owner_epoch` counts take-overs: a
sink that lost its lock without knowing finds another epoch there and can't commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

from gputel.clock import Clock
from gputel.errors import DatabaseUnavailable, GputelError
from gputel.store.connection import translated, unbroken

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

POLL_S: Final = 0.25


class ClaimLost(GputelError):
    """Another sink has taken the partition over, or its offset was moved by hand."""


@dataclass(slots=True)
class Claim:
    """The right to write one partition. `next_offset` and `marks` follow commits."""

    topic: str
    partition: int
    owner_epoch: int
    next_offset: int
    #: producer -> (epoch, sequence) of its last frame stored.
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)


class Claims:
    """The claims of one sink worker, on one session."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._session: Connection | None = None
        self._busy = asyncio.Lock()
        self._held: set[tuple[str, int]] = set()

    async def acquire(
        self, topic: str, partition: int, wanted: Callable[[], bool] = lambda: True
    ) -> Claim | None:
        """Wait until the partition is ours; None as soon as it is no longer `wanted`.

        DatabaseUnavailable: try again later.
        """
        while wanted():
            async with self._busy:
                session = await self._open()
                with self._guarded(session):
                    if await self._lock(session, topic, partition):
                        return await _take(session, topic, partition)
            await self._clock.sleep(POLL_S)
        return None

    async def _lock(self, session: Connection, topic: str, partition: int) -> bool:
        """Hold the lock, if nobody else does."""
        key = (topic, partition)
        if key not in self._held and await session.fetchval(
            "SELECT pg_try_advisory_lock($1)", lock_key(topic, partition)
        ):
            self._held.add(key)
        return key in self._held

    async def release(self, topic: str, partition: int) -> None:
        """Let another sink have the partition."""
        async with self._busy:
            if (topic, partition) not in self._held:
                return
            session = self._session
            # A session that is gone, or that can't be asked, has released everything.
            if session is not None and not session.is_closed():
                with contextlib.suppress(DatabaseUnavailable), self._guarded(session):
                    await session.execute(
                        "SELECT pg_advisory_unlock($1)", lock_key(topic, partition)
                    )
            self._held.discard((topic, partition))

    @property
    def alive(self) -> bool:
        """Is the session that holds the locks still there?"""
        return self._session is not None and not self._session.is_closed()

    async def close(self) -> None:
        """Release everything."""
        async with self._busy:
            session, self._session = self._session, None
            self._held.clear()
            if session is not None and not session.is_closed():
                try:
                    await session.close(timeout=2)
                except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    session.terminate()

    async def _open(self) -> Connection:
        if self._session is None or self._session.is_closed():
            self._held.clear()
            self._session = await self._store.dedicated()
        return self._session

    @contextlib.contextmanager
    def _guarded(self, session: Connection) -> Generator[None]:
        """Whatever interrupts the use of the session ends it, and with it all locks: after
        that nobody knows which it holds."""
        try:
            with translated(self._store.settings), unbroken(session):
                yield
        except BaseException:
            session.terminate()
            self._session = None
            self._held.clear()
            raise


async def _take(session: Connection, topic: str, partition: int) -> Claim:
    row = await session.fetchrow(
        "INSERT INTO sink_offset AS s (topic, partition, next_offset, owner_epoch, committed_at) "
        "VALUES ($1, $2, 0, 1, now()) ON CONFLICT (topic, partition) "
        "DO UPDATE SET owner_epoch = s.owner_epoch + 1 RETURNING owner_epoch, next_offset",
        topic,
        partition,
    )
    assert row is not None
    return Claim(topic, partition, row["owner_epoch"], row["next_offset"])


def lock_key(topic: str, partition: int) -> int:
    """A bigint of the topic's hash and the partition."""
    digest = hashlib.sha256(topic.encode()).digest()
    return int.from_bytes(digest[:6], "big", signed=True) << 16 | partition
