"""A producer in a process of its own, as collectors are, that publishes at a pace.

    python -m benchmarks.pacer ADDRESS

Each run is told to it by two lines. The first has a topic, frames a second and seconds: it
publishes one frame, and prints a line once the broker has it. The second tells when to begin, in
seconds of `time.perf_counter()`, which is the machine's clock: frames are due from then on, or
follow each other without a pause where their rate is 0, and behind them comes an empty one. When
all is acknowledged it prints the CPU seconds that this took.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.brokers import DEADLINE_S, connected, run
from gputel import limits
from gputel.broker import Publisher

PENDING_BYTES: Final = 8 * limits.MIB
LEAD_S: Final = 0.02  # the producer has to hear of the begin before
#: What each frame has behind its sequence.
BODY: Final = random.Random(1).randbytes(limits.FRAME_BYTES_TARGET - 8)


@dataclass(frozen=True)
class Pacer:
    """A producer that runs in a process of its own."""

    process: asyncio.subprocess.Process

    async def open(self, topic: str, frames_per_s: float, seconds: float) -> None:
        """Publish the first frame of a run."""
        self._tell(f"{topic} {frames_per_s} {seconds}")
        await _line(self.process)

    def begin(self) -> float:
        """Let frames be due soon; from when on, in seconds of `time.perf_counter()`."""
        started = time.perf_counter() + LEAD_S
        self._tell(str(started))
        return started

    async def cpu_s(self) -> float:
        """The CPU time of the run, once all is acknowledged."""
        return float(await _line(self.process))

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())


@asynccontextmanager
async def pacing(address: str) -> AsyncIterator[Pacer]:
    """A producer that runs while the context does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.pacer",
        address,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    try:
        yield Pacer(process)
    finally:
        process.stdin.close()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        line = await process.stdout.readline()
    if not line:
        raise RuntimeError("the producer has ended")
    return line.decode().strip()


def payload(sequence: int) -> bytes:
    """What the frame of a sequence holds."""
    return sequence.to_bytes(8, "big") + BODY


async def _publish(publisher: Publisher, started: float, rate: float, seconds: float) -> None:
    sequence, due_s = 1, 0.0
    while due_s <= seconds:
        sequence += 1
        due_s = (sequence - 1) / rate if rate else time.perf_counter() - started
        pause_s = started + due_s - time.perf_counter()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        await publisher.publish(sequence, "k", payload(sequence))
    await publisher.publish(sequence + 1, "k", b"")


async def _main(address: str) -> None:
    async with connected(address) as client:
        while line := await asyncio.to_thread(sys.stdin.readline):
            topic, rate, seconds = line.split()
            publisher = await client.publisher(topic, "p", 1, pending_bytes=PENDING_BYTES)
            await publisher.publish(1, "k", payload(1))
            assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
            print("ready", flush=True)
            started = float(await asyncio.to_thread(sys.stdin.readline))
            cpu_s = time.process_time()
            await _publish(publisher, started, float(rate), float(seconds))
            assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
            print(time.process_time() - cpu_s, flush=True)
            await publisher.close()


if __name__ == "__main__":
    run(_main(sys.argv[1]))
