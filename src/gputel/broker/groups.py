"""Consumer groups, without input or output: who holds what, and what is delivered next.

A partition of a group, by offset:

      acknowledged          | in flight, waiting to be repeated,   |  never
      and forgotten         | or acknowledged out of order         |  delivered
    ------------------------+--------------------------------------+------------>
                            floor                                  fresh

`floor` is the group's position: it is what is saved, and where another member goes on.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from gputel import limits
from gputel.clock import NS_PER_MS, NS_PER_S

RETRY_FIRST_NS: Final = 100 * NS_PER_MS
RETRY_LAST_NS: Final = 30 * NS_PER_S
LEASE_NS: Final = 15 * NS_PER_S


class Cursor:
    """Where a group stands in one partition."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.fresh = floor
        self.ack_timeout_ns = 30 * NS_PER_S
        self.redeliveries = 0
        # In flight: offset -> when it counts as lost. All have one timeout, so the order of
        # deliveries is that of the deadlines, and the first is all that need be looked at.
        self._deadlines: OrderedDict[int, int] = OrderedDict()
        self._retries: list[tuple[int, int]] = []  # heap of (when, offset)
        self._waiting: set[int] = set()  # offsets in `_retries` that still count
        self._acked: set[int] = set()  # above the floor
        self._attempts: dict[int, int] = {}

    @property
    def in_flight(self) -> int:
        """Messages delivered and not settled."""
        return len(self._deadlines)

    @property
    def window_full(self) -> bool:
        """Nothing fresh is delivered that far ahead of the oldest unsettled message."""
        return self.fresh - self.floor >= limits.GROUP_WINDOW_MAX

    def seek(self, offset: int) -> None:
        """Go on at `offset`, forgetting everything else."""
        self.floor = self.fresh = offset
        for held in (self._deadlines, self._retries, self._waiting, self._acked, self._attempts):
            held.clear()

    def release(self) -> None:
        """The member is gone: what it held is read again from the floor on."""
        self.fresh = self.floor
        self._deadlines.clear()
        self._retries.clear()
        self._waiting.clear()

    def skip_to(self, offset: int) -> int:
        """Nothing before `offset` exists any more; returns how many were unsettled."""
        lost = sum(1 for o in range(self.floor, min(offset, self.fresh)) if o not in self._acked)
        lost += max(0, offset - max(self.fresh, self.floor))
        for o in range(self.floor, min(offset, self.fresh)):
            self._forget(o)
        self.fresh = max(self.fresh, offset)
        self._advance(max(self.floor, offset))
        return lost

    def is_settled(self, offset: int) -> bool:
        """Was it acknowledged (perhaps before its time)?"""
        return offset < self.floor or offset in self._acked

    def attempt(self, offset: int) -> int:
        """How often `offset` was delivered."""
        return self._attempts.get(offset, 0)

    def deliver(self, offset: int, now_ns: int) -> int:
        """`offset` goes out now; returns which attempt it is, from 1."""
        attempt = self._attempts.get(offset, 0) + 1
        self._attempts[offset] = attempt
        self._deadlines[offset] = now_ns + self.ack_timeout_ns
        self._deadlines.move_to_end(offset)
        self._waiting.discard(offset)
        self.fresh = max(self.fresh, offset + 1)
        if attempt > 1:
            self.redeliveries += 1
        return attempt

    def ack(self, offset: int) -> None:
        """Settled. Unknown and repeated offsets are ignored."""
        if offset < self.floor or offset >= self.fresh or offset in self._acked:
            return
        self._forget(offset)
        self._acked.add(offset)
        self._advance(self.floor)

    def nak(self, offset: int, delay_ns: int, now_ns: int) -> None:
        """Deliver again after `delay_ns`."""
        if self._deadlines.pop(offset, None) is not None:
            self._retry_at(offset, now_ns + delay_ns)

    def in_progress(self, offset: int, now_ns: int) -> None:
        """The member is still busy with it."""
        if offset in self._deadlines:
            self._deadlines[offset] = now_ns + self.ack_timeout_ns
            self._deadlines.move_to_end(offset)

    def expire(self, now_ns: int) -> None:
        """What was not settled in time is delivered again, later each time."""
        while self._deadlines:
            offset, deadline = next(iter(self._deadlines.items()))
            if deadline > now_ns:
                return
            del self._deadlines[offset]
            doubled = RETRY_FIRST_NS << min(self._attempts.get(offset, 1) - 1, 16)
            self._retry_at(offset, now_ns + min(doubled, RETRY_LAST_NS))

    def due(self, now_ns: int) -> int | None:
        """The next offset to deliver again, None when there is none now."""
        while self._retries and self._retries[0][1] not in self._waiting:
            heapq.heappop(self._retries)
        if self._retries and self._retries[0][0] <= now_ns:
            return heapq.heappop(self._retries)[1]
        return None

    def wake_ns(self) -> int | None:
        """When something falls due by itself; None: never."""
        times = list(itertools.islice(self._deadlines.values(), 1))
        if self._retries:
            times.append(self._retries[0][0])
        return min(times, default=None)

    def _retry_at(self, offset: int, when_ns: int) -> None:
        self._waiting.add(offset)
        heapq.heappush(self._retries, (when_ns, offset))

    def _forget(self, offset: int) -> None:
        self._deadlines.pop(offset, None)
        self._waiting.discard(offset)
        self._attempts.pop(offset, None)

    def _advance(self, floor: int) -> None:
        while floor in self._acked:
            self._acked.discard(floor)
            floor += 1
        if floor > self.floor:
            self._acked = {o for o in self._acked if o > floor}
        self.floor = floor


@dataclass(slots=True, eq=False)
class Member:
    """One consumer of a group: what it holds and what it may be sent."""

    name: str
    last_seen_ns: int
    partitions: set[int] = field(default_factory=set)
    #: Partitions whose deliveries have begun: their position was received.
    active: set[int] = field(default_factory=set)
    credit_messages: int = 0
    credit_bytes: int = 0

    @property
    def has_credit(self) -> bool:
        return self.credit_messages > 0 and self.credit_bytes > 0

    def spend(self, size_bytes: int) -> None:
        """A delivery went out."""
        self.credit_messages -= 1
        self.credit_bytes -= size_bytes


class Group:
    """The members of a group and their shares of `partitions` partitions."""

    def __init__(self, partitions: int) -> None:
        self.partitions = partitions
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.cursors: dict[int, Cursor] = {}
        self.since: dict[int, int] = {}  # the generation that gave a partition to its member

    def join(self, member: Member) -> list[Member]:
        """Add a member; returns those whose assignment changed."""
        self.members[member.name] = member
        return self._rebalance(always=(member,))

    def leave(self, member: Member) -> list[Member]:
        """Remove a member; returns those whose assignment changed."""
        if self.members.pop(member.name, None) is None:
            return []
        for partition in member.partitions:
            self._release(partition)
        member.partitions.clear()
        member.active.clear()
        return self._rebalance()

    def expired(self, now_ns: int) -> list[Member]:
        """Members that were silent for longer than their lease."""
        return [m for m in self.members.values() if now_ns - m.last_seen_ns > LEASE_NS]

    def _rebalance(self, always: Iterable[Member] = ()) -> list[Member]:
        """Even shares, with as few moves as possible."""
        self.generation += 1
        changed = {member.name: member for member in always}
        members = sorted(self.members.values(), key=lambda m: (-len(m.partitions), m.name))
        if not members:
            return []
        share, rest = divmod(self.partitions, len(members))
        owned: set[int] = set()
        quotas = {m.name: share + (1 if i < rest else 0) for i, m in enumerate(members)}
        for member in members:
            surplus = sorted(member.partitions)[quotas[member.name] :]
            for partition in surplus:
                member.partitions.discard(partition)
                member.active.discard(partition)
                self._release(partition)
                changed[member.name] = member
            owned |= member.partitions
        free = [p for p in range(self.partitions) if p not in owned]
        for member in members:
            while free and len(member.partitions) < quotas[member.name]:
                partition = free.pop(0)
                member.partitions.add(partition)
                self.since[partition] = self.generation
                changed[member.name] = member
        return list(changed.values())

    def _release(self, partition: int) -> None:
        cursor = self.cursors.get(partition)
        if cursor is not None:
            cursor.release()
