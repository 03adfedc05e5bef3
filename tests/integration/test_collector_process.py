"""The collector as a process on the simulated driver: signals and hangs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from benchmarks import sweep

from support.simulation import environment

PROFILE = "/metrics?profile=gputel"

pytestmark = pytest.mark.integration


class Running:
    """A standalone collector."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self.process = process
        self.said = said
        self.url = ""

    def wait_until_ready(self) -> None:
        self.until(self._is_ready, 30)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.said.read_text()
        found = re.search(r"ready: collector (http://\S+)", self.said.read_text())
        self.url = found[1] if found else ""
        return bool(found)

    def until(self, true: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.said.read_text()
            time.sleep(0.05)

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()


@contextmanager
def collector(
    tmp_path: Path, config: str, yaml: str = "", *, ready: bool = True
) -> Iterator[Running]:
    said = tmp_path / "said"
    file = tmp_path / "config.yaml"
    file.write_text(yaml)
    command = [sys.executable, "-m", "gputel", "collector", "--standalone", "--source", "nvml"]
    with said.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--address", "127.0.0.1:0", "--config", str(file)],
            env=environment(config),
            stdout=out,
            stderr=out,
        )
        try:
            running = Running(process, said)
            if ready:
                running.wait_until_ready()
            yield running
        finally:
            process.kill()
            process.wait(10)


def opening_url(running: Running) -> str:
    """Where the status is while the source opens."""
    running.until(lambda: "not ready, status on" in running.said.read_text(), 30)
    found = re.search(r"status on (http://[\d.:]+)", running.said.read_text())
    assert found is not None
    return found[1]


HANGS_AT_START = "gpus=2,fault=hang@0+{seconds}:function={function}"
#: The very first call, and the first one that finds GPUs.
FIRST_CALLS = ("nvmlInit", "nvmlDeviceGetCount_v2")


@pytest.mark.parametrize("function", FIRST_CALLS)
def test_a_driver_that_hangs_at_the_start_is_told_and_goes_on_when_it_returns(
    function: str, tmp_path: Path
) -> None:
    hangs = HANGS_AT_START.format(seconds=15, function=function)
    with collector(tmp_path, hangs, ready=False) as running:
        running.url = opening_url(running)
        assert "opening for" in running.get("/readyz")
        assert "a driver call has not returned" in running.get("/readyz")
        assert "a driver call" not in running.get("/healthz")
        own = running.get("/metrics/collector")
        assert sweep.value(own, "gputel_collector_opening_seconds") > 1
        running.wait_until_ready()
        running.until(lambda: 'gputel_gpu_up{gpu="1"' in running.get(PROFILE), 20)
        own = running.get("/metrics/collector")
        assert sweep.value(own, "gputel_collector_opening_seconds") == 0
        assert "opening for" not in running.get("/readyz")


@pytest.mark.parametrize("function", FIRST_CALLS)
def test_sigterm_ends_a_process_whose_driver_hangs_at_the_start(
    function: str, tmp_path: Path
) -> None:
    hangs = HANGS_AT_START.format(seconds=600, function=function)
    with collector(tmp_path, hangs, ready=False) as running:
        opening_url(running)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0, running.said.read_text()
    assert "leaving it behind" in running.said.read_text()


@pytest.mark.quiet
def test_a_hung_gpu_goes_stale_and_sigterm_still_ends_the_process(tmp_path: Path) -> None:
    with collector(tmp_path, "gpus=3,fault=hang@4:gpu=1") as running:
        # Before the first values none is up.
        for slot, value in ((1, 1), (1, 0), (0, 1)):
            up = re.compile(rf'gputel_gpu_up\{{gpu="{slot}",.*\}} {value}')
            running.until(lambda up=up: bool(up.search(running.get(PROFILE))), 15)  # type: ignore[misc]
        page = running.get("/metrics")
        assert 'DCGM_FI_DEV_GPU_UTIL{gpu="0"' in page
        assert 'DCGM_FI_DEV_GPU_UTIL{gpu="1"' not in page
        assert "ok" in running.get("/healthz")
        started = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(5) == 0
        assert time.monotonic() - started < 5


def test_sigusr1_stops_and_starts_the_driver_calls(tmp_path: Path) -> None:
    with collector(tmp_path, "gpus=2") as running:
        running.process.send_signal(signal.SIGUSR1)
        running.until(lambda: "paused on request" in running.get("/readyz"), 5)
        assert '"status":"ok"' in running.get("/healthz")
        assert "gputel_collector_paused 1" in running.get("/metrics/collector")
        before = -1.0

        def no_call_for_a_second() -> bool:
            nonlocal before
            before = sweep.in_driver_s(running.get("/metrics/collector"))
            time.sleep(1)
            return sweep.in_driver_s(running.get("/metrics/collector")) == before

        running.until(no_call_for_a_second, 10)  # the last calls end
        running.process.send_signal(signal.SIGUSR1)
        running.until(lambda: '"polling":"ok"' in running.get("/readyz"), 5)
        running.until(lambda: sweep.in_driver_s(running.get("/metrics/collector")) > before, 5)


def test_polling_follows_the_file_on_sighup(tmp_path: Path) -> None:
    off, on = "collector: {polling: false}\n", "collector: {polling: true}\n"
    with collector(tmp_path, "gpus=2", yaml=off) as running:
        assert "paused on request" in running.get("/readyz")
        (tmp_path / "config.yaml").write_text("collector: {poling: true}\n")
        running.process.send_signal(signal.SIGHUP)
        running.until(lambda: "was not read again" in running.said.read_text(), 5)
        assert "paused on request" in running.get("/readyz")
        (tmp_path / "config.yaml").write_text(on)
        running.process.send_signal(signal.SIGHUP)
        running.until(lambda: '"polling":"ok"' in running.get("/readyz"), 5)
