"""A broker in memory that fences epochs, and the outbox in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gputel import wire
from gputel.clock import NS_PER_S, ManualClock
from gputel.collector.batcher import Draft
from gputel.collector.outbox import LiveOutbox, open_live
from gputel.collector.spool.entry import Key
from gputel.collector.spool.place import SpoolPlace
from gputel.errors import ProducerFenced
from gputel.inventory import Event, EventKind
from gputel.limits import MIB

DEADLINE_S = 10
PRODUCER = "collector:n"


class Stored(NamedTuple):
    epoch: int
    sequence: int
    payload: bytes


class FencingPublisher:
    """Takes `pending_bytes`, hands over at once while the broker is there."""

    def __init__(
        self, broker: FencingBroker, epoch: int, pending_bytes: int, changed: Callable[[], None]
    ) -> None:
        self._broker = broker
        self._epoch = epoch
        self._bytes_max = pending_bytes
        self._pending: list[tuple[int, bytes]] = []
        self._closed = False
        self._changed = changed
        self.fenced: ProducerFenced | None = None
        self.last_acked_sequence = 0
        self.connected = False
        self.hand_over()

    @property
    def pending_size_bytes(self) -> int:
        return sum(len(payload) for _, payload in self._pending)

    def offer(self, sequence: int, key: str, payload: bytes) -> bool:
        assert not self._closed
        if self.fenced:
            raise self.fenced
        if self._pending and self.pending_size_bytes + len(payload) > self._bytes_max:
            return False
        self._pending.append((sequence, payload))
        self.hand_over()
        return True

    def hand_over(self) -> None:
        broker = self._broker
        self.connected = not broker.away and not self._closed
        if not self.connected:
            return
        if broker.newest > self._epoch:
            self.fenced = ProducerFenced(PRODUCER, self._epoch, broker.newest)
            self._changed()
            return
        broker.newest = self._epoch
        for sequence, payload in self._pending:
            broker.take(self._epoch, sequence, payload)
            self.last_acked_sequence = sequence
        self._pending.clear()
        self._changed()

    async def close(self) -> None:
        self._closed = True
        self.connected = False


class FencingBroker:
    """Keeps what it is given, in order; knows repeats by (epoch, sequence)."""

    def __init__(self) -> None:
        self.away = False
        self.newest = 0
        self.stored: list[Stored] = []
        self.opened: list[int] = []
        self._publisher: FencingPublisher | None = None

    async def publisher(
        self,
        topic: str,
        producer: str,
        epoch: int,
        *,
        pending_bytes: int,
        on_change: Callable[[], None],
    ) -> FencingPublisher:
        assert producer == PRODUCER
        self.opened.append(epoch)
        self._publisher = FencingPublisher(self, epoch, pending_bytes, on_change)
        return self._publisher

    def take(self, epoch: int, sequence: int, payload: bytes) -> None:
        last = self.stored[-1] if self.stored else Stored(0, 0, b"")
        if (epoch, sequence) > (last.epoch, last.sequence):
            self.stored.append(Stored(epoch, sequence, payload))

    def come_back(self) -> None:
        self.away = False
        if self._publisher:
            self._publisher.hand_over()

    @property
    def keys(self) -> list[tuple[int, int]]:
        return [(stored.epoch, stored.sequence) for stored in self.stored]

    @property
    def told(self) -> list[Event]:
        """The GAP events in order."""
        return [event for stored in self.stored for event in gaps_of(stored)]


def gaps_of(stored: Stored) -> list[Event]:
    """What a frame tells of losses."""
    events = wire.decode_frame(stored.payload).events
    return [event for event in events if event.kind is EventKind.GAP]


class Feed:
    """Frames of 10 rows and about `size_bytes`, put into an outbox."""

    def __init__(self, outbox: LiveOutbox, clock: ManualClock, size_bytes: int = 20_000) -> None:
        self.outbox = outbox
        self.clock = clock
        self.size_bytes = size_bytes
        self.rows = 0
        #: What the GAP events of a frame say.
        self.gap_rows: dict[Key, int] = {}

    async def frames(
        self, count: int, events: tuple[Event, ...] = (), *, paced: bool = True
    ) -> None:
        """Send `count` frames; `paced`: as slowly as a disk that works can take them."""
        backlog = self.outbox.backlog
        for _ in range(count):
            if paced and backlog._spool:
                await until(lambda: len(backlog._unwritten) < 10 or backlog.disk_problem)
            now_ns = self.clock.time_ns()
            owed = tuple(self.outbox.owed_events(now_ns))
            chunk = b"x" * self.size_bytes
            gpus = (wire.GpuChunks("GPU-1", (chunk,)),)
            self.rows += 10
            self.outbox.swept(self.rows)
            ledger = self.outbox.ledger
            gap_rows = sum(event.code for event in owed if event.kind is EventKind.GAP)
            if gap_rows:
                self.gap_rows[ledger.epoch, ledger.assigned + 1] = gap_rows
            await self.outbox.send(Draft("n", gpus, (), owed + events, 10), now_ns)
            self.clock.advance(0.1)
            await asyncio.sleep(0)

    async def settled(self) -> None:
        """Everything sent is acknowledged."""
        await until(lambda: self.outbox.pending_frames == 0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - a deadline around any condition
            await asyncio.sleep(0.002)


async def opened(
    broker: Any,
    place: Path | None,
    clock: ManualClock,
    bytes_max: int = 64 * MIB,
    memory_bytes: int = 2 * MIB,
) -> LiveOutbox:
    spool = SpoolPlace(place, bytes_max) if place else None
    return await open_live(broker, "t", PRODUCER, spool, memory_bytes, clock)


def kill(outbox: LiveOutbox) -> None:
    """What kill -9 leaves: the files as they are, the lock free."""
    backlog = outbox.backlog
    assert backlog._task is not None
    backlog._task.cancel()
    backlog._disk.shutdown(wait=True)
    if backlog._spool is not None:
        backlog._spool._unlock()


def xid(clock: ManualClock, code: int) -> Event:
    return Event(clock.time_ns(), EventKind.XID, "GPU-1", code, f"XID {code}")


def later(clock: ManualClock) -> ManualClock:
    return ManualClock(clock.time_ns() + NS_PER_S)
