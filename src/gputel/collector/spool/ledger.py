"""What became of every frame of an epoch, and which losses are still to be told.

A loss is *owed* until a frame carries it as a GAP event, *carried* until that frame is on
disk or acknowledged. So a loss is told once, whenever the process dies.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from gputel.collector.spool.entry import Entry, Key
from gputel.inventory import Event, EventKind

log = logging.getLogger(__name__)

RANGES_MAX: Final = 32
REASON_CHARS_MAX: Final = 160
AGAIN_BYTES_MAX: Final = 128 * 1024
_EVENT_BYTES: Final = 64  # an event beside its message

#: Why frames are lost; the label `reason` of the counters, and words for people.
REASONS: Final = {
    "spool_full": "the spool was full",
    "memory_full": "memory was full",
    "damaged": "they are missing in the spool",
    "refused": "the broker had frames of a newer epoch",
    "killed": "the collector was killed",
}


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """Frames `first` to `last` of an epoch; `first` 0: rows that no frame had yet.

    A loss that was told already in a frame that is lost itself has epoch 0, and `reason`
    is what it said.
    """

    epoch: int
    first: int
    last: int
    rows: int
    reason: str

    @property
    def frames(self) -> int:
        return self.last - self.first + 1 if self.first else 0

    def event(self, now_ns: int) -> Event:
        """The GAP event that tells of it; `code` is the number of rows."""
        words = REASONS.get(self.reason, self.reason)
        if self.first:
            text = f"frames {self.first} to {self.last} of epoch {self.epoch} lost, {self.rows} "
            text += f"rows: {words}"
        elif self.epoch:
            text = f"{self.rows} rows of epoch {self.epoch} lost before they were framed: {words}"
        else:
            text = words
        return Event(now_ns, EventKind.GAP, "", self.rows, text)


class Position(NamedTuple):
    """A place between two frames of an epoch, right behind `sequence`."""

    epoch: int
    sequence: int
    rows_through: int


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Frames `first` to `last` of an epoch, their rows, and `rows_through` of the last."""

    epoch: int
    first: int
    last: int
    rows: int
    rows_through: int

    def lost(self, reason: str) -> Loss:
        return Loss(self.epoch, self.first, self.last, self.rows, reason)


class Progress(msgspec.Struct, frozen=True):
    """The ledger's numbers, as the watermark keeps them.

    dropped   frames given up or found missing, of this epoch or of older ones in the spool
    exposed   frames that are on no disk any more, and not acknowledged: a full spool gave up
              the file after they had been read or offered
    done      the last acknowledged frame of whichever epoch
    starts    where the frames of older epochs in the spool should begin, until a newer one is
              reached
    ends      where they should end, until then or until that frame is acknowledged
    """

    epoch: int
    assigned: int = 0
    assigned_rows: int = 0
    acked: int = 0
    acked_rows: int = 0
    dropped: tuple[Range, ...] = ()
    exposed: tuple[Range, ...] = ()
    owed: tuple[Loss, ...] = ()
    carried: tuple[Loss, ...] = ()
    carrier: int = 0
    done: Position = Position(0, 0, 0)
    starts: tuple[Position, ...] = ()
    ends: tuple[Position, ...] = ()

    def next_starts(self) -> tuple[Position, ...]:
        """`starts` for a successor."""
        own = Position(self.epoch, self.acked, self.acked_rows)
        return (*self.starts, own)[-RANGES_MAX:]

    def next_ends(self, newest: Entry | None) -> tuple[Position, ...]:
        """`ends` for a successor that finds `newest` as the last frame in the spool."""
        if newest is None or newest.epoch < self.epoch:
            return self.ends
        own = Position(newest.epoch, newest.sequence, newest.rows_through)
        return (*self.ends, own)[-RANGES_MAX:]


def holes(start: Position, dropped: Iterable[Range], end: Position) -> Iterator[Range]:
    """What is missing between two positions of an epoch, beside what is known as dropped."""
    for gone in sorted(dropped, key=lambda gone: gone.first):
        if gone.epoch != start.epoch or gone.last <= start.sequence:
            continue
        if gone.first > end.sequence:
            break
        before = Position(gone.epoch, gone.first - 1, gone.rows_through - gone.rows)
        yield from _hole(start, before)
        start = Position(gone.epoch, gone.last, gone.rows_through)
    yield from _hole(start, end)


def _hole(start: Position, end: Position) -> Iterator[Range]:
    if end.sequence > start.sequence:
        rows = max(0, end.rows_through - start.rows_through)
        yield Range(start.epoch, start.sequence + 1, end.sequence, rows, end.rows_through)


def after_death(
    left: Progress, swept_rows: int, newest: Entry | None, recent: Container[Key]
) -> list[Loss]:
    """What a predecessor lost that nobody has told yet.

    swept_rows   rows that its rings had taken
    newest       the last frame that the spool holds
    recent       its neighbours in the spool's last file
    """
    if newest is not None and newest.epoch > left.epoch:
        return []  # the first frame of that epoch told
    end = Position(left.epoch, left.assigned, left.assigned_rows)
    start = Position(left.epoch, left.acked, left.acked_rows)
    if newest is not None and newest.epoch == left.epoch and newest.sequence > left.acked:
        start = Position(newest.epoch, newest.sequence, newest.rows_through)
    losses = list(left.owed)
    if (left.epoch, left.carrier) not in recent:
        losses += left.carried  # dead before it was known to be on disk
    told = (*left.dropped, *left.exposed)
    losses += [r.lost("killed") for r in (*left.exposed, *holes(start, told, end))]
    unframed_rows = swept_rows - max(left.assigned_rows, start.rows_through)
    if unframed_rows > 0:
        losses.append(Loss(left.epoch, 0, 0, unframed_rows, "killed"))
    return losses


class Ledger:
    """Used on one thread.

    dropped   what a predecessor dropped of frames that may still lie in the spool
    losses    what it lost and nobody has told yet
    done      the last frame that was acknowledged to it
    starts    see `Progress`, as for `ends`
    """

    def __init__(
        self,
        epoch: int,
        dropped: Sequence[Range] = (),
        losses: Sequence[Loss] = (),
        done: Position = Position(0, 0, 0),  # noqa: B008 - immutable
        starts: Sequence[Position] = (),
        ends: Sequence[Position] = (),
    ) -> None:
        self.epoch = epoch
        self._starts = list(starts)
        self.ends = list(ends)
        self._done = done
        self._save: Callable[[Progress], None] = lambda _: None
        self.assigned = 0
        self.assigned_rows = 0
        self.acked = 0
        self.acked_rows = 0
        self.dropped = list(dropped)
        self.exposed: list[Range] = []
        self._owed: list[Loss] = []
        self._carried: list[Loss] = []
        self._carrier = 0
        self._again: list[Event] = []
        self._again_bytes = 0
        self.lost_frames: Counter[str] = Counter()
        self.lost_rows: Counter[str] = Counter()
        self.lost_events = 0
        for loss in losses:
            self.lose(loss)

    def keep(self, save: Callable[[Progress], None]) -> None:
        """From here on `save` is called after every change with all that must survive."""
        self._save = save

    def owed_events(self, now_ns: int) -> list[Event]:
        """What the next frame must tell: losses, and the events of frames that are lost."""
        again, self._again, self._again_bytes = self._again, [], 0
        if not self._carried:
            self._carried, self._owed = self._owed, []
            self._carrier = self.assigned + 1
            again += [loss.event(now_ns) for loss in self._carried]
        return again

    def assign(self, rows: int) -> int:
        """The sequence of the next frame."""
        self.assigned += 1
        self.assigned_rows += rows
        self.save()
        return self.assigned

    def secured(self, first: int, last: int) -> None:
        """Frames `first` to `last` of this epoch are on disk."""
        if self._carried and first <= self._carrier <= last:
            self._carried.clear()
            self.save()

    def acknowledged(self, epoch: int, sequence: int, rows_through: int) -> None:
        """Frames up to `sequence` of `epoch`, and all older ones, are the broker's."""
        done = (epoch, sequence)
        self._done = Position(epoch, sequence, rows_through)
        if epoch == self.epoch:
            self.acked, self.acked_rows = sequence, rows_through
            if sequence >= self._carrier:
                self._carried.clear()
        self.ends = [end for end in self.ends if end[:2] > done]
        # Not in order: memory may give up a frame before a hole in front of it is read.
        self.dropped = [gone for gone in self.dropped if (gone.epoch, gone.last) > done]
        while self.exposed and (self.exposed[0].epoch, self.exposed[0].last) <= done:
            del self.exposed[0]
        if self.exposed and (self.exposed[0].epoch, self.exposed[0].first) <= done:
            cut = self.exposed[0]
            rows = cut.rows_through - rows_through
            self.exposed[0] = Range(epoch, sequence + 1, cut.last, rows, cut.rows_through)
        self.save()

    def start_of(self, epoch: int) -> Position | None:
        """Where the frames of `epoch` should begin, None if nobody knows."""
        if epoch == self.epoch:
            return Position(epoch, 0, 0)
        found = [at for at in (*self._starts, self._done) if at.epoch == epoch]
        return max(found, default=None)

    def enter(self, epoch: int) -> None:
        """Frames of `epoch` are reached, and none of an older one can follow."""
        self._starts = [start for start in self._starts if start.epoch >= epoch]
        self.ends = [end for end in self.ends if end.epoch >= epoch]

    def expose(self, entry: Entry) -> None:
        """A frame that is not acknowledged is in memory only; the caller saves."""
        _append(self.exposed, _range([entry]))

    def drop(self, entries: Sequence[Entry], reason: str, events: Iterable[Event]) -> None:
        """Give up neighbouring frames of one epoch; `events` are what they carried."""
        first, last = entries[0], entries[-1]
        gone = _range(entries)
        _append(self.dropped, gone)
        if first.epoch == self.epoch and first.sequence <= self._carrier <= last.sequence:
            self._carried.clear()  # it is among `events`
        for event in events:
            self._tell_again(event)
        self.lose(gone.lost(reason))

    def miss(self, hole: Range) -> None:
        """Frames are missing in the spool; known to whoever reads their neighbours once more."""
        loss = hole.lost("damaged")
        log.warning("%s", loss.event(0).message)
        _append(self.dropped, hole)
        self.lose(loss)

    def lose(self, loss: Loss) -> None:
        """Count a loss, and owe it."""
        self.lost_frames[loss.reason] += loss.frames
        self.lost_rows[loss.reason] += loss.rows
        self._owe(loss)
        self.save()

    def save(self) -> None:
        """Keep all of it where it survives the process."""
        self._save(self.progress())

    def progress(self) -> Progress:
        """All of it."""
        return Progress(
            self.epoch,
            self.assigned,
            self.assigned_rows,
            self.acked,
            self.acked_rows,
            tuple(self.dropped),
            tuple(self.exposed),
            tuple(self._owed),
            tuple(self._carried),
            self._carrier if self._carried else 0,
            self._done,
            tuple(self._starts),
            tuple(self.ends),
        )

    def _owe(self, loss: Loss) -> None:
        if self._owed:
            last = self._owed[-1]
            if (last.epoch, last.reason) == (loss.epoch, loss.reason) and (
                last.first > 0 and last.last + 1 == loss.first
            ):
                self._owed[-1] = Loss(
                    loss.epoch, last.first, loss.last, last.rows + loss.rows, loss.reason
                )
                return
            if len(self._owed) >= RANGES_MAX:
                rows = last.rows + loss.rows
                self._owed[-1] = Loss(0, 0, 0, rows, f"{rows} rows lost in several places")
                return
        self._owed.append(loss)

    def _tell_again(self, event: Event) -> None:
        if event.kind is EventKind.GAP:
            self._owe(Loss(0, 0, 0, event.code, event.message[:REASON_CHARS_MAX]))
            return
        size_bytes = _EVENT_BYTES + len(event.message.encode())
        if self._again_bytes + size_bytes > AGAIN_BYTES_MAX:
            self.lost_events += 1
            return
        self._again.append(event)
        self._again_bytes += size_bytes


def covers(ranges: Iterable[Range], epoch: int, sequence: int) -> bool:
    """Is this frame in one of `ranges`?"""
    return any(r.epoch == epoch and r.first <= sequence <= r.last for r in ranges)


def _range(entries: Sequence[Entry]) -> Range:
    first, last = entries[0], entries[-1]
    rows = sum(entry.rows for entry in entries)
    return Range(first.epoch, first.sequence, last.sequence, rows, last.rows_through)


def _append(ranges: list[Range], new: Range) -> None:
    """Put `new` behind `ranges`, as one with its neighbour; at most RANGES_MAX stay."""
    before = ranges[-1] if ranges else None
    if before and (before.epoch, before.last + 1) == (new.epoch, new.first):
        rows = before.rows + new.rows
        ranges[-1] = Range(new.epoch, before.first, new.last, rows, new.rows_through)
    else:
        ranges.append(new)
    if len(ranges) > RANGES_MAX:
        del ranges[0]  # a restart may tell it once more
