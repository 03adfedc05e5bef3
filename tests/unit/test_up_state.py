"""The data directory of `gputel up`: lock, state file, predecessors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gputel.errors import InputError
from gputel.services.state import (
    DataDir,
    DataDirInUse,
    ServiceState,
    UpState,
    is_running,
    pid_ticks,
    read_state,
)


def state(pid: int | None = None, ticks: int | None = None) -> UpState:
    service = ServiceState(
        pid=pid, pid_ticks=ticks, state="ready", restarts=2, last_end="SIGKILL", addresses={}
    )
    return UpState(
        version="1",
        pid=os.getpid(),
        state="ready",
        source="sim",
        database="",
        services={"a": service},
    )


def test_one_at_a_time_and_the_state_is_read_back(tmp_path: Path) -> None:
    first = DataDir(tmp_path / "data")
    assert not is_running(first.path)
    first.open()
    first.write(state())
    assert is_running(first.path)
    assert read_state(first.path) == state()
    with pytest.raises(DataDirInUse, match=rf"another `gputel up` \(pid {os.getpid()}\)"):
        DataDir(first.path).open()
    assert is_running(first.path), "who was refused must not take the lock with it"
    first.close()
    assert not is_running(first.path)
    assert read_state(first.path) is None
    second = DataDir(first.path)
    second.open()
    second.close()


def test_the_services_of_a_killed_one_are_seen_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gputel.services.state.PREDECESSOR_WAIT_S", 0.1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as orphan:
        first = DataDir(tmp_path)
        first.open()
        first.write(state(orphan.pid, pid_ticks(orphan.pid)))
        os.close(first._lock)  # as the kernel does for a killed process
        assert not is_running(tmp_path)
        second = DataDir(tmp_path)
        second.open()
        assert orphan.wait(10) == -9
        second.close()


def test_a_process_with_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    first = DataDir(tmp_path)
    first.open()
    first.write(state(os.getpid(), 1))  # our pid, and not our start time
    os.close(first._lock)
    second = DataDir(tmp_path)
    second.open()
    second.close()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff"])
def test_an_unreadable_state_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "up.json").write_bytes(content)
    assert read_state(tmp_path) is None
    data_dir = DataDir(tmp_path)
    data_dir.open()
    data_dir.close()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gputel.services.state.FREE_BYTES_MIN", 1 << 62)
    with pytest.raises(InputError, match="MiB are needed"):
        DataDir(tmp_path).open()
    assert not is_running(tmp_path)


def test_a_process_that_is_gone_has_no_start_time() -> None:
    assert pid_ticks(os.getpid()) is not None
    assert pid_ticks(2**22 + 1) is None
