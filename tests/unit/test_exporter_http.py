"""The exporter over HTTP: what scrapers ask for, many at once, and those that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import time
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime

import httpx
import pytest

from gputel.catalog import METRICS
from gputel.clock import ManualClock
from gputel.collector.exporter import Exporter, Format, exporter_app, pages_at_once
from gputel.collector.exporter.negotiation import negotiate_format, takes_gzip
from gputel.collector.exporter.routes import GZIP_BYTES_MIN
from gputel.observe import HttpServer, Telemetry, bind
from gputel.observe.guard import HEADER_BYTES_MAX, Guard
from support.exporting import exporting, feed, gpu

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
PATIENCE_S = 20


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", Format.TEXT),
        ("*/*", Format.TEXT),
        (PROMETHEUS, Format.OPENMETRICS),
        ("application/openmetrics-text", Format.OPENMETRICS),
        ("application/openmetrics-text; version=0.0.1", Format.OPENMETRICS),
        ("application/openmetrics-text; version=2.0.0", Format.TEXT),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.8", Format.TEXT),
        ("text/plain;q=0.5, Application/OpenMetrics-Text;Q=0.5", Format.OPENMETRICS),
        ("application/openmetrics-text;q=0", Format.TEXT),
        ("application/openmetrics-text;q=nan", Format.TEXT),
        ("application/openmetrics-text;q=high", Format.TEXT),
        ("application/vnd.google.protobuf;q=0.7, text/plain;q=0.3", Format.TEXT),
        (",;=,;;q=,", Format.TEXT),
        ("application/openmetrics-text," * 100_000, Format.OPENMETRICS),
    ],
)
def test_the_format_a_scraper_likes_best(accept: str, form: Format) -> None:
    assert negotiate_format(accept) is form


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        ("", False),
        ("gzip", True),
        ("br, GZIP;q=0.1", True),
        ("gzip;q=0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity, deflate", False),
    ],
)
def test_gzip_is_for_those_who_take_it(header: str, takes: bool) -> None:
    assert takes_gzip(header) is takes


class Served:
    """An exporter of `gpus` GPUs behind a guarded server."""

    def __init__(self, gpus: int, deadline_s: float, connections_max: int) -> None:
        self.exporter: Exporter
        self.clock: ManualClock
        self.exporter, self.clock = exporting([gpu(i, node="n" * 200) for i in range(gpus)])
        self.gpus = gpus
        self.guard = Guard(deadline_s=deadline_s, connections_max=connections_max)
        app = exporter_app(self.exporter, "dcgm")
        protocol = self.guard.protocol(pages_at_once(self.exporter, "dcgm"))
        self.server = HttpServer("test", app, bind("test", "127.0.0.1", 0), http=protocol)
        self.state(1)

    def state(self, number: int) -> None:
        """All values of all GPUs become `number`."""
        values = {m.name: number * (m.dcgm.divisor if m.dcgm else 1) for m in METRICS}
        for slot in range(self.gpus):
            feed(self.exporter, self.clock, slot, values)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.server.url, timeout=PATIENCE_S, trust_env=False)

    async def connect(
        self, limit_bytes: int = 2**16
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.server.host, self.server.port, limit=limit_bytes)


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    @contextlib.asynccontextmanager
    async def serving(
        gpus: int = 2, *, deadline_s: float = PATIENCE_S, connections_max: int = 64
    ) -> AsyncIterator[Served]:
        served = Served(gpus, deadline_s, connections_max)
        await served.server.start()
        try:
            yield served
        finally:
            await served.server.stop()

    return serving


async def test_metrics_as_they_are_asked_for(serve: Serve) -> None:
    async with serve() as served, served.client() as client:
        plain = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
        assert plain.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "Content-Encoding" not in plain.headers
        assert plain.content == served.exporter.page("dcgm", Format.TEXT)
        zipped = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
        assert zipped.headers["Content-Encoding"] == "gzip"
        assert int(zipped.headers["Content-Length"]) < len(plain.content) / 5
        assert zipped.content == plain.content
        native = await client.get("/metrics?profile=gputel", headers={"Accept": PROMETHEUS})
        assert native.headers["Content-Type"].startswith("application/openmetrics-text")
        assert native.content == served.exporter.page("gputel", Format.OPENMETRICS)
        head = await client.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")
        bad = await client.get("/metrics?profile=prometheus")
        assert bad.status_code == 400
        assert "dcgm, gputel" in bad.json()["detail"]
        assert (await client.get("/health")).text == "OK"
        assert "/metrics" in (await client.get("/")).text
        assert (await client.post("/metrics")).status_code == 405


async def test_answers_are_dated_by_the_second(serve: Serve) -> None:
    async with serve() as served, served.client() as client:
        before = int(time.time())
        dates: set[float] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(dates) < 2:
                answer = await client.get("/health")
                dated = parsedate_to_datetime(answer.headers["date"]).timestamp()
                assert before <= dated <= time.time()
                dates.add(dated)
                await asyncio.sleep(0.02)


async def test_a_page_that_fits_a_packet_is_not_zipped(serve: Serve) -> None:
    async with serve(gpus=0) as served, served.client() as client:
        answer = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
        assert len(answer.content) < GZIP_BYTES_MIN
        assert "Content-Encoding" not in answer.headers


@pytest.mark.parametrize("accept", ["text/plain", PROMETHEUS])
async def test_own_metrics_on_request(accept: str) -> None:
    exporter, clock = exporting([gpu(0)])
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    telemetry = Telemetry("collector")
    telemetry.observe_counter("gputel_tests", "Tests", lambda: 3)
    app = exporter_app(exporter, "dcgm", telemetry)
    try:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            answer = await client.get("/metrics", headers={"Accept": accept})
    finally:
        telemetry.close()
    assert answer.text.startswith("# HELP DCGM_FI_DEV_SM_CLOCK")
    assert "gputel_tests_total 3.0" in answer.text
    assert answer.text.count("# EOF") == (accept is PROMETHEUS)
    if accept is PROMETHEUS:
        assert answer.text.endswith("# EOF\n")


async def test_fifty_scrapers_see_whole_updates(serve: Serve) -> None:
    async with serve(gpus=8) as served, served.client() as client:
        last = 1

        async def scrape(number: int) -> set[float]:
            nonlocal last
            seen: set[float] = set()
            for turn in range(4):
                headers = {
                    "Accept": PROMETHEUS if (number + turn) % 2 else "text/plain",
                    "Accept-Encoding": "gzip" if number % 3 else "identity",
                }
                text = (await client.get("/metrics", headers=headers)).text
                values = {float(v) for v in re.findall(r"^DCGM\S*{.*} (\S+)$", text, re.MULTILINE)}
                assert len(values) == 1, "values of two updates on one page"
                assert text.count("DCGM_FI_DEV_SM_CLOCK{") == 8
                seen |= values
                # The others are anywhere between asking and having read.
                last += 1
                served.state(last)
            return seen

        found = await asyncio.gather(*(scrape(number) for number in range(50)))
        seen = set.union(*found)
        assert seen <= set(range(1, last + 1))
        assert len(seen) > 1, "nothing changed meanwhile"
        assert not any(served.guard.aborted.values())


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came before the server ended the connection."""
    received = bytearray()
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            while block := await reader.read(65536):
                received += block
    return bytes(received)


@pytest.mark.parametrize(
    "sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: y", b"\r\n\r\n"]
)
async def test_a_request_that_never_ends_is_cut_off(serve: Serve, sent: bytes) -> None:
    # Not less: the other client has this long, too.
    async with serve(deadline_s=1.0) as served:
        reader, writer = await served.connect()
        writer.write(sent)
        async with served.client() as client:
            assert (await client.get("/metrics")).status_code == 200
        assert await ended(reader) == b""
        assert served.guard.aborted == {"deadline": 1, "header": 0, "evicted": 0}
        writer.close()


async def test_blank_lines_after_a_request_hold_no_connection(serve: Serve) -> None:
    async with serve(deadline_s=0.3) as served:
        reader, writer = await served.connect()
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\nOK")).startswith(b"HTTP/1.1 200")
        writer.write(b"\r\n")
        assert await ended(reader) == b""
        assert served.guard.aborted["deadline"] == 1
        writer.close()


async def test_a_reader_that_stops_reading_is_cut_off(serve: Serve) -> None:
    async with serve(gpus=64, deadline_s=0.5) as served:
        # The reader of the stream stops at its limit; the socket's buffers fill, then the server's.
        reader, writer = await served.connect(limit_bytes=1024)
        request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(request * 40)
        await asyncio.wait_for(_until(lambda: served.guard.aborted["deadline"] == 1), PATIENCE_S)
        async with served.client() as client:
            assert (await client.get("/metrics")).status_code == 200
        page = len(served.exporter.page("dcgm", Format.TEXT))
        assert len(await ended(reader)) < 40 * page
        writer.close()


async def test_headers_have_an_end(serve: Serve) -> None:
    async with serve() as served:
        reader, writer = await served.connect()
        writer.write(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * (HEADER_BYTES_MAX // 6 + 1))
        assert await ended(reader) == b""
        assert served.guard.aborted["header"] == 1
        writer.close()


async def test_the_connection_that_was_silent_longest_makes_room(serve: Serve) -> None:
    async with serve(connections_max=3) as served:
        silent = [await served.connect() for _ in range(3)]
        async with served.client() as client:
            assert (await client.get("/metrics")).status_code == 200
            assert await ended(silent[0][0]) == b""
            # The scraper's own connection is younger than the others: it stays.
            late = await served.connect()
            assert await ended(silent[1][0]) == b""
            assert (await client.get("/metrics")).status_code == 200
        assert served.guard.aborted == {"deadline": 0, "header": 0, "evicted": 2}
        for _, writer in (*silent, late):
            writer.close()


async def test_a_kept_connection_is_served_again_and_again(serve: Serve) -> None:
    async with serve(deadline_s=0.2) as served, served.client() as client:
        for _ in range(3):
            assert (await client.get("/metrics")).status_code == 200
            # Longer than the deadline: an idle connection owes nothing.
            await asyncio.sleep(0.25)
        assert not any(served.guard.aborted.values())


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - any condition
        await asyncio.sleep(0.01)


def test_zipped_pages_are_the_page() -> None:
    exporter, clock = exporting([gpu(0)])
    for number in range(3):
        feed(exporter, clock, 0, {"sm_clock_mhz": number})
        page = exporter.page("dcgm", Format.TEXT)
        assert gzip.decompress(exporter.zipped("dcgm", Format.TEXT, page)) == page
