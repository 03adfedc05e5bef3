"""The embedded engine on real files: what it stores is there again, whatever ended it."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gputel import limits
from gputel.broker.engine import PartitionFailed, Record
from gputel.broker.engine.disk import BLOCK_BYTES, Disk
from gputel.broker.engine.embedded import EmbeddedEngine, Topic
from gputel.broker.engine.partition import Partition
from gputel.broker.settings import BrokerSettings
from gputel.clock import ManualClock
from gputel.errors import InputError, ProducerFenced

SMALL = BrokerSettings(partitions=1, segment_bytes=limits.SEGMENT_BYTES_MIN)


@asynccontextmanager
async def opened(
    path: Path,
    settings: BrokerSettings = SMALL,
    *,
    disk: Disk | None = None,
    clock: ManualClock | None = None,
) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(settings, path, disk=disk, clock=clock or ManualClock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what is watched tells nobody
            await asyncio.sleep(0.002)


def publish(topic: Topic, first: int, count: int, size_bytes: int = 100) -> list[int]:
    return [
        topic.partitions[0].append("p", 1, sequence, b"k", payload(sequence, size_bytes))
        for sequence in range(first, first + count)
    ]


def payload(sequence: int, size_bytes: int = 100) -> bytes:
    return b"%010d" % sequence * (size_bytes // 10)


async def store(topic: Topic, first: int, count: int, size_bytes: int = 100) -> None:
    tickets = publish(topic, first, count, size_bytes)
    await until(lambda: topic.partitions[0].is_durable(tickets[-1]))


async def read_all(partition: Partition) -> list[Record]:
    records: list[Record] = []
    offset = partition.first_offset
    while offset < partition.next_offset:
        chunk = await partition.read(offset, 1000, limits.MIB)
        assert chunk.next_offset > offset
        records += chunk.records
        offset = chunk.next_offset
    return records


def log_file(path: Path) -> Path:
    return max((path / "topics" / "t" / "0").glob("*.log"))


async def test_a_topic_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        await store(await engine.open_topic("t"), 1, 50)
        await engine.save_positions("t", "g", {0: 17})
    async with opened(tmp_path) as engine:
        partition = engine.topics["t"].partitions[0]
        records = await read_all(partition)
        assert [r.offset for r in records] == list(range(50))
        assert [r.payload for r in records] == [payload(s) for s in range(1, 51)]
        assert {(r.producer, r.epoch, r.key) for r in records} == {("p", 1, b"k")}
        assert await engine.load_positions() == {("t", "g"): {0: 17}}


async def test_repeats_are_known_across_restarts_and_segments(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        topic = await engine.open_topic("t")
        await store(topic, 1, 40, 100_000)
        assert topic.partitions[0].segments > 2
        first = publish(topic, 5, 1)
        assert topic.partitions[0].is_durable(first[0])
    async with opened(tmp_path) as engine:
        topic = engine.topics["t"]
        assert await topic.open_producer("p", 1) == 40
        publish(topic, 1, 40)
        assert topic.partitions[0].duplicates == 40
        await store(topic, 41, 1)
        assert [r.sequence for r in await read_all(topic.partitions[0])] == list(range(1, 42))
        assert await topic.open_producer("p", 2) == 0
        with pytest.raises(ProducerFenced, match="epoch 1 is fenced by 2"):
            await topic.open_producer("p", 1)


async def test_retention_forgets_messages_and_not_producers(tmp_path: Path) -> None:
    clock = ManualClock()
    settings = BrokerSettings(
        partitions=1,
        segment_bytes=limits.SEGMENT_BYTES_MIN,
        retention_bytes=3 * limits.MIB,
        retention_seconds=60,
    )
    async with opened(tmp_path, settings, clock=clock) as engine:
        topic = await engine.open_topic("t")
        partition = topic.partitions[0]
        partition.append("other", 1, 7, b"", b"x")
        await store(topic, 1, 60, 100_000)
        await until(lambda: partition.size_bytes <= 3 * limits.MIB)
        assert partition.first_offset > 0
        assert (await read_all(partition))[0].offset == partition.first_offset
        clock.advance(61)
        await store(topic, 61, 4, 100_000)
        await until(lambda: partition.segments <= 2)
        chunk = await partition.read(0, 1, 1)
        assert chunk.records[0].offset == partition.first_offset
    async with opened(tmp_path, settings, clock=clock) as engine:
        engine.topics["t"].partitions[0].append("other", 1, 7, b"", b"x")
        assert engine.topics["t"].partitions[0].duplicates == 1


@pytest.mark.parametrize("cut_bytes", [1, 60, 151, 200])
async def test_a_torn_tail_is_cut_off(tmp_path: Path, cut_bytes: int) -> None:
    async with opened(tmp_path) as engine:
        await store(await engine.open_topic("t"), 1, 10)
    path = log_file(tmp_path)
    whole = path.stat().st_size
    record_bytes = whole // 10
    with path.open("r+b") as file:
        file.truncate(whole - cut_bytes)
    left = (whole - cut_bytes) // record_bytes
    async with opened(tmp_path) as engine:
        topic = engine.topics["t"]
        partition = topic.partitions[0]
        kept = [r.sequence for r in await read_all(partition)]
        assert kept == list(range(1, len(kept) + 1))
        assert left - 1 <= len(kept) <= left
        assert path.stat().st_size == partition.size_bytes
        await store(topic, len(kept) + 1, 3)
        assert len(await read_all(partition)) == len(kept) + 3
        assert not partition.damage


async def test_every_bit_flip_in_the_last_commit_costs_that_commit_at_most(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        topic = await engine.open_topic("t")
        await store(topic, 1, 5)
        safe = log_file(tmp_path).stat().st_size
        await store(topic, 6, 1)
    path = log_file(tmp_path)
    sound = path.read_bytes()
    for position in range(safe, len(sound), 7):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        async with opened(tmp_path) as engine:
            partition = engine.topics["t"].partitions[0]
            assert [r.sequence for r in await read_all(partition)] == [1, 2, 3, 4, 5]


async def test_damage_in_the_middle_is_told_and_passed_over(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        topic = await engine.open_topic("t")
        for sequence in range(1, 11):
            await store(topic, sequence, 1)
    path = log_file(tmp_path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x40
    path.write_bytes(damaged)
    async with opened(tmp_path) as engine:
        topic = engine.topics["t"]
        partition = topic.partitions[0]
        assert "can't be read" in partition.damage
        kept = [r.sequence for r in await read_all(partition)]
        assert len(kept) == 9
        assert kept[-1] == 10
        await store(topic, 11, 1)
        assert (await read_all(partition))[-1].offset == 10


async def store_in(partition: Partition, sequence: int, payload: bytes) -> None:
    ticket = partition.append("p", 1, sequence, b"", payload)
    await until(lambda: partition.is_durable(ticket))


async def test_a_damaged_partition_stops_no_other(tmp_path: Path) -> None:
    settings = BrokerSettings(partitions=3, segment_bytes=limits.SEGMENT_BYTES_MIN)
    async with opened(tmp_path, settings) as engine:
        topic = await engine.open_topic("t")
        for sequence in range(1, 6):
            for partition in topic.partitions:
                await store_in(partition, sequence, b"x" * 50)
    path = log_file(tmp_path)  # of partition 0
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0x40
    path.write_bytes(damaged)
    async with opened(tmp_path, settings) as engine:
        partitions = engine.topics["t"].partitions
        assert [bool(partition.damage) for partition in partitions] == [True, False, False]
        for partition, kept in zip(partitions, (4, 5, 5), strict=True):
            assert len(await read_all(partition)) == kept
            await store_in(partition, 6, b"y")
            assert (await read_all(partition))[-1].payload == b"y"


async def test_commits_gather_what_comes_meanwhile(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        topic = await engine.open_topic("t")
        await store(topic, 1, 2000, 64)
        assert engine.committer is not None
        assert engine.committer.commits < 200


class BrokenDisk(Disk):
    """Fails when told to."""

    def __init__(self) -> None:
        self.write_errno = 0
        self.sync_errno = 0

    def write(self, fd: int, data: memoryview, position: int) -> None:
        if self.write_errno:
            super().write(fd, data[:BLOCK_BYTES], position)  # a part gets through
            raise OSError(self.write_errno, "injected")
        super().write(fd, data, position)

    def sync(self, fd: int) -> None:
        if self.sync_errno:
            raise OSError(self.sync_errno, "injected")
        super().sync(fd)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_a_failed_sync_ends_the_partition_and_acknowledges_nothing(
    tmp_path: Path, number: int
) -> None:
    disk = BrokenDisk()
    async with opened(tmp_path, disk=disk) as engine:
        topic = await engine.open_topic("t")
        partition = topic.partitions[0]
        await store(topic, 1, 5)
        disk.sync_errno = number
        ticket = publish(topic, 6, 1)[0]
        await until(lambda: partition.failure)
        assert not partition.is_durable(ticket)
        assert partition.pending_bytes == 0
        with pytest.raises(PartitionFailed, match="injected while writing"):
            publish(topic, 7, 1)
        assert len(await read_all(partition)) == 5
    async with opened(tmp_path) as engine:
        topic = engine.topics["t"]
        assert await topic.open_producer("p", 1) == 5
        await store(topic, 6, 1)
        assert [r.sequence for r in await read_all(topic.partitions[0])] == [1, 2, 3, 4, 5, 6]


async def test_a_full_disk_makes_producers_wait_and_loses_nothing(tmp_path: Path) -> None:
    disk = BrokenDisk()
    async with opened(tmp_path, disk=disk) as engine:
        topic = await engine.open_topic("t")
        partition = topic.partitions[0]
        await store(topic, 1, 5)
        disk.write_errno = errno.ENOSPC
        tickets = publish(topic, 6, 20)
        await until(lambda: engine.throttle_ms() > 0)
        assert not partition.is_durable(tickets[0])
        disk.write_errno = 0
        await until(lambda: partition.is_durable(tickets[-1]))
        await until(lambda: engine.throttle_ms() == 0)
        assert [r.sequence for r in await read_all(partition)] == list(range(1, 26))
    async with opened(tmp_path) as engine:
        partition = engine.topics["t"].partitions[0]
        assert [r.sequence for r in await read_all(partition)] == list(range(1, 26))
        assert not partition.damage


async def test_the_backlog_is_bounded(tmp_path: Path) -> None:
    disk = BrokenDisk()
    async with opened(tmp_path, disk=disk) as engine:
        topic = await engine.open_topic("t")
        disk.write_errno = errno.ENOSPC
        sequence = 0
        while topic.partitions[0].pending_bytes < limits.PENDING_BYTES_MAX:
            sequence += 1
            publish(topic, sequence, 1, 500_000)
        waiting = asyncio.create_task(engine.room())
        await until(lambda: engine.throttle_ms() > 0)
        assert not waiting.done()
        disk.write_errno = 0
        await asyncio.wait_for(waiting, 10)


async def test_one_broker_holds_a_directory(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(InputError, match="in use by another broker"):
            async with opened(tmp_path):
                pass


@pytest.mark.parametrize("fsync", ["interval", "os"])
async def test_weaker_promises_are_kept_by_a_clean_stop(tmp_path: Path, fsync: str) -> None:
    settings = BrokerSettings(partitions=1, fsync=fsync)  # type: ignore[arg-type]
    async with opened(tmp_path, settings) as engine:
        await store(await engine.open_topic("t"), 1, 100)
    async with opened(tmp_path, settings) as engine:
        assert len(await read_all(engine.topics["t"].partitions[0])) == 100
