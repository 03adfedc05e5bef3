"""Own metrics, health and the HTTP port that serves them."""

from __future__ import annotations

import gzip
import io
import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from gputel.errors import InputError, PortInUse
from gputel.observe import Health, HttpServer, Telemetry, bind, configure_logging, status_app


@pytest.fixture
def telemetry():
    telemetry = Telemetry("test")
    yield telemetry
    telemetry.close()


def test_counters_and_gauges_are_read_when_somebody_looks(telemetry: Telemetry) -> None:
    rows = {"value": 3}
    telemetry.observe_counter("gputel_ring_dropped_rows", "Rows dropped", lambda: rows["value"])
    telemetry.observe_gauge(
        "gputel_lag_messages", "Lag", lambda: [(7, {"partition": "0"}), (8, {"partition": "1"})]
    )
    rows["value"] = 5
    body, content_type = telemetry.exposition()
    text = body.decode()
    assert content_type.startswith("text/plain")
    assert "# TYPE gputel_ring_dropped_rows_total counter" in text
    assert "gputel_ring_dropped_rows_total 5.0" in text
    assert 'gputel_lag_messages{partition="1"} 8.0' in text
    assert 'service_name="gputel-test"' in text


def test_a_histogram_has_bounds_that_fit_latencies(telemetry: Telemetry) -> None:
    record = telemetry.histogram("gputel_commit_seconds", "Commit")
    record(0.004)
    text = telemetry.exposition()[0].decode()
    assert 'gputel_commit_seconds_bucket{le="0.0025"} 0.0' in text
    assert 'gputel_commit_seconds_bucket{le="0.005"} 1.0' in text


class _Receiver(BaseHTTPRequestHandler):
    """An OTLP/HTTP receiver, which keeps what it gets."""

    got: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.got.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver():
    """The address of an OTLP/HTTP receiver, and what it has got."""
    _Receiver.got.clear()
    with HTTPServer(("127.0.0.1", 0), _Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", _Receiver.got
        server.shutdown()
        thread.join()


def _told(telemetry: Telemetry, accept: str) -> list[str]:
    lines = telemetry.exposition(accept)[0].decode().splitlines()
    return [line for line in lines if "gputel_commit_seconds" in line]


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_a_histogram_is_told_alike_where_it_is_also_sent(
    telemetry: Telemetry, receiver: tuple[str, list[tuple[str, bytes]]], accept: str
) -> None:
    address, got = receiver
    sending = Telemetry("test", otlp_endpoint=address)
    for one in (telemetry, sending):
        record = one.histogram("gputel_commit_seconds", "Commit")
        for seconds in (0.0004, 0.0005, 0.004, 2, 7):
            record(seconds)
    assert _told(telemetry, accept) == _told(sending, accept)
    assert 'gputel_commit_seconds_bucket{le="5.0"} 4.0' in _told(sending, accept)
    sending.close()
    assert {path for path, _ in got} == {"/v1/metrics"}
    metrics = [
        metric
        for _, body in got
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == "gputel_commit_seconds"
    ]
    assert [metric.histogram.data_points[0].count for metric in metrics] == [5]


def test_openmetrics_by_content_negotiation(telemetry: Telemetry) -> None:
    telemetry.observe_counter("gputel_things", "Things", lambda: 1)
    body, content_type = telemetry.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_two_sets_of_instruments_do_not_mix() -> None:
    one, two = Telemetry("one"), Telemetry("two")
    one.observe_counter("gputel_ones", "Ones", lambda: 1)
    assert b"gputel_ones" not in two.exposition()[0]
    one.close()
    two.close()


async def test_the_status_port_serves_metrics_and_health(telemetry: Telemetry) -> None:
    health = Health("test")
    problem: dict[str, str | None] = {"database": "connection refused"}
    health.live("thread", lambda: None)
    health.ready("database", lambda: problem["database"])
    server = HttpServer("test", status_app(telemetry, health), bind("test", "127.0.0.1", 0))
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.url) as client:
            assert (await client.get("/healthz")).status_code == 200
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json() == {
                "service": "test",
                "status": "failing",
                "checks": {"thread": "ok", "database": "connection refused"},
            }
            problem["database"] = None
            assert (await client.get("/readyz")).json()["status"] == "ok"
            assert "target_info" in (await client.get("/metrics")).text
            assert (await client.get("/nothing")).status_code == 404
    finally:
        await server.stop()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"api: 127.0.0.1:{port} is in use"):
            bind("api", "127.0.0.1", port)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(InputError, match=r"api: can't listen on 192\.0\.2\.1:0"):
        bind("api", "192.0.2.1", 0)


def test_json_logs_keep_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        configure_logging("sink", style="json")
        logging.getLogger("gputel.sink").warning("lost %d rows", 3, extra={"partition": 1})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    entry = json.loads(stream.getvalue())
    assert entry["message"] == "lost 3 rows"
    assert entry["partition"] == 1
    assert entry["service"] == "sink"
    assert entry["level"] == "warning"
