"""Small writes wait for each other, and nobody for what will not come."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gputel import broker, limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import StartAt, transport
from gputel.broker.pace import Pace
from support.brokers import serving

DEADLINE_S = 20.0
MESSAGES = 60
NEVER_S = 3600.0


class Counted:
    """A call that counts the requests that it sends and the responses that it reads."""

    def __init__(self, call: Any, counts: dict[str, int]) -> None:
        self._call = call
        self._counts = counts

    async def write(self, request: Any) -> None:
        if isinstance(request, bytes):
            self._counts["batches"] += 1
        await self._call.write(request)

    async def read(self) -> Any:
        response = await self._call.read()
        if isinstance(response, list):
            self._counts["deliveries"] += 1
        elif isinstance(response, mq.PublishResponse) and response.HasField("ack"):
            self._counts["acks"] += 1
        return response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def pause(monkeypatch: pytest.MonkeyPatch, pause_s: float) -> None:
    """Let every kind of stream pause as long."""
    monkeypatch.setattr("gputel.broker.publisher.REQUESTS_S", pause_s)
    monkeypatch.setattr("gputel.broker.publish_stream.ACKS_S", pause_s)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many batches, acks and responses with deliveries a client's streams have seen."""
    found = {"batches": 0, "acks": 0, "deliveries": 0}
    publish, consume = transport.publish_call, transport.consume_call
    monkeypatch.setattr(transport, "publish_call", lambda channel: Counted(publish(channel), found))
    monkeypatch.setattr(transport, "consume_call", lambda channel: Counted(consume(channel), found))
    return found


async def test_the_first_write_waits_for_nothing_and_the_next_one_its_time() -> None:
    loop, one = asyncio.get_running_loop(), Pace(0.05)
    async with asyncio.timeout(DEADLINE_S):
        await one.wait()
        started = loop.time()
        one.wrote()
        await one.wait()
        assert loop.time() - started >= 0.05
        await one.wait()  # it has passed already


async def test_messages_that_come_closely_share_requests_acks_and_deliveries(
    tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pause(monkeypatch, 0.1)
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        async with client.consumer("t", start_at=StartAt.EARLIEST) as consumer:
            for sequence in range(1, MESSAGES + 1):
                await publisher.publish(sequence, "k", b"x")
                await asyncio.sleep(0)
            got = [(await anext(consumer)).sequence for _ in range(MESSAGES)]
        assert await publisher.flush(DEADLINE_S)
        await publisher.close()
        await client.close()
    assert got == list(range(1, MESSAGES + 1))
    assert all(1 <= count <= MESSAGES // 3 for count in counts.values()), counts


async def test_who_waits_for_each_message_waits_for_no_other(
    tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A producer of one message at a time, and a consumer with room for one."""
    pause(monkeypatch, NEVER_S)
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        for sequence in range(1, 11):
            await publisher.publish(sequence, "k", b"x")
            assert await publisher.flush(DEADLINE_S)
        async with client.consumer("t", group="g", start_at=StartAt.EARLIEST, messages=1) as one:
            for sequence in range(1, 11):
                delivery = await anext(one)
                assert delivery.sequence == sequence
                await one.ack(0, [delivery.offset])
        await publisher.close()
        await client.close()
    assert counts["batches"] == counts["acks"] == 10


async def test_a_full_batch_waits_for_nothing(
    tmp_path: Path, counts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gputel.broker.publisher.REQUESTS_S", NEVER_S)
    acked = asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1, on_change=acked.set)
        for sequence in range(1, 18):
            await publisher.publish(sequence, "k", bytes(limits.BATCH_BYTES_MAX // 2))
        while publisher.last_acked_sequence < 16:  # the last one may wait for another
            await acked.wait()
            acked.clear()
        await publisher.close()
        await client.close()
    assert counts["batches"] >= 8
