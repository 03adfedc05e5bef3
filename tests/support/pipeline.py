"""A running `gputel up`, for the tests that need the whole pipeline."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

READY_DEADLINE_S = 60.0
STOP_DEADLINE_S = 45.0


class Running(NamedTuple):
    """A pipeline that is ready: what its ready line says, and its supervisor."""

    ready: dict[str, Any]
    process: subprocess.Popen[str]
    log: Path

    def stop(self) -> int:
        """SIGINT, as Ctrl-C does; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_DEADLINE_S)


Start = Callable[..., Running]


def children_of(pid: int) -> set[int]:
    """All living descendants of a process, itself not included."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    running = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                running.add(pid)
    return running


def environment() -> dict[str, str]:
    """Ours, without configuration."""
    keep = {"GPUTEL_KERNELS", "GPUTEL_NATIVE_DIR"}
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GPUTEL_") or name in keep
    }


def gputel(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    command = [sys.executable, "-m", "gputel", *arguments]
    return subprocess.Popen(command, text=True, **{"env": environment(), **options})


def first_line(process: subprocess.Popen[str], log: Path) -> str:
    """The first line on stdout; fails with the log when it does not come."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 0.1)[0]:
            line = process.stdout.readline()
            if line:
                return line
            break
    process.kill()
    pytest.fail(f"gputel up is not ready (exit code {process.wait()}):\n{log.read_text()}")


@pytest.fixture(scope="module")
def start_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts pipelines; keyword arguments are variables of their environment. At the end each
    must stop with 0 and leave no process behind."""
    started: list[tuple[Running, bool]] = []

    def start(*arguments: str, checked: bool = True, **variables: str) -> Running:
        log = tmp_path_factory.mktemp("up") / "stderr"
        with log.open("w") as stderr:
            process = gputel(
                "up",
                "--ephemeral",
                "--json",
                *arguments,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**environment(), **variables},
            )
        running = Running(json.loads(first_line(process, log)), process, log)
        started.append((running, checked))
        return running

    yield start
    for running, checked in started:
        left = children_of(running.process.pid)
        code = running.stop()
        assert running.process.stdout is not None
        rest = running.process.stdout.read()
        running.process.stdout.close()
        if checked:
            assert code == 0, running.log.read_text()
            assert rest == "", "more than one line on stdout"
        assert not alive(left), running.log.read_text()


@pytest.fixture(scope="module")
def pipeline(start_pipeline: Start) -> Running:
    """Eight simulated GPUs, one pipeline a module."""
    return start_pipeline("--source", "sim", "--gpus", "8")


@pytest.fixture
def run_gputel() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command to its end; keyword arguments are variables of its environment."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gputel", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment(), **variables},
            check=False,
        )

    return run
