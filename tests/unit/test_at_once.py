"""Answers at once: what a plain GET gets from the protocol is what the application would say."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from gputel.catalog import METRICS
from gputel.collector.exporter import exporter_app, pages_at_once
from gputel.observe import HttpServer, bind
from gputel.observe.at_once import Answer, AtOnce
from gputel.observe.guard import Guard
from support.exporting import exporting, feed, gpu

PATIENCE_S = 20
PLAIN = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
ZIPPED = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n"
OPEN = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\n\r\n"


class Served:
    """The exporter's application behind a protocol that answers at once, and how often each of
    them was asked."""

    def __init__(self) -> None:
        self.exporter, clock = exporting([gpu(0), gpu(1)])
        for slot in (0, 1):
            feed(self.exporter, clock, slot, {metric.name: 7 for metric in METRICS})
        self._app = exporter_app(self.exporter, "dcgm")
        self.asked = 0
        self.takes_s = 0.0
        self.guard = Guard()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await asyncio.sleep(self.takes_s)
        await self._app(scope, receive, send)

    @contextlib.asynccontextmanager
    async def server(self, at_once: AtOnce | None, **options: float) -> AsyncIterator[HttpServer]:
        protocol = self.guard.protocol(at_once)
        sock = bind("test", "127.0.0.1", 0)
        server = HttpServer("test", self, sock, http=protocol, **options)
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


Header = list[tuple[bytes, bytes]]


async def answers(server: HttpServer, sent: bytes, n: int = 1) -> list[tuple[bytes, Header, bytes]]:
    """(status line, header without the date, body) of each of `n` answers to `sent`."""
    found = []
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(sent)
        for _ in range(n):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
            header = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
            length = 0 if sent.startswith(b"HEAD") else int(dict(header)[b"content-length"])
            body = await reader.readexactly(length)
            found.append((status, sorted(h for h in header if h[0] != b"date"), body))
            assert b"date" in dict(header)
        writer.close()
        await writer.wait_closed()
    return found


@pytest.mark.parametrize("sent", [PLAIN, ZIPPED, OPEN], ids=["plain", "zipped", "openmetrics"])
async def test_at_once_as_the_application_would(sent: bytes) -> None:
    served = Served()
    async with served.server(None) as server:
        wanted = await answers(server, sent)
    assert served.asked == 1
    async with served.server(pages_at_once(served.exporter, "dcgm")) as server:
        assert await answers(server, sent) == wanted
    assert served.asked == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", b"405"),
        (b"GET /metrics?profile=gputel HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /metrics?profile=x HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"GET /metrics/none HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /metrics HTTP/1.0\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"200"),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nxy", b"200"),
        (
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"2\r\nxy\r\n0\r\n\r\n",
            b"200",
        ),
        (
            b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain;q=0.1\r\n"
            b"Accept: application/openmetrics-text\r\n\r\n",
            b"200",
        ),
    ],
)
async def test_what_is_not_plain_is_the_applications(sent: bytes, status: bytes) -> None:
    served = Served()
    async with served.server(None) as server:
        wanted = await answers(server, sent)
    async with served.server(pages_at_once(served.exporter, "dcgm")) as server:
        assert await answers(server, sent) == wanted
    assert served.asked == 2
    assert wanted[0][0].split()[1] == status


@pytest.mark.parametrize("version", [b" HTTP/2.0", b" HTTP/0.9", b" HTTP/3.0", b""])
@pytest.mark.parametrize("guarded", [True, False])
async def test_another_version_is_refused_before_the_application(
    version: bytes, guarded: bool
) -> None:
    served = Served()
    options: dict[str, Any] = {"http": served.guard.protocol()} if guarded else {}
    server = HttpServer("test", served, bind("test", "127.0.0.1", 0), **options)
    await server.start()
    ((status, _, body),) = await answers(server, b"GET /metrics%b\r\nHost: x\r\n\r\n" % version)
    await server.stop()
    assert (status, body) == (b"HTTP/1.1 400 Bad Request", b"Invalid HTTP request received.")
    assert served.asked == 0


async def test_requests_in_one_packet_are_answered_in_their_order() -> None:
    served = Served()
    requests = [PLAIN, ZIPPED, OPEN, PLAIN.replace(b"/metrics", b"/health"), ZIPPED] * 4
    async with served.server(None) as server:
        wanted = await answers(server, b"".join(requests), len(requests))
    async with served.server(pages_at_once(served.exporter, "dcgm")) as server:
        assert await answers(server, b"".join(requests), len(requests)) == wanted
    # Only the first: no peer keeps the process busy with one packet.
    assert served.asked == 2 * len(requests) - 1
    assert not any(served.guard.aborted.values())


async def test_a_kept_connection_goes_from_one_to_the_other() -> None:
    served = Served()
    other = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    async with (
        served.server(pages_at_once(served.exporter, "dcgm")) as server,
        asyncio.timeout(PATIENCE_S),
    ):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        for sent in (PLAIN, PLAIN, other, PLAIN, other, other, PLAIN):
            writer.write(sent)
            header = await reader.readuntil(b"\r\n\r\n")
            length = int(header.partition(b"content-length: ")[2].split()[0])
            body = await reader.readexactly(length)
            assert (body == b"OK") == (sent is other)
        writer.close()
    assert served.asked == 3


async def test_what_follows_in_the_packet_may_take_longer_than_an_idle_connection() -> None:
    """The first answer does not let uvicorn's timer for idle connections run on."""
    served = Served()
    served.takes_s = 0.3
    async with served.server(pages_at_once(served.exporter, "dcgm"), timeout_keep_alive=0.05) as at:
        first, second = await answers(at, PLAIN + ZIPPED, 2)
    assert served.asked == 1
    assert gzip.decompress(second[2]) == first[2]


async def test_a_failure_is_told_by_the_application() -> None:
    def fail(target: bytes, header: Mapping[bytes, bytes]) -> Answer | None:
        raise RuntimeError("broken")

    served = Served()
    async with served.server(fail) as server:
        ((status, _, body),) = await answers(server, PLAIN)
    assert status == b"HTTP/1.1 200 OK"
    assert b"DCGM_FI_DEV_SM_CLOCK" in body
    assert served.asked == 1
