"""Processes from the simulator to the API and the exporter, through every real process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gputel.catalog import BY_NAME
from gputel.services.state import read_state
from gputel.store import cells
from support.account import get, query, until

pytestmark = [pytest.mark.integration, pytest.mark.fault]

CONFIG = "collector: {processes: true, slow_hz: 5}\nattribution: {mode: info}\n"


@pytest.fixture(scope="module")
def accounted(start_pipeline: Callable[..., Any], tmp_path_factory: Any) -> Any:
    """Four simulated GPUs whose processes are looked at five times a second."""
    file = tmp_path_factory.mktemp("config") / "gputel.yaml"
    file.write_text(CONFIG)
    return start_pipeline("--config", str(file), "--source", "sim", "--gpus", "4")


def stored(running: Any) -> int:
    return int(query(running.ready, "SELECT count(*) FROM process_sample")[0][0])


def sink_pid(running: Any) -> int:
    state = read_state(Path(running.ready["data_dir"]))
    assert state is not None
    return state.services["sink"].pid or 0


def test_no_process_is_lost_or_doubled_when_the_sink_is_killed(accounted: Any) -> None:
    for _ in range(3):
        before = stored(accounted)
        until(lambda before=before: stored(accounted) > before + 8, 20)  # type: ignore[misc]
        os.kill(until(lambda: sink_pid(accounted), 10), signal.SIGKILL)
        until(lambda before=before: stored(accounted) > before + 24, 30)  # type: ignore[misc]
    # A job has two processes, and every sweep of a busy GPU lists both of them once.
    wrong = query(
        accounted.ready,
        "SELECT gpu_id, time, count(*) FROM process_sample GROUP BY gpu_id, time "
        "HAVING count(*) <> 2 OR count(DISTINCT pid) <> 2",
    )
    assert not wrong
    # No sweep is missing: a GPU that is busy shortly before and after one had processes then.
    utilization = cells.in_sql(BY_NAME["gpu_utilization_percent"], "f")
    busy = (
        "EXISTS (SELECT 1 FROM sample_hot_fast f WHERE f.gpu_id = s.gpu_id AND "
        f"{utilization} > 50 AND f.time BETWEEN "
    )
    swept = (
        "SELECT s.gpu_id, s.time FROM sample_hot_slow s "
        "WHERE s.time < (SELECT max(time) FROM process_sample) "
        f"AND {busy} s.time - interval '300 ms' AND s.time) "
        f"AND {busy} s.time AND s.time + interval '300 ms')"
    )
    listed = "SELECT gpu_id, time FROM process_sample"
    assert len(query(accounted.ready, f"{swept} INTERSECT {listed}")) > 20
    assert not query(accounted.ready, f"{swept} EXCEPT {listed}")


def test_the_api_serves_them(accounted: Any) -> None:
    api = accounted.ready["api"]
    until(lambda: stored(accounted), 20)
    gpu = query(accounted.ready, "SELECT gpu_id FROM process_sample ORDER BY time LIMIT 1")[0][0]
    first = get(f"{api}/api/v1/gpus/{gpu}/processes", limit=3)
    second = get(f"{api}/api/v1/gpus/{gpu}/processes", limit=3, cursor=first["next_cursor"])
    seen = [(p["time"], p["pid"]) for p in first["processes"] + second["processes"]]
    assert len(seen) == len(set(seen)) == 6
    assert seen == sorted(seen)
    process = first["processes"][0]
    assert process["name"] == "python3"
    assert process["container_id"] in process["cgroup"]
    assert process["memory_used_bytes"] >= 0
    assert get(f"{api}/api/v1/events")["events"] is not None


def test_the_exporter_shows_them(accounted: Any) -> None:
    def families() -> dict[str, Any]:
        with urlopen(f"{accounted.ready['collector']}/metrics", timeout=10) as response:
            text = response.read().decode()
        return {family.name: family for family in text_string_to_metric_families(text)}

    memory = until(lambda: families().get("gputel_process_memory_used_bytes"), 20)
    keys = [(s.labels["UUID"], s.labels["pid"]) for s in memory.samples]
    assert len(keys) == len(set(keys))
    assert {s.labels["name"] for s in memory.samples} == {"python3"}
    for sample in families()["gputel_process_sm_utilization_ratio"].samples:
        assert 0 <= sample.value <= 1
