"""A disk that fails or fills: what is acknowledged stays true."""

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from gputel.broker.engine import PartitionFailed
from gputel.broker.engine.disk import BLOCK_BYTES, Disk
from gputel.broker.engine.embedded import EmbeddedEngine
from gputel.broker.engine.partition import Partition
from gputel.broker.settings import BrokerSettings

pytestmark = pytest.mark.fault

SETTINGS = BrokerSettings(partitions=1, disk_reserve_bytes=1 << 20)


class BadDisk(Disk):
    """Fails when told to."""

    def __init__(self) -> None:
        self.sync_fails = False
        self.is_full = False
        self.free = 1 << 40

    def sync(self, fd: int) -> None:
        if self.sync_fails:
            raise OSError(errno.EIO, "Input/output error")
        super().sync(fd)

    def write(self, fd: int, data: memoryview, position: int) -> None:
        if self.is_full:
            super().write(fd, data[:BLOCK_BYTES], position)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, data, position)

    def free_bytes(self, path: Path) -> int:
        return self.free


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def start(
    data_dir: Path, disk: Disk, settings: BrokerSettings = SETTINGS
) -> tuple[EmbeddedEngine, Partition]:
    engine = EmbeddedEngine(settings, data_dir, disk=disk)
    await engine.start()
    return engine, (await engine.open_topic("t")).partitions[0]


async def payloads(partition: Partition) -> list[bytes]:
    offset, found = 0, []
    while offset < partition.next_offset:
        chunk = await partition.read(offset, 100, 1 << 20)
        found += [record.payload for record in chunk.records]
        offset = chunk.next_offset
    return found


async def test_a_full_disk_holds_messages_back_until_there_is_room(tmp_path):
    disk = BadDisk()
    engine, partition = await start(tmp_path, disk)
    try:
        disk.is_full = True
        ticket = partition.append("p", 1, 1, b"", b"one")
        await until(lambda: engine.throttle_ms() > 0)
        assert not partition.is_durable(ticket)
        disk.is_full = False
        await until(lambda: partition.is_durable(ticket))
        await until(lambda: engine.throttle_ms() == 0)
        assert partition.failure == ""
    finally:
        await engine.stop()
    engine, partition = await start(tmp_path, Disk())
    try:
        assert await payloads(partition) == [b"one"]
    finally:
        await engine.stop()


async def test_the_reserve_throttles_before_the_disk_is_full(tmp_path):
    disk = BadDisk()
    engine, _ = await start(tmp_path, disk)
    try:
        assert engine.throttle_ms() == 0
        disk.free = 1
        await until(lambda: engine.throttle_ms() > 0)
    finally:
        await engine.stop()


async def test_a_failed_sync_ends_the_partition_and_keeps_what_was_acknowledged(tmp_path):
    disk = BadDisk()
    engine, partition = await start(tmp_path, disk)
    try:
        ticket = partition.append("p", 1, 1, b"", b"one")
        await until(lambda: partition.is_durable(ticket))
        disk.sync_fails = True
        lost = partition.append("p", 1, 2, b"", b"two")
        await until(lambda: partition.failure)
        assert "Input/output error" in partition.failure
        assert not partition.is_durable(lost)
        disk.sync_fails = False  # the next sync would lie: the partition stays failed
        with pytest.raises(PartitionFailed):
            partition.append("p", 1, 2, b"", b"two")
        assert await payloads(partition) == [b"one"]
    finally:
        await engine.stop()
    engine, partition = await start(tmp_path, Disk())
    try:
        assert await payloads(partition) == [b"one"]
        ticket = partition.append("p", 1, 2, b"", b"two")
        await until(lambda: partition.is_durable(ticket))
        assert await payloads(partition) == [b"one", b"two"]
    finally:
        await engine.stop()


async def test_retention_deletes_messages_but_remembers_their_producers(tmp_path):
    settings = BrokerSettings(
        partitions=1, disk_reserve_bytes=0, segment_bytes=1 << 20, retention_bytes=2 << 20
    )
    engine, partition = await start(tmp_path, Disk(), settings)
    try:
        ticket = partition.append("early", 7, 3, b"", b"first")
        for sequence in range(1, 81):
            ticket = partition.append("busy", 1, sequence, b"", bytes(100_000))
        await until(lambda: partition.is_durable(ticket))
        await until(lambda: partition.size_bytes <= 2 << 20)
        assert partition.first_offset > 1
        chunk = await partition.read(0, 1, 1 << 20)
        assert chunk.records[0].offset == partition.first_offset
    finally:
        await engine.stop()
    engine, partition = await start(tmp_path, Disk(), settings)
    try:
        before = partition.next_offset
        partition.append("early", 7, 3, b"", b"first")
        assert partition.duplicates == 1
        ticket = partition.append("early", 7, 4, b"", b"second")
        await until(lambda: partition.is_durable(ticket))
        assert partition.next_offset == before + 1
    finally:
        await engine.stop()
