"""Where a group stands in one partition: what is delivered, what is owed again, what is done.

    floor                                    next_offset
      |  sent  waiting  ready  dead  done ...  |
      +----------------------------------------+----> never delivered

Everything below the floor is acknowledged: that is the group's position. Payloads are not
kept; what is delivered again is read again. No I/O, and time is an argument.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from gputel import limits
from gputel.clock import NS_PER_MS, NS_PER_S

BACKOFF_FIRST_NS: Final = 100 * NS_PER_MS
BACKOFF_LAST_NS: Final = 30 * NS_PER_S


def backoff_ns(attempt: int) -> int:
    """How long a message waits after its `attempt`-th delivery (from 1) failed, ns."""
    doublings = min(attempt - 1, 16)
    return min(BACKOFF_FIRST_NS << doublings, BACKOFF_LAST_NS)


class _State(Enum):
    SENT = auto()  # the member has it
    WAITING = auto()  # until its back-off is over
    READY = auto()  # to be delivered again
    DEAD = auto()  # on its way to the dead letters


@dataclass(slots=True)
class _Entry:
    attempt: int
    state: _State
    due_ns: int


class Dead(NamedTuple):
    """A message to be buried. `attempts` is how often it was delivered."""

    offset: int
    attempts: int
    reason: str


class Cursor:
    """A group's progress in one partition; `tracked=False` for an observer, who has none."""

    def __init__(self, saved: int | None = None, *, tracked: bool = True) -> None:
        self.saved = saved
        self.started = False
        #: Grows whenever deliveries begin or end: a read that began before is stale.
        self.run = 0
        self.next_offset = saved or 0
        self.dead: list[Dead] = []
        self.redelivered = 0
        self._tracked = tracked
        self._ack_timeout_ns = 0
        self._max_deliver = 0  # 0: without bound
        self._outstanding: OrderedDict[int, _Entry] = OrderedDict()  # by offset
        self._sent: OrderedDict[int, None] = OrderedDict()  # by the time they are due
        self._waiting: list[tuple[int, int]] = []  # heap of (due_ns, offset)
        self._ready: list[int] = []  # heap of offsets
        self._attempts: dict[int, int] = {}  # deliveries that failed at members who have gone
        self._buried: dict[int, bool] = {}  # at or above the floor; True: it is durable

    @property
    def floor(self) -> int | None:
        """The group's position: all below is done. None before the first delivery ever."""
        if not self.started:
            return self.saved
        return next(iter(self._outstanding), self.next_offset)

    @property
    def in_flight(self) -> int:
        """Messages delivered, or owed again, and not done."""
        return len(self._outstanding)

    @property
    def room(self) -> int:
        """How many offsets more may be delivered beyond the floor."""
        if not self.started:
            return 0
        floor = next(iter(self._outstanding), self.next_offset)
        return max(limits.GROUP_WINDOW_MAX - (self.next_offset - floor), 0)

    def start(self, next_offset: int, *, ack_timeout_ns: int, max_deliver: int) -> None:
        """Begin (or begin anew) to deliver from `next_offset` on."""
        self._forget()
        self.started = True
        self.next_offset = self.saved = next_offset
        self._ack_timeout_ns = ack_timeout_ns
        self._max_deliver = max_deliver
        self._drop_below(next_offset)

    def stop(self, *, lost: bool) -> None:
        """The member has gone; what it had is delivered again, to whoever is next.

        Deliveries that failed before still count. A member that was lost may have died of the
        message it worked on, the first: that one counts, too. What else it had only waited in
        its memory.
        """
        if not self.started:
            return
        self.saved = self.floor
        guilty = lost
        for offset, entry in self._outstanding.items():
            if entry.state is _State.DEAD:
                continue
            unfinished = entry.state is _State.SENT and not guilty
            failed = entry.attempt - unfinished
            if failed:
                self._attempts[offset] = failed
            guilty = False
        self._forget()
        self.started = False

    def resume_at(self, saved: int | None) -> None:
        """Where another broker, which has served the partition, has come to."""
        assert not self.started
        if saved != self.saved:
            self.saved = saved
            self.next_offset = saved or 0
            self._drop_below(self.next_offset)

    def hand_over(self) -> None:
        """Another broker goes on: what was to be buried here is delivered again there."""
        assert not self.started
        self.dead.clear()
        self._buried = {o: done for o, done in self._buried.items() if done}

    def _forget(self) -> None:
        self.run += 1
        self._outstanding.clear()
        self._sent.clear()
        self._waiting.clear()
        self._ready.clear()

    def _drop_below(self, floor: int) -> None:
        self._attempts = {o: n for o, n in self._attempts.items() if o >= floor}
        self._buried = {o: done for o, done in self._buried.items() if o >= floor}

    def take(self, offset: int, now_ns: int) -> int:
        """Deliver the message at `next_offset` or behind; its attempt, 0: don't deliver it."""
        assert self.started
        assert offset >= self.next_offset
        self.next_offset = offset + 1
        if not self._tracked:
            return 1
        if offset in self._buried:
            if not self._buried[offset]:
                self._outstanding[offset] = _Entry(0, _State.DEAD, 0)
            return 0
        entry = _Entry(self._attempts.pop(offset, 0), _State.READY, 0)
        self._outstanding[offset] = entry
        return self._send(offset, entry, now_ns)

    def retake(self, offset: int, now_ns: int) -> int:
        """Deliver a message of `pop_ready` again; its attempt, 0: it is done meanwhile."""
        entry = self._outstanding.get(offset)
        if entry is None or entry.state is not _State.READY:
            return 0
        self.redelivered += 1
        return self._send(offset, entry, now_ns)

    def _send(self, offset: int, entry: _Entry, now_ns: int) -> int:
        if self._max_deliver and entry.attempt >= self._max_deliver:
            self._bury(offset, entry, f"not acknowledged after {entry.attempt} deliveries")
            return 0
        entry.attempt += 1
        entry.state = _State.SENT
        entry.due_ns = now_ns + self._ack_timeout_ns
        self._sent[offset] = None
        return entry.attempt

    def skip_to(self, next_offset: int) -> None:
        """Nothing up to `next_offset` can be read any more (retention, damage)."""
        self.next_offset = max(self.next_offset, next_offset)

    @property
    def has_ready(self) -> bool:
        """Whether something is to be delivered again now."""
        return bool(self._ready)

    def pop_ready(self) -> int:
        """The lowest offset to be delivered again: `retake` it once it is read."""
        return heapq.heappop(self._ready)

    def push_ready(self, offset: int) -> None:
        """Give an offset of `pop_ready` back: it could not be delivered now."""
        heapq.heappush(self._ready, offset)

    def ack(self, offset: int) -> bool:
        """The message is done; False when it isn't (or no longer) this member's."""
        entry = self._outstanding.get(offset)
        if entry is None or entry.state is _State.DEAD:
            return False
        del self._outstanding[offset]
        self._sent.pop(offset, None)
        return True

    def nak(self, offset: int, now_ns: int, delay_ns: int) -> bool:
        """Deliver it again after `delay_ns`; 0: after the back-off."""
        entry = self._outstanding.get(offset)
        if entry is None or entry.state is not _State.SENT:
            return False
        del self._sent[offset]
        self._wait(offset, entry, now_ns + (delay_ns or backoff_ns(entry.attempt)))
        return True

    def in_progress(self, offset: int, now_ns: int) -> bool:
        """The member works on it: its ack timeout begins anew."""
        entry = self._outstanding.get(offset)
        if entry is None or entry.state is not _State.SENT:
            return False
        entry.due_ns = now_ns + self._ack_timeout_ns
        self._sent.move_to_end(offset)
        return True

    def term(self, offset: int, reason: str) -> bool:
        """Give the message up: it is to be buried."""
        entry = self._outstanding.get(offset)
        if entry is None or entry.state is _State.DEAD:
            return False
        self._sent.pop(offset, None)
        self._bury(offset, entry, reason)
        return True

    def gone(self, offset: int) -> None:
        """A message that was to be delivered again can't be read any more."""
        self._outstanding.pop(offset, None)

    def buried(self, offset: int) -> None:
        """The message lies durably among the dead letters: it is done.

        Wherever it is by now: the partition may have been handed over, and be back.
        """
        self.dead = [dead for dead in self.dead if dead.offset != offset]
        self._outstanding.pop(offset, None)
        self._sent.pop(offset, None)
        self._buried[offset] = True
        if len(self._buried) > 1024:
            self._drop_below(self.floor or 0)

    def expire(self, now_ns: int) -> int:
        """Turn to what is due by now; returns how many messages were not acknowledged in time."""
        late = 0
        while self._sent:
            offset = next(iter(self._sent))
            entry = self._outstanding[offset]
            if entry.due_ns > now_ns:
                break
            del self._sent[offset]
            self._wait(offset, entry, now_ns + backoff_ns(entry.attempt))
            late += 1
        while self._waiting and self._waiting[0][0] <= now_ns:
            due_ns, offset = heapq.heappop(self._waiting)
            waiting = self._outstanding.get(offset)
            if waiting and waiting.state is _State.WAITING and waiting.due_ns == due_ns:
                waiting.state = _State.READY
                heapq.heappush(self._ready, offset)
        return late

    def _wait(self, offset: int, entry: _Entry, due_ns: int) -> None:
        if self._max_deliver and entry.attempt >= self._max_deliver:
            self._bury(offset, entry, f"not acknowledged after {entry.attempt} deliveries")
            return
        entry.state = _State.WAITING
        entry.due_ns = due_ns
        heapq.heappush(self._waiting, (due_ns, offset))

    def _bury(self, offset: int, entry: _Entry, reason: str) -> None:
        entry.state = _State.DEAD
        self._buried[offset] = False
        self.dead.append(Dead(offset, entry.attempt, reason))
