"""From frames to the broker's publisher: sequences, back-pressure, and what is given up.

A finite source waits for room. A live one can't: when the broker is away for so long that
memory is full, the oldest frames go, counted, and the next frame says so in a GAP event.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from gputel import wire
from gputel.collector.batcher import Draft
from gputel.inventory import Event, EventKind

if TYPE_CHECKING:
    from gputel.broker import Publisher


class _Sent(NamedTuple):
    rows: int
    events: tuple[Event, ...]


class Outbox:
    """Numbers frames and hands them to the publisher."""

    def __init__(self, publisher: Publisher, producer: str, epoch: int, *, live: bool) -> None:
        self.publisher = publisher
        self._producer = producer
        self._epoch = epoch
        self._live = live
        self._sequence = 0
        self._unacked: OrderedDict[int, _Sent] = OrderedDict()
        self._events_again: list[Event] = []
        self._gap_rows = 0
        self.frames = 0
        self.rows = 0
        self.dropped_frames = 0
        self.dropped_rows = 0

    def owed_events(self, now_ns: int) -> list[Event]:
        """Events of dropped frames, and the gap itself; they go into the next frame."""
        owed, self._events_again = self._events_again, []
        if self._gap_rows:
            text = f"{self._gap_rows} rows dropped while the broker was away"
            owed.append(Event(now_ns, EventKind.GAP, "", self._gap_rows, text))
            self._gap_rows = 0
        return owed

    async def send(self, draft: Draft, now_ns: int) -> None:
        """Take one frame; waits for room if the source is finite. Raises ProducerFenced."""
        self._sequence += 1
        frame = wire.Frame(
            producer=self._producer,
            epoch=self._epoch,
            sequence=self._sequence,
            node=draft.node,
            sealed_at_ns=now_ns if self._live else draft.newest_ns,
            gpus=draft.gpus,
            inventory=draft.inventory,
            events=draft.events,
            processes=draft.processes,
        )
        payload = wire.encode_frame(frame)
        if self._live:
            while not self.publisher.offer(self._sequence, draft.node, payload):
                self._drop_oldest()
            self._unacked[self._sequence] = _Sent(draft.rows, draft.events)
            self._prune()
        else:
            await self.publisher.publish(self._sequence, draft.node, payload)
        self.frames += 1
        self.rows += draft.rows

    def _prune(self) -> None:
        acked = self.publisher.last_acked_sequence
        while self._unacked and next(iter(self._unacked)) <= acked:
            self._unacked.popitem(last=False)

    def _drop_oldest(self) -> None:
        self._prune()
        if not self.publisher.drop_oldest():
            return
        self.dropped_frames += 1
        if self._unacked:
            _, sent = self._unacked.popitem(last=False)
            self.dropped_rows += sent.rows
            self._gap_rows += sent.rows
            self._events_again += [e for e in sent.events if e.kind is not EventKind.GAP]
            self._gap_rows += sum(e.code for e in sent.events if e.kind is EventKind.GAP)
