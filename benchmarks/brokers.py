"""A broker in a process of its own, and the proof that it holds what was published."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from gputel import limits
from gputel.broker import BrokerClient, BrokerSettings, Delivery, StartAt, connect
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.observe import Health, Telemetry
from gputel.services import heap

DEADLINE_S = 60.0


SETTINGS: Final = BrokerSettings(listen="127.0.0.1:0")


async def serve(settings: BrokerSettings, data_dir: Path) -> None:
    """Run a broker on a free port, which is printed, until stdin ends.

    A line on stdin is answered with a line of JSON: the samples of /metrics.
    """
    telemetry = Telemetry("broker")
    engine = make_engine(settings, data_dir)
    server = BrokerServer(settings, engine, telemetry, Health("broker"))
    await server.start()
    print(server.address, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        lines = telemetry.exposition()[0].decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        print(json.dumps({name: float(value) for name, value in pairs}), flush=True)
    await server.stop()
    telemetry.close()


@dataclass(frozen=True)
class BrokerProcess:
    """A broker that runs in a process of its own."""

    address: str
    pid: int
    process: asyncio.subprocess.Process

    async def samples(self) -> dict[str, float]:
        """The samples of its /metrics, by name with labels."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        async with asyncio.timeout(DEADLINE_S):
            line = await self.process.stdout.readline()
        samples: dict[str, float] = json.loads(line)
        return samples

    def rss_mb(self) -> float:
        """Its resident memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

    def cpu_s(self) -> float:
        """The CPU time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running_broker(data_dir: Path) -> AsyncIterator[str]:
    """The address of a broker that runs while the context does."""
    async with running_broker_process(data_dir) as running:
        yield running.address


@asynccontextmanager
async def running_broker_process(
    data_dir: Path, settings: BrokerSettings = SETTINGS
) -> AsyncIterator[BrokerProcess]:
    """A broker that runs while the context does."""
    arguments = (msgspec.json.encode(settings).decode(), str(data_dir / "broker"))
    async with running_process("benchmarks.brokers", *arguments) as running:
        yield running


@asynccontextmanager
async def running_process(module: str, *arguments: str) -> AsyncIterator[BrokerProcess]:
    """What serves in a process of its own, and says where, while the context runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=limits.MIB,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise RuntimeError(f"{module} did not start")
        yield BrokerProcess(address, process.pid, process)
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[BrokerClient]:
    """A client that is closed with the context."""
    client = await connect(address)
    try:
        yield client
    finally:
        await client.close()


def is_message(delivery: Delivery, body: bytes) -> bool:
    """Whether the payload is its sequence as 8 bytes, then `body`; without a copy of either."""
    payload = delivery.payload
    return (
        len(payload) == 8 + len(body)
        and payload.startswith(delivery.sequence.to_bytes(8, "big"))
        and payload.endswith(body)
    )


async def verify(
    client: BrokerClient, topic: str, expected: Mapping[str, int], body: bytes
) -> bool:
    """Whether `topic` holds each producer's messages 1..n once, in order, byte for byte: each of
    them `is_message`."""
    seen = dict.fromkeys(expected, 0)
    missing = sum(expected.values())
    consumer = client.consumer(
        topic, start_at=StartAt.EARLIEST, messages=10_000, bytes=32 * limits.MIB
    )
    async with asyncio.timeout(DEADLINE_S), consumer:
        while missing:
            delivery = await anext(consumer)
            seen[delivery.producer] += 1
            missing -= 1
            if delivery.sequence != seen[delivery.producer] or not is_message(delivery, body):
                return False
    stored = sum(
        partition.next_offset
        for found in await client.topics()
        if found.name == topic
        for partition in found.partitions
    )
    return seen == dict(expected) and stored == sum(expected.values())


def run(main: Coroutine[None, None, None]) -> None:
    """Run `main` as the broker and the sink run: on uvloop, freed memory is kept, and the
    collector leaves what is imported alone.

    Else one collection of the oldest generation, 140 ms, is the p99 of all latencies.
    """
    heap.keep_freed()
    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


if __name__ == "__main__":
    run(serve(msgspec.json.decode(sys.argv[1], type=BrokerSettings), Path(sys.argv[2])))
