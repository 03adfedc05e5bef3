"""Consumer groups without sockets: shares, deadlines, and what is delivered again."""

import random

import pytest

from gputel.broker.groups import LEASE_NS, RETRY_FIRST_NS, Cursor, Group, Member
from gputel.clock import NS_PER_S, ManualClock

TIMEOUT_S = 30


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_acknowledgements_in_any_order_move_the_floor(clock):
    cursor = Cursor(10)
    for offset in range(10, 60):
        cursor.deliver(offset, clock.monotonic_ns())
    offsets = list(range(10, 60))
    random.Random(7).shuffle(offsets)
    for count, offset in enumerate(offsets, 1):
        cursor.ack(offset)
        cursor.ack(offset)  # a repeat changes nothing
        assert cursor.in_flight == 50 - count
        rest = offsets[count:]
        assert cursor.floor == min(rest, default=60)


def test_what_was_never_delivered_can_not_be_acknowledged(clock):
    cursor = Cursor(0)
    cursor.ack(0)
    assert cursor.floor == 0
    assert not cursor.is_settled(0)


def test_deadlines_redeliver_later_each_time(clock):
    cursor = Cursor(0)
    for attempt in range(1, 5):
        assert cursor.deliver(0, clock.monotonic_ns()) == attempt
        assert cursor.wake_ns() == clock.monotonic_ns() + TIMEOUT_S * NS_PER_S
        clock.advance(TIMEOUT_S)
        cursor.expire(clock.monotonic_ns())
        assert cursor.due(clock.monotonic_ns()) is None
        clock.advance((RETRY_FIRST_NS << (attempt - 1)) / NS_PER_S)
        assert cursor.due(clock.monotonic_ns()) == 0
    assert cursor.redeliveries == 3


def test_progress_puts_off_one_deadline_and_not_those_of_others(clock):
    cursor = Cursor(0)
    for offset in range(3):
        cursor.deliver(offset, clock.monotonic_ns())
    clock.advance(TIMEOUT_S - 1)
    cursor.in_progress(0, clock.monotonic_ns())
    clock.advance(2)
    cursor.expire(clock.monotonic_ns())
    assert cursor.in_flight == 1
    clock.advance(1)
    assert [cursor.due(clock.monotonic_ns()) for _ in range(3)] == [1, 2, None]


def test_a_nak_waits_as_long_as_it_says(clock):
    cursor = Cursor(0)
    cursor.deliver(0, clock.monotonic_ns())
    cursor.nak(0, 5 * NS_PER_S, clock.monotonic_ns())
    clock.advance(4.9)
    assert cursor.due(clock.monotonic_ns()) is None
    clock.advance(0.1)
    assert cursor.due(clock.monotonic_ns()) == 0


def test_a_released_partition_is_read_again_but_for_what_was_acknowledged(clock):
    cursor = Cursor(0)
    for offset in range(4):
        cursor.deliver(offset, clock.monotonic_ns())
    cursor.ack(2)
    cursor.release()
    assert (cursor.floor, cursor.fresh, cursor.in_flight) == (0, 0, 0)
    assert [cursor.is_settled(offset) for offset in range(4)] == [False, False, True, False]


def test_what_is_gone_is_counted_once(clock):
    cursor = Cursor(0)
    for offset in range(4):
        cursor.deliver(offset, clock.monotonic_ns())
    cursor.ack(1)
    assert cursor.skip_to(10) == 9
    assert (cursor.floor, cursor.fresh, cursor.in_flight) == (10, 10, 0)
    assert cursor.skip_to(10) == 0


@pytest.mark.parametrize("seed", range(20))
def test_shares_stay_even_disjoint_and_sticky(seed):
    rng = random.Random(seed)
    group = Group(rng.choice([1, 4, 7, 16]))
    for step in range(60):
        before = {name: set(member.partitions) for name, member in group.members.items()}
        if group.members and rng.random() < 0.4:
            group.leave(group.members[rng.choice(sorted(group.members))])
        else:
            group.join(Member(f"m{step}", 0))
        held = [member.partitions for member in group.members.values()]
        if not held:
            continue
        assert sorted(p for share in held for p in share) == list(range(group.partitions))
        sizes = [len(share) for share in held]
        assert max(sizes) - min(sizes) <= 1
        for name, member in group.members.items():
            # Nobody both loses and gains: that would be a needless move.
            old = before.get(name, set())
            assert not (old - member.partitions and member.partitions - old)


def test_a_silent_member_loses_its_lease(clock):
    group = Group(2)
    silent, alive = Member("a", 0), Member("b", 0)
    group.join(silent)
    group.join(alive)
    clock.advance(LEASE_NS / NS_PER_S + 1)
    alive.last_seen_ns = clock.monotonic_ns()
    assert group.expired(clock.monotonic_ns()) == [silent]
    assert group.leave(silent) == [alive]
    assert alive.partitions == {0, 1}
