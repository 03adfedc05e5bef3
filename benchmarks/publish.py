"""Durable publish: fsync before ack, over real gRPC, the broker in a process of its own.

    python -m benchmarks.publish [--json] [--seconds 3]

`publish.vs_fsync_loop` compares with a bare loop of append + fdatasync of the same frames
on the same disk in the same run. Every stored message is read back and compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.brokers import DEADLINE_S, connected, running_broker, verify
from gputel import limits
from gputel.broker import BrokerClient

PRODUCERS = 4
SMALL_BYTES = 1 * limits.KIB


def fsync_loop(directory: Path, size_bytes: int, seconds: float) -> float:
    """Bytes per second of a plain append + fdatasync of `size_bytes` at a time."""
    frame = os.urandom(size_bytes)
    fd = os.open(directory / "loop", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        written, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            written += os.write(fd, frame)
            os.fdatasync(fd)
        return written / elapsed
    finally:
        os.close(fd)
        (directory / "loop").unlink()


async def publish(
    client: BrokerClient, topic: str, size_bytes: int, seconds: float
) -> tuple[float, bool]:
    """Messages per second of PRODUCERS producers, all acknowledged; whether all are right."""
    body = os.urandom(size_bytes - 8)

    async def produce(number: int) -> int:
        publisher = await client.publisher(topic, f"p{number}", 1, pending_bytes=8 * limits.MIB)
        sequence = 0
        while time.perf_counter() - started < seconds:
            sequence += 1
            await publisher.publish(sequence, f"k{number}", sequence.to_bytes(8, "big") + body)
        assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
        await publisher.close()
        return sequence

    started = time.perf_counter()
    counts = await asyncio.gather(*(produce(number) for number in range(PRODUCERS)))
    elapsed = time.perf_counter() - started
    expected = {f"p{number}": count for number, count in enumerate(counts)}
    return sum(counts) / elapsed, await verify(client, topic, expected, body)


async def measure(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="gputel-publish-") as name:
        directory = Path(name)
        loop_s = min(seconds, 2.0)
        loop_bytes_per_s = fsync_loop(directory, limits.FRAME_BYTES_TARGET, loop_s)
        commit_bytes_per_s = fsync_loop(directory, limits.COMMIT_BYTES_MAX, loop_s)
        async with running_broker(directory) as address, connected(address) as client:
            frames, frames_ok = await publish(client, "frames", limits.FRAME_BYTES_TARGET, seconds)
            small, small_ok = await publish(client, "small", SMALL_BYTES, seconds)
    bytes_per_s = frames * limits.FRAME_BYTES_TARGET
    report.emit("publish.mb_per_s", bytes_per_s / 1e6, "MB/s", frames_ok)
    report.emit(
        "publish.vs_fsync_loop",
        bytes_per_s / loop_bytes_per_s,
        "x",
        frames_ok,
        fsync_loop_mb_per_s=loop_bytes_per_s / 1e6,
        # The harder bound: the same loop with the broker's largest commits.
        commit_loop_mb_per_s=commit_bytes_per_s / 1e6,
    )
    report.emit("publish.small_msgs_per_s", small, "1/s", small_ok)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    report.add_arguments(parser)
    asyncio.run(measure(parser.parse_args().seconds))


if __name__ == "__main__":
    main()
