"""Durable publish: fsync before ack, over real gRPC, the broker in a process of its own.

    python -m benchmarks.publish [--json] [--seconds 2] [--rounds 3]

One producer publishes frames; a bare loop appends and syncs as many bytes at a time as the
broker's commits had; JetStream (one replica, `sync_interval: always`) takes the same frames
through nats-py. All three take turns on the same disk, and the best round of each counts. Every
stored message is read back and compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks import jetstream, report
from benchmarks.brokers import (
    DEADLINE_S,
    BrokerProcess,
    connected,
    run,
    running_broker_process,
    verify,
)
from gputel import limits
from gputel.broker import BrokerClient

SMALL_PRODUCERS: Final = 4
SMALL_BYTES: Final = 1 * limits.KIB
FRAME_BYTES: Final = limits.FRAME_BYTES_TARGET
COMMITS: Final = "gputel_broker_commits_total"


class Published(NamedTuple):
    """What one round came to; the CPU times are of a message, client and broker."""

    messages_per_s: float
    correct: bool
    commit_bytes: float
    client_us: float
    broker_us: float


def fsync_loop(directory: Path, size_bytes: int, seconds: float) -> float:
    """Bytes per second of a plain append + fdatasync of `size_bytes` at a time."""
    group = os.urandom(size_bytes)
    fd = os.open(directory / "loop", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        written, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            written += os.write(fd, group)
            os.fdatasync(fd)
        return written / elapsed
    finally:
        os.close(fd)
        (directory / "loop").unlink()


async def publish(
    running: BrokerProcess,
    client: BrokerClient,
    topic: str,
    producers: int,
    size_bytes: int,
    seconds: float,
) -> Published:
    """Publish to a fresh topic, and read it back."""
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

    before = await running.samples()
    started, client_s, broker_s = time.perf_counter(), time.process_time(), running.cpu_s()
    counts = await asyncio.gather(*(produce(number) for number in range(producers)))
    elapsed = time.perf_counter() - started
    client_s, broker_s = time.process_time() - client_s, running.cpu_s() - broker_s
    after = await running.samples()
    commits = after[COMMITS] - before.get(COMMITS, 0)
    expected = {f"p{number}": count for number, count in enumerate(counts)}
    correct = await verify(client, topic, expected, body)
    messages = sum(counts)
    return Published(
        messages / elapsed,
        correct and after[f'gputel_broker_messages_in_total{{topic="{topic}"}}'] == messages,
        messages * size_bytes / commits,
        client_s / messages * 1e6,
        broker_s / messages * 1e6,
    )


async def measure(seconds: float, rounds: int) -> None:
    absent = jetstream.missing()
    frames: list[Published] = []
    small: list[Published] = []
    loops: list[float] = []
    peers: list[tuple[float, bool]] = []
    with tempfile.TemporaryDirectory(prefix="gputel-publish-") as name:
        directory = Path(name)
        async with (
            running_broker_process(directory) as running,
            connected(running.address) as client,
        ):
            for number in range(rounds):
                found = await publish(running, client, f"frames{number}", 1, FRAME_BYTES, seconds)
                frames.append(found)
                loops.append(fsync_loop(directory, round(found.commit_bytes), seconds))
                if not absent:
                    async with jetstream.running_server(directory) as url:
                        peers.append(await jetstream.publish(url, FRAME_BYTES, seconds))
                small.append(
                    await publish(
                        running, client, f"small{number}", SMALL_PRODUCERS, SMALL_BYTES, seconds
                    )
                )
    tell(frames, small, loops, peers, absent)


def tell(
    frames: list[Published],
    small: list[Published],
    loops: list[float],
    peers: list[tuple[float, bool]],
    absent: str,
) -> None:
    best = max(frames)
    correct = all(found.correct for found in frames)
    bytes_per_s = best.messages_per_s * FRAME_BYTES
    report.emit(
        "publish.mb_per_s",
        bytes_per_s / 1e6,
        "MB/s",
        correct,
        worst=min(frames).messages_per_s * FRAME_BYTES / 1e6,
        client_cpu_us=best.client_us,
        broker_cpu_us=best.broker_us,
    )
    report.emit(
        "publish.vs_fsync_loop",
        bytes_per_s / max(loops),
        "x",
        correct,
        fsync_loop_mb_per_s=max(loops) / 1e6,
        commit_kib=best.commit_bytes / limits.KIB,
    )
    if absent:
        report.skip("publish.vs_jetstream", absent)
    else:
        peer = max(peers)[0] * FRAME_BYTES
        report.emit(
            "publish.vs_jetstream",
            bytes_per_s / peer,
            "x",
            correct and all(right for _, right in peers),
            jetstream_mb_per_s=peer / 1e6,
        )
    quickest = max(small)
    report.emit(
        "publish.small_msgs_per_s",
        quickest.messages_per_s,
        "1/s",
        all(found.correct for found in small),
        worst=min(small).messages_per_s,
        client_cpu_us=quickest.client_us,
        broker_cpu_us=quickest.broker_us,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    run(measure(arguments.seconds, arguments.rounds))


if __name__ == "__main__":
    main()
