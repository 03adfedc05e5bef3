"""`gputel query` against an API of canned pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pytest

from gputel.cli import main

Asked = list[dict[str, str]]


def page(cursor: str | None, **series: list[tuple[str, float | None]]) -> dict[str, Any]:
    return {
        "series": [
            {"metric": name, "time": [t for t, _ in points], "value": [v for _, v in points]}
            for name, points in series.items()
        ],
        "next_cursor": cursor,
    }


def at(second: str) -> str:
    return f"2026-01-02T03:04:{second}Z"


# The first page ends within a time, and one metric has two values at one.
PAGES = {
    None: page(
        "c1",
        power_watts=[(at("05"), 300.5), (at("05.1"), 301.0), (at("05.1"), None)],
        gpu_utilization_percent=[(at("05"), 97)],
    ),
    "c1": page(
        None,
        power_watts=[(at("06"), 302.25)],
        gpu_utilization_percent=[(at("05.1"), 98), (at("07"), 99)],
    ),
}
POWER, UTILIZATION = "power_watts", "gpu_utilization_percent"
LINES = [
    {"time": at("05"), POWER: 300.5, UTILIZATION: 97},
    {"time": "2026-01-02T03:04:05.100000Z", POWER: 301.0, UTILIZATION: 98},
    {"time": "2026-01-02T03:04:05.100000Z", POWER: None},
    {"time": at("06"), POWER: 302.25},
    {"time": at("07"), UTILIZATION: 99},
]
Reply = Callable[[str, dict[str, str]], tuple[int, Any]]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Any]:
    """Set `reply` to what it says; `asked` is what it heard."""

    class Api:
        asked: Asked
        reply: Reply

    state = Api()
    state.asked = []
    state.reply = lambda path, asked: (200, PAGES[asked.get("cursor")])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
            state.asked.append({"path": parts.path, **asked})
            status, body = state.reply(parts.path, asked)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("GPUTEL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GPUTEL_API__LISTEN", f"127.0.0.1:{server.server_port}")
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def query(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["query", "--gpu", "GPU-1", "--metric", POWER, UTILIZATION, *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


def test_json_is_an_object_a_line(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert query("--format", "json") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == LINES
    first, second = api.asked
    assert first["path"] == "/api/v1/gpus/GPU-1/telemetry"
    assert first["metrics"] == f"{POWER},{UTILIZATION}"
    assert second == {**first, "cursor": "c1"}  # the same absolute times


def test_csv(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert query("--format", "csv") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"time,{POWER},{UTILIZATION}",
        f"{at('05')},300.5,97",
        "2026-01-02T03:04:05.100000Z,301.0,98",
        "2026-01-02T03:04:05.100000Z,nan,",
        f"{at('06')},302.25,",
        f"{at('07')},,99",
    ]


def test_table(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert query("--limit", "2") == 0
    assert capsys.readouterr().out.splitlines() == [
        "time                         power_watts gpu_utilization_percent",
        "2026-01-02T03:04:05Z               300.5                      97",
        "2026-01-02T03:04:05.100000Z          301                      98",
    ]


def test_arrow(api: Any, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert query("--format", "arrow") == 0
    table = pa.ipc.open_stream(capfdbinary.readouterr().out).read_all()
    assert table.schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert table.schema.field(UTILIZATION).type == pa.int64()
    assert table.column(UTILIZATION).to_pylist() == [97, 98, None, None, 99]
    assert str(table.column(POWER).to_pylist()) == "[300.5, 301.0, nan, 302.25, None]"


def test_a_step_is_passed_on(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.reply = lambda path, asked: (200, page(None, power_watts=[]))
    times = ("--since", "2026-01-02T00:00:00Z", "--until", "2026-01-02T01:00:00+01:00")
    assert query("--step", "1m", "--agg", "max", *times) == 4  # the end is the beginning
    assert "not before --until" in capsys.readouterr().err
    assert query("--step", "1m", "--agg", "max", *times[:2]) == 0
    (asked,) = api.asked
    assert (asked["step"], asked["agg"]) == ("1m", "max")
    assert asked["start_time"] == "2026-01-02T00:00:00+00:00"
    said = capsys.readouterr()
    assert said.err == "none\n"


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (
            400,
            {"detail": "metrics: 'x' is not a metric", "allowed": ["a", "b"]},
            4,
            "'x' is not a metric (allowed: a, b)",
        ),
        (404, {"detail": "no GPU 'GPU-1'"}, 4, "no GPU 'GPU-1'"),
        (503, {"detail": "the database is away"}, 6, "the database is away"),
        (500, {"title": "Internal"}, 10, "answered 500: Internal"),
        (200, b"<html>", 10, "is not gputel's API"),
    ],
)
def test_a_refusal_is_one_line(
    api: Any, capsys: pytest.CaptureFixture[str], status: int, body: Any, code: int, message: str
) -> None:
    api.reply = lambda path, asked: (status, body)
    assert query() == code
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert said.out == ""


def test_nobody_is_there(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    unused_tcp_port: int,
) -> None:
    monkeypatch.setenv("GPUTEL_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("GPUTEL_API__LISTEN", f"127.0.0.1:{unused_tcp_port}")
    assert query() == 10
    assert "is `gputel up` running?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--agg", "max"), 4, "needs a --step"),
        (("--since", "yesterday"), 4, "--since 'yesterday'"),
        (("--limit", "0"), 2, "a whole number from 1"),
        (("--format", "xml"), 2, "invalid choice"),
    ],
)
def test_what_can_not_be_asked(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert query(*arguments) == code
    assert message in capsys.readouterr().err
