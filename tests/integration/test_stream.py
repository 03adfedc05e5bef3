"""The stream on real sockets: what clients get, and what a bad one can't do to the others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
import websockets

from gputel.clock import SYSTEM_CLOCK
from gputel.observe import Health, HttpServer, Telemetry, bind
from gputel.stream import Hub, StreamSettings, create_app, server_options
from serving import MemoryBroker, frame_bytes

DEADLINE_S = 10


class Site:
    """A running streamer without a broker."""

    def __init__(self, **settings: Any) -> None:
        self.settings = StreamSettings(**settings)
        self.broker = MemoryBroker()
        self.telemetry = Telemetry("stream")
        self.health = Health("stream")
        self.hub = Hub(self.settings, self.broker, "telemetry", self.telemetry, self.health)  # type: ignore[arg-type]
        app = create_app(self.hub, self.telemetry, self.health)
        self.server = HttpServer(
            "stream", app, bind("stream", "127.0.0.1", 0), **server_options(self.settings)
        )
        self.sequence = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.port}/ws"

    def put(self, power: float, node: str = "n1", uuid: str = "GPU-1") -> None:
        self.sequence += 1
        values = {"power_watts": power}
        self.broker.put(frame_bytes(node, [(uuid, values)], SYSTEM_CLOCK.time_ns(), self.sequence))

    def metric(self, name: str) -> float:
        text = self.telemetry.exposition()[0].decode()
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@contextlib.asynccontextmanager
async def running(**settings: Any) -> AsyncGenerator[Site]:
    site = Site(**settings)
    await site.hub.start()
    await site.server.start()
    try:
        await until(lambda: site.hub.source == "live")
        yield site
    finally:
        await site.hub.stop()
        await site.server.stop()
        site.telemetry.close()


@pytest.fixture
async def site() -> AsyncGenerator[Site]:
    async with running() as made:
        yield made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - any condition, no event
            await asyncio.sleep(0.005)


async def receive(client: Any, kind: str) -> dict[str, Any]:
    """The next message of `kind`; others before it are skipped."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            message: dict[str, Any] = json.loads(await client.recv())
            if message["type"] == kind:
                return message


async def say(client: Any, **message: Any) -> None:
    await client.send(json.dumps(message))


@pytest.mark.quiet
async def test_subscribed_snapshot_update(site: Site) -> None:
    site.put(100.0)
    await until(lambda: len(site.hub.board.gpus) == 1)
    async with websockets.connect(site.url) as client:
        assert (await receive(client, "hello"))["source"] == "live"
        await say(client, type="subscribe", id="x", metrics=["power_watts"])
        answer = await receive(client, "subscribed")
        assert answer["metrics"] == [{"name": "power_watts", "unit": "W", "kind": "gauge"}]
        [reading] = (await receive(client, "snapshot"))["gpus"]
        assert (reading["node"], reading["uuid"]) == ("n1", "GPU-1")
        assert reading["values"] == {"power_watts": 100.0}
        started = time.monotonic()
        site.put(200.0)
        update = await receive(client, "update")
        assert time.monotonic() - started < 1
        assert update["gpus"][0]["values"] == {"power_watts": 200.0}
        assert (update["id"], update["conflated"]) == ("x", 0)


async def test_filters_by_node_and_gpu(site: Site) -> None:
    async with websockets.connect(site.url) as client:
        await say(client, type="subscribe", id="n", nodes=["n2"])
        await say(client, type="subscribe", id="g", gpus=["GPU-9"])
        await receive(client, "snapshot")
        await receive(client, "snapshot")
        site.put(1.0)
        site.put(2.0, node="n2", uuid="GPU-2")
        site.put(3.0, node="n3", uuid="GPU-9")
        got = [await receive(client, "update") for _ in range(2)]
        assert {u["id"]: [g["uuid"] for g in u["gpus"]] for u in got} == {
            "n": ["GPU-2"],
            "g": ["GPU-9"],
        }


async def test_unsubscribe_ping_and_errors(site: Site) -> None:
    async with websockets.connect(site.url) as client:
        await say(client, type="ping", id="p")
        assert (await receive(client, "pong"))["id"] == "p"
        await say(client, type="subscribe", id="x")
        await say(client, type="unsubscribe", id="x")
        assert (await receive(client, "unsubscribed"))["id"] == "x"
        for text, code in [
            ("{", "invalid_json"),
            ('{"type":"subscribe","id":"x","metrics":["power"]}', "unknown_metric"),
            ('{"type":"unsubscribe","id":"x"}', "unknown_id"),
            (" " * 70_000, "too_large"),
        ]:
            await client.send(text)
            assert (await receive(client, "error"))["code"] == code
        for number in range(17):
            await say(client, type="subscribe", id=str(number), nodes=[str(number)])
        assert (await receive(client, "error"))["code"] == "too_many"
        await say(client, type="ping")
        await receive(client, "pong")
    await until(lambda: not site.hub.clients)
    assert site.metric("gputel_stream_subscriptions") == 0


async def test_binary_and_far_too_large_messages_end_the_connection(site: Site) -> None:
    for text in (b"binary", "x" * 200_000):
        async with websockets.connect(site.url) as client:
            await receive(client, "hello")
            await client.send(text)
            with pytest.raises(websockets.ConnectionClosed):
                await receive(client, "never")
    await until(lambda: not site.hub.clients)


async def test_rate_limit_merges_updates(site: Site) -> None:
    async with websockets.connect(site.url) as client:
        await say(client, type="subscribe", id="x", max_hz=2, metrics=["power_watts"])
        await receive(client, "snapshot")
        site.put(0.0)
        await receive(client, "update")
        for number in range(1, 51):
            site.put(float(number))
        update = await receive(client, "update")
        assert update["gpus"][0]["values"] == {"power_watts": 50.0}


async def test_same_subscriptions_are_serialised_once(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(websockets.connect(site.url)) for _ in range(50)]
        for client in clients:
            await say(client, type="subscribe", id="x", metrics=["power_watts"])
            await receive(client, "snapshot")
        assert site.metric("gputel_stream_subscriptions") == 1
        site.put(5.0)
        updates = [await receive(client, "update") for client in clients]
        assert all(update == updates[0] for update in updates)
        [feed] = site.hub._feeds.values()
        assert feed.updates == 1


async def test_a_client_that_never_reads_harms_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gputel.stream.client.STALL_S", 0.5)
    uuids = [f"GPU-{n}-{'x' * 400}" for n in range(60)]
    async with websockets.connect(site.url) as good, contextlib.AsyncExitStack() as stack:
        await say(good, type="subscribe", id="x", metrics=["power_watts"], gpus=[uuids[0]])
        await receive(good, "snapshot")
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        stack.callback(silent.close)
        await loop.sock_connect(silent, ("127.0.0.1", site.server.port))
        request = b'{"type":"subscribe","id":"s"}'
        frame = bytes([0x81, 0x80 | len(request), 0, 0, 0, 0]) + request
        await loop.sock_sendall(
            silent,
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n",
        )
        async with asyncio.timeout(DEADLINE_S):
            assert b" 101 " in await loop.sock_recv(silent, 400)
            await loop.sock_sendall(silent, frame)
        await until(lambda: site.metric("gputel_stream_subscriptions") == 2)
        for number in range(3000):
            values = {"power_watts": float(number)}
            now_ns = SYSTEM_CLOCK.time_ns()
            frame = frame_bytes("n1", [(uuid, values) for uuid in uuids], now_ns, number + 1)
            site.broker.put(frame)
            update = await receive(good, "update")
            if site.metric("gputel_stream_cut_off_clients_total"):
                break
        assert update["gpus"][0]["values"] == {"power_watts": float(number)}
        await until(lambda: len(site.hub.clients) == 1)
        assert site.metric("gputel_stream_cut_off_clients_total") == 1
        assert site.metric("gputel_stream_conflated_updates_total") > 0


async def test_too_many_clients() -> None:
    async with running(clients_max=1) as site, websockets.connect(site.url) as first:
        await receive(first, "hello")
        async with websockets.connect(site.url) as second:
            with pytest.raises(websockets.ConnectionClosedError) as caught:
                await receive(second, "hello")
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1013


async def test_foreign_origin_is_refused(site: Site) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        await websockets.connect(site.url, origin=websockets.Origin("http://evil.example"))
    assert caught.value.response.status_code == 403
    async with websockets.connect(
        site.url, origin=websockets.Origin("http://127.0.0.1:8080")
    ) as client:
        await receive(client, "hello")


async def test_broker_away_and_back(site: Site) -> None:
    async with websockets.connect(site.url) as client:
        await say(client, type="subscribe", id="x", metrics=["power_watts"])
        await receive(client, "snapshot")
        site.broker.observer.connected = False
        assert (await receive(client, "status"))["source"] == "reconnecting"
        assert site.health.readiness()["broker"] is not None
        site.broker.observer.connected = True
        assert (await receive(client, "status"))["source"] == "live"
        site.put(7.0)
        assert (await receive(client, "update"))["gpus"][0]["values"] == {"power_watts": 7.0}


async def test_garbage_from_the_broker_is_counted(site: Site) -> None:
    site.broker.put(b"\xff\xff\xff")
    await until(lambda: site.metric("gputel_stream_discarded_total") == 1)
    assert site.health.readiness() == {"broker": None, "hub": None}


async def test_heartbeat_when_idle() -> None:
    async with running(heartbeat_seconds=0.1) as site, websockets.connect(site.url) as client:
        assert (await receive(client, "hello"))["heartbeat_seconds"] == 0.1
        await receive(client, "heartbeat")


async def test_plain_get_says_what_to_do(site: Site) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(site.url.replace("ws", "http", 1))
        assert answer.status_code == 426
        assert answer.headers["upgrade"] == "websocket"
        assert "subscribe" in answer.json()["detail"]
        assert (await http.get(f"{site.server.url}/readyz")).status_code == 200
        assert (await http.get(f"{site.server.url}/nothing")).status_code == 404


async def test_stop_closes_the_clients() -> None:
    async with running() as site:
        async with websockets.connect(site.url) as client:
            await receive(client, "hello")
            await site.hub.stop()
            with pytest.raises(websockets.ConnectionClosed):
                await receive(client, "never")
        assert not site.hub.clients
