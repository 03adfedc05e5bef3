"""What a killed `gputel up --ephemeral` leaves is removed by the next, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gputel.services import ephemeral
from gputel.services.state import DataDir, ServiceState, UpState, pid_ticks


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def state(pid: int | None) -> UpState:
    service = ServiceState(
        pid=pid,
        pid_ticks=pid_ticks(pid) if pid else None,
        state="ready",
        restarts=0,
        last_end="",
        addresses={},
    )
    return UpState(
        version="1", pid=1, state="ready", source="sim", database="", services={"sink": service}
    )


def killed(path: Path, service_pid: int | None = None) -> Path:
    """As kill -9 leaves a directory: its state told, its lock free."""
    data_dir = DataDir(path)
    data_dir.open()
    data_dir.write(state(service_pid))
    data_dir._release()
    (path / "broker").mkdir()
    (path / "broker" / "0.log").write_bytes(b"x" * 1000)
    return path


def test_what_a_killed_one_left_goes(place: Path) -> None:
    path = killed(ephemeral.make())
    assert ephemeral.remove_abandoned() == [path]
    assert not path.exists()
    assert ephemeral.remove_abandoned() == []


def test_one_that_runs_stays() -> None:
    path = ephemeral.make()
    data_dir = DataDir(path)
    data_dir.open()
    data_dir.write(state(None))
    assert ephemeral.remove_abandoned() == []
    data_dir.close()
    assert path.exists()


def test_one_that_is_starting_stays() -> None:
    path = ephemeral.make()
    assert ephemeral.remove_abandoned() == []
    assert path.exists()


def test_one_whose_services_are_alive_stays() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = killed(ephemeral.make(), process.pid)
        assert ephemeral.remove_abandoned() == []
        process.kill()
        process.wait()
    assert ephemeral.remove_abandoned() == [path]


def test_a_directory_that_somebody_named_stays(place: Path) -> None:
    path = killed(place / "gputel-precious")
    assert ephemeral.remove_abandoned() == []
    assert (path / "broker" / "0.log").exists()


def test_links_and_the_directories_of_others_stay(place: Path, tmp_path: Path) -> None:
    target = place / "elsewhere"
    killed(target)
    (target / "run" / "ephemeral").touch()
    (place / "gputel-link").symlink_to(target)
    assert ephemeral.remove_abandoned() == []
    assert (target / "broker").exists()
    if os.geteuid() == 0:
        other = killed(ephemeral.make())
        os.chown(other, 12345, 12345)
        assert ephemeral.remove_abandoned() == []
        assert other.exists()
