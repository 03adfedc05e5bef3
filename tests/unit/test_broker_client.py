"""The client: how it spends its requests, and how it ends."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from gputel import broker
from gputel.broker import StartAt, transport
from gputel.errors import BrokerUnavailable
from support.brokers import serving

DEADLINE_S = 20.0


class Recorded:
    """A call that notes the kinds of the requests it sends."""

    def __init__(self, call: Any, kinds: list[str]) -> None:
        self._call = call
        self._kinds = kinds

    async def write(self, request: Any) -> None:
        self._kinds.append(request.WhichOneof("request"))
        await self._call.write(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of requests that consumers send."""
    kinds: list[str] = []
    whole = transport.consume_call
    monkeypatch.setattr(transport, "consume_call", lambda channel: Recorded(whole(channel), kinds))
    return kinds


class Slow(Recorded):
    """A call whose write of the position ends when the test lets it."""

    def __init__(self, call: Any, kinds: list[str], gate: asyncio.Event) -> None:
        super().__init__(call, kinds)
        self._gate = gate

    async def write(self, request: Any) -> None:
        await super().write(request)
        if request.WhichOneof("request") == "position":
            await self._gate.wait()


async def test_what_is_acknowledged_while_something_is_written_is_said_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, kinds, whole = asyncio.Event(), list[str](), transport.consume_call
    monkeypatch.setattr(
        transport, "consume_call", lambda channel: Slow(whole(channel), kinds, gate)
    )
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        await publisher.publish(1, "k", b"x")
        consumer = client.consumer("t", group="g")
        async with consumer:
            delivery = await anext(consumer)
            await consumer.ack(delivery.partition, [delivery.offset])
            asyncio.get_running_loop().call_soon(gate.set)  # when the end has begun
        await publisher.close()
        (group,) = await client.groups()
        await client.close()
    assert kinds.index("position") < kinds.index("ack")
    assert sum(at.next_offset for at in group.positions) == 1


@pytest.mark.parametrize("group", ["", "g"])
async def test_credit_is_not_sent_for_each_delivery(
    tmp_path: Path, requests: list[str], group: str
) -> None:
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        async with client.consumer("t", group=group, start_at=StartAt.EARLIEST) as consumer:
            for sequence in range(1, 101):
                await publisher.publish(sequence, "k", b"x")
                delivery = await anext(consumer)
                assert delivery.sequence == sequence
                if group:
                    await consumer.ack(0, [delivery.offset])
        await publisher.close()
        await client.close()
    assert requests.count("credit") == 1
    assert requests.count("ack") <= 100


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8, 13])
async def test_whatever_is_held_the_rest_of_the_window_is_delivered(
    tmp_path: Path, window: int
) -> None:
    """A consumer that keeps all but one message of its window never waits for the last one."""
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        for sequence in range(1, 4 * window + 1):
            await publisher.publish(sequence, "k", b"12345")
        assert await publisher.flush(DEADLINE_S)
        for held in range(window):
            # In bytes the window is even smaller: a message may overdraw it.
            async with client.consumer(
                "t", group=f"g{held}", messages=window, bytes=5 * window
            ) as consumer:
                kept = [(await anext(consumer)).offset for _ in range(held)]
                for offset in range(held, 4 * window):
                    assert (await anext(consumer)).offset == offset
                    await consumer.ack(0, [offset])
                await consumer.ack(0, kept)
        await publisher.close()
        await client.close()


async def test_a_client_that_closes_ends_what_it_has_made(tmp_path: Path) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1, pending_bytes=1)
        async with client.consumer("t", start_at=StartAt.EARLIEST) as consumer:
            await publisher.publish(1, "k", b"x")
            assert (await anext(consumer)).sequence == 1
            waiting = [
                asyncio.ensure_future(anext(consumer)),
                asyncio.create_task(publisher.flush(DEADLINE_S)),
            ]
            late = client.consumer("t")
            await publisher.flush(DEADLINE_S)
            await asyncio.sleep(0)
            await client.close()
            for error in await asyncio.gather(waiting[0], return_exceptions=True):
                assert isinstance(error, BrokerUnavailable)
            await waiting[1]
            with pytest.raises(BrokerUnavailable, match="the client is closed"):
                await publisher.publish(2, "k", b"y")
            async with late:
                with pytest.raises(BrokerUnavailable, match="the client is closed"):
                    await anext(late)
            for call in (client.topics(), client.publisher("t", "p", 2)):
                with pytest.raises(BrokerUnavailable, match="the client is closed"):
                    await call
            with pytest.raises(BrokerUnavailable, match="the client is closed"):
                client.consumer("t")
        await client.close()  # again: nothing to do
    gc.collect()
    await asyncio.sleep(0)
    assert not complaints


async def test_a_publisher_nobody_closes_says_nothing_when_its_client_goes(tmp_path: Path) -> None:
    """It went on connecting over the closed channel: a traceback at the end of the process."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    async with asyncio.timeout(DEADLINE_S), serving(tmp_path) as server:
        client = await broker.connect(server.address)
        publisher = await client.publisher("t", "p", 1)
        await publisher.publish(1, "k", b"x")
        task = publisher._task
        await client.close()
        assert task.done()
        del publisher, task
        gc.collect()
        await asyncio.sleep(0)
    assert not complaints
