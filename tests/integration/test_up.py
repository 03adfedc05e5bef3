"""`gputel up` with real processes: readiness, restarts, the end, and what doctor says."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gputel.services.state import UpState, read_state

WHOLE_DEADLINE_S = 10.0
pytestmark = pytest.mark.integration


def until(condition: Callable[[], Any], timeout_s: float = WHOLE_DEADLINE_S) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return value


def get(url: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        return response.status, response.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def state_of(running: Any) -> UpState:
    state = read_state(Path(running.ready["data_dir"]))
    assert state is not None
    return state


def whole(running: Any) -> bool:
    """All parts are ready, by the supervisor's word and their own."""
    state = state_of(running)
    urls = [running.ready[name] for name in ("api", "sink", "collector")]
    return all(service.state == "ready" for service in state.services.values()) and all(
        get(f"{url}/readyz")[0] == 200 for url in urls
    )


def test_every_service_answers_where_the_ready_line_says(pipeline: Any) -> None:
    ready = pipeline.ready
    assert ready["event"] == "ready"
    assert ready["source"] == "sim"
    streamer = ready["stream"].replace("ws://", "http://").removesuffix("/ws")
    until(lambda: whole(pipeline))
    for url in (ready["api"], ready["sink"], ready["collector"], streamer):
        assert get(f"{url}/healthz")[0] == 200
        assert b"gputel" in get(f"{url}/metrics")[1]
    host, _, port = ready["broker"].rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    until(lambda: b"DCGM_FI_DEV_GPU_UTIL" in get(f"{ready['collector']}/metrics")[1])
    assert "password" not in json.dumps(ready)


def test_doctor_sees_it(pipeline: Any, run_gputel: Callable[..., Any]) -> None:
    until(lambda: whole(pipeline))
    until(lambda: json.loads(get(f"{pipeline.ready['api']}/api/v1/gpus")[1])["gpus"])
    done = run_gputel("doctor", "--json", "--data-dir", pipeline.ready["data_dir"])
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"broker", "sink", "api", "streamer", "collector", "postgres"} <= set(checks)
    for name in ("pipeline", "broker", "api", "collector", "lag", "end to end", "spool"):
        assert checks[name]["well"], checks[name]
    assert {"losses", "cadence fast", "cadence slow"} <= set(checks)
    assert checks["store"]["finding"] == "one PostgreSQL"
    collector = json.loads(done.stdout)["collector"]
    assert collector["url"] == pipeline.ready["collector"]
    assert {row["cadence"] for row in collector["cadences"]} >= {"fast", "medium", "slow"}


def test_a_second_one_on_the_same_data_directory(
    pipeline: Any, run_gputel: Callable[..., Any]
) -> None:
    done = run_gputel("up", "--ephemeral", "--data-dir", pipeline.ready["data_dir"])
    assert done.returncode == 5
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"(pid {pipeline.process.pid})" in done.stderr


@pytest.mark.quiet
@pytest.mark.fault
@pytest.mark.parametrize("name", ["collector", "broker", "sink", "streamer", "api", "postgres"])
def test_whole_again_after_kill_9(pipeline: Any, name: str) -> None:
    until(lambda: whole(pipeline))
    before = state_of(pipeline).services[name]
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: state_of(pipeline).services[name].restarts == before.restarts + 1)
    until(lambda: whole(pipeline))
    after = state_of(pipeline).services[name]
    assert after.addresses == before.addresses
    assert after.pid != before.pid
    assert f"{name} ended (" in pipeline.log.read_text()


@pytest.mark.fault
def test_kill_9_of_the_supervisor_leaves_nothing_and_a_new_one_works(
    start_pipeline: Callable[..., Any], tmp_path: Path
) -> None:
    tmp_path.chmod(0o711)
    data_dir = tmp_path / "data"
    first = start_pipeline("--source", "sim", "--data-dir", str(data_dir), checked=False)
    pids = {service.pid: name for name, service in state_of(first).services.items()}
    first.process.kill()
    second = start_pipeline("--source", "sim", "--data-dir", str(data_dir))
    until(lambda: whole(second))

    def gone(pid: int) -> bool:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    for pid in pids:
        assert pid is not None
        assert gone(pid), pids[pid]


def test_a_second_ctrl_c_forces(start_pipeline: Callable[..., Any]) -> None:
    running = start_pipeline("--source", "sim", checked=False)
    collector = state_of(running).services["collector"].pid
    assert collector is not None
    os.kill(collector, signal.SIGSTOP)  # it will not drain
    running.process.send_signal(signal.SIGINT)
    until(lambda: "stopping: the sources first" in running.log.read_text())
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(WHOLE_DEADLINE_S) == 130


def test_sigterm_is_a_ctrl_c_and_the_temporary_directory_goes(
    start_pipeline: Callable[..., Any],
) -> None:
    running = start_pipeline("--source", "sim")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(45) == 0
    assert not Path(running.ready["data_dir"]).exists()


def test_the_queues_address_moves_the_broker(
    tmp_path: Path,
    run_gputel: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"localhost:{taken.getsockname()[1]}"
        done = run_gputel(
            *("up", "--source", "sim"),
            GPUTEL_DATA_DIR=str(tmp_path),
            GPUTEL_MESSAGE_QUEUE__ADDRESS=address,
        )
    assert done.returncode == 5
    assert f"broker: 127.0.0.1:{address.partition(':')[2]} is in use" in done.stderr


def test_an_unreachable_configured_database_ends_it(
    run_gputel: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = run_gputel(
            *("up", "--ephemeral", "--source", "sim"),
            GPUTEL_DATABASE__PORT=str(closed.getsockname()[1]),
            GPUTEL_DATABASE__HOST="127.0.0.1",
            GPUTEL_DATABASE__PASSWORD="tops3cret",
        )
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("gputel: error: ") == 1
    assert "Traceback" not in done.stderr
    assert "tops3cret" not in done.stderr


def test_an_unreachable_configured_broker_ends_it(
    run_gputel: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = run_gputel(
        *("up", "--ephemeral", "--source", "sim"),
        GPUTEL_MESSAGE_QUEUE__ADDRESS="broker.invalid:50051",
    )
    assert done.returncode == 7, done.stderr
    assert "broker.invalid:50051" in done.stderr
