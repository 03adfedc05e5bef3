"""`gputel up --cluster` with real processes: whole, and whole again whichever of them dies."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from gputel.services.nats import ask, find_problem
from gputel.services.state import UpState, read_state
from support.account import gaps_and_doubles, hot_rows, until
from support.pipeline import Running, Start, alive

pytestmark = [pytest.mark.integration, pytest.mark.fault]

WHOLE_DEADLINE_S = 20.0
GPUS = 4
NATS = ("nats-1", "nats-2", "nats-3")
BROKERS = ("broker-1", "broker-2")
SINKS = ("sink-1", "sink-2")
PARTS = {*NATS, *BROKERS, *SINKS, "postgres", "streamer", "api", "collector"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cluster")
    for path in (directory, directory.parent):
        path.chmod(0o711)  # the database's user passes through
    return directory / "data"


@pytest.fixture(scope="module")
def cluster(start_pipeline: Start, data_dir: Path) -> Running:
    return start(start_pipeline, data_dir)


def start(start_pipeline: Start, data_dir: Path) -> Running:
    options = ("--source", "sim", "--gpus", str(GPUS), "--data-dir", str(data_dir))
    return start_pipeline("--cluster", *options, checked=False)


def state_of(running: Running) -> UpState:
    state = read_state(Path(running.ready["data_dir"]))
    assert state is not None
    return state


def page(url: str) -> str:
    """What is at `url`; empty when nothing is well there."""
    try:
        with urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def status_urls(state: UpState) -> dict[str, str]:
    """The HTTP address of each of our own services."""
    return {
        name: next(url for url in service.addresses.values() if url.startswith("http://"))
        for name, service in state.services.items()
        if name not in (*NATS, "postgres")
    }


def ailing(running: Running) -> list[str]:
    """The parts that are not well, by the supervisor's word or their own."""
    state = state_of(running)
    wrong = [name for name, service in state.services.items() if service.state != "ready"]
    if wrong:
        return wrong
    wrong = [name for name, url in status_urls(state).items() if not page(f"{url}/readyz")]
    servers = {name: state.services[name].addresses["monitor"] for name in NATS}
    return wrong + [name for name, url in servers.items() if find_problem(url)]


def count(running: Running, name: str, metric: str) -> float:
    """A counter of a service, over all of its labels."""
    path = "/metrics/collector" if name == "collector" else "/metrics"
    text = page(status_urls(state_of(running))[name] + path)
    return sum(map(float, re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE)))


def busiest(running: Running, names: tuple[str, ...], metric: str) -> str:
    """The one of `names` that does the work now."""
    before = {name: count(running, name, metric) for name in names}

    def done() -> dict[str, float]:
        return {name: count(running, name, metric) - before[name] for name in names}

    until(lambda: max(done().values()) > 0, WHOLE_DEADLINE_S)
    return max(names, key=done().__getitem__)


def leader(running: Running) -> str:
    """The server that leads the metadata of the cluster."""
    url = state_of(running).services["nats-1"].addresses["monitor"]
    return str(until(lambda: ask(url, "/jsz")["meta_cluster"].get("leader"), WHOLE_DEADLINE_S))


def stored(running: Running) -> None:
    """Return once samples that are newer than this call are stored."""
    before = hot_rows(running.ready)
    until(lambda: hot_rows(running.ready) > before + 5 * GPUS, WHOLE_DEADLINE_S)


def test_every_part_is_there_and_says_so(
    cluster: Running, run_gputel: Callable[..., Any], data_dir: Path
) -> None:
    until(lambda: not ailing(cluster), WHOLE_DEADLINE_S)
    state = state_of(cluster)
    assert set(state.services) == PARTS
    brokers = [state.services[name].addresses["broker"] for name in BROKERS]
    assert cluster.ready["broker"] == ",".join(brokers)
    assert cluster.ready["sinks"] == [state.services[name].addresses["sink"] for name in SINKS]
    assert cluster.ready["nats"] == [state.services[name].addresses["nats"] for name in NATS]
    everywhere = [address for of in state.services.values() for address in of.addresses.values()]
    assert len(set(everywhere)) == len(everywhere)
    for name, url in status_urls(state).items():
        path = "/metrics/collector" if name == "collector" else "/metrics"
        assert "\ngputel_" in page(url + path)
        assert '"checks"' in page(f"{url}/healthz")
    stored(cluster)
    done = run_gputel("doctor", "--json", "--data-dir", str(data_dir))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert set(checks) >= {*PARTS, "pipeline", "lag", "end to end", "losses"}
    for name in (*PARTS, "pipeline", "lag", "end to end"):
        assert checks[name]["well"], checks[name]
    done = run_gputel("broker", "groups", "--json", "--data-dir", str(data_dir))
    groups = {row["group"]: row for row in json.loads(done.stdout)["rows"]}
    assert groups["store"]["members"] == 6


@pytest.mark.parametrize("which", ["broker", "leading nats-server", "sink", "other nats-server"])
def test_whole_again_after_kill_9_and_no_sample_is_lost_or_doubled(
    cluster: Running, which: str
) -> None:
    until(lambda: not ailing(cluster), WHOLE_DEADLINE_S)
    if which == "broker":
        name = busiest(cluster, BROKERS, "gputel_broker_messages_in_total")
    elif which == "sink":
        name = busiest(cluster, SINKS, "gputel_sink_frames_total")
    elif which == "leading nats-server":
        name = leader(cluster)
    else:
        name = next(server for server in NATS if server != leader(cluster))
    before = state_of(cluster).services[name]
    assert before.pid is not None
    killed_at = time.monotonic()
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: state_of(cluster).services[name].restarts == before.restarts + 1, 5)
    until(lambda: not ailing(cluster), WHOLE_DEADLINE_S)
    whole_after_s = time.monotonic() - killed_at
    stored(cluster)
    print(f"{which} ({name}): whole again after {whole_after_s:.1f} s")
    assert not gaps_and_doubles(cluster.ready)
    # Also a broker that has no members now, since it was started again, knows how far they are.
    lag = "gputel_broker_group_lag_messages"
    until(lambda: max(count(cluster, of, lag) for of in BROKERS) < 30, 10)
    assert count(cluster, "collector", "gputel_collector_sweeps_total") > 0
    assert count(cluster, "collector", "gputel_collector_dropped_rows_total") == 0
    assert count(cluster, "collector", "gputel_ring_dropped_rows_total") == 0
    after = state_of(cluster).services
    assert after[name].addresses == before.addresses
    assert after[name].pid != before.pid
    assert f"{name} ended (SIGKILL)" in cluster.log.read_text()


def test_kill_9_of_the_supervisor_leaves_nothing_and_the_next_one_goes_on(
    cluster: Running, start_pipeline: Start, data_dir: Path
) -> None:
    pids = {of.pid for of in state_of(cluster).services.values() if of.pid is not None}
    assert len(pids) == len(PARTS)
    rows = hot_rows(cluster.ready)
    cluster.process.kill()
    again = start(start_pipeline, data_dir)
    assert not alive(pids)
    assert again.ready["nats"] == cluster.ready["nats"], "where they were"
    until(lambda: not ailing(again), WHOLE_DEADLINE_S)
    stored(again)
    assert hot_rows(again.ready) > rows
    assert not gaps_and_doubles(again.ready)
    pids = {of.pid for of in state_of(again).services.values() if of.pid is not None}
    # Ctrl-C drains: the sinks store what the brokers hold, before these and NATS end.
    assert again.stop() == 0, again.log.read_text()
    assert not alive(pids)
    said = again.log.read_text().partition("stopping: the sources first")[2]
    for trouble in ("WARNING", "ERROR", "stay in the spool", "not drained"):
        assert trouble not in said, said
