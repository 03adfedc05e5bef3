"""A real Chromium, and a site for it to look at.

A fixture `site` that starts another pipeline can take the place of this one.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from gputel.api import create_app
from gputel.clock import NS_PER_S, SYSTEM_CLOCK
from gputel.observe import Health, HttpServer, Telemetry, bind
from gputel.stream import Hub, StreamSettings, server_options
from gputel.stream import create_app as create_stream_app
from serving import MemoryBroker, MemoryQuery, Site, frame_bytes, gpu_row

HOSTILE = '<img src=x onerror="document.title=1">'
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class _Pipeline(threading.Thread):
    """API and streamer on an event loop of their own; five frames a second."""

    def __init__(
        self, *, nodes: list[str], age_s: float = 0.0, live: bool = True, late: bool = False
    ) -> None:
        super().__init__(name="pipeline")
        self.ready = threading.Event()
        self.url = ""
        self.failure: BaseException | None = None
        self._live = live
        self._late = late
        now_ns = SYSTEM_CLOCK.time_ns() - round(age_s * NS_PER_S)
        self._query = MemoryQuery()
        for number in range(1, 8 * len(nodes) + 1):
            row = gpu_row(number, nodes[(number - 1) // 8], now_ns)
            self._query.rows.append(row)
            for name, value in _values(number, 0).items():
                self._query.history[number, name] = [
                    (now_ns - step * NS_PER_S, value) for step in range(60, 0, -1)
                ]
        self._rows = list(self._query.rows)
        if late:
            self._query.rows.clear()
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self.failure = error
        finally:
            self.ready.set()
            self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self.join(20)
        assert not self.is_alive()
        if self.failure is not None:
            raise self.failure

    async def _serve(self) -> None:
        api_telemetry, stream_telemetry = Telemetry("api"), Telemetry("stream")
        settings = StreamSettings()
        broker = MemoryBroker()
        health = Health("stream")
        hub = Hub(settings, broker, "telemetry", stream_telemetry, health)  # type: ignore[arg-type]
        stream = HttpServer(
            "stream",
            create_stream_app(hub, stream_telemetry, health),
            bind("stream", "127.0.0.1", 0),
            **server_options(settings),
        )
        app = create_app(
            self._query,  # type: ignore[arg-type]
            api_telemetry,
            Health("api"),
            stream_url=f"ws://127.0.0.1:{stream.port}/ws",
        )
        api = HttpServer("api", app, bind("api", "127.0.0.1", 0))
        await hub.start()
        await stream.start()
        await api.start()
        self.url = api.url
        self.ready.set()
        step = 0
        while not self._stopped.is_set():
            step += 1
            if self._live:
                self._put(broker, step)
            if self._late and step == 10:
                self._query.rows.extend(self._rows)
            try:
                async with asyncio.timeout(0.2):
                    await self._stopped.wait()
            except TimeoutError:
                pass
        await hub.stop()
        await stream.stop()
        await api.stop()
        api_telemetry.close()
        stream_telemetry.close()

    def _put(self, broker: MemoryBroker, step: int) -> None:
        by_node: dict[str, list[tuple[str, dict[str, float]]]] = {}
        for row in self._rows:
            readings = by_node.setdefault(row.gpu.node, [])
            readings.append((row.gpu.uuid, _values(row.gpu_id, step)))
        for node, readings in by_node.items():
            broker.put(frame_bytes(node, readings, SYSTEM_CLOCK.time_ns(), step))


def _values(number: int, step: int) -> dict[str, float]:
    return {
        "gpu_utilization_percent": (number * 7 + step) % 100,
        "memory_used_bytes": (number % 8 + 1) * 2**33,
        "power_watts": 100.0 + (number * 13 + step) % 500,
        "gpu_temperature_celsius": 40 + (number + step) % 40,
        "sm_clock_mhz": 1980,
    }


def _serve(**options: Any) -> Generator[Site]:
    pipeline = _Pipeline(**options)
    pipeline.start()
    try:
        assert pipeline.ready.wait(20)
        yield Site(pipeline.url, 8 * len(options["nodes"]), len(options["nodes"]))
    finally:
        pipeline.stop()


@pytest.fixture
def site() -> Generator[Site]:
    """Two nodes of eight GPUs; the name of one is an attack."""
    yield from _serve(nodes=["node-1", HOSTILE])


@pytest.fixture
def late_site() -> Generator[Site]:
    """The stream brings GPUs two seconds before the database knows them."""
    yield from _serve(nodes=["node-1"], late=True)


@pytest.fixture
def empty_site() -> Generator[Site]:
    """A pipeline that has not seen a GPU."""
    yield from _serve(nodes=[], live=False)


@pytest.fixture
def old_site() -> Generator[Site]:
    """31 nodes whose samples are a month old, as after the replay of a file."""
    yield from _serve(nodes=[f"host-{n}" for n in range(31)], age_s=30 * 86_400, live=False)


# Playwright's synchronous API keeps an event loop running in this thread: it must be over
# before tests elsewhere start theirs.
@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Generator[Page]:
    """A page; afterwards it has written no error and asked nobody but this machine.

    Ask for it after the site, so that it is closed before the site is.
    """
    problems: list[str] = []
    hosts: set[str] = set()
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on(
        "console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: hosts.add(urlsplit(r.url).hostname or ""))
    page.on("websocket", lambda s: hosts.add(urlsplit(s.url).hostname or ""))
    yield page
    page.close()
    assert problems == []
    assert {host for host in hosts if host} <= set(LOOPBACK)
