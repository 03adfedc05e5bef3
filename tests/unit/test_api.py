"""REST: what clients see, what they may ask, and what they are told when it goes wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import openapi_spec_validator
import pytest
from falcon import testing

from gputel import limits
from gputel.api import create_app
from gputel.api.app import stream_url_for
from gputel.api.openapi import openapi
from gputel.api.routes import ROUTES
from gputel.catalog import METRICS
from gputel.clock import NS_PER_S, ManualClock
from gputel.errors import DatabaseUnavailable, QueryInvalid
from gputel.inventory import Event, EventKind, ProcessKind, ProcessSample
from gputel.observe import Health, Telemetry
from gputel.store.events import EventRow
from serving import MemoryQuery, gpu_row

NOW_NS = 1_700_000_000 * NS_PER_S
HOSTILE = '<img src=x onerror="alert(1)">'


@pytest.fixture
def query() -> MemoryQuery:
    rows = [gpu_row(n, "node-a" if n < 4 else HOSTILE, NOW_NS) for n in range(1, 7)]
    points = [(NOW_NS - 2 * NS_PER_S, 300.5), (NOW_NS - NS_PER_S + 250_000_000, 310.0)]
    return MemoryQuery(rows, {(1, "power_watts"): points, (2, "xid_last"): [(NOW_NS, 79)]})


@pytest.fixture
def client(query: MemoryQuery) -> Iterator[Any]:
    telemetry = Telemetry("api")
    app = create_app(
        query,  # type: ignore[arg-type]
        telemetry,
        Health("api"),
        stream_url="ws://127.0.0.1:8081/ws",
        clock=ManualClock(NOW_NS),
    )
    yield testing.TestClient(app)
    telemetry.close()


def problem(result: Any, status: int) -> dict[str, Any]:
    assert result.status_code == status, result.text
    assert result.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = result.json
    assert {"type", "title", "status", "detail", "instance"} <= set(body)
    assert body["status"] == status
    return body


def test_lists_gpus_in_pages(client: Any) -> None:
    seen: list[int] = []
    cursor = ""
    for _ in range(3):
        page = client.simulate_get(f"/api/v1/gpus?limit=2{cursor}").json
        seen += [gpu["id"] for gpu in page["gpus"]]
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == [1, 2, 3, 4, 5, 6]
    assert page["next_cursor"] is None


@pytest.mark.parametrize(
    ("question", "ids"),
    [
        ({"node": "node-a"}, [1, 2, 3]),
        ({"node": HOSTILE}, [4, 5, 6]),
        ({"uuid": "GPU-0002"}, [2]),
        ({"model": "none"}, []),
    ],
)
def test_filters_gpus(client: Any, question: dict[str, str], ids: list[int]) -> None:
    page = client.simulate_get("/api/v1/gpus", params=question).json
    assert [gpu["id"] for gpu in page["gpus"]] == ids


def test_latest_values_come_with_their_times(client: Any) -> None:
    page = client.simulate_get("/api/v1/gpus?latest=true&metrics=power_watts").json
    assert page["gpus"][0]["latest"] == {
        "power_watts": {"time": "2023-11-14T22:13:19.250000Z", "value": 310.0}
    }
    assert page["gpus"][1]["latest"] == {}
    assert "latest" not in client.simulate_get("/api/v1/gpus").json["gpus"][0]


@pytest.mark.parametrize("id", ["1", "GPU-0001"])
def test_one_gpu_by_number_or_uuid(client: Any, id: str) -> None:
    gpu = client.simulate_get(f"/api/v1/gpus/{id}").json
    assert (gpu["id"], gpu["uuid"]) == (1, "GPU-0001")
    assert gpu["last_seen"] == "2023-11-14T22:13:20Z"


def test_telemetry_is_columnar(client: Any) -> None:
    answer = client.simulate_get("/api/v1/gpus/1/telemetry?metrics=power_watts").json
    assert answer["start_time"] == "2023-11-14T21:13:20Z"
    assert answer["end_time"] == "2023-11-14T22:13:20Z"
    assert answer["series"] == [
        {
            "metric": "power_watts",
            "unit": "W",
            "kind": "gauge",
            "time": ["2023-11-14T22:13:18Z", "2023-11-14T22:13:19.250000Z"],
            "value": [300.5, 310.0],
        }
    ]
    assert answer["next_cursor"] is None


def test_a_step_gives_whole_buckets(client: Any) -> None:
    question = "metrics=power_watts&start_time=1699999999&step=1m"
    answer = client.simulate_get(f"/api/v1/gpus/1/telemetry?{question}").json
    assert answer["start_time"] == "2023-11-14T22:13:00Z"
    assert answer["end_time"] == "2023-11-14T22:14:00Z"
    assert (answer["step_s"], answer["agg"], answer["next_cursor"]) == (60, "avg", None)
    assert answer["series"] == [
        {
            "metric": "power_watts",
            "unit": "W",
            "kind": "gauge",
            "time": ["2023-11-14T22:13:00Z"],
            "value": [305.25],
        }
    ]
    for agg, value in (("min", 300.5), ("max", 310.0), ("sum", 610.5), ("count", 2)):
        answer = client.simulate_get(f"/api/v1/gpus/1/telemetry?{question}&agg={agg}").json
        assert (answer["agg"], answer["series"][0]["value"]) == (agg, [value])


@pytest.mark.parametrize(
    ("question", "parameter"),
    [
        ("step=0s", "step"),
        ("step=1", "step"),
        ("step=1m30s", "step"),
        ("step=367d", "step"),
        ("step=9999999999w", "step"),
        ("agg=max", "agg"),
        ("step=1m&agg=median", "agg"),
        ("step=1m&cursor=abc", "cursor"),
    ],
)
def test_a_step_that_is_none(client: Any, question: str, parameter: str) -> None:
    body = problem(client.simulate_get(f"/api/v1/gpus/1/telemetry?{question}"), 400)
    assert body["parameter"] == parameter


def test_processes_of_a_gpu(client: Any, query: MemoryQuery) -> None:
    seen = ProcessSample(NOW_NS - 5, "GPU-0001", 4711, ProcessKind.COMPUTE, 2**33, 97, name=HOSTILE)
    query.ran = [seen, ProcessSample(NOW_NS - 5, "GPU-0002", 1, ProcessKind.MPS)]
    answer = client.simulate_get("/api/v1/gpus/1/processes?limit=3").json
    assert answer["gpu"]["uuid"] == "GPU-0001"
    assert answer["processes"] == [
        {
            "time": "2023-11-14T22:13:19.999999Z",
            "pid": 4711,
            "kind": "compute",
            "name": HOSTILE,
            "cgroup": "",
            "container_id": "",
            "memory_used_bytes": 2**33,
            "sm_utilization_percent": 97,
            "memory_utilization_percent": None,
            "encoder_utilization_percent": None,
            "decoder_utilization_percent": None,
        }
    ]
    assert answer["next_cursor"] is None
    assert query.asked[-1]["limit"] == 3
    problem(client.simulate_get("/api/v1/gpus/99/processes"), 404)


def test_events_and_their_filters(client: Any, query: MemoryQuery) -> None:
    query.happened = [EventRow(9, "node-a", Event(NOW_NS, EventKind.XID, "GPU-0001", 79, "lost"))]
    answer = client.simulate_get("/api/v1/events?kind=xid,lost,xid&gpu=1&node=node-a").json
    assert answer["events"] == [
        {
            "id": 9,
            "time": "2023-11-14T22:13:20Z",
            "node": "node-a",
            "gpu_uuid": "GPU-0001",
            "kind": "xid",
            "code": 79,
            "message": "lost",
        }
    ]
    kinds = [EventKind.XID, EventKind.LOST]
    assert query.asked[-1] == {"kinds": kinds, "gpu": "1", "node": "node-a", "cursor": None}
    assert client.simulate_get("/api/v1/events").status_code == 200
    assert query.asked[-1]["kinds"] is None
    answer = problem(client.simulate_get("/api/v1/events?kind=party"), 400)
    assert answer["parameter"] == "kind"
    assert "xid" in answer["allowed"]


def test_telemetry_takes_dcgm_names_and_defaults(client: Any, query: MemoryQuery) -> None:
    one = client.simulate_get("/api/v1/gpus/1/telemetry?metrics=DCGM_FI_DEV_POWER_USAGE").json
    assert [series["metric"] for series in one["series"]] == ["power_watts"]
    every = client.simulate_get("/api/v1/gpus/1/telemetry").json
    assert len(every["series"]) == len(METRICS)
    assert query.asked[-1]["limit"] == limits.QUERY_POINTS_DEFAULT


@pytest.mark.parametrize(
    ("question", "start_ns"),
    [
        ("start_time=1699999990", 1_699_999_990 * NS_PER_S),
        ("start_time=1699999990.5", 1_699_999_990 * NS_PER_S + 500_000_000),
        ("start_time=2023-11-14T22:00:00Z", 1_699_999_200 * NS_PER_S),
        ("start_time=2023-11-14T23:00:00.000001%2B01:00", 1_699_999_200 * NS_PER_S + 1000),
        ("start_time=2023-11-14T23:00:00+01:00", 1_699_999_200 * NS_PER_S),
        ("start_time=-15m", NOW_NS - 900 * NS_PER_S),
    ],
)
def test_times_in_every_form(client: Any, query: MemoryQuery, question: str, start_ns: int) -> None:
    assert client.simulate_get(f"/api/v1/gpus/1/telemetry?{question}").status_code == 200
    assert query.asked[-1]["start_ns"] == start_ns


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/api/v1/gpus?limit=0", "limit"),
        ("/api/v1/gpus?limit=99999999999999999999", "limit"),
        ("/api/v1/gpus?limit=-1", "limit"),
        ("/api/v1/gpus?limit=%D9%A1", "limit"),
        ("/api/v1/gpus?limit=1&limit=2", "limit"),
        ("/api/v1/gpus?cursor=abc", "cursor"),
        ("/api/v1/gpus?cursor=", "cursor"),
        ("/api/v1/gpus?cursor=%FF%FE", "cursor"),
        ("/api/v1/gpus?node=", "node"),
        ("/api/v1/gpus?node=a%00b", "node"),
        ("/api/v1/gpus?latest=1", "latest"),
        ("/api/v1/gpus?colour=red", "colour"),
        ("/api/v1/nodes?limit=1", "limit"),
        ("/api/v1/gpus/1?limit=1", "limit"),
        ("/api/v1/gpus/1/telemetry?metrics=power", "metrics"),
        ("/api/v1/gpus/1/telemetry?metrics=", "metrics"),
        ("/api/v1/gpus/1/telemetry?start_time=now&end_time=-1h", "end_time"),
        ("/api/v1/gpus/1/telemetry?start_time=5&end_time=5", "end_time"),
        ("/api/v1/gpus/1/telemetry?start_time=yesterday", "start_time"),
        ("/api/v1/gpus/1/telemetry?start_time=2023-11-14T22:00:00", "start_time"),
        ("/api/v1/gpus/1/telemetry?start_time=2023-02-30T22:00:00Z", "start_time"),
        ("/api/v1/gpus/1/telemetry?start_time=1700000000000", "start_time"),
        ("/api/v1/gpus/1/telemetry?end_time=9999-12-31T23:59:59Z", "end_time"),
        (f"/api/v1/gpus/1/telemetry?limit={limits.QUERY_POINTS_MAX + 1}", "limit"),
    ],
)
def test_bad_parameters_are_named(client: Any, path: str, parameter: str) -> None:
    body = problem(client.simulate_get(path), 400)
    assert body["parameter"] == parameter
    assert body["instance"] == path.partition("?")[0]


def test_unknown_metric_lists_what_is_allowed(client: Any) -> None:
    body = problem(client.simulate_get("/api/v1/gpus/1/telemetry?metrics=power"), 400)
    assert "power_watts" in body["allowed"]


def test_absurd_sizes(client: Any) -> None:
    problem(client.simulate_get("/api/v1/gpus?node=" + "x" * 100_000), 414)
    many = "&".join(f"p{n}=1" for n in range(100))
    problem(client.simulate_get(f"/api/v1/gpus?{many}"), 400)
    problem(client.simulate_get("/api/v1/gpus/" + "9" * 5000), 400)
    problem(client.simulate_get("/api/v1/gpus", body=b"x" * 70_000), 413)


def test_what_is_not_there(client: Any) -> None:
    assert problem(client.simulate_get("/api/v1/gpus/77"), 404)["detail"] == "no GPU '77'"
    problem(client.simulate_get("/api/v1/gpus/%C3%A9%F0%9F%94%A5"), 404)
    problem(client.simulate_get("/api/v2/gpus"), 404)
    problem(client.simulate_get("/static/../api/app.py"), 404)
    problem(client.simulate_get("/static/%2e%2e/api/app.py"), 404)
    problem(client.simulate_get("/static/vendor"), 404)
    refused = client.simulate_post("/api/v1/gpus")
    problem(refused, 405)
    assert "GET" in refused.headers["allow"]


def test_database_away(client: Any, query: MemoryQuery) -> None:
    query.fault = DatabaseUnavailable("postgresql://user@db:5432/x: connection refused")
    result = client.simulate_get("/api/v1/gpus")
    assert "5432" not in problem(result, 503)["detail"]
    assert int(result.headers["retry-after"]) > 0
    state = client.simulate_get("/api/v1/pipeline").json
    assert (state["status"], state["database"], state["gpus"]) == ("failing", "unavailable", None)


def test_a_bug_shows_no_traceback(client: Any, query: MemoryQuery) -> None:
    query.fault = RuntimeError("secret detail")
    result = client.simulate_get("/api/v1/gpus")
    problem(result, 500)
    assert "secret" not in result.text
    assert "Traceback" not in result.text


def test_cursor_refused_by_the_store(client: Any, query: MemoryQuery) -> None:
    query.fault = QueryInvalid("cursor", "is not the next_cursor of an answer")
    body = problem(client.simulate_get("/api/v1/gpus/1/telemetry?cursor=zzz"), 400)
    assert body["parameter"] == "cursor"


def test_head_and_options(client: Any) -> None:
    head = client.simulate_head("/api/v1/gpus")
    assert (head.status_code, head.content) == (200, b"")
    options = client.simulate_options("/api/v1/gpus")
    assert options.status_code == 200
    assert "GET" in options.headers["allow"]
    assert "access-control-allow-origin" not in options.headers


def test_catalog_nodes_and_pipeline(client: Any) -> None:
    metrics = client.simulate_get("/api/v1/metrics").json["metrics"]
    assert [metric["name"] for metric in metrics] == [metric.name for metric in METRICS]
    nodes = client.simulate_get("/api/v1/nodes").json["nodes"]
    assert [(node["node"], node["gpus"]) for node in nodes] == [("node-a", 3), (HOSTILE, 3)]
    state = client.simulate_get("/api/v1/pipeline", host="gpu-box", port=8080).json
    assert state["stream_url"] == "ws://gpu-box:8081/ws"
    assert (state["status"], state["nodes"], state["gpus"]) == ("ok", 2, 6)


def test_pages_and_assets(client: Any) -> None:
    page = client.simulate_get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "ws://falconframework.org:8081" in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert client.simulate_get("/docs").headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text + "")
    assert len(names) >= 4
    for name in names:
        asset = client.simulate_get(name)
        assert asset.status_code == 200, name
        again = client.simulate_get(name, headers={"If-None-Match": asset.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_hostile_host_header_does_not_reach_the_policy(client: Any) -> None:
    page = client.simulate_get("/", host="x; script-src *")
    assert "script-src *" not in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("url", "host", "expected"),
    [
        ("ws://127.0.0.1:8081/ws", "localhost", "ws://localhost:8081/ws"),
        ("ws://0.0.0.0:8081/ws", "::1", "ws://[::1]:8081/ws"),
        ("wss://stream.example/ws", "gpu-box", "wss://stream.example/ws"),
        ("ws://127.0.0.1:8081/ws", "", "ws://127.0.0.1:8081/ws"),
    ],
)
def test_stream_url_follows_the_client(url: str, host: str, expected: str) -> None:
    assert stream_url_for(url, host) == expected


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def test_the_openapi_document(client: Any) -> None:
    document = client.simulate_get("/openapi.json").json
    assert document == openapi(ROUTES)
    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == {route.path for route in ROUTES}
    operations = [item["get"]["operationId"] for item in document["paths"].values()]
    assert len(operations) == len(set(operations))
    for reference in references(document):
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target
    for path, item in document["paths"].items():
        named = [p["name"] for p in item["get"]["parameters"] if p["in"] == "path"]
        assert named == re.findall(r"{(\w+)}", path)


def test_the_openapi_document_is_valid() -> None:
    openapi_spec_validator.validate(openapi(ROUTES))
