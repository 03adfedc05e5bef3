"""Blocks: what a partition makes of a run of messages, and what stays of them in memory."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gputel import limits
from gputel.broker.engine import Message
from gputel.broker.engine.disk import Disk
from gputel.broker.engine.memory import Backlog, Block, Tail, cost_bytes
from gputel.broker.engine.partition import Partition
from gputel.broker.engine.record import Record, record_bytes
from gputel.broker.engine.recovery import recover
from gputel.clock import ManualClock


def make_partition(path: Path, backlog: Backlog) -> tuple[Partition, list[Partition]]:
    """A partition without a committer, and who was told that it has something."""
    told: list[Partition] = []
    readers = ThreadPoolExecutor(1)
    partition = Partition(
        path,
        0,
        recover(path, Disk()),
        clock=ManualClock(),
        tail=Tail(),
        backlog=backlog,
        readers=readers,
        accepted=told.append,
    )
    return partition, told


def messages(*sequences: int, size_bytes: int = 10) -> list[Message]:
    return [Message(sequence, b"k", bytes([sequence]) * size_bytes) for sequence in sequences]


def block(first: int, count: int, size_bytes: int) -> Block:
    records = [Record(first + i, 1, "p", 1, first + i + 1, b"", b"x") for i in range(count)]
    return Block(records, size_bytes)


def test_a_run_is_one_block_and_told_once(tmp_path):
    backlog = Backlog()
    partition, told = make_partition(tmp_path / "0", backlog)
    assert partition.extend("p", 1, messages(3, 5, 9)) == 2
    [taken] = partition.pending
    assert [(record.offset, record.sequence) for record in taken.records] == [
        (0, 3),
        (1, 5),
        (2, 9),
    ]
    assert taken.size_bytes == 3 * (limits.RECORD_HEADER_BYTES + 1 + 10) == backlog.size_bytes
    assert taken.record_bytes == sum(map(record_bytes, taken.records))
    assert partition.extend("q", 1, messages(1)) == 3
    assert told == [partition]


def test_repeats_at_the_head_of_a_run_are_not_stored(tmp_path):
    partition, _ = make_partition(tmp_path / "0", Backlog())
    partition.extend("p", 1, messages(1, 2, 3))
    assert partition.extend("p", 1, messages(2, 3, 4, 5)) == 4
    assert partition.duplicates == 2
    assert [r.sequence for taken in partition.pending for r in taken.records] == [1, 2, 3, 4, 5]
    assert partition.extend("p", 1, messages(4, 5)) == 4, "the ticket of what was stored"
    assert partition.duplicates == 4
    assert partition.extend("p", 2, messages(1)) == 5, "a newer epoch begins anew"


def test_no_block_is_larger_than_a_commit(tmp_path):
    partition, _ = make_partition(tmp_path / "0", Backlog())
    payload = limits.COMMIT_BYTES_MAX // 3
    partition.extend("p", 1, messages(*range(1, 8), size_bytes=payload))
    assert [len(taken.records) for taken in partition.pending] == [2, 2, 2, 1]
    assert all(taken.size_bytes <= limits.COMMIT_BYTES_MAX for taken in partition.pending)
    assert partition.pending_bytes == 7 * cost_bytes(b"k", bytes(payload))


def test_the_oldest_blocks_of_any_partition_leave_the_tail():
    tail = Tail(bytes_max=100)
    ours: dict[int, Record] = {}
    theirs: dict[int, Record] = {}
    tail.add(ours, block(0, 3, 40))
    tail.add(theirs, block(7, 1, 40))
    assert (sorted(ours), sorted(theirs)) == ([0, 1, 2], [7])
    tail.add(theirs, block(8, 2, 40))
    assert (sorted(ours), sorted(theirs)) == ([], [7, 8, 9])
    tail.add(ours, block(3, 1, 200))
    assert (ours, theirs) == ({}, {}), "a block that is larger than the bound stays out"


async def test_whoever_waits_for_room_goes_on_when_there_is_some():
    backlog = Backlog(bytes_max=10)
    await backlog.room()
    backlog.grow(12)
    waiting = asyncio.create_task(backlog.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    backlog.grow(-3)
    async with asyncio.timeout(5):
        await waiting
