"""Consume from disk, and at the tail: an observer reads what a broker found, or what comes in.

    python -m benchmarks.consume [--json] [--mib 256] [--rounds 3] [--seconds 1] [--tries 20]

From disk: the broker that wrote the log is stopped first, so that nothing is read from its memory;
the page cache may be warm. At the tail producer, broker and consumer are a process each. Frames
are published at half of the rate that was possible right before; latency is from when a frame was
due to when its consumer has it, fsync included. The disk's own share: a bare loop that, paced
alike, appends what is due and syncs it. gRPC's own share: the same of a `relay`, in turns. Every
message is compared.

What a hypervisor takes is not the broker's. Where a processor is away for 1 % of a round, so is
what 1 % of the frames wait for; and at half of what is possible it takes as long again to make up
for it. So the 99th of 100 tells of the broker only where much less is lost: the figure is the
median of the rounds that lost less than 0.25 % of a processor to the hypervisor and 5 % to other
processes, and less than 1 % and 5 % while their rate was found. There are rounds until `--rounds`
are such, `--tries` at most; when too few are, it is the median of all, and `disturbed`. All are
told.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
    running_process,
    verify,
)
from benchmarks.pacer import BODY, Pacer, pacing
from gputel import limits
from gputel.broker import BrokerClient, StartAt

TOPIC = "frames"
PRODUCERS = 8
IOV_MAX = 1024
STOLEN_PERCENT_MAX: Final = 0.25
RATE_STOLEN_PERCENT_MAX: Final = 1.0
OTHERS_PERCENT_MAX: Final = 5.0


class Round(NamedTuple):
    """One round at the tail, and what was lost meanwhile; see `Spell`."""

    p99_ms: float
    p50_ms: float
    mb_per_s: float
    fsync_loop_p99_ms: float
    relay_p99_ms: float
    relay_p50_ms: float
    stolen_percent: float
    others_percent: float
    rate_stolen_percent: float  # while the rate was found
    rate_others_percent: float
    broker_cpu_us: float  # a frame
    relay_cpu_us: float
    client_cpu_us: float
    correct: bool

    @property
    def disturbed(self) -> bool:
        return (
            self.stolen_percent >= STOLEN_PERCENT_MAX
            or self.rate_stolen_percent >= RATE_STOLEN_PERCENT_MAX
            or max(self.others_percent, self.rate_others_percent) >= OTHERS_PERCENT_MAX
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


class Setup(NamedTuple):
    """A broker with its producer and the client of its consumer."""

    running: BrokerProcess
    client: BrokerClient
    pacer: Pacer


class Spell(NamedTuple):
    """What a while took. What others took, and what was stolen, is of one processor's time; CPU
    time is counted in ticks, so others may have taken a little less than nothing."""

    stolen_percent: float
    others_percent: float
    broker_cpu_s: float
    client_cpu_s: float  # of producer and consumer


class Watch:
    """Sees what the processors do from now on."""

    def __init__(self, running: BrokerProcess) -> None:
        self._running = running
        self._started = time.perf_counter()
        self._stolen_s, self._busy_s = machine.stolen_s(), machine.busy_s()
        self._broker_s, self._consumer_s = running.cpu_s(), time.process_time()

    def spell(self, producer_cpu_s: float) -> Spell:
        """What they have done."""
        percent = 100 / (time.perf_counter() - self._started)
        broker_s = self._running.cpu_s() - self._broker_s
        client_s = time.process_time() - self._consumer_s + producer_cpu_s
        others_s = machine.busy_s() - self._busy_s - broker_s - client_s
        stolen_s = machine.stolen_s() - self._stolen_s
        return Spell(stolen_s * percent, others_s * percent, broker_s, client_s)


async def frames_per_s(setup: Setup, topic: str, seconds: float) -> tuple[float, Spell]:
    """How many frames a second get from one producer through the broker to an observer."""
    await setup.pacer.open(topic, 0, seconds)
    async with setup.client.consumer(topic, start_at=StartAt.EARLIEST) as consumer:
        await anext(consumer)
        got, watch, started = 0, Watch(setup.running), setup.pacer.begin()
        async with asyncio.timeout(DEADLINE_S):
            while (await anext(consumer)).payload:
                got += 1
        elapsed = time.perf_counter() - started
        return got / elapsed, watch.spell(await setup.pacer.cpu_s())


async def at_tail(
    setup: Setup, topic: str, rate: float, seconds: float
) -> tuple[list[float], bool, Spell]:
    """Latencies in seconds of `rate` frames a second; whether each came once, in order."""
    latencies: list[float] = []
    await setup.pacer.open(topic, rate, seconds)
    async with setup.client.consumer(topic, start_at=StartAt.EARLIEST) as consumer:
        sequence = (await anext(consumer)).sequence
        correct = sequence == 1
        watch, started = Watch(setup.running), setup.pacer.begin()
        async with asyncio.timeout(DEADLINE_S):
            while (delivery := await anext(consumer)).payload:
                latencies.append(time.perf_counter() - started - sequence / rate)
                sequence += 1
                correct = correct and delivery.sequence == sequence and is_message(delivery, BODY)
        spell = watch.spell(await setup.pacer.cpu_s())
    return latencies, correct and len(latencies) >= int(rate * seconds), spell


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
    setup: Setup, relay: Setup, directory: Path, number: int, seconds: float
) -> Round:
    """What half of the frames meet that are possible now, at the relay, and in the bare loop."""
    most, full = await frames_per_s(setup, f"most{number}", seconds)
    rate = most / 2
    latencies, correct, half = await at_tail(setup, f"tail{number}", rate, seconds)
    relayed, relay_correct, floor = await at_tail(relay, f"tail{number}", rate, seconds)
    p99, p50 = np.percentile(np.array(latencies) * 1000, (99, 50)).tolist()
    relay_p99, relay_p50 = np.percentile(np.array(relayed) * 1000, (99, 50)).tolist()
    return Round(
        p99_ms=p99,
        p50_ms=p50,
        mb_per_s=rate * limits.FRAME_BYTES_TARGET / 1e6,
        fsync_loop_p99_ms=await asyncio.to_thread(fsync_p99_ms, directory, rate, seconds),
        relay_p99_ms=relay_p99,
        relay_p50_ms=relay_p50,
        stolen_percent=half.stolen_percent,
        others_percent=half.others_percent,
        rate_stolen_percent=full.stolen_percent,
        rate_others_percent=full.others_percent,
        broker_cpu_us=half.broker_cpu_s / len(latencies) * 1e6,
        relay_cpu_us=floor.broker_cpu_s / len(relayed) * 1e6,
        client_cpu_us=half.client_cpu_s / len(latencies) * 1e6,
        correct=correct and relay_correct,
    )


def emit_tail(rounds: list[Round], wanted: int) -> None:
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
    )


@asynccontextmanager
async def setting_up(running: AbstractAsyncContextManager[BrokerProcess]) -> AsyncIterator[Setup]:
    """What serves, with a producer and a client."""
    async with (
        running as process,
        pacing(process.address) as pacer,
        connected(process.address) as client,
    ):
        yield Setup(process, client, pacer)


async def measure(size_mib: int, rounds: int, seconds: float, tries: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gputel-consume-") as name:
        directory = Path(name)
        rates, correct = await from_disk(directory, size_mib, rounds)
        report.emit("consume.mb_per_s", max(rates) / 1e6, "MB/s", correct, worst=min(rates) / 1e6)
        async with (
            setting_up(running_broker_process(directory)) as setup,
            setting_up(running_process("benchmarks.relay", name)) as relay,
        ):
            tails: list[Round] = []
            while len(tails) < tries and sum(not tail.disturbed for tail in tails) < rounds:
                tails.append(await tail_round(setup, relay, directory, len(tails), seconds))
    emit_tail(tails, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256, help="size of the log")
    parser.add_argument(
        "--rounds", type=int, default=3, help="from disk the best counts, at the tail the median"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of finding a rate, and of a round at half of it"
    )
    parser.add_argument(
        "--tries", type=int, default=20, help="at the tail, until `--rounds` were undisturbed"
    )
    report.add_arguments(parser)
    arguments = parser.parse_args()
    tries = max(arguments.tries, arguments.rounds)
    run(measure(arguments.mib, arguments.rounds, arguments.seconds, tries))


if __name__ == "__main__":
    main()
