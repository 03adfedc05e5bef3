"""A collector of its own process on some NVML library, and what its exporter shows."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from support.pipeline import environment

DEADLINE_S = 20.0
STOP_DEADLINE_S = 10.0
_READY = re.compile(r"ready: (?:collector|broker) (\S+?)(?:,|$)", re.MULTILINE)
_ROW = re.compile(r"^(DCGM_\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
#: One spelling of a value in the text format back to the value.
_ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}

#: family -> the label `gpu` -> the value as it is printed
Rows = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Collecting:
    """A collector that serves."""

    url: str
    log: Path
    process: subprocess.Popen[str]

    def text(self) -> str:
        """The exporter's page."""
        with urlopen(f"{self.url}/metrics", timeout=5) as response:
            page: bytes = response.read()
        return page.decode()

    def rows(self) -> Rows:
        """Every GPU metric that is shown."""
        found: dict[str, dict[str, str]] = {}
        for name, labels, value in _ROW.findall(self.text()):
            found.setdefault(name, {})[dict(_LABEL.findall(labels))["gpu"]] = value
        return found

    def labels(self, family: str) -> dict[str, dict[str, str]]:
        """The labels of each GPU's row of `family`, unescaped, by the label `gpu`."""
        found = {}
        for name, text, _ in _ROW.findall(self.text()):
            if name == family:
                labels = {
                    label: re.sub(r"\\.", lambda match: _ESCAPED[match[0]], value)
                    for label, value in _LABEL.findall(text)
                }
                found[labels["gpu"]] = labels
        return found

    def until(self, condition: Callable[[Rows], bool]) -> Rows:
        """The first rows for which `condition` holds; the log when that takes too long."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            rows = self.rows()
            if condition(rows):
                return rows
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"{rows}\n{self.log.read_text()}"
            time.sleep(0.05)


@contextlib.contextmanager
def brokering(folder: Path) -> Iterator[str]:
    """A broker's address; without one a collector keeps what it has until it must stop."""
    settings = {
        "GPUTEL_BROKER__LISTEN": "127.0.0.1:0",
        "GPUTEL_BROKER__METRICS_LISTEN": "127.0.0.1:0",
    }
    log = folder / "broker.log"
    with _service(["gputel", "broker", "--data-dir", str(folder)], settings, log) as (_, address):
        yield address


@contextlib.contextmanager
def collecting(
    folder: Path,
    broker: str,
    *,
    command: Sequence[str] = ("gputel",),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Collecting]:
    """`gputel collector --source nvml` that publishes to `broker`.

    command      how gputel is started, e.g. `gputel sim run -- gputel`
    variables    go over the environment
    """
    settings = {
        "GPUTEL_COLLECTOR__LISTEN": "127.0.0.1:0",
        "GPUTEL_MESSAGE_QUEUE__ADDRESS": broker,
        "GPUTEL_SOURCE__NODE": "conformance",
        **(variables or {}),
    }
    arguments = ["collector", "--source", "nvml", "--data-dir", str(folder / "data")]
    log = folder / "collector.log"
    with _service([*command, *arguments], settings, log) as (process, url):
        yield Collecting(url, log, process)
    assert "Traceback" not in log.read_text(), log.read_text()


@contextlib.contextmanager
def _service(
    command: Sequence[str], variables: Mapping[str, str], log: Path
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service and the first address it announces; it must stop when it is told to."""
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, text=True, stdout=stderr, stderr=stderr, env={**on_path(), **variables}
        )
    try:
        yield process, _address(process, log)
        process.terminate()
        assert process.wait(STOP_DEADLINE_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def on_path() -> dict[str, str]:
    """The tests' environment, in which the commands beside this Python are found first."""
    variables = environment()
    return {**variables, "PATH": f"{Path(sys.executable).parent}:{variables['PATH']}"}


def _address(process: subprocess.Popen[str], log: Path) -> str:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := _READY.search(log.read_text())):
        assert process.poll() is None, f"exit code {process.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return found[1]
