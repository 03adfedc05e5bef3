"""Leases on a group's partitions: how long a broker that is not heard of keeps what it has."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.background import Background
from gputel.broker.engine import Share
from gputel.broker.engine.jetstream.shares import EVICT_NS, HOLD_NS, Shares
from gputel.broker.groups import Group, Member
from gputel.broker.registry import _Lease
from gputel.clock import NS_PER_S, ManualClock
from gputel.errors import BrokerUnavailable
from support.fake_cluster import FakeBucket


class Words:
    """What brokers tell each other; here nobody listens."""

    async def announce(self, subject: str, data: bytes) -> None:
        pass


def shares(bucket: FakeBucket, broker: str, clock: ManualClock) -> Shares:
    return Shares(cast("Any", bucket), cast("Any", Words()), "ns", broker, clock)


async def renew(of: Shares, members: int = 1, **positions: Any) -> Share:
    fields: dict[str, Any] = {"positions": {}, "released": {}} | positions
    return await of.renew("t", "g", partitions=2, members=members, **fields)


async def test_what_a_dead_broker_had_goes_to_the_other_after_its_lease() -> None:
    clock, bucket = ManualClock(), FakeBucket()
    dead, other = shares(bucket, "a", clock), shares(bucket, "b", clock)
    share = await renew(dead)
    assert share.held == {0, 1}
    assert share.until_ns == clock.monotonic_ns() + HOLD_NS
    began_ns = clock.monotonic_ns()
    while (await renew(other)).held != {0, 1}:
        clock.advance(0.5)
    waited_ns = clock.monotonic_ns() - began_ns
    assert EVICT_NS <= waited_ns <= EVICT_NS + NS_PER_S
    assert began_ns + HOLD_NS < clock.monotonic_ns()  # it has stopped before


async def test_a_living_broker_keeps_what_it_has() -> None:
    clock, bucket = ManualClock(), FakeBucket()
    one, other = shares(bucket, "a", clock), shares(bucket, "b", clock)
    held = (await renew(one)).held
    for _ in range(40):
        clock.advance(0.5)
        share = await renew(one, positions=dict.fromkeys(held, 1))
        if share.held != held:
            gone = dict.fromkeys(held - share.held, 1)
            share = await renew(one, positions=dict.fromkeys(share.held, 1), released=gone)
        held = share.held
        await renew(other)
    assert len(held) == 1
    assert (await renew(other)).held == {0, 1} - held


async def test_nobody_is_evicted_for_a_time_in_which_nobody_could_read() -> None:
    clock, bucket = ManualClock(), FakeBucket()
    one, other = shares(bucket, "a", clock), shares(bucket, "b", clock)
    await renew(one)
    await renew(other)
    clock.advance(600)  # the cluster was away
    assert (await renew(other)).held == set()
    assert (await renew(one)).held  # it is there again, and goes on


async def test_a_group_is_moved_once_its_broker_is_forgotten() -> None:
    clock, bucket = ManualClock(), FakeBucket()
    dead, other = shares(bucket, "a", clock), shares(bucket, "b", clock)
    await renew(dead)
    moved = 0
    while not await other.seek("t", "g", {0: 7}):
        clock.advance(1)
        moved += 1
    assert moved >= EVICT_NS // NS_PER_S
    assert (await other.groups(["t"]))["t", "g"].positions == {0: 7}


class Absent:
    """A sharing that answers once, and never again."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.calls = 0

    def listen(self, told: Any) -> None: ...
    async def groups(self, topics: Any) -> dict[tuple[str, str], Share]:
        return {}

    async def seek(self, topic: str, group: str, positions: Any) -> bool:
        return False

    async def renew(self, topic: str, group: str, **_: Any) -> Share:
        self.calls += 1
        if self.calls > 1:
            raise BrokerUnavailable("away")
        return Share({}, frozenset({0, 1}), 0, self._clock.monotonic_ns() + HOLD_NS)


async def test_a_broker_that_can_not_renew_stops_delivering_in_time() -> None:
    clock = ManualClock()
    group = Group("t", "g", 2, {})
    lease = _Lease(group, Absent(clock), clock, Background())
    member = Member("m", lambda: None, NS_PER_S, 0, mq.START_AT_EARLIEST)
    group.join(member, clock.monotonic_ns())
    async with asyncio.timeout(10):
        while member.partitions != {0, 1}:  # noqa: ASYNC110
            await asyncio.sleep(0)
    position = mq.Position(partition=0, next_offset=5, generation=member.since[0])
    assert group.position(member, position, first_offset=0, end_offset=9)
    lease.tick(clock.monotonic_ns() + HOLD_NS - 1)
    assert group.cursor(member, 0) is not None
    lease.tick(clock.monotonic_ns() + HOLD_NS)
    assert group.cursor(member, 0) is None
    assert member.partitions == frozenset()
    await lease.stop()
