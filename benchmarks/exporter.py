"""The node exporter: a scrape of 16 GPUs over HTTP, and its page against prometheus_client's.

    python -m benchmarks.exporter [--json]

The values are a simulator's. They change before every scrape and every page, so that nothing
is answered from what was rendered before. A scrape is timed by a client on the same machine,
from the request's first byte to the answer's last, over a kept connection to the server that
the collector runs (event loop, uvicorn, guard, Falcon). Every page is read back by
prometheus_client's parser and compared with the values that went in; prometheus_client's
own page of the same families must say the same.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import time
from collections.abc import Callable
from typing import Final

import uvloop
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import report
from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, Cadence
from gputel.clock import NS_PER_S, SYSTEM_CLOCK
from gputel.collector.batcher import Batcher
from gputel.collector.exporter import (
    Exporter,
    ExporterSettings,
    Format,
    exporter_app,
    pages_at_once,
)
from gputel.collector.exporter.latest import all_now
from gputel.kernels import Ring, WhenFull
from gputel.observe import HttpServer, bind
from gputel.observe.guard import Guard
from gputel.sources.sim import Simulator

SCRAPES: Final = 2000
PAGES: Final = 200
ROUNDS: Final = 5
STATES: Final = 8
UPDATE_GPUS: Final = 8
RATES_HZ: Final = {Cadence.FAST: 10.0, Cadence.MEDIUM: 1.0, Cadence.SLOW: 1 / 30}

#: (name, labels in the order of their names) to value.
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Fed:
    """An exporter, and a few states of its GPUs to go through."""

    def __init__(self, gpus: int) -> None:
        periods_ns = {cadence: round(NS_PER_S / hz) for cadence, hz in RATES_HZ.items()}
        source = Simulator(
            node="bench", gpus=gpus, model="NVIDIA H100 80GB HBM3", seed=1, periods_ns=periods_ns
        )
        known = source.open()
        self.exporter = Exporter(ExporterSettings())
        self.exporter.inventory(known)
        self.exporter.expect(dict.fromkeys(METRIC_SETS, 3600 * NS_PER_S))
        rings = {s: Ring(s.storages, 1024, WhenFull.BLOCK) for s in METRIC_SETS}
        batcher = Batcher(rings, known, 16)
        self.states: list[list[tuple[int, Batch]]] = []
        for number in range(STATES):
            for cadence in RATES_HZ:
                source.sweep(cadence, (1_700_000_000 + 10 * number) * NS_PER_S, rings)
            batcher.drain()
            self.states.append([(part.slot, part.batch) for part in batcher.seal()])
        self._next = 0

    def change(self) -> list[tuple[int, Batch]]:
        """Take the next state; returns its batches."""
        state = self.states[self._next % STATES]
        self._next += 1
        now_ns = SYSTEM_CLOCK.monotonic_ns()
        for slot, batch in state:
            self.exporter.update(slot, batch, all_now(now_ns))
        return state

    def page(self) -> bytes:
        """The default page."""
        return self.exporter.page("dcgm", Format.TEXT)

    def shows(self, page: bytes, state: list[tuple[int, Batch]]) -> bool:
        """True when `page` says what the batches hold, and nothing of DCGM beside."""
        wanted: dict[tuple[str, str], float] = {}
        for slot, batch in state:
            for metric, column, valid in zip(
                batch.metric_set.metrics, batch.columns, batch.valid, strict=True
            ):
                dcgm = metric.dcgm
                if dcgm is not None and dcgm.default and valid[0] & 1:
                    value = column[0].item()
                    shown = value // dcgm.divisor if dcgm.integer else round(value, 6)
                    wanted[dcgm.name, str(slot)] = shown
        found = {
            (name, dict(labels)["gpu"]): value
            for (name, labels), value in samples(page).items()
            if name.startswith("DCGM")
        }
        return found == wanted


def samples(page: bytes) -> Samples:
    """Every row of a page, as prometheus_client reads it.

    Its parser gives a counter without the suffix `_total` one; DCGM's names have none.
    """
    return {
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


class Peer:
    """prometheus_client with a gauge a family and a child a GPU."""

    def __init__(self, page: bytes) -> None:
        self._registry = CollectorRegistry()
        self._children: list[tuple[tuple[str, tuple[tuple[str, str], ...]], Gauge]] = []
        for family in text_string_to_metric_families(page.decode()):
            labels = list(family.samples[0].labels)
            name = family.samples[0].name.removesuffix("_total")
            gauge = Gauge(name, family.documentation, labels, registry=self._registry)
            for sample in family.samples:
                key = (name, tuple(sorted(sample.labels.items())))
                self._children.append((key, gauge.labels(**sample.labels)))

    def set(self, values: Samples) -> None:
        """Take new values."""
        for key, child in self._children:
            child.set(values[key])

    def page(self) -> bytes:
        """Its text."""
        return generate_latest(self._registry)


def best_s(render: Callable[[], bytes], change: Callable[[], object]) -> float:
    """CPU seconds of one page, changes apart; the best round counts."""
    best = float("inf")
    for _ in range(ROUNDS):
        spent = 0.0
        for _ in range(PAGES // ROUNDS):
            change()
            started = time.process_time()
            render()
            spent += time.process_time() - started
        best = min(best, spent / (PAGES // ROUNDS))
    return best


def against_prometheus_client(fed: Fed) -> None:
    """exporter.vs_prometheus_client."""
    state = fed.change()
    page = fed.page()
    peer = Peer(page)
    values = samples(page)
    peer.set(values)
    correct = fed.shows(page, state) and samples(peer.page()) == values
    ours_s = best_s(fed.page, fed.change)
    theirs_s = best_s(peer.page, lambda: peer.set(values))
    report.emit(
        "exporter.vs_prometheus_client",
        theirs_s / ours_s,
        "x",
        correct,
        page_us=round(ours_s * 1e6, 1),
        prometheus_client_page_us=round(theirs_s * 1e6, 1),
        rows=len(values),
        target=20,
    )


class Scraper:
    """A client that does little itself, so that the server's time is seen."""

    def __init__(self, server: HttpServer, encoding: str) -> None:
        self._socket = socket.create_connection((server.host, server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = (
            f"GET /metrics HTTP/1.1\r\nHost: bench\r\nAccept-Encoding: {encoding}\r\n\r\n".encode()
        )

    def scrape(self) -> tuple[float, bytes]:
        """(seconds, the body)."""
        started = time.perf_counter()
        self._socket.sendall(self._request)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        header = bytes(received[:end]).lower()
        length = int(header.partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(received) < end + 4 + length:
            received += self._more()
        return time.perf_counter() - started, bytes(received[end + 4 :])

    def _more(self) -> bytes:
        block = self._socket.recv(1 << 20)
        if not block:
            raise ConnectionError("the exporter closed the connection")
        return block

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


async def scrapes(fed: Fed) -> None:
    """exporter.scrape_p50_ms."""
    app = exporter_app(fed.exporter, "dcgm")
    protocol = Guard().protocol(pages_at_once(fed.exporter, "dcgm"))
    server = HttpServer("bench", app, bind("bench", "127.0.0.1", 0), http=protocol)
    await server.start()
    try:
        plain, correct, cpu_s = await _timed(fed, Scraper(server, "identity"), check=True)
        zipped, _, _ = await _timed(fed, Scraper(server, "gzip"), check=False)
    finally:
        await server.stop()
    quantiles = statistics.quantiles(plain, n=100)
    report.emit(
        "exporter.scrape_p50_ms",
        statistics.median(plain) * 1e3,
        "ms",
        correct,
        p99_ms=round(quantiles[98] * 1e3, 3),
        gzip_p50_ms=round(statistics.median(zipped) * 1e3, 3),
        cpu_ms=round(cpu_s / SCRAPES * 1e3, 3),
        bytes=len(fed.page()),
        target=1,
    )


async def _timed(fed: Fed, scraper: Scraper, *, check: bool) -> tuple[list[float], bool, float]:
    """(seconds of each scrape, all pages right, CPU seconds of client and server)."""
    seconds, correct, cpu_s = [], True, 0.0
    try:
        for number in range(SCRAPES):
            state = fed.change()
            started = time.process_time()
            elapsed_s, body = await asyncio.to_thread(scraper.scrape)
            cpu_s += time.process_time() - started
            seconds.append(elapsed_s)
            if check and number % (SCRAPES // 20) == 0:
                correct = correct and fed.shows(body, state)
    finally:
        scraper.close()
    return seconds, correct, cpu_s


def updates() -> None:
    """exporter.update_core_percent: what keeping the latest values costs, at 8 GPUs and 10 Hz."""
    fed = Fed(UPDATE_GPUS)
    state = fed.change()
    correct = fed.shows(fed.page(), state)
    percent = 0.0
    now_ns = SYSTEM_CLOCK.monotonic_ns()
    for cadence, hz in RATES_HZ.items():
        parts = [part for part in state if part[1].metric_set.cadence is cadence]
        best = float("inf")
        for _ in range(PAGES):
            started = time.process_time()
            for slot, batch in parts:
                fed.exporter.update(slot, batch, all_now(now_ns))
            best = min(best, time.process_time() - started)
        percent += best * hz * 100
    report.emit("exporter.update_core_percent", percent, "%", correct, gpus=UPDATE_GPUS, target=0.1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exporter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_arguments(parser)
    parser.add_argument("--gpus", type=int, default=16)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scrapes(Fed(arguments.gpus)))
    against_prometheus_client(Fed(arguments.gpus))
    updates()


if __name__ == "__main__":
    main()
