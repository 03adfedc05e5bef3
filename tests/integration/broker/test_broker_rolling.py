"""From one segment to the next: nobody waits for what is still to be done with the old file."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from gputel import limits
from gputel.broker.engine import PartitionFailed
from gputel.broker.engine.disk import BLOCK_BYTES, Disk, is_direct
from gputel.broker.engine.embedded import EmbeddedEngine
from gputel.broker.engine.partition import Partition
from gputel.broker.engine.verify import verify
from gputel.broker.settings import BrokerSettings

PAYLOAD_BYTES = 100_000
A_SEGMENT = limits.SEGMENT_BYTES_MIN // PAYLOAD_BYTES  # so many messages


class SlowDisk(Disk):
    """What is done beside commits waits for `go`; what was done is told in order."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.done: list[str] = []
        self.replace_fails = 0
        self.sync_dir_fails = False

    def replace(self, path: Path, data: bytes) -> None:
        if path.suffix == ".producers":
            assert self.go.wait(10)
            if self.replace_fails:
                self.replace_fails -= 1
                raise OSError(errno.ENOSPC, "No space left on device")
        super().replace(path, data)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.done.append("sync")

    def sync_dir(self, path: Path) -> None:
        if self.sync_dir_fails:
            raise OSError(errno.EIO, "Input/output error")
        super().sync_dir(path)
        if threading.current_thread().name == "committer":
            self.done.append("name")


@asynccontextmanager
async def opened(
    path: Path, disk: Disk, *, retention_bytes: int = 1024 * limits.MIB
) -> AsyncIterator[Partition]:
    options = BrokerSettings(
        partitions=1,
        segment_bytes=limits.SEGMENT_BYTES_MIN,
        disk_reserve_bytes=0,
        retention_bytes=retention_bytes,
    )
    engine = EmbeddedEngine(options, path, disk=disk)
    await engine.start()
    try:
        yield (await engine.open_topic("t")).partitions[0]
    finally:
        if isinstance(disk, SlowDisk):
            disk.go.set()
        await engine.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is watched tells nobody
            await asyncio.sleep(0.002)


async def store(partition: Partition, first: int, count: int) -> None:
    for sequence in range(first, first + count):
        ticket = partition.append("p", 1, sequence, b"k", sequence.to_bytes(4) * 25_000)
        await until(partial(_ended, partition, ticket))


def _ended(partition: Partition, ticket: int) -> bool:
    return partition.is_durable(ticket) or bool(partition.failure)


async def sequences(partition: Partition) -> list[int]:
    found: list[int] = []
    offset = partition.first_offset
    while offset < partition.next_offset:
        chunk = await partition.read(offset, 1000, limits.MIB)
        found += [int.from_bytes(record.payload[:4]) for record in chunk.records]
        offset = chunk.next_offset
    return found


def files(path: Path, suffix: str) -> list[Path]:
    return sorted((path / "topics" / "t" / "0").glob(f"*{suffix}"))


async def test_messages_are_durable_while_the_old_file_is_still_open(tmp_path):
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        disk.go.clear()
        await store(partition, 1, A_SEGMENT + 3)
        assert partition.segments == 2
        assert not files(tmp_path, ".producers")
        assert await sequences(partition) == list(range(1, A_SEGMENT + 4))
        disk.go.set()
        await until(lambda: files(tmp_path, ".producers"))
        old = partition.segments_held[0]
        await until(lambda: old.path.stat().st_size == old.size_bytes)
    assert [verdict.sound for verdict in verify(tmp_path)] == [True]


async def test_the_name_of_a_new_file_is_durable_before_its_first_message_is(tmp_path):
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        await store(partition, 1, A_SEGMENT)
        assert "name" not in disk.done
        disk.done.clear()
        await store(partition, A_SEGMENT + 1, 1)
        assert disk.done[:2] == ["sync", "name"]
        await store(partition, A_SEGMENT + 2, 3)
        assert disk.done.count("name") == 1


async def test_a_name_that_may_not_be_durable_ends_the_partition(tmp_path):
    """Whoever acknowledged its messages would promise what a power cut may take."""
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        disk.go.clear()
        await store(partition, 1, A_SEGMENT)
        disk.sync_dir_fails = True
        await store(partition, A_SEGMENT + 1, 1)
        assert partition.next_offset == A_SEGMENT
        with pytest.raises(PartitionFailed):
            partition.append("p", 1, A_SEGMENT + 2, b"k", b"")
        disk.sync_dir_fails = False


async def test_a_second_roll_waits_for_what_the_first_left(tmp_path):
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        disk.go.clear()
        await store(partition, 1, 2 * A_SEGMENT)
        ticket = partition.append("p", 1, 2 * A_SEGMENT + 1, b"k", bytes(PAYLOAD_BYTES))
        await until(lambda: not partition.pending)  # the committer has taken it
        await asyncio.sleep(0.05)
        assert not partition.is_durable(ticket)
        assert partition.segments == 2
        disk.go.set()
        await until(lambda: partition.is_durable(ticket))
        assert partition.segments == 3


async def test_what_failed_is_tried_again_at_the_next_roll(tmp_path):
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        disk.replace_fails = 3  # by the janitor, and twice by the roll behind it
        await store(partition, 1, 2 * A_SEGMENT)
        assert not files(tmp_path, ".producers")
        await store(partition, 2 * A_SEGMENT + 1, 3)
        assert not disk.replace_fails
        await until(lambda: len(files(tmp_path, ".producers")) == 2)
    async with opened(tmp_path, Disk()) as partition:
        assert await sequences(partition) == list(range(1, 2 * A_SEGMENT + 4))
        assert not partition.damage


async def test_what_failed_last_is_left_to_the_next_start(tmp_path, caplog):
    disk = SlowDisk()
    async with opened(tmp_path, disk) as partition:
        disk.replace_fails = 2
        await store(partition, 1, A_SEGMENT + 3)
    assert "the next start goes on with it" in caplog.text
    async with opened(tmp_path, Disk()) as partition:
        assert await sequences(partition) == list(range(1, A_SEGMENT + 4))
        assert not partition.damage
        repeat = partition.append("p", 1, 5, b"k", b"")
        assert repeat < partition.next_offset
        assert partition.duplicates == 1


async def test_a_crash_before_the_old_file_is_cut_is_no_damage(tmp_path, caplog):
    disk = SlowDisk()
    crashed = tmp_path / "crashed"
    async with opened(tmp_path / "lives", disk) as partition:
        disk.go.clear()
        await store(partition, 1, A_SEGMENT + 3)
        shutil.copytree(tmp_path / "lives", crashed)
        fd = partition.segments_held[-1].open()
        direct = is_direct(fd)
    size_bytes = partition.segments_held[0].size_bytes
    old = files(crashed, ".log")[0]
    if direct:
        assert old.stat().st_size == size_bytes + -size_bytes % BLOCK_BYTES
    # A verdict on what a crash left, and on what a broker is about to finish.
    assert [(v.sound, v.tail_bytes) for v in verify(crashed)] == [(True, 0)]
    async with opened(crashed, Disk()) as partition:
        assert old.stat().st_size == size_bytes
        assert await sequences(partition) == list(range(1, A_SEGMENT + 4))
        assert not partition.damage
    assert "torn" not in caplog.text


class CopyingDisk(Disk):
    """Keeps a copy of all files as they are before each operation, as a kill would leave them."""

    def __init__(self, lives: Path, copies: Path) -> None:
        self._lives, self._copies = lives, copies
        self._lock = threading.RLock()
        self.partition: Partition | None = None
        self.taken: list[tuple[str, Path, int]] = []  # before what, where, what was acknowledged

    @contextmanager
    def _before(self, operation: str) -> Iterator[None]:
        with self._lock:
            if self.partition is not None:
                copy = self._copies / str(len(self.taken))
                self.taken.append((operation, copy, self.partition.next_offset))
                shutil.copytree(self._lives, copy)
            yield

    def open_log(self, path: Path) -> int:
        with self._before("open"):
            return super().open_log(path)

    def write(self, fd: int, data: memoryview, position: int) -> None:
        with self._before("write"):
            super().write(fd, data, position)

    def sync(self, fd: int) -> None:
        with self._before("sync"):
            super().sync(fd)

    def truncate(self, path: Path, size_bytes: int) -> None:
        with self._before("truncate"):
            super().truncate(path, size_bytes)

    def replace(self, path: Path, data: bytes) -> None:
        with self._before("replace"):
            super().replace(path, data)

    def sync_dir(self, path: Path) -> None:
        with self._before("sync_dir"):
            super().sync_dir(path)


async def test_a_kill_before_any_operation_of_a_roll_loses_nothing(tmp_path):
    disk = CopyingDisk(tmp_path / "lives", tmp_path / "copies")
    async with opened(tmp_path / "lives", disk) as partition:
        await store(partition, 1, 1)
        disk.partition = partition
        await store(partition, 2, 2 * A_SEGMENT + 1)
        disk.partition = None
    assert {operation for operation, _, _ in disk.taken} == {
        "open", "write", "sync", "truncate", "replace", "sync_dir",
    }  # fmt: skip
    for operation, copy, acknowledged in disk.taken:
        async with opened(copy, Disk()) as partition:
            found = await sequences(partition)
            assert found == list(range(1, len(found) + 1)), operation
            assert len(found) >= acknowledged, operation
            assert not partition.damage, operation
            # It is known who has published what.
            assert partition.append("p", 1, len(found), b"k", b"") == len(found) - 1, operation
        assert [verdict.sound for verdict in verify(copy)] == [True], operation


async def test_old_segments_are_deleted_while_messages_come(tmp_path):
    disk = SlowDisk()
    async with opened(tmp_path, disk, retention_bytes=2 * limits.SEGMENT_BYTES_MIN) as partition:
        await store(partition, 1, 5 * A_SEGMENT)
        await until(lambda: partition.segments <= 3)
        held = [segment.path for segment in partition.segments_held]
        await until(lambda: files(tmp_path, ".log") == held)
        await until(lambda: len(files(tmp_path, ".producers")) == len(held))
        found = await sequences(partition)
        assert found == list(range(partition.first_offset + 1, 5 * A_SEGMENT + 1))
