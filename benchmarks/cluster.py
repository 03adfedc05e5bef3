"""The cluster engine: three nats-servers, R3, `sync_interval: always`, all on this machine.

    python -m benchmarks.cluster [--json] [--seconds 5] [--kills 3]

Frames through a broker, and the same frames to a stream of the same servers through nats-py,
take turns. Then one producer publishes without a pause while the leader of its partition's
stream is killed (-9) and started again: the gap is how long nothing was acknowledged, from the
last ack before to the first one after. Every acknowledged message is read back and compared,
through a second broker; what comes from nowhere, twice or out of order is no correct result.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from benchmarks import jetstream, report
from benchmarks.brokers import DEADLINE_S, connected, running_broker_process
from gputel import limits
from gputel.broker import BrokerClient, BrokerSettings
from gputel.broker.settings import JetStreamSettings
from gputel.services.nats import NatsServer, ask, running_servers

FRAME_BYTES: Final = limits.FRAME_BYTES_TARGET
SMALL_BYTES: Final = limits.KIB
SMALL_PRODUCERS: Final = 4
TOPIC: Final = "frames"
SETTLE_S: Final = 2.0  # of acknowledgements before the leader is killed


def payload(sequence: int, body: bytes) -> bytes:
    """What is published under a sequence."""
    return sequence.to_bytes(8, "big") + body


async def read_back(client: BrokerClient, topic: str, body: bytes) -> dict[str, list[int]]:
    """The sequences that a topic holds, by producer, in order; AssertionError: other bytes."""
    found: dict[str, list[int]] = {}
    [listed] = [listed for listed in await client.topics() if listed.name == topic]
    for of in listed.partitions:
        offset = of.first_offset
        while offset < of.next_offset:
            fetched = await client.fetch(topic, of.partition, offset)
            for delivery in fetched.deliveries:
                assert delivery.payload == payload(delivery.sequence, body), "other bytes"
                found.setdefault(delivery.producer, []).append(delivery.sequence)
            offset = fetched.next_offset
    return found


async def publish(
    client: BrokerClient, topic: str, producers: int, size_bytes: int, seconds: float
) -> tuple[float, bool]:
    """Messages per second, all acknowledged; whether each is stored once, in order."""
    body = os.urandom(size_bytes - 8)

    async def produce(name: str) -> int:
        publisher = await client.publisher(topic, name, 1, pending_bytes=8 * limits.MIB)
        sequence = 0
        while time.perf_counter() - started < seconds:
            sequence += 1
            await publisher.publish(sequence, name, payload(sequence, body))
        assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
        await publisher.close()
        return sequence

    started = time.perf_counter()
    counts = await asyncio.gather(*(produce(f"p{n}") for n in range(producers)))
    elapsed = time.perf_counter() - started
    stored = await read_back(client, topic, body)
    correct = stored == {f"p{n}": list(range(1, count + 1)) for n, count in enumerate(counts)}
    return sum(counts) / elapsed, correct


def leader_of(servers: list[NatsServer], stream: str) -> int:
    """The index of the server that leads `stream`. Blocks."""
    answer = ask(servers[0].monitor_url, "/jsz?streams=true")
    for account in answer["account_details"]:
        for detail in account["stream_detail"]:
            if detail["name"] == stream:
                names = [server.name for server in servers]
                return names.index(detail["cluster"]["leader"])
    raise RuntimeError(f"no stream {stream}")


async def gap(
    servers: list[NatsServer], client: BrokerClient, other: BrokerClient, topic: str
) -> tuple[float, int, bool]:
    """(seconds without an ack, acknowledged and lost, whether nothing else is wrong)."""
    body = os.urandom(FRAME_BYTES - 8)
    acks: list[tuple[float, int]] = []
    published = 0
    stopping = asyncio.Event()
    publisher = await client.publisher(topic, "p", 1, pending_bytes=4 * limits.MIB)

    async def produce() -> None:
        nonlocal published
        while not stopping.is_set():
            await publisher.publish(published + 1, "k", payload(published + 1, body))
            published += 1

    async def watch() -> None:
        """Note when the last acknowledged sequence moves."""
        while True:
            acked = publisher.last_acked_sequence
            if acked and (not acks or acks[-1][1] != acked):
                acks.append((time.perf_counter(), acked))
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(produce()), asyncio.create_task(watch())]
    try:
        await asyncio.sleep(SETTLE_S)
        victim = servers[await asyncio.to_thread(leader_of, servers, f"gputel_{topic}_0")]
        killed = time.perf_counter()
        victim.kill()
        await victim.ended()
        async with asyncio.timeout(DEADLINE_S):
            while acks[-1][0] - killed < SETTLE_S or len(acks) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            stopping.set()
            await tasks[0]
            assert await publisher.flush(DEADLINE_S), "the broker acknowledges nothing"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    acked = publisher.last_acked_sequence
    await publisher.close()
    await victim.spawn()
    await victim.start(b"")
    around = [moment for moment in acks if moment[0] >= killed - 1]
    longest = max(b[0] - a[0] for a, b in itertools.pairwise(around))
    stored = (await read_back(other, topic, body)).get("p", [])
    lost = len(set(range(1, acked + 1)) - set(stored))
    sound = stored == sorted(set(stored)) and set(stored) <= set(range(1, published + 1))
    return longest, lost, sound


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[tuple[list[NatsServer], list[BrokerClient]]]:
    """Three servers, and the clients of two brokers over them."""
    async with running_servers(directory / "nats") as servers:
        settings = BrokerSettings(
            listen="127.0.0.1:0",
            engine="jetstream",
            partitions=1,
            jetstream=JetStreamSettings(servers=tuple(server.url for server in servers)),
        )
        async with (
            running_broker_process(directory, settings) as a,
            running_broker_process(directory, settings) as b,
            connected(a.address) as to_a,
            connected(b.address) as to_b,
        ):
            yield servers, [to_a, to_b]


async def measure(seconds: float, kills: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gputel-cluster-") as name:
        async with running(Path(name)) as (servers, (client, other)):
            frames, correct = await publish(client, TOPIC, 1, FRAME_BYTES, seconds)
            peer, peer_correct = await jetstream.publish(
                servers[0].url, FRAME_BYTES, seconds, replicas=3
            )
            small, small_correct = await publish(
                client, "small", SMALL_PRODUCERS, SMALL_BYTES, seconds
            )
            megabytes = frames * FRAME_BYTES / 1e6
            report.emit("cluster.publish_mb_per_s", megabytes, "MB/s", correct)
            report.emit(
                "cluster.vs_jetstream",
                frames / peer,
                "x",
                correct and peer_correct,
                jetstream_mb_per_s=peer * FRAME_BYTES / 1e6,
            )
            report.emit("cluster.small_msgs_per_s", small, "1/s", small_correct)
            gaps, lost, sound = [], 0, True
            for number in range(kills):
                longest, missing, well = await gap(servers, client, other, f"kill{number}")
                gaps.append(longest)
                lost += missing
                sound = sound and well
            report.emit("cluster.lost", lost, "msgs", sound and not lost, kills=float(kills))
            report.emit(
                "cluster.gap_s",
                statistics.median(gaps),
                "s",
                sound and not lost,
                shortest=min(gaps),
                longest=max(gaps),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    report.add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--kills", type=int, default=3, help="of leaders")
    options = parser.parse_args()
    absent = jetstream.missing()
    if absent:
        report.skip("cluster.lost", absent)
        return
    asyncio.run(measure(options.seconds, options.kills))


if __name__ == "__main__":
    main()
