"""Consumer groups: who has which partition, for how long, and how much it may be sent.

No I/O: the server feeds requests and time in, and looks at what has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.cursor import Cursor
from gputel.clock import NS_PER_S

LEASE_NS: Final = 15 * NS_PER_S
NAK_DELAY_NS_MAX: Final = 3600 * NS_PER_S


def assign(
    partitions: Collection[int], members: Sequence[str], held: Mapping[int, str]
) -> dict[int, str]:
    """Partition -> member: as even as possible, and moving as few as possible from `held`."""
    if not members:
        return {}
    share, extra = divmod(len(partitions), len(members))
    kept: dict[str, list[int]] = {member: [] for member in members}
    for partition in partitions:
        if held.get(partition) in kept:
            kept[held[partition]].append(partition)
    # The members that hold the most get the shares that are larger by one.
    ranked = sorted(members, key=lambda member: -len(kept[member]))
    assigned: dict[int, str] = {}
    quotas = {member: share + (rank < extra) for rank, member in enumerate(ranked)}
    for member, quota in quotas.items():
        assigned.update(dict.fromkeys(kept[member][:quota], member))
        quotas[member] = quota - min(quota, len(kept[member]))
    free = iter([partition for partition in partitions if partition not in assigned])
    for member, quota in quotas.items():
        for _ in range(quota):
            assigned[next(free)] = member
    return assigned


@dataclass(eq=False)
class Member:
    """One stream of a group. `wake` is called when there may be something to send to it."""

    name: str
    wake: Callable[[], None]
    ack_timeout_ns: int
    max_deliver: int
    start_at: mq.StartAt
    lease_ends_ns: int = 0
    expired: bool = False
    credit_messages: int = 0
    credit_bytes: int = 0
    partitions: frozenset[int] = frozenset()
    generation: int = 0
    #: Partition -> the generation of the assignment that gave it to this member.
    since: dict[int, int] = field(default_factory=dict)

    @property
    def has_credit(self) -> bool:
        """Whether one message more may be sent."""
        return self.credit_messages > 0 and self.credit_bytes > 0

    def renew(self, now_ns: int) -> None:
        """A sign of life."""
        self.lease_ends_ns = now_ns + LEASE_NS


class Group:
    """The members of one group of one topic, and where it stands in each partition."""

    def __init__(
        self,
        topic: str,
        name: str,
        partitions: int,
        positions: Mapping[int, int],
        *,
        tracked: bool = True,
    ) -> None:
        self.topic = topic
        self.name = name
        self.cursors = [Cursor(positions.get(i), tracked=tracked) for i in range(partitions)]
        self.members: dict[str, Member] = {}
        self.late = 0  # acknowledgements that came too late, or for nothing
        self.timeouts = 0
        self.leases_lost = 0
        self.members_elsewhere = 0  # at other brokers
        #: The partitions that this broker serves: all of them, unless it shares them.
        self.held = frozenset(range(partitions))
        #: Called when a member has come or gone.
        self.on_members: Callable[[], None] = lambda: None
        self._generation = 0
        self._saved = self.positions

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> next offset, of the partitions that have one."""
        floors = ((index, cursor.floor) for index, cursor in enumerate(self.cursors))
        return {index: floor for index, floor in floors if floor is not None}

    @property
    def held_positions(self) -> dict[int, int]:
        """The positions of what this broker serves."""
        return {index: floor for index, floor in self.positions.items() if index in self.held}

    def hold(self, held: frozenset[int], positions: Mapping[int, int]) -> None:
        """Serve `held` from now on; what is new in it begins at `positions`."""
        if held == self.held:
            return
        for partition in held - self.held:
            self.cursors[partition].resume_at(positions.get(partition))
        left, self.held = self.held - held, held
        self._rebalance()
        for partition in left:
            self.cursors[partition].hand_over()

    def look(self, positions: Mapping[int, int], members_elsewhere: int) -> None:
        """Where the group stands in what other brokers serve, and how many members they have."""
        self.members_elsewhere = members_elsewhere
        for partition, position in positions.items():
            if partition not in self.held and partition < len(self.cursors):
                self.cursors[partition].resume_at(position)

    def unsaved(self) -> dict[int, int] | None:
        """The positions when they have changed since `saved` was last told."""
        positions = self.positions
        return None if positions == self._saved else positions

    def saved(self, positions: dict[int, int]) -> None:
        """`positions` are durable."""
        self._saved = positions

    def seek(self, positions: Mapping[int, int]) -> None:
        """Go on from `positions` (partition -> next offset). Nobody is a member."""
        assert not self.members
        for partition, next_offset in positions.items():
            self.cursors[partition] = Cursor(next_offset)

    def join(self, member: Member, now_ns: int) -> None:
        """A new member; the partitions are shared anew."""
        member.renew(now_ns)
        self.members[member.name] = member
        self._rebalance()
        self.on_members()

    def leave(self, member: Member, *, lost: bool) -> None:
        """A member has gone: `lost` when it did not say so."""
        if self.members.pop(member.name, None) is not None:
            for partition in member.partitions:
                self.cursors[partition].stop(lost=lost)
            member.partitions = frozenset()
            member.since.clear()
            self._rebalance()
            self.on_members()

    def _rebalance(self) -> None:
        held = {p: member.name for member in self.members.values() for p in member.partitions}
        assigned = assign(sorted(self.held), list(self.members), held)
        self._generation += 1
        for member in self.members.values():
            wanted = frozenset(p for p, name in assigned.items() if name == member.name)
            for partition in member.partitions - wanted:
                self.cursors[partition].stop(lost=False)
                del member.since[partition]
            for partition in wanted - member.partitions:
                member.since[partition] = self._generation
            if wanted != member.partitions or not member.generation:
                member.partitions = wanted
                member.generation = self._generation
                member.wake()

    def cursor(self, member: Member, partition: int) -> Cursor | None:
        """The cursor of a partition that the member has and has started."""
        if partition not in member.partitions or not self.cursors[partition].started:
            return None
        return self.cursors[partition]

    def position(
        self,
        member: Member,
        request: mq.Position,
        *,
        first_offset: int,
        end_offset: int,
    ) -> bool:
        """Start a partition; False when the request is of an assignment that is over."""
        partition = request.partition
        if request.generation < member.since.get(partition, request.generation + 1):
            return False
        cursor = self.cursors[partition]
        if request.HasField("next_offset"):
            wanted = request.next_offset
        elif cursor.floor is not None:
            wanted = cursor.floor
        else:
            wanted = end_offset if member.start_at == mq.START_AT_LATEST else first_offset
        if not first_offset <= wanted <= end_offset:
            # Gone by retention; or a log that was lost and begins anew, which is read whole.
            wanted = first_offset
        cursor.start(wanted, ack_timeout_ns=member.ack_timeout_ns, max_deliver=member.max_deliver)
        member.wake()
        return True

    def settle(self, member: Member, request: mq.ConsumeRequest, now_ns: int) -> None:
        """Take an ack, nak, in-progress or term; what is not this member's is counted as late."""
        kind = request.WhichOneof("request")
        done: list[bool] = []
        if kind == "nak":
            nak = request.nak
            delay_ns = min(nak.delay_ms * 1_000_000, NAK_DELAY_NS_MAX)
            cursor = self.cursor(member, nak.partition)
            done.append(cursor is not None and cursor.nak(nak.offset, now_ns, delay_ns))
        elif kind == "term":
            cursor = self.cursor(member, request.term.partition)
            reason = request.term.reason or "given up by its consumer"
            done.append(cursor is not None and cursor.term(request.term.offset, reason))
        else:
            acknowledges = kind == "ack"
            for of in request.ack.offsets if acknowledges else request.in_progress.offsets:
                cursor = self.cursor(member, of.partition)
                if cursor is None:
                    done += [False] * len(of.offsets)
                elif acknowledges:
                    done += [cursor.ack(offset) for offset in of.offsets]
                else:
                    done += [cursor.in_progress(offset, now_ns) for offset in of.offsets]
        self.late += done.count(False)
        member.wake()  # the window may have moved

    def tick(self, now_ns: int) -> None:
        """Turn to what time has brought: leases that ended, messages that are due again."""
        for member in [m for m in self.members.values() if m.lease_ends_ns <= now_ns]:
            member.expired = True
            self.leases_lost += 1
            self.leave(member, lost=True)
            member.wake()
        for member in self.members.values():
            for partition in member.partitions:
                cursor = self.cursors[partition]
                self.timeouts += cursor.expire(now_ns)
                if cursor.has_ready:
                    member.wake()
