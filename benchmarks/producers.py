"""Many collectors on one broker: small frames at 1 Hz, and streams that are cut off.

    python -m benchmarks.producers [--json] [--producers 1000] [--seconds 20] [--cuts 10000]

Every producer is a stream of its own, a hundred share a connection. Latency is from writing a
message to its ack, fsync included. Then streams are opened and cancelled without a word, and the
broker's memory must stay as it is. All stored messages are counted by producer and compared.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np

from benchmarks import report
from benchmarks.brokers import BrokerProcess, connected, run, running_broker_process
from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport

STREAMS_A_CONNECTION = 100
FRAME_BYTES = 1024
TOPIC = "many"
CUTS_AT_ONCE = 50
#: A leak of a call's state (a few KB) would take 10,000 cut streams far beyond.
RSS_GROWTH_MB_MAX = 8.0


@asynccontextmanager
async def opened(channel: grpc.aio.Channel, producer: str) -> AsyncIterator[Any]:
    call = transport.publish_call(channel)
    await call.write(
        mq.PublishRequest(open=mq.PublishOpen(topic=TOPIC, producer=producer, epoch=1))
    )
    first = await transport.next_response(call)
    assert first is not None
    assert first.WhichOneof("response") == "opened"
    try:
        yield call
    finally:
        call.cancel()


async def produce(call: Any, number: int, producers: int, messages: int) -> list[float]:
    """One message a second, spread over the second; the latencies in seconds."""
    body = os.urandom(FRAME_BYTES)
    loop = asyncio.get_running_loop()
    start = loop.time() + 1 + number / producers
    latencies = []
    for sequence in range(1, messages + 1):
        await asyncio.sleep(max(start + sequence - 1 - loop.time(), 0))
        message = mq.Message(sequence=sequence, key=f"node-{number}", payload=body)
        written = time.perf_counter()
        await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=[message])))
        while True:
            response = await transport.next_response(call)
            assert response is not None, "the broker has ended the stream"
            if response.ack.sequence == sequence:
                break
        latencies.append(time.perf_counter() - written)
    return latencies


async def many(running: BrokerProcess, producers: int, seconds: int) -> tuple[list[float], float]:
    """(latencies, share of a core that the broker used)."""
    async with AsyncExitStack() as stack:
        calls = []
        for number in range(producers):
            if number % STREAMS_A_CONNECTION == 0:
                channel = await stack.enter_async_context(transport.open_channel(running.address))
            calls.append(await stack.enter_async_context(opened(channel, f"p{number}")))
        began, cpu_s = time.perf_counter(), running.cpu_s()
        found = await asyncio.gather(
            *(produce(call, number, producers, seconds) for number, call in enumerate(calls))
        )
        share = (running.cpu_s() - cpu_s) / (time.perf_counter() - began)
    return [latency for latencies in found for latency in latencies], share


async def cut(address: str, count: int) -> None:
    """Open streams of all kinds and cancel them where they stand."""

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        if number % 2:
            async with opened(channel, f"cut-{number % 500}") as call:
                message = mq.Message(sequence=1, key="k", payload=b"x")
                await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=[message])))
        else:
            call = transport.consume_call(channel)
            group = "" if number % 4 else "g"
            await call.write(mq.ConsumeRequest(open=mq.ConsumeOpen(topic=TOPIC, group=group)))
            await transport.next_response(call)
            call.cancel()

    async with transport.open_channel(address) as channel:
        for first in range(0, count, CUTS_AT_ONCE):
            numbers = range(first, min(first + CUTS_AT_ONCE, count))
            await asyncio.gather(*(one(channel, number) for number in numbers))


async def stored(client: broker.BrokerClient, producers: int) -> dict[str, int]:
    """Messages by producer, of those that are not cut off."""
    found = dict.fromkeys((f"p{number}" for number in range(producers)), 0)
    [topic] = [listed for listed in await client.topics() if listed.name == TOPIC]
    for of in topic.partitions:
        offset = of.first_offset
        while offset < of.next_offset:
            fetched = await client.fetch(TOPIC, of.partition, offset)
            for delivery in fetched.deliveries:
                if delivery.producer in found:
                    found[delivery.producer] += 1
            offset = fetched.next_offset
    return found


def commit_ms(samples: dict[str, float], share: float) -> float:
    """The least bucket bound, ms, that `share` of the broker's commits took at most."""
    prefix = 'gputel_broker_commit_seconds_bucket{le="'
    bounds = sorted(
        (float(name.removeprefix(prefix).split('"')[0]), count)
        for name, count in samples.items()
        if name.startswith(prefix)
    )
    return next(bound for bound, count in bounds if count >= share * bounds[-1][1]) * 1000


async def measure(producers: int, seconds: int, cuts: int) -> None:
    with tempfile.TemporaryDirectory(prefix="gputel-producers-") as name:
        async with (
            running_broker_process(Path(name)) as running,
            connected(running.address) as client,
        ):
            address = running.address
            latencies, share = await many(running, producers, seconds)
            commit_p99_ms = commit_ms(await running.samples(), 0.99)
            rss_mb = running.rss_mb()
            correct = set((await stored(client, producers)).values()) == {seconds}
            await cut(address, cuts // 5)  # what is allocated once is allocated now
            before_mb = running.rss_mb()
            await cut(address, cuts)
            grown_mb = running.rss_mb() - before_mb
    p50, p99 = np.percentile(np.array(latencies) * 1000, (50, 99)).tolist()
    report.emit(
        "producers.ack_p99_ms",
        p99,
        "ms",
        correct,
        p50_ms=p50,
        producers=producers,
        # What of it is the disk: the bound of the histogram bucket where the commits' p99 lies.
        commit_p99_ms=commit_p99_ms,
    )
    report.emit("producers.cpu_percent", share * 100, "%", correct, producers=producers)
    report.emit("producers.rss_mb", rss_mb, "MB", correct, producers=producers)
    report.emit(
        "producers.rss_growth_mb",
        grown_mb,
        "MB",
        correct and grown_mb <= RSS_GROWTH_MB_MAX,
        cut_streams=cuts,
        limit_mb=RSS_GROWTH_MB_MAX,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--producers", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=20, help="messages of each producer")
    parser.add_argument("--cuts", type=int, default=10_000, help="streams opened and cancelled")
    report.add_arguments(parser)
    arguments = parser.parse_args()
    run(measure(arguments.producers, arguments.seconds, arguments.cuts))


if __name__ == "__main__":
    main()
