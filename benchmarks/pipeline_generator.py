"""A process of its own that publishes what it has encoded before: python -m, by pipeline_ceiling.

    standard output   "ready"                    everything is encoded
    standard input    a line                     begin
    standard output   {"cpu_s": ..., ...}        everything is acknowledged

So that what a load generator costs beside the pipeline is known, and is as little as it can be.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from typing import Final

import uvloop

from benchmarks.pipeline_load import Load, Node, encode_variants
from gputel import broker, limits

EPOCH: Final = 1
ACKNOWLEDGED_WITHIN_S: Final = 300

#: (sequence, key, frame) of one producer, in order.
Messages = list[tuple[int, str, bytes]]


def command(address: str, run: str, producers: int, load: Load) -> list[str]:
    """How to start one."""
    module = [sys.executable, "-m", "benchmarks.pipeline_generator"]
    return [*module, address, run, str(producers), json.dumps(asdict(load))]


def encode(load: Load, run: str, producers: int) -> dict[str, Messages]:
    """Every frame by producer; a producer speaks for every `producers`-th node."""
    names = [f"{run}:{number}" for number in range(producers)]
    messages: dict[str, Messages] = {name: [] for name in names}
    nodes = [Node(run, number, load) for number in range(load.nodes)]
    for _, number, ticks in load.frames():
        chunks = encode_variants(load, ticks)
        for node in nodes:
            name = names[node.number % producers]
            sequence = len(messages[name]) + 1
            frame = node.frame(name, EPOCH, sequence, number, chunks)
            messages[name].append((sequence, node.name, frame))
    return messages


async def publish(address: str, messages: dict[str, Messages]) -> None:
    """Send all as fast as the broker takes it; returns when all is acknowledged."""
    client = await broker.connect(address)

    async def one(producer: str, mine: Messages) -> None:
        pending_bytes = 2 * limits.MIB  # enough to keep the stream busy
        publisher = await client.publisher(
            "telemetry", producer, EPOCH, pending_bytes=pending_bytes
        )
        try:
            for message in mine:
                await publisher.publish(*message)
            if not await publisher.flush(ACKNOWLEDGED_WITHIN_S):
                raise SystemExit("the broker did not acknowledge everything in time")
        finally:
            await publisher.close()

    try:
        await asyncio.gather(*(one(producer, mine) for producer, mine in messages.items()))
    finally:
        await client.close()


def main() -> None:
    address, run, producers, load = sys.argv[1:]
    messages = encode(Load(**json.loads(load)), run, int(producers))
    print("ready", flush=True)
    sys.stdin.readline()
    started_cpu_s, started_s = time.process_time(), time.perf_counter()
    uvloop.run(publish(address, messages))
    outcome = {
        "cpu_s": time.process_time() - started_cpu_s,
        "seconds": time.perf_counter() - started_s,
        "frames": sum(map(len, messages.values())),
        "bytes": sum(len(frame) for mine in messages.values() for _, _, frame in mine),
    }
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
