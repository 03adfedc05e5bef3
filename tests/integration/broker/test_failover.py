"""A client of several brokers: it goes on with the next when its own is gone, and loses nothing.

Proxies stand in for the brokers of a cluster: all of them lead to one log, as it is there.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gputel.broker import (
    BrokerClient,
    Consumer,
    Publisher,
    StartAt,
    rotation,
    transport,
)
from gputel.broker.rotation import Brokers
from gputel.broker.server import BrokerServer
from gputel.clock import ManualClock
from gputel.errors import BrokerUnavailable, InputError, NotFound, ProducerFenced
from support.brokers import connected, serving
from support.proxy import Proxy

DEADLINE_S = 60.0
COUNT = 1200  # at least, and until so often another broker was gone on with
RECONNECTS = 3
SEED = random.randrange(2**32)


class Cluster:
    """One log behind several addresses."""

    def __init__(self, proxies: Sequence[Proxy], server: BrokerServer) -> None:
        self.proxies = proxies
        self.server = server

    @property
    def address(self) -> str:
        return ",".join(proxy.address for proxy in self.proxies)

    def serve(self, *numbers: int) -> None:
        """Only these serve from now on."""
        for number, proxy in enumerate(self.proxies):
            proxy.target = self.server.address if number in numbers else ""
            if number not in numbers:
                proxy.cut()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy()) for _ in range(3)]
        server = await stack.enter_async_context(serving(tmp_path, partitions=2))
        yield Cluster(proxies, server)


@asynccontextmanager
async def refusing(code: grpc.StatusCode) -> AsyncIterator[str]:
    """The address of a broker that answers everything with `code`."""

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            async def refuse(_: Any, context: Any) -> None:
                await context.abort(code, "not now")

            if details.method.rpartition("/")[2] in ("Publish", "Consume"):
                return grpc.stream_stream_rpc_method_handler(refuse)
            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def put(publisher: Publisher, sequence: int) -> None:
    """Publish one message; return when it is acknowledged."""
    await publisher.publish(sequence, "key", b"payload")
    assert await publisher.flush(DEADLINE_S)


async def disturb(cluster: Cluster) -> None:
    """Now this one serves, now that one, now two, and for moments none."""
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    while True:
        cluster.serve(*draw.sample(range(3), draw.choice([0, 1, 1, 1, 2])))
        await asyncio.sleep(draw.uniform(0.02, 0.4))


async def test_nothing_is_lost_or_doubled_while_brokers_come_and_go(cluster: Cluster) -> None:
    cluster.serve(0)
    stored: dict[int, None] = {}
    seen: list[int] = []

    async def store(client: BrokerClient) -> None:
        async with client.consumer("t", group="g") as consumer:
            async for delivery in consumer:
                stored.setdefault(delivery.sequence)
                await consumer.ack(delivery.partition, [delivery.offset])

    async def watch(client: BrokerClient) -> None:
        async with client.consumer("t", start_at=StartAt.EARLIEST) as observer:
            while True:
                seen.append((await anext(observer)).sequence)

    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        tasks = [asyncio.create_task(work) for work in (store(client), watch(client))]
        disturbing = asyncio.create_task(disturb(cluster))
        publisher = await client.publisher("t", "p", 1, pending_bytes=20_000)
        count = 0
        while count < COUNT or publisher.reconnects < RECONNECTS:
            count += 1
            await publisher.publish(count, "key", bytes(1000))
        disturbing.cancel()
        cluster.serve(1)
        assert await publisher.flush(DEADLINE_S)
        while not len(seen) == len(stored) == count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await publisher.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # The broker itself holds each message once, in order.
        (partition,) = [of for of in (await client.topics())[0].partitions if of.next_offset > 0]
        assert partition.next_offset == count
    assert list(stored) == list(range(1, count + 1))
    assert seen == list(range(1, count + 1)), "an observer sees each message once, in order"


async def test_the_same_epoch_goes_on_with_another_broker(cluster: Cluster) -> None:
    cluster.serve(0)
    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        publisher = await client.publisher("t", "p", 7)
        await put(publisher, 1)
        cluster.serve(2)
        await put(publisher, 2)
        # A newer one is still the only one that may publish, wherever it connects.
        cluster.serve(1)
        newer = await client.publisher("t", "p", 8)
        await put(newer, 1)
        with pytest.raises(ProducerFenced):
            await put(publisher, 3)
        await publisher.close()
        await newer.close()


async def test_one_that_answers_unavailable_is_passed_over(cluster: Cluster) -> None:
    cluster.serve(0)
    good = cluster.proxies[0].address
    async with AsyncExitStack() as stack:
        stack_of = stack.enter_async_context
        bad = [await stack_of(refusing(grpc.StatusCode.UNAVAILABLE)) for _ in range(2)]
        client = await stack_of(connected(f"{bad[0]}, {good}, {bad[1]}"))
        async with asyncio.timeout(DEADLINE_S):
            for epoch in range(1, 4):  # each begins at another broker
                publisher = await client.publisher("t", "p", epoch)
                await put(publisher, 1)
                await publisher.close()
                async with client.consumer("t", start_at=StartAt.EARLIEST) as observer:
                    assert [(await anext(observer)).epoch for _ in range(epoch)][-1] == epoch
            for _ in range(3):
                assert [topic.name for topic in await client.topics()] == ["t"]


async def test_one_that_takes_connections_and_says_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "OPEN_TIMEOUT_S", 0.3)
    monkeypatch.setattr(transport, "UNARY_TIMEOUT_S", 0.3)
    cluster.serve(0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        addresses = f"127.0.0.1:{silent.getsockname()[1]},{cluster.proxies[0].address}"
        async with connected(addresses) as client, asyncio.timeout(DEADLINE_S):
            for epoch in (1, 2):
                publisher = await client.publisher("t", "p", epoch)
                await put(publisher, 1)
                await publisher.close()
                assert await client.topics()


async def test_one_that_falls_silent_is_left(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of the times that hold; the minute that gRPC takes by default is not among them.
    quick = [
        (name, value // 4 if "keepalive_time" in name or "ping_timeout" in name else value)
        for name, value in transport.CHANNEL_OPTIONS
    ]
    monkeypatch.setattr(transport, "CHANNEL_OPTIONS", quick)
    cluster.serve(0, 1, 2)

    async def feed(publisher: Publisher) -> None:
        for sequence in count(2):
            await publisher.publish(sequence, "key", bytes(100))
            await asyncio.sleep(0.005)

    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        publisher = await client.publisher("t", "p", 1)
        await put(publisher, 1)
        feeding = asyncio.create_task(feed(publisher))
        while publisher.last_acked_sequence < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        (used,) = [proxy for proxy in cluster.proxies if proxy.busy]
        stalling = asyncio.create_task(used.stall(DEADLINE_S))
        silent_from = publisher.last_acked_sequence
        while publisher.last_acked_sequence < silent_from + 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert publisher.reconnects > 0
        for task in (feeding, stalling):
            task.cancel()
        await asyncio.gather(feeding, stalling, return_exceptions=True)
        await publisher.close()


@pytest.fixture
def home_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "HOME_FIRST_S", 0.2)


async def flee(cluster: Cluster, stream: Publisher | Consumer) -> Proxy:
    """Take the broker of a stream away until it is at another one; the one it was at."""
    (left,) = [of for of in cluster.proxies if of.address == stream._rotation.address]
    left.target = ""
    left.cut()
    while stream._rotation.address == left.address or not stream.connected:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return left


@pytest.mark.usefixtures("home_soon")
async def test_a_publisher_goes_back_to_the_broker_that_is_there_again(cluster: Cluster) -> None:
    cluster.serve(0, 1, 2)
    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        publisher = await client.publisher("t", "p", 1)
        await put(publisher, 1)
        left = await flee(cluster, publisher)
        sequence = 1
        left.target = cluster.server.address
        while publisher._rotation.address != left.address or sequence < 100:
            sequence += 1
            await publisher.publish(sequence, "key", bytes(1000))
            await asyncio.sleep(0.001)
        assert await publisher.flush(DEADLINE_S)
        await publisher.close()
        (partition,) = [of for of in (await client.topics())[0].partitions if of.next_offset > 0]
        assert partition.next_offset == sequence, "each message once"


@pytest.mark.usefixtures("home_soon")
async def test_a_member_that_goes_back_has_not_vanished(cluster: Cluster) -> None:
    cluster.serve(0, 1, 2)
    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        publisher = await client.publisher("t", "p", 1)
        await put(publisher, 1)
        await put(publisher, 2)
        async with client.consumer("t", group="g") as consumer:
            first = await anext(consumer)
            await consumer.ack(first.partition, [first.offset])
            left = await flee(cluster, consumer)
            while (delivery := await anext(consumer)).sequence != 2:
                await consumer.ack(delivery.partition, [delivery.offset])
            left.target = cluster.server.address
            again = await anext(consumer)
            assert consumer._rotation.address == left.address
            assert (again.sequence, again.attempt) == (2, delivery.attempt)
        await publisher.close()


@pytest.mark.usefixtures("home_soon")
async def test_an_observer_that_goes_back_sees_each_message_once(cluster: Cluster) -> None:
    cluster.serve(0, 1, 2)
    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        publisher = await client.publisher("t", "p", 1)
        async with client.consumer("t", start_at=StartAt.EARLIEST) as observer:
            seen: list[int] = []
            await put(publisher, 1)
            seen.append((await anext(observer)).sequence)
            left = await flee(cluster, observer)
            left.target = cluster.server.address
            while observer._rotation.address != left.address or len(seen) < 100:
                await put(publisher, len(seen) + 1)
                seen.append((await anext(observer)).sequence)
        await publisher.close()
    assert seen == list(range(1, len(seen) + 1))


async def test_a_refusal_is_not_asked_for_again_elsewhere(cluster: Cluster) -> None:
    cluster.serve(0, 1, 2)
    async with connected(cluster.address) as client, asyncio.timeout(DEADLINE_S):
        with pytest.raises(NotFound):
            await client.fetch("none", 0, 0)
        publisher = await client.publisher("no topic", "p", 1)
        with pytest.raises(InputError, match="letters"):
            await put(publisher, 1)
        assert publisher.reconnects == 0
        await publisher.close()


async def test_when_none_answers_the_error_names_all(cluster: Cluster) -> None:
    cluster.serve()
    async with connected(cluster.address) as client:
        with pytest.raises(BrokerUnavailable) as caught:
            await client.groups()
    for proxy in cluster.proxies:
        assert proxy.address in str(caught.value)
    assert "is it running?" in str(caught.value)


def test_a_round_is_quick_and_the_next_one_waits_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    brokers = Brokers(["a:1", "b:1", "c:1"])
    turn = brokers.rotation()
    order = [turn.address]
    delays: list[float] = []
    for _ in range(30):
        delays.append(turn.move_on())
        order.append(turn.address)
    assert order[:3] == order[3:6]
    assert set(order) == set(brokers.addresses)
    assert max(delays[:3]) <= rotation.BACKOFF_FIRST_S
    assert min(delays[-3:]) >= rotation.BACKOFF_LAST_S / 2
    assert max(delays) <= rotation.BACKOFF_LAST_S
    # A broker that takes streams and ends them at once is none that serves.
    for _ in range(3):
        turn.serves()
        now_s += rotation.STEADY_S / 2
        assert turn.move_on() >= rotation.BACKOFF_LAST_S / 2
    turn.serves()
    now_s += rotation.STEADY_S
    assert turn.move_on() <= rotation.BACKOFF_FIRST_S


async def test_a_stream_at_the_broker_that_it_began_at_need_not_go(cluster: Cluster) -> None:
    cluster.serve(0, 1, 2)
    brokers = Brokers([proxy.address for proxy in cluster.proxies])
    turn, clock = brokers.rotation(), ManualClock()
    home = turn.address
    going = asyncio.create_task(turn.until_home(clock))
    await asyncio.sleep(0)
    assert not going.done()
    going.cancel()
    turn.move_on()
    assert turn.address != home
    async with asyncio.timeout(DEADLINE_S):
        await turn.until_home(clock)
    assert turn.move_on() == 0
    assert turn.address == home
    await brokers.close()


async def test_a_broker_that_goes_again_and_again_is_tried_more_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited_s: list[float] = []

    class Watch(ManualClock):
        async def sleep(self, seconds: float) -> None:
            waited_s.append(seconds)

    class There:
        async def channel_ready(self) -> None: ...

    brokers = Brokers(["a:1", "b:1"])
    monkeypatch.setattr(brokers, "channel", lambda _: There())
    turn = brokers.rotation()
    for _ in range(10):
        turn.serves()
        turn.move_on()  # it leaves
        turn.serves()
        await turn.until_home(Watch())
        turn.move_on()  # it is back
    assert rotation.HOME_FIRST_S / 2 <= waited_s[0] <= rotation.HOME_FIRST_S * 1.5
    assert rotation.HOME_LAST_S / 2 <= waited_s[-1] <= rotation.HOME_LAST_S * 1.5
    assert waited_s[4] > waited_s[0]


def test_the_streams_of_a_client_begin_in_turn_and_clients_anywhere() -> None:
    brokers = Brokers(["a:1", "b:1"])
    assert {brokers.rotation().address, brokers.rotation().address} == {"a:1", "b:1"}
    firsts = {Brokers(["a:1", "b:1"]).rotation().address for _ in range(100)}
    assert firsts == {"a:1", "b:1"}
