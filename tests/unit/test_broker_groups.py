"""Consumer groups without a socket: cursors, leases, and who gets which partition."""

from __future__ import annotations

import pytest

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.cursor import BACKOFF_LAST_NS, Cursor, backoff_ns
from gputel.broker.groups import LEASE_NS, Group, Member, assign
from gputel.clock import NS_PER_MS, NS_PER_S

TIMEOUT_NS = 10 * NS_PER_S


def started(next_offset: int = 0, max_deliver: int = 3) -> Cursor:
    cursor = Cursor()
    cursor.start(next_offset, ack_timeout_ns=TIMEOUT_NS, max_deliver=max_deliver)
    return cursor


def test_the_floor_is_the_lowest_that_is_not_done() -> None:
    cursor = started(5)
    for offset in range(5, 10):
        assert cursor.take(offset, 0) == 1
    assert cursor.floor == 5
    for offset in (7, 6, 9):
        assert cursor.ack(offset)
    assert cursor.floor == 5
    assert cursor.ack(5)
    assert cursor.floor == 8
    assert cursor.ack(8)
    assert cursor.floor == 10
    assert not cursor.ack(8)


def test_what_is_not_acknowledged_in_time_comes_again_after_a_back_off() -> None:
    cursor = started()
    cursor.take(0, 0)
    cursor.take(1, NS_PER_S)
    assert cursor.expire(TIMEOUT_NS - 1) == 0
    assert cursor.expire(TIMEOUT_NS) == 1
    assert not cursor.has_ready
    cursor.expire(TIMEOUT_NS + backoff_ns(1))
    assert cursor.pop_ready() == 0
    assert cursor.retake(0, TIMEOUT_NS * 2) == 2
    assert cursor.floor == 0


def test_progress_holds_the_timeout_off() -> None:
    cursor = started()
    cursor.take(0, 0)
    cursor.take(1, 0)
    assert cursor.in_progress(0, 5 * NS_PER_S)
    assert cursor.expire(TIMEOUT_NS) == 1  # offset 1 only
    assert cursor.expire(TIMEOUT_NS + 5 * NS_PER_S) == 1


def test_a_late_ack_is_an_ack() -> None:
    cursor = started()
    cursor.take(0, 0)
    cursor.expire(TIMEOUT_NS)
    assert cursor.ack(0)
    cursor.expire(TIMEOUT_NS * 10)
    assert not cursor.has_ready
    assert cursor.floor == 1


def test_after_the_last_delivery_it_is_dead_until_buried() -> None:
    cursor = started(max_deliver=2)
    cursor.take(0, 0)
    cursor.take(1, 0)
    assert cursor.nak(0, 0, NS_PER_MS)
    cursor.expire(NS_PER_MS)
    assert cursor.retake(cursor.pop_ready(), NS_PER_MS) == 2
    assert cursor.nak(0, NS_PER_MS, 0)
    assert [(d.offset, d.attempts) for d in cursor.dead] == [(0, 2)]
    assert not cursor.ack(0)
    assert cursor.ack(1)
    assert cursor.floor == 0
    cursor.buried(0)
    assert cursor.floor == 2


def test_a_dead_message_stays_dead_for_the_next_member() -> None:
    cursor = started()
    cursor.take(0, 0)
    cursor.term(0, "bad")
    cursor.stop(lost=True)
    cursor.start(cursor.floor or 0, ack_timeout_ns=TIMEOUT_NS, max_deliver=3)
    assert cursor.take(0, 0) == 0
    assert cursor.floor == 0
    cursor.buried(0)
    assert cursor.floor == 1


def test_a_lost_member_costs_its_first_message_an_attempt() -> None:
    cursor = started(max_deliver=2)
    for _ in range(2):
        assert cursor.take(0, 0)
        assert cursor.take(1, 0) == 1
        cursor.stop(lost=True)
        cursor.start(0, ack_timeout_ns=TIMEOUT_NS, max_deliver=2)
    assert cursor.take(0, 0) == 0
    assert cursor.dead[0].reason == "not acknowledged after 2 deliveries"
    assert cursor.take(1, 0) == 1


def test_deliveries_that_failed_count_for_the_next_member() -> None:
    cursor = started(max_deliver=2)
    for offset in range(4):
        assert cursor.take(offset, 0) == 1
    assert cursor.ack(3)
    for offset in range(2):
        assert cursor.nak(offset, 0, NS_PER_MS)
    cursor.expire(NS_PER_MS)
    assert cursor.retake(cursor.pop_ready(), NS_PER_MS) == 2
    cursor.stop(lost=False)  # 0 was sent twice, 1 is to be sent again, 2 was sent once
    cursor.start(0, ack_timeout_ns=TIMEOUT_NS, max_deliver=2)
    assert [cursor.take(offset, 0) for offset in range(4)] == [2, 2, 1, 1]


def test_a_clean_leave_costs_nothing() -> None:
    cursor = started()
    cursor.take(0, 0)
    cursor.stop(lost=False)
    cursor.start(0, ack_timeout_ns=TIMEOUT_NS, max_deliver=3)
    assert cursor.take(0, 0) == 1


def test_the_window_is_bounded() -> None:
    cursor = started()
    for offset in range(limits.GROUP_WINDOW_MAX):
        cursor.take(offset, 0)
    assert cursor.room == 0
    cursor.ack(0)
    assert cursor.room == 1


def test_the_back_off_doubles_up_to_its_end() -> None:
    assert [backoff_ns(n) // NS_PER_MS for n in (1, 2, 3)] == [100, 200, 400]
    assert backoff_ns(1000) == BACKOFF_LAST_NS


@pytest.mark.parametrize("partitions", [1, 4, 16])
def test_partitions_are_shared_evenly_and_stay_where_they_are(partitions: int) -> None:
    held: dict[int, str] = {}
    members: list[str] = []
    for change in ("+a", "+b", "+c", "-a", "+d", "-b", "-c", "+e", "-d"):
        if change[0] == "+":
            members.append(change[1])
        else:
            members.remove(change[1])
        assigned = assign(range(partitions), members, held)
        counts = [list(assigned.values()).count(m) for m in members]
        assert set(assigned) == set(range(partitions))
        assert max(counts) - min(counts) <= 1
        if change[0] == "+":  # only the new one gets any
            moved = {assigned[p] for p in assigned if held.get(p) != assigned[p]}
            assert moved <= {change[1]}
        else:  # only what was held by the one that left moves
            assert all(assigned[p] == owner for p, owner in held.items() if owner in members)
        held = assigned
    assert assign(range(partitions), [], held) == {}


def member(name: str, wakes: list[str]) -> Member:
    return Member(name, lambda: wakes.append(name), TIMEOUT_NS, 3, mq.START_AT_EARLIEST)


def position(group: Group, of: Member, partition: int, generation: int) -> bool:
    request = mq.Position(partition=partition, generation=generation)
    return group.position(of, request, first_offset=0, end_offset=100)


def test_a_silent_member_loses_its_lease() -> None:
    wakes: list[str] = []
    group = Group("t", "g", 2, {})
    a, b = member("a", wakes), member("b", wakes)
    group.join(a, 0)
    group.join(b, 0)
    a.renew(LEASE_NS - 1)
    group.tick(LEASE_NS)
    assert b.expired
    assert not a.expired
    assert a.partitions == {0, 1}
    assert group.leases_lost == 1


def test_a_position_of_an_older_assignment_is_ignored() -> None:
    wakes: list[str] = []
    group = Group("t", "g", 1, {0: 7})
    a, b = member("a", wakes), member("b", wakes)
    group.join(a, 0)
    old = a.generation
    assert position(group, a, 0, old)
    group.leave(a, lost=True)
    group.join(b, 0)
    assert not position(group, a, 0, old)
    assert not position(group, b, 0, old)
    assert group.cursor(b, 0) is None
    assert position(group, b, 0, b.generation)
    cursor = group.cursor(b, 0)
    assert cursor is not None
    assert cursor.next_offset == 7
    assert group.positions == {0: 7}


def test_a_log_that_begins_anew_is_read_whole() -> None:
    group = Group("t", "g", 1, {})
    a = member("a", [])
    group.join(a, 0)
    request = mq.Position(partition=0, next_offset=500, generation=a.generation)
    assert group.position(a, request, first_offset=3, end_offset=100)
    assert group.positions == {0: 3}


def test_acks_of_others_are_counted_and_change_nothing() -> None:
    group = Group("t", "g", 1, {})
    a, b = member("a", []), member("b", [])
    group.join(a, 0)
    group.join(b, 0)
    position(group, a, 0, a.generation)
    cursor = group.cursor(a, 0)
    assert cursor is not None
    cursor.take(0, 0)
    ack = mq.ConsumeRequest(ack=mq.Ack(offsets=[mq.Offsets(partition=0, offsets=[0])]))
    group.settle(b, ack, 0)
    assert group.late == 1
    assert cursor.floor == 0
    group.settle(a, ack, 0)
    assert cursor.floor == 1


def test_an_observer_tracks_nothing() -> None:
    cursor = Cursor(tracked=False)
    cursor.start(0, ack_timeout_ns=0, max_deliver=0)
    for offset in range(limits.GROUP_WINDOW_MAX + 1):
        assert cursor.take(offset, 0) == 1
    assert cursor.in_flight == 0
    assert cursor.room == limits.GROUP_WINDOW_MAX
