"""The broker's memory is bounded, whatever producers and consumers do or leave undone."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from benchmarks.brokers import connected, running_broker_process
from benchmarks.producers import cut

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.publish_stream import PublishStream
from gputel.broker.read_ahead import READ_BYTES_MAX
from support.brokers import serving

TOPIC = "many"
DEADLINE_S = 60
CUTS = 600
CUTS_GROWTH_MB_MAX = 4.0  # 7 KB a cut stream; gRPC's state of a call alone is more
IDLE_CONSUMERS = 24
LOG_MIB = 32


@pytest.mark.slow
async def test_streams_that_are_cut_off_leave_nothing_behind(tmp_path: Path) -> None:
    """`python -m benchmarks.producers` cuts 10,000."""
    async with asyncio.timeout(DEADLINE_S), running_broker_process(tmp_path) as running:
        await cut(running.address, CUTS)  # what is allocated once is allocated now
        before_mb = running.rss_mb()
        await cut(running.address, CUTS)
        grown_mb = running.rss_mb() - before_mb
    print(f"grown by {grown_mb:.1f} MB")
    assert grown_mb <= CUTS_GROWTH_MB_MAX


@pytest.mark.slow
async def test_consumers_that_read_nothing_hold_what_was_read_for_them(tmp_path: Path) -> None:
    payload = bytes(limits.FRAME_BYTES_TARGET)
    async with asyncio.timeout(DEADLINE_S):
        async with (
            running_broker_process(tmp_path) as running,
            connected(running.address) as client,
        ):
            publisher = await client.publisher(TOPIC, "p", 1)
            for sequence in range(1, LOG_MIB * limits.MIB // len(payload) + 1):
                await publisher.publish(sequence, "k", payload)
            assert await publisher.flush(DEADLINE_S)
            await publisher.close()
        # Another process: it finds the log on disk, and nothing of it in its memory.
        async with running_broker_process(tmp_path) as running, AsyncExitStack() as stack:
            before_mb = running.rss_mb()
            for _ in range(IDLE_CONSUMERS):
                channel = await stack.enter_async_context(transport.open_channel(running.address))
                await greedy(channel)
            async with connected(running.address) as client:
                consumer = client.consumer(TOPIC, group="another")
                async with consumer:  # is not waiting for them
                    assert (await anext(consumer)).offset == 0
            grown_mb = running.rss_mb() - before_mb
    # One partition, so one read that is being sent and one that lies ready, for each.
    each_mb = (2 * READ_BYTES_MAX + 2 * limits.BATCH_BYTES_MAX) / limits.MIB
    print(f"grown by {grown_mb:.1f} MB")
    assert grown_mb <= 16 + IDLE_CONSUMERS * each_mb < IDLE_CONSUMERS * LOG_MIB / 8


async def greedy(channel: grpc.aio.Channel) -> Any:
    """An observer that asks for everything, and reads nothing once it has got something."""
    call = transport.consume_call(channel)
    start = mq.ConsumeOpen(topic=TOPIC, start_at=mq.START_AT_EARLIEST)
    await call.write(mq.ConsumeRequest(open=start))
    await transport.next_response(call)
    assigned = await transport.next_response(call)
    assert isinstance(assigned, mq.ConsumeResponse)
    for partition in assigned.assignment.partitions:
        generation = assigned.assignment.generation
        position = mq.Position(partition=partition, generation=generation)
        await call.write(mq.ConsumeRequest(position=position))
    credit = mq.Credit(messages=2**32 - 1, bytes=2**63)
    await call.write(mq.ConsumeRequest(credit=credit))
    first = await transport.next_response(call)
    assert isinstance(first, list)
    assert first
    return call


async def test_a_producer_that_reads_no_acks_is_read_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNACKED_RUNS_MAX", 5)
    held: list[int] = []
    whole = PublishStream._acknowledge
    unblock = asyncio.Event()

    async def blocked(self: PublishStream) -> None:
        await unblock.wait()  # as a write does whose peer's window is full
        await whole(self)

    monkeypatch.setattr(PublishStream, "_acknowledge", blocked)
    extend = PublishStream._extend

    def counted(self: PublishStream, *arguments: Any) -> None:
        extend(self, *arguments)
        held.append(len(self._unacked))

    monkeypatch.setattr(PublishStream, "_extend", counted)
    async with (
        asyncio.timeout(DEADLINE_S),
        serving(tmp_path) as server,
        transport.open_channel(server.address) as channel,
    ):
        call = transport.publish_call(channel)
        start = mq.PublishOpen(topic=TOPIC, producer="p", epoch=1)
        await call.write(mq.PublishRequest(open=start))
        await transport.next_response(call)
        for sequence in range(1, 21):
            message = mq.Message(sequence=sequence, key="k", payload=b"x")
            await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=[message])))
        while len(held) < 5:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        async with connected(server.address) as client:
            await client.topics()  # whatever was sent before has been looked at by now
        assert held == [1, 2, 3, 4, 5]
        unblock.set()
        acked = 0
        while acked < 20:
            response = await transport.next_response(call)
            assert response is not None
            acked = response.ack.sequence
        call.cancel()
    assert max(held) == 5


async def test_calls_that_never_open_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BROKER_CALLS_MAX", 8)
    async with (
        asyncio.timeout(DEADLINE_S),
        serving(tmp_path) as server,
        transport.open_channel(server.address) as channel,
    ):
        calls = []
        for _ in range(20):
            call = transport.consume_call(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):  # it is refused already
                await call.wait_for_connection()
            calls.append(call)
        while sum(call.done() for call in calls) < 12:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        codes = {await call.code() for call in calls if call.done()}
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        for call in calls:
            call.cancel()
