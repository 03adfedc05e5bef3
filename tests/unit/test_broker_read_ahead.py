"""Reading ahead: what is read is what is asked for, never more than may be sent or held."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from gputel.broker.engine import Chunk, PartitionLog, Record
from gputel.broker.read_ahead import AHEAD_BYTES_MAX, READ_BYTES_MAX, ReadAhead, Room

END = 100
BODY = bytes(1000)


class Log:
    """A partition of END messages that keeps what it was asked for."""

    def __init__(self) -> None:
        self.next_offset = END
        self.reads: list[tuple[int, int, int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None
        self.cancelled = 0

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        self.reads.append((offset, messages_max, bytes_max))
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        count = max(1, min(messages_max, bytes_max // len(BODY), END - offset))
        records = [Record(at, 0, "p", 1, at, b"", BODY) for at in range(offset, offset + count)]
        return Chunk(records, offset + count)


def reading(count: int = 1, room: Room | None = None) -> tuple[ReadAhead, list[Log]]:
    logs = [Log() for _ in range(count)]
    return ReadAhead(cast(list[PartitionLog], logs), room or Room()), logs


def offsets(chunk: Chunk) -> list[int]:
    return [record.offset for record in chunk.records]


async def test_the_next_read_has_begun() -> None:
    ahead, (log,) = reading()
    chunk = await ahead.read(0, 0, 1, 10, 5000)
    assert offsets(chunk) == [0, 1, 2, 3, 4]
    ahead.begin(0, chunk.next_offset, 1, 10, 5000)
    await asyncio.sleep(0)
    assert log.reads == [(0, 10, 5000), (5, 10, 5000)]
    chunk = await ahead.read(0, 5, 1, 10, 5000)
    assert (offsets(chunk), chunk.next_offset) == ([5, 6, 7, 8, 9], 10)
    assert len(log.reads) == 2


@pytest.mark.parametrize(
    ("messages_max", "bytes_max", "expected"),
    [(2, 5000, [5, 6]), (10, 2999, [5, 6]), (10, 1, [5]), (1, 1, [5]), (10, 9999, [5, 6, 7, 8, 9])],
)
async def test_credit_that_was_spent_meanwhile_is_not_exceeded(
    messages_max: int, bytes_max: int, expected: list[int]
) -> None:
    ahead, (log,) = reading()
    ahead.begin(0, 5, 1, 10, 5000)
    chunk = await ahead.read(0, 5, 1, messages_max, bytes_max)
    assert (offsets(chunk), chunk.next_offset) == (expected, expected[-1] + 1)
    chunk = await ahead.read(0, chunk.next_offset, 1, 1, 1)
    assert offsets(chunk) == [expected[-1] + 1]  # what was left out is read again
    assert len(log.reads) == 2


@pytest.mark.parametrize(("offset", "run"), [(6, 1), (5, 2), (0, 1)])
async def test_what_was_read_for_nothing_is_dropped(offset: int, run: int) -> None:
    ahead, (log,) = reading()
    log.open.clear()
    ahead.begin(0, 5, 1, 10, 5000)
    await asyncio.sleep(0)
    reading_anew = asyncio.create_task(ahead.read(0, offset, run, 10, 1000))
    await asyncio.sleep(0)
    log.open.set()
    assert offsets(await reading_anew) == [offset]
    assert log.cancelled == 1


async def test_what_goes_wrong_ahead_is_told_to_who_asks() -> None:
    ahead, (log,) = reading()
    log.error = OSError("broken")
    ahead.begin(0, 5, 1, 10, 5000)
    with pytest.raises(OSError, match="broken"):
        await ahead.read(0, 5, 1, 10, 5000)
    ahead.begin(0, 5, 1, 10, 5000)
    await asyncio.sleep(0)
    ahead.keep(frozenset())  # nobody asks: no error that was never looked at
    log.error = None
    assert offsets(await ahead.read(0, 5, 1, 10, 1000)) == [5]


async def test_nothing_is_read_ahead_without_credit_or_behind_the_end() -> None:
    ahead, (log,) = reading()
    ahead.begin(0, 5, 1, 0, 5000)
    ahead.begin(0, 5, 1, 10, 0)
    ahead.begin(0, END, 1, 10, 5000)
    await asyncio.sleep(0)
    assert log.reads == []


@pytest.mark.parametrize("partitions", [1, 2, 4, 64])
async def test_what_lies_ready_is_bounded_for_all_partitions_together(partitions: int) -> None:
    """Whole batches of the first, rather than little of each."""
    ahead, logs = reading(partitions)
    for partition in range(partitions):
        for _ in range(2):  # one each
            ahead.begin(partition, 0, 1, 10_000, 1 << 40)
    await asyncio.sleep(0)
    asked = [bytes_max for log in logs for _, _, bytes_max in log.reads]
    assert asked == [READ_BYTES_MAX] * min(partitions, AHEAD_BYTES_MAX // READ_BYTES_MAX)
    ahead.keep(frozenset(range(1, partitions)))
    assert not logs[0].cancelled  # done before
    ahead.begin(0, 0, 1, 10_000, 1 << 40)
    await asyncio.sleep(0)
    assert len(logs[0].reads) == 2
    ahead.keep(frozenset())


async def test_credit_is_read_for_once() -> None:
    """Else what one partition spends was read of another for nothing."""
    ahead, logs = reading(3)
    for partition in range(3):
        ahead.begin(partition, 0, 1, 10_000, READ_BYTES_MAX + 5000)
    await asyncio.sleep(0)
    asked = [bytes_max for log in logs for _, _, bytes_max in log.reads]
    assert asked == [READ_BYTES_MAX, 5000]


async def test_all_streams_together_have_so_much_room_and_no_more() -> None:
    room = Room(2 * READ_BYTES_MAX)
    streams = [reading(room=room) for _ in range(5)]
    for ahead, _ in streams:
        ahead.begin(0, 0, 1, 10_000, 1 << 40)
    await asyncio.sleep(0)
    assert [len(log.reads) for _, (log,) in streams] == [1, 1, 0, 0, 0]
    # Who takes what lies ready, wants something else, or leaves, makes room.
    taking, seeking, _, fourth, fifth = (ahead for ahead, _ in streams)
    assert offsets(await taking.read(0, 0, 1, 2, 5000)) == [0, 1]
    fourth.begin(0, 0, 1, 10_000, 1 << 40)
    assert offsets(await seeking.read(0, 50, 1, 1, 5000)) == [50]
    fifth.begin(0, 0, 1, 10_000, 1 << 40)
    assert room.left_bytes == 0
    fourth.keep(frozenset())
    fifth.keep(frozenset())
    await asyncio.sleep(0)
    assert room.left_bytes == 2 * READ_BYTES_MAX
