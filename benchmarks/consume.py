"""Consume from disk, and at the tail: an observer reads what a broker found, or what comes in.

    python -m benchmarks.consume [--json] [--mib 256] [--rounds 3] [--seconds 5] [--tries 12]

From disk: the broker that wrote the log is stopped first, so that nothing is read from its memory;
the page cache may be warm. At the tail: frames are published at half of the rate that was
possible right before; latency is from when a frame was due to when its consumer has it, fsync
included. The disk's own share: a bare loop that, paced alike, appends what is due and syncs it.
Every message is compared.

What a hypervisor takes is not the broker's: where a processor is away for 1 % of a round, so is
what 1 % of the frames wait for, and the 99th of 100 tells of the machine. So it does beside other
work. The figure is the median of the rounds that lost less than 1 % of a processor to the one and
5 % to the other. There are rounds until `--rounds` are such, `--tries` at most; when too few are,
it is the median of all, and `disturbed`. All rounds are told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from benchmarks import machine, report
from benchmarks.brokers import (
    DEADLINE_S,
    BrokerProcess,
    connected,
    is_message,
    run,
    running_broker,
    running_broker_process,
    verify,
)
from gputel import limits
from gputel.broker import BrokerClient, StartAt

TOPIC = "frames"
PRODUCERS = 8
IOV_MAX = 1024
STOLEN_PERCENT_MAX: Final = 1.0
OTHERS_PERCENT_MAX: Final = 5.0


class Round(NamedTuple):
    """One round at the tail. What others took, and what was stolen, is of one processor's time;
    CPU time is counted in ticks, so others may have taken a little less than nothing."""

    p99_ms: float
    p50_ms: float
    fsync_loop_p99_ms: float
    stolen_percent: float
    others_percent: float
    broker_cpu_us: float
    client_cpu_us: float
    correct: bool

    @property
    def disturbed(self) -> bool:
        return (
            self.stolen_percent >= STOLEN_PERCENT_MAX or self.others_percent >= OTHERS_PERCENT_MAX
        )


async def from_disk(directory: Path, size_mib: int, rounds: int) -> tuple[list[float], bool]:
    """Bytes per second of each round, each with a broker of its own."""
    count = size_mib * limits.MIB // limits.FRAME_BYTES_TARGET // PRODUCERS
    expected = {f"p{number}": count for number in range(PRODUCERS)}
    body = os.urandom(limits.FRAME_BYTES_TARGET - 8)
    async with running_broker(directory) as address, connected(address) as client:
        for number in range(PRODUCERS):
            publisher = await client.publisher(TOPIC, f"p{number}", 1)
            for sequence in range(1, count + 1):
                payload = sequence.to_bytes(8, "big") + body
                await publisher.publish(sequence, f"k{number}", payload)
            assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
            await publisher.close()
    found: list[float] = []
    correct = True
    for _ in range(rounds):
        async with running_broker(directory) as address, connected(address) as client:
            await client.topics()  # connected before the clock starts
            started = time.perf_counter()
            correct = await verify(client, TOPIC, expected, body) and correct
            elapsed = time.perf_counter() - started
        found.append(PRODUCERS * count * limits.FRAME_BYTES_TARGET / elapsed)
    return found, correct


async def frames_per_s(client: BrokerClient, seconds: float) -> float:
    """How many frames a second get from one producer through the broker to an observer."""
    publisher = await client.publisher("most", "p", 1, pending_bytes=8 * limits.MIB)
    consumer = client.consumer("most", start_at=StartAt.EARLIEST)
    body = bytes(limits.FRAME_BYTES_TARGET)
    sent = 0

    async def produce() -> None:
        nonlocal sent
        while time.perf_counter() - started < seconds:
            sent += 1
            await publisher.publish(sent, "k", body)

    async with asyncio.timeout(DEADLINE_S), consumer:
        started = time.perf_counter()
        producing = asyncio.create_task(produce())
        got = 0
        while not producing.done() or got < sent:
            got = (await anext(consumer)).sequence
        elapsed = time.perf_counter() - started
        await producing
    await publisher.close()
    return got / elapsed


async def at_tail(
    client: BrokerClient, topic: str, rate: float, seconds: float
) -> tuple[list[float], bool]:
    """Latencies in seconds of `rate` frames a second; whether each came once, in order."""
    body = os.urandom(limits.FRAME_BYTES_TARGET - 8)
    publisher = await client.publisher(topic, "p", 1)
    consumer = client.consumer(topic, start_at=StartAt.EARLIEST)
    count = round(rate * seconds)
    latencies: list[float] = []
    async with asyncio.timeout(DEADLINE_S), consumer:
        await publisher.publish(1, "k", (1).to_bytes(8, "big") + body)
        correct = (await anext(consumer)).sequence == 1  # both are connected
        started = time.perf_counter()

        async def produce() -> None:
            for sequence in range(2, count + 2):
                await asyncio.sleep(started + (sequence - 1) / rate - time.perf_counter())
                await publisher.publish(sequence, "k", sequence.to_bytes(8, "big") + body)

        producing = asyncio.create_task(produce())
        for sequence in range(2, count + 2):
            delivery = await anext(consumer)
            latencies.append(time.perf_counter() - started - (sequence - 1) / rate)
            correct = correct and delivery.sequence == sequence and is_message(delivery, body)
        await producing
    await publisher.close()
    return latencies, correct


def fsync_p99_ms(directory: Path, rate: float, seconds: float) -> float:
    """The same latency of a bare loop that appends all frames that are due, and syncs once."""
    frame = os.urandom(limits.FRAME_BYTES_TARGET)
    latencies: list[float] = []
    fd = os.open(directory / "loop", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        started = time.perf_counter()
        while len(latencies) < rate * seconds:
            first = len(latencies)
            time.sleep(max(started + first / rate - time.perf_counter(), 0))
            due = max(int((time.perf_counter() - started) * rate), first) + 1 - first
            os.writev(fd, [frame] * min(due, IOV_MAX))
            os.fdatasync(fd)
            now = time.perf_counter() - started
            latencies += [now - (first + n) / rate for n in range(min(due, IOV_MAX))]
    finally:
        os.close(fd)
        (directory / "loop").unlink()
    return float(np.percentile(np.array(latencies) * 1000, 99))


async def tail_round(
    client: BrokerClient,
    running: BrokerProcess,
    directory: Path,
    topic: str,
    rate: float,
    seconds: float,
) -> Round:
    """What `rate` frames a second meet, and behind them the bare loop."""
    started, stolen_s, busy_s = time.perf_counter(), machine.stolen_s(), machine.busy_s()
    client_s, broker_s = time.process_time(), running.cpu_s()
    latencies, correct = await at_tail(client, topic, rate, seconds)
    client_s, broker_s = time.process_time() - client_s, running.cpu_s() - broker_s
    elapsed = time.perf_counter() - started
    stolen_s = machine.stolen_s() - stolen_s
    others_s = machine.busy_s() - busy_s - client_s - broker_s
    p99, p50 = np.percentile(np.array(latencies) * 1000, (99, 50)).tolist()
    return Round(
        p99_ms=p99,
        p50_ms=p50,
        fsync_loop_p99_ms=await asyncio.to_thread(fsync_p99_ms, directory, rate, seconds),
        stolen_percent=stolen_s / elapsed * 100,
        others_percent=others_s / elapsed * 100,
        broker_cpu_us=broker_s / len(latencies) * 1e6,
        client_cpu_us=client_s / len(latencies) * 1e6,
        correct=correct,
    )


def emit_tail(rounds: list[Round], wanted: int, rate: float) -> None:
    """Tell the median of the rounds that count, and all of them."""
    quiet = [found for found in rounds if not found.disturbed]
    disturbed = len(quiet) < wanted
    counted = rounds if disturbed else quiet

    def median(field: str) -> float:
        values: list[float] = [getattr(found, field) for found in counted]
        return statistics.median(values)

    report.emit(
        "consume.tail_p99_ms",
        median("p99_ms"),
        "ms",
        all(found.correct for found in rounds),
        **{field: median(field) for field in Round._fields if field not in ("p99_ms", "correct")},
        worst=max(found.p99_ms for found in counted),
        disturbed=disturbed,
        rounds=[found._asdict() for found in rounds],
        mb_per_s=rate * limits.FRAME_BYTES_TARGET / 1e6,
    )


async def measure(size_mib: int, rounds: int, seconds: float, tries: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gputel-consume-") as name:
        directory = Path(name)
        rates, correct = await from_disk(directory, size_mib, rounds)
        report.emit("consume.mb_per_s", max(rates) / 1e6, "MB/s", correct, worst=min(rates) / 1e6)
        async with (
            running_broker_process(directory) as running,
            connected(running.address) as client,
        ):
            rate = await frames_per_s(client, seconds) / 2
            tails: list[Round] = []
            while len(tails) < tries and sum(not tail.disturbed for tail in tails) < rounds:
                topic = f"tail{len(tails)}"
                tails.append(await tail_round(client, running, directory, topic, rate, seconds))
    emit_tail(tails, rounds, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256, help="size of the log")
    parser.add_argument(
        "--rounds", type=int, default=3, help="from disk the best counts, at the tail the median"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round at the tail")
    parser.add_argument(
        "--tries", type=int, default=12, help="at the tail, until `--rounds` lost no time"
    )
    report.add_arguments(parser)
    arguments = parser.parse_args()
    tries = max(arguments.tries, arguments.rounds)
    run(measure(arguments.mib, arguments.rounds, arguments.seconds, tries))


if __name__ == "__main__":
    main()
