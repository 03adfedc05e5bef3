"""Consume from disk: an observer reads a log that a broker found when it started.

    python -m benchmarks.consume [--json] [--mib 256]

The broker that wrote the log is stopped first, so that nothing is read from its memory;
the page cache may be warm. Every message is compared.
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

TOPIC = "frames"
PRODUCERS = 8


async def measure(size_mib: int) -> None:
    count = size_mib * limits.MIB // limits.FRAME_BYTES_TARGET // PRODUCERS
    expected = {f"p{number}": count for number in range(PRODUCERS)}
    body = os.urandom(limits.FRAME_BYTES_TARGET - 8)
    with tempfile.TemporaryDirectory(prefix="gputel-consume-") as name:
        directory = Path(name)
        async with running_broker(directory) as address, connected(address) as client:
            for number in range(PRODUCERS):
                publisher = await client.publisher(TOPIC, f"p{number}", 1)
                for sequence in range(1, count + 1):
                    payload = sequence.to_bytes(8, "big") + body
                    await publisher.publish(sequence, f"k{number}", payload)
                assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
                await publisher.close()
        async with running_broker(directory) as address, connected(address) as client:
            await client.topics()  # connected before the clock starts
            started = time.perf_counter()
            correct = await verify(client, TOPIC, expected, body)
            elapsed = time.perf_counter() - started
    size_bytes = PRODUCERS * count * limits.FRAME_BYTES_TARGET
    report.emit("consume.mb_per_s", size_bytes / elapsed / 1e6, "MB/s", correct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mib", type=int, default=256, help="size of the log")
    report.add_arguments(parser)
    asyncio.run(measure(parser.parse_args().mib))


if __name__ == "__main__":
    main()
