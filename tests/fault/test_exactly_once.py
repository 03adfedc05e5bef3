"""kill -9 in the middle: afterwards every acknowledged row is there, exactly once."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gputel.services.state import read_state
from support.account import (
    expected_values,
    gaps_and_doubles,
    hot_rows,
    query,
    stored_values,
    until,
    write_dump,
)

pytestmark = [pytest.mark.integration, pytest.mark.fault]
WHOLE_S = 10
DEADLINE_S = 90


def kill(running: Any, name: str) -> None:
    """SIGKILL to one service of a running pipeline."""
    state = read_state(Path(running.ready["data_dir"]))
    assert state is not None
    pid = state.services[name].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victims", [("broker", "sink"), ("collector", "postgres")])
def test_kill_9_in_the_middle_of_a_replay(
    start_pipeline: Any, tmp_path: Path, victims: tuple[str, ...]
) -> None:
    path = tmp_path / "dump.csv"
    write_dump(path, hosts=4, gpus=8, seconds=200, seed=len(victims[0]))
    expected = expected_values(path)
    running = start_pipeline("--source", f"replay:{path}", "--once", "--speed", "10")

    def rows() -> int:
        return int(query(running.ready, "SELECT count(*) FROM sample_hot_medium")[0][0])

    def reached(wanted: int) -> bool:
        return rows() > wanted

    whole = 4 * 8 * 200
    for number, victim in enumerate(victims, 1):
        until(partial(reached, whole * number // 4), DEADLINE_S)
        assert rows() < whole, "the replay was over before the kill"
        kill(running, victim)
    until(lambda: rows() >= whole, DEADLINE_S)
    stored = stored_values(running.ready["api"])
    assert (stored - expected, expected - stored) == ({}, {})


@pytest.mark.quiet
@pytest.mark.timeout(180)
def test_kill_9_of_each_while_sampling(start_pipeline: Any) -> None:
    running = start_pipeline("--source", "sim", "--gpus", "2")

    def grown(wanted: int) -> bool:
        return hot_rows(running.ready) > wanted

    for victim in ("broker", "sink", "postgres", "streamer", "api"):
        before = until(lambda: hot_rows(running.ready), WHOLE_S)
        kill(running, victim)
        # Rows sampled after the kill arrive: the pipeline is whole again.
        until(partial(grown, before + 20), WHOLE_S)
    assert gaps_and_doubles(running.ready) == []
    ((epochs,),) = query(running.ready, "SELECT count(DISTINCT epoch) FROM sample_hot_fast")
    assert epochs == 1
    kill(running, "collector")
    until(
        lambda: query(running.ready, "SELECT count(DISTINCT epoch) FROM sample_hot_fast") == [(2,)],
        WHOLE_S,
    )
    assert gaps_and_doubles(running.ready) == [], "a new epoch begins with 0"
