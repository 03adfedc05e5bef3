"""How long a broker takes to open a large log after it was killed.

    python -m benchmarks.recovery [--json] [--gib 10]

The log is written by the engine itself: the payloads are zeros, which the file system keeps as
holes, so that 10 GiB of sound records take little room. The last segments, all that recovery
reads, hold random bytes, are written for real, and are dropped from the page cache; the last
record of one of them is torn. Measured is a whole process, from its start until it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.brokers import connected, running_broker
from gputel import limits
from gputel.broker import BrokerClient, BrokerSettings
from gputel.broker.engine import Message
from gputel.broker.engine.disk import BLOCK_BYTES, Disk, leave_direct
from gputel.broker.engine.embedded import EmbeddedEngine, Topic

TOPIC: Final = "log"
PARTITIONS: Final = 4
BLOCK_MESSAGES: Final = 64
TORN_BYTES: Final = 7
#: Of each partition's last segment; what is on its way beyond it still fits the segment.
TAIL_BYTES: Final = limits.SEGMENT_BYTES_DEFAULT * 3 // 4
ZEROS: Final = bytes(limits.FRAME_BYTES_TARGET)
SETTINGS: Final = BrokerSettings(partitions=PARTITIONS, retention_bytes=1 << 50)


class SparseDisk(Disk):
    """Leaves holes where whole blocks are zeros, and syncs nothing."""

    def open_log(self, path: Path) -> int:
        fd = super().open_log(path)
        leave_direct(fd)
        return fd

    def write(self, fd: int, data: memoryview, position: int) -> None:
        end = position + len(data)
        first = position
        while first < end:
            behind = min(first - first % BLOCK_BYTES + BLOCK_BYTES, end)
            block = bytes(data[first - position : behind - position])
            if block.strip(b"\0"):
                os.pwrite(fd, block, first)
            first = behind
        os.ftruncate(fd, end)

    def sync(self, fd: int) -> None:
        pass


async def fill(topic: Topic, engine: EmbeddedEngine, sequence: int, payloads: list[bytes]) -> int:
    """One block into each partition, made durable; the last sequence of its producer."""
    for partition in topic.partitions:
        messages = [
            Message(sequence + number, b"", payload)
            for number, payload in enumerate(payloads, start=1)
        ]
        partition.extend(f"p{partition.index}", 1, messages)
    await engine.room()
    return sequence + len(payloads)


async def write_log(data_dir: Path, size_bytes: int, tail: bytes) -> int:
    """Write the log; how many messages each partition has."""
    sequence = 0
    of_block = BLOCK_MESSAGES * len(ZEROS)
    engine = EmbeddedEngine(SETTINGS, data_dir, disk=SparseDisk())
    await engine.start()
    topic = await engine.open_topic(TOPIC)
    for _ in range(size_bytes // PARTITIONS // of_block):
        sequence = await fill(topic, engine, sequence, [ZEROS] * BLOCK_MESSAGES)
    await engine.stop()
    engine = EmbeddedEngine(SETTINGS, data_dir)
    await engine.start()
    topic = await engine.open_topic(TOPIC)
    holes = [len(of.segments_held) for of in topic.partitions]
    while not all(
        len(of.segments_held) > count and of.segments_held[-1].size_bytes >= TAIL_BYTES
        for of, count in zip(topic.partitions, holes, strict=True)
    ):
        sequence = await fill(topic, engine, sequence, [tail] * BLOCK_MESSAGES)
    await engine.stop()
    return sequence


def tear_and_drop(data_dir: Path) -> int:
    """Tear partition 0's last record; drop the last segments from the page cache; their bytes."""
    size_bytes = 0
    for index in range(PARTITIONS):
        path = max((data_dir / "topics" / TOPIC / str(index)).glob("*.log"))
        fd = os.open(path, os.O_RDWR)
        try:
            if index == 0:
                os.ftruncate(fd, path.stat().st_size - TORN_BYTES)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        size_bytes += path.stat().st_size
    return size_bytes


async def check(client: BrokerClient, messages: int, tail: bytes) -> bool:
    """Whether all is there but the torn record, sound, and readable at both ends."""
    [topic] = await client.topics()
    ends = [of.next_offset for of in topic.partitions]
    if ends != [messages - 1] + [messages] * (PARTITIONS - 1):
        return False
    for of in topic.partitions:
        first = await client.fetch(TOPIC, of.partition, 0, 1)
        last = await client.fetch(TOPIC, of.partition, of.next_offset - 1, 1)
        if first.deliveries[0].payload != ZEROS or last.deliveries[0].payload != tail:
            return False
        if last.deliveries[0].sequence != of.next_offset or of.damage or of.failure:
            return False
    return True


async def measure(gib: float) -> None:
    tail = os.urandom(limits.FRAME_BYTES_TARGET)
    with tempfile.TemporaryDirectory(prefix="gputel-recovery-") as name:
        directory = Path(name)
        started = time.perf_counter()
        async with running_broker(directory / "empty"):
            empty_s = time.perf_counter() - started
        data_dir = directory / "broker"
        messages = await write_log(data_dir, round(gib * 1024) * limits.MIB, tail)
        read_bytes = await asyncio.to_thread(tear_and_drop, data_dir)
        started = time.perf_counter()
        async with running_broker(directory) as address, connected(address) as client:
            elapsed = time.perf_counter() - started
            correct = await check(client, messages, tail)
            log_bytes = sum(of.size_bytes for of in (await client.topics())[0].partitions)
    report.emit(
        "recovery.seconds",
        elapsed,
        "s",
        correct and log_bytes >= gib * 1024 * limits.MIB,
        log_gib=log_bytes / (1024 * limits.MIB),
        last_segments_mib=read_bytes / limits.MIB,
        start_of_an_empty_broker_s=empty_s,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gib", type=float, default=10.0, help="size of the log")
    report.add_arguments(parser)
    asyncio.run(measure(parser.parse_args().gib))


if __name__ == "__main__":
    main()
