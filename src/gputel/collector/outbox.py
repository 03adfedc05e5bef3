"""From frames to the broker's publisher: sequences, back-pressure, and what is given up.

A finite source waits for room. A live one can't wait: its frames go into the backlog,
which keeps them on disk while the broker is away, and what is given up is counted and told
in a GAP event of a later frame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote

from gputel import wire
from gputel.clock import Clock
from gputel.collector.batcher import Draft
from gputel.collector.spool.backlog import Backlog
from gputel.collector.spool.entry import Entry
from gputel.collector.spool.files import Spool
from gputel.collector.spool.ledger import Ledger, Progress, after_death
from gputel.collector.spool.offering import Left
from gputel.collector.spool.place import SpoolPlace
from gputel.collector.spool.watermark import Watermark
from gputel.inventory import Event

if TYPE_CHECKING:  # without a broker, gRPC's 12 MB stay out
    from gputel.broker import BrokerClient, Publisher

log = logging.getLogger(__name__)

FINITE_EPOCH: Final = 1
FLUSH_DEADLINE_S: Final = 5.0
SPOOLED_DEADLINE_S: Final = 2.0  # what isn't acknowledged by then is on disk
NAME_CHARS_MAX: Final = 200


class Outbox(Protocol):
    """Takes the frames of a collector."""

    frames: int
    rows: int

    def owed_events(self, now_ns: int) -> list[Event]:
        """Events that the next frame must carry beside its own."""
        ...

    async def send(self, draft: Draft, now_ns: int) -> None:
        """Take one frame. Raises what the broker refuses for good, e.g. ProducerFenced."""
        ...

    async def close(self) -> None:
        """Give what was taken a last chance to be acknowledged."""
        ...

    @property
    def connected(self) -> bool: ...
    @property
    def pending_frames(self) -> int:
        """Frames that are not acknowledged."""
        ...

    @property
    def pending_size_bytes(self) -> int:
        """Frames in memory that are not acknowledged."""
        ...


class FiniteOutbox:
    """For a source that repeats itself: its frames are numbered alike in each run, and `send`
    waits for room."""

    def __init__(self, publisher: Publisher, producer: str) -> None:
        self._publisher = publisher
        self._producer = producer
        self.frames = 0
        self.rows = 0

    @property
    def connected(self) -> bool:
        return self._publisher.connected

    @property
    def pending_frames(self) -> int:
        return self._publisher.pending_messages

    @property
    def pending_size_bytes(self) -> int:
        return self._publisher.pending_size_bytes

    def owed_events(self, now_ns: int) -> list[Event]:
        return []

    async def send(self, draft: Draft, now_ns: int) -> None:
        sequence = self.frames + 1
        payload = _encode(draft, self._producer, FINITE_EPOCH, sequence, draft.newest_ns())
        await self._publisher.publish(sequence, draft.node, payload)
        self.frames = sequence
        self.rows += draft.rows

    async def close(self) -> None:
        if not await self._publisher.flush(FLUSH_DEADLINE_S):
            left = self._publisher.pending_messages
            log.warning("%d frames were not acknowledged before the stop", left)
        await self._publisher.close()


class LiveOutbox:
    """For a source that can't wait. Made by `open_live`."""

    def __init__(
        self, ledger: Ledger, backlog: Backlog, producer: str, watermark: Watermark | None
    ) -> None:
        self.ledger = ledger
        self.backlog = backlog
        self._producer = producer
        self._watermark = watermark
        self.frames = 0
        self.rows = 0

    @property
    def connected(self) -> bool:
        publisher = self.backlog.publisher
        return publisher is not None and publisher.connected

    @property
    def pending_frames(self) -> int:
        return self.backlog.pending_frames

    @property
    def pending_size_bytes(self) -> int:
        return self.backlog.memory_size_bytes

    @property
    def spooling(self) -> bool:
        """Are frames kept on disk?"""
        return self._watermark is not None

    def swept(self, rows: int) -> None:
        """The rings have taken `rows` rows so far; called on the sampler's thread."""
        if self._watermark is not None:
            self._watermark.swept(rows)

    def owed_events(self, now_ns: int) -> list[Event]:
        return self.ledger.owed_events(now_ns)

    async def send(self, draft: Draft, now_ns: int) -> None:
        sequence = self.ledger.assign(draft.rows)
        payload = _encode(draft, self._producer, self.ledger.epoch, sequence, now_ns)
        self.frames += 1
        self.rows += draft.rows
        self.backlog.put(
            Entry(
                self.ledger.epoch,
                sequence,
                draft.node,
                payload,
                now_ns,
                draft.rows,
                self.ledger.assigned_rows,
                bool(draft.events),
            )
        )

    async def close(self) -> None:
        await self.backlog.close(SPOOLED_DEADLINE_S if self.spooling else FLUSH_DEADLINE_S)
        left = self.pending_frames
        if left and self.spooling:
            log.info("%d frames stay in the spool; the next start publishes them", left)
        elif left:
            log.warning("%d frames were not acknowledged before the stop", left)
        if self._watermark is not None:
            self.ledger.save()


def _encode(draft: Draft, producer: str, epoch: int, sequence: int, sealed_at_ns: int) -> bytes:
    return wire.encode_frame(
        wire.Frame(
            producer=producer,
            epoch=epoch,
            sequence=sequence,
            node=draft.node,
            sealed_at_ns=sealed_at_ns,
            gpus=draft.gpus,
            inventory=draft.inventory,
            events=draft.events,
            processes=draft.processes,
        )
    )


async def open_live(
    broker: BrokerClient,
    topic: str,
    producer: str,
    place: SpoolPlace | None,
    memory_bytes: int,
    clock: Clock,
) -> LiveOutbox:
    """The outbox of a new epoch; what a predecessor left in its spool goes first.

    A place that can't be used is warned of, and done without. InputError: another collector
    uses it.
    """

    async def open_publisher(
        epoch: int, pending_bytes: int, changed: Callable[[], None]
    ) -> Publisher:
        return await broker.publisher(
            topic, producer, epoch, pending_bytes=pending_bytes, on_change=changed
        )

    now_ns = clock.time_ns()
    opened = _Opened(None, None, Ledger(now_ns), Left())
    if place is not None:
        try:
            opened = await asyncio.to_thread(_open_spool, place, producer, now_ns)
        except OSError as error:
            log.warning(
                "the spool in %s can't be used: %s; frames wait in memory only (choose a place "
                "with collector.spool_dir, or set collector.spool_bytes to 0)",
                place.directory,
                error.strerror or error,
            )
    backlog = Backlog(opened.ledger, opened.spool, opened.left, open_publisher, memory_bytes, clock)
    await backlog.start()
    return LiveOutbox(opened.ledger, backlog, producer, opened.watermark)


class _Opened(NamedTuple):
    spool: Spool | None
    watermark: Watermark | None
    ledger: Ledger
    left: Left


def _open_spool(place: SpoolPlace, producer: str, now_ns: int) -> _Opened:
    """Blocks; OSError, InputError."""
    spool = Spool(
        place.directory / quote(producer, safe="")[:NAME_CHARS_MAX], producer, place.bytes_max
    )
    with _undone(spool.close):
        frames = spool.open()
        watermark = Watermark(spool.directory / "watermark")
        found = watermark.found
        before = found.progress if found else Progress(0)
        newest = spool.newest
        # The clock may have been set back since: an epoch must be newer than the last.
        epoch = max(now_ns, before.epoch + 1, newest.epoch + 1 if newest else 0)
        losses = after_death(before, found.swept_rows, newest, spool.recent) if found else []
        for loss in losses:
            log.warning("the last collector: %s", loss.event(now_ns).message)
        given_up = (*before.dropped, *before.exposed)
        starts, ends = before.next_starts(), before.next_ends(newest)
        ledger = Ledger(epoch, given_up, losses, before.done, starts, ends)
        watermark.begin(ledger.progress())
        ledger.keep(watermark.save)
    return _Opened(
        spool,
        watermark,
        ledger,
        Left(frames, before.done),
    )


@contextmanager
def _undone(undo: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo()
        raise
