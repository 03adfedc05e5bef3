"""What has its turn at the broker: one publisher an epoch, and what it has not acknowledged.

    hold --> held --+
                    +--> offer --> sent --ack--> gone
    the newest -----+

Frames of older epochs go first, each epoch with a publisher of its own, because the broker
refuses an epoch once it knows a newer one. Every frame that is offered is compared with the
one before, and the last of an older epoch with where that one ended: what is missing in
between, and was not given up on purpose, is a loss.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from gputel import wire
from gputel.collector.spool.entry import Entry, Key
from gputel.collector.spool.ledger import Ledger, Position, covers, holes
from gputel.errors import FrameCorrupt
from gputel.inventory import Event
from gputel.limits import MIB

if TYPE_CHECKING:
    from gputel.broker import Publisher

log = logging.getLogger(__name__)

#: Frames handed to the publisher and not acknowledged, in memory whatever is on disk.
OFFERED_BYTES_MAX: Final = 8 * MIB

OpenPublisher = Callable[[int, int, Callable[[], None]], Awaitable["Publisher"]]


class Left(NamedTuple):
    """What a predecessor left in the spool.

    frames   records in its files
    done     the last frame that was acknowledged, of whichever epoch
    """

    frames: int = 0
    done: Position = Position(0, 0, 0)


class Offering:
    """The frames of the ledger's epoch, and what is left of older ones.

    open_publisher   called with (epoch, pending_bytes, on_change)
    """

    def __init__(
        self,
        ledger: Ledger,
        left: Left,
        open_publisher: OpenPublisher,
        bytes_max: int,
        on_change: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._left_frames = left.frames
        self._open_publisher = open_publisher
        self._bytes_max = bytes_max
        self._on_change = on_change
        self._refused = 0  # an epoch, and all before it
        self._offered = Position(0, 0, 0)
        self.held: deque[Entry] = deque()
        self.sent: deque[Entry] = deque()  # with payloads where they are eventful
        self.epoch = 0  # of the publisher; 0 while there is none
        self.publisher: Publisher | None = None
        #: The last frame that is settled: acknowledged, or refused for good.
        self.done: Key = left.done[:2]
        self.replayed_frames = 0

    @property
    def pending_frames(self) -> int:
        """Frames that the broker has not acknowledged, wherever they are."""
        ledger = self._ledger
        gone = sum(d.last - d.first + 1 for d in ledger.dropped if d.epoch == ledger.epoch)
        return max(0, self._left_frames) + ledger.assigned - ledger.acked - gone

    @property
    def reached(self) -> Key:
        """The last frame that was offered, or needs no offering."""
        return max(self._offered[:2], self.done)

    @property
    def current(self) -> bool:
        """Is it the ledger's epoch's turn?"""
        return self.epoch == self._ledger.epoch and not self.held

    async def switch(self, epoch: int) -> None:
        """From here on frames of `epoch` are offered."""
        if self.epoch and self.publisher is not None:
            self.epoch = 0
            await self.publisher.close()
        if epoch == self._ledger.epoch:
            self._enter(epoch)
            self._left_frames = 0  # a count by offsets, which damage may have put wrong
        self.publisher = await self._open_publisher(epoch, self._bytes_max, self._on_change)
        self.epoch = epoch

    def settle(self) -> None:
        """Take note of acknowledgements."""
        if self.publisher is None:
            return
        acked = (self.epoch, self.publisher.last_acked_sequence)
        last: Entry | None = None
        while self.sent and self.sent[0].key <= acked:
            last = self.sent.popleft()
            self._count_left(last.epoch, 1)
        if last is not None:
            self.done = last.key
            self._ledger.acknowledged(last.epoch, last.sequence, last.rows_through)

    def hold(self, entries: Sequence[Entry]) -> int:
        """Take what was read from the disk, as far as it is new; returns how many are."""
        fresh = self.not_given_up(entries)
        if self.epoch != self._ledger.epoch:
            self._left_frames -= len(entries) - len(fresh)
        self.held.extend(fresh)
        return len(fresh)

    def not_given_up(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that are still to be offered: a predecessor that was killed may not have
        deleted what it had given up."""
        reached, dropped = self.reached, self._ledger.dropped
        return [
            entry
            for entry in entries
            if entry.key > reached and not covers(dropped, entry.epoch, entry.sequence)
        ]

    async def offer_held(self) -> bool:
        """Offer what is held, changing epochs where one is settled; False: it must wait."""
        while True:
            older = self.epoch not in (0, self._ledger.epoch)
            if older and self.publisher is not None and self.publisher.fenced:
                await self._refuse()
            self._skip_refused()
            while self.held and self.held[0].epoch == self.epoch and self.offer(self.held[0]):
                self.held.popleft()
                self.replayed_frames += 1
            if not self.held:
                return True
            if self.held[0].epoch == self.epoch or self.sent:
                return False  # no room, or the epoch before is not settled
            await self.switch(self.held[0].epoch)

    def offer(self, entry: Entry) -> bool:
        """Offer the frame whose turn it is; False: there is no room. ProducerFenced."""
        assert self.publisher is not None
        if not self.publisher.offer(entry.sequence, entry.node, entry.payload):
            return False
        # What a frame told must be told again if it is refused.
        self.sent.append(entry if entry.eventful else entry._replace(payload=b""))
        self._reach(entry)
        return True

    def expose(self, newest: Key) -> None:
        """What was read or offered, up to `newest`, is about to be in memory only."""
        last = self._ledger.exposed[-1] if self._ledger.exposed else None
        behind = (last.epoch, last.last) if last else (0, 0)
        for entries in (self.sent, self.held):
            for entry in entries:
                if behind < entry.key <= newest:
                    self._ledger.expose(entry)
        self._ledger.save()

    def drop(self, entries: Sequence[Entry], reason: str) -> None:
        """Give frames up, in order; what they carried of events is told by later frames."""
        neighbours = groupby(enumerate(entries), lambda at: (at[1].epoch, at[1].sequence - at[0]))
        for (epoch, _), found in neighbours:
            run = [entry for _, entry in found]
            self._count_left(epoch, len(run))
            self._ledger.drop(run, reason, _events(run))

    def _reach(self, entry: Entry) -> None:
        """Move on to `entry`, and notice what is missing in front of it."""
        if self._offered.epoch != entry.epoch:
            self._enter(entry.epoch)
        before = Position(entry.epoch, entry.sequence - 1, entry.rows_through - entry.rows)
        self._compare(before)
        self._offered = Position(entry.epoch, entry.sequence, entry.rows_through)

    def _enter(self, epoch: int) -> None:
        """Leave all older epochs, and notice what is missing at their ends."""
        for end in self._ledger.ends:
            if end.epoch < epoch:
                self._compare(end)
        self._ledger.enter(epoch)

    def _compare(self, end: Position) -> None:
        """Notice what is missing between the last offered frame of this epoch and `end`."""
        start: Position | None = self._offered
        if self._offered.epoch != end.epoch:
            start = self._ledger.start_of(end.epoch)
        if start is None or start.sequence >= end.sequence:
            return
        for hole in list(holes(start, self._ledger.dropped, end)):
            self._count_left(hole.epoch, hole.last - hole.first + 1)
            self._ledger.miss(hole)

    async def _refuse(self) -> None:
        """The broker knows a newer epoch already: what is left of this one can't be told it."""
        assert self.publisher is not None
        self._refused, self.epoch = self.epoch, 0
        log.warning("the broker refuses frames of epoch %d: it has newer ones", self._refused)
        await self.publisher.close()
        if self.sent:
            self.done = self.sent[-1].key
            self.drop(self.sent, "refused")
            self.sent.clear()

    def _skip_refused(self) -> None:
        skipped: list[Entry] = []
        while self.held and self.held[0].epoch <= self._refused:
            skipped.append(self.held.popleft())
            self._reach(skipped[-1])
        if skipped:
            self.drop(skipped, "refused")
            self.done = skipped[-1].key

    def _count_left(self, epoch: int, frames: int) -> None:
        if epoch != self._ledger.epoch:
            self._left_frames -= frames


def _events(entries: Iterable[Entry]) -> list[Event]:
    found: list[Event] = []
    for entry in entries:
        if entry.eventful:
            with contextlib.suppress(FrameCorrupt):
                found += wire.decode_frame(entry.payload).events
    return found
