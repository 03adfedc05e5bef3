"""How a broker takes and gives back its share of a group's partitions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.background import Background
from gputel.broker.engine import Share
from gputel.broker.engine.jetstream.book import Page, take_turn
from gputel.broker.groups import Group, Member
from gputel.broker.registry import _Lease
from gputel.clock import NS_PER_S, SYSTEM_CLOCK

PARTITIONS = 4


class Table:
    """The page that all brokers of a test write on."""

    def __init__(self) -> None:
        self.page = Page()


class Sharing:
    """One broker's hand on it."""

    def __init__(self, table: Table, broker: str) -> None:
        self._table = table
        self._broker = broker

    def listen(self, told: Callable[[str, str], None]) -> None:
        raise NotImplementedError

    async def groups(self, topics: Iterable[str]) -> Mapping[tuple[str, str], Share]:
        raise NotImplementedError

    async def seek(self, topic: str, group: str, positions: Mapping[int, int]) -> bool:
        raise NotImplementedError

    async def renew(
        self,
        topic: str,
        group: str,
        *,
        partitions: int,
        members: int,
        positions: Mapping[int, int],
        released: Mapping[int, int | None],
    ) -> Share:
        turn = take_turn(
            self._table.page,
            self._broker,
            members=members,
            partitions=partitions,
            positions=positions,
            released=released,
        )
        self._table.page = turn.page
        until_ns = SYSTEM_CLOCK.monotonic_ns() + 60 * NS_PER_S
        return Share(turn.page.positions, turn.held, 0, until_ns)


def member(name: str) -> Member:
    return Member(name, lambda: None, NS_PER_S, 0, mq.START_AT_EARLIEST)


def position(group: Group, of: Member, partition: int, next_offset: int) -> None:
    since = of.since[partition]
    request = mq.Position(partition=partition, next_offset=next_offset, generation=since)
    assert group.position(of, request, first_offset=0, end_offset=1000)


async def test_what_no_member_has_begun_with_is_given_back_too() -> None:
    table = Table()
    groups = [Group("t", "g", PARTITIONS, {}) for _ in range(2)]
    leases = [
        _Lease(group, Sharing(table, name), SYSTEM_CLOCK, Background())
        for group, name in zip(groups, "ab", strict=True)
    ]
    first = member("first")
    groups[0].join(first, SYSTEM_CLOCK.monotonic_ns())
    async with asyncio.timeout(10):
        while len(first.partitions) < PARTITIONS:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # It waits for a lock of one of them, say, when a second broker gets a member.
        position(groups[0], first, 3, 17)
        second = member("second")
        groups[1].join(second, SYSTEM_CLOCK.monotonic_ns())
        while len(first.partitions) != 2 or len(second.partitions) != 2:
            for lease in leases:
                lease.stir()
            await asyncio.sleep(0.01)
    assert first.partitions | second.partitions == set(range(PARTITIONS))
    assert groups[0].held | groups[1].held == set(range(PARTITIONS))
    assert table.page.positions == {3: 17}, "of the others nobody knows more than before"
    for lease in leases:
        await lease.stop()
