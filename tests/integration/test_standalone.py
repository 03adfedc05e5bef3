"""`gputel collector --standalone`: the node exporter as a process of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
DEADLINE_S = 30


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gputel", "collector", "--standalone", *arguments]


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(("GPUTEL_", "DCGM_"))}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        command("--source", "sim", "--gpus", "2", "-a", url.removeprefix("http://"), *arguments),
        env=environment(),
        stderr=subprocess.PIPE,
    )
    try:
        until(lambda: b"gputel_gpu_up" in get(f"{url}/metrics"), process)
        yield url, process
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.URLError:
        return b""


def until(condition: object, process: subprocess.Popen[bytes]) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def test_it_needs_nobody_and_stops_when_told(tmp_path: Path) -> None:
    counters = tmp_path / "counters.csv"
    counters.write_text(
        "DCGM_FI_DEV_GPU_TEMP, gauge, GPU temperature (in C).\n"
        "DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS, gauge, x\n"
        "DCGM_EXP_XID_ERRORS_COUNT, gauge, XIDs\n"
    )
    flags = ("-f", str(counters), "--hostname-label", "hostname", "-x", "60000")
    with running(*flags) as (url, process):
        until(lambda: b"DCGM_FI_DEV_GPU_TEMP{" in get(f"{url}/metrics"), process)
        page = get(f"{url}/metrics").decode()
        names = set(re.findall(r"^(\w+)\{", page, re.MULTILINE))
        assert names == {"DCGM_FI_DEV_GPU_TEMP", "DCGM_EXP_XID_ERRORS_COUNT", "gputel_gpu_up"}
        assert ',hostname="' in page
        assert 'window_size_in_ms="60000"} 0' in page
        assert get(f"{url}/health") == b"OK"
        assert b'"status":"ok"' in get(f"{url}/readyz")
        assert b"gputel_collector_rows_total" in get(f"{url}/metrics/collector")
        assert b"gputel_gpu_info" in get(f"{url}/metrics?profile=gputel")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert f"{counters}:2: DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS is not measured" in said.decode()


def test_every_bad_line_of_a_counter_file_is_told(tmp_path: Path) -> None:
    counters = tmp_path / "counters.csv"
    counters.write_text("DCGM_FI_DEV_GPU_TMP, gauge, x\n\nDCGM_FI_DEV_SM_CLOCK, gage, x\n")
    done = subprocess.run(
        command("--source", "sim", "-a", f"127.0.0.1:{free_port()}", "-f", str(counters)),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 4
    told = [line for line in done.stderr.splitlines() if line.startswith("gputel: error: ")]
    assert len(told) == 2
    assert f"{counters}:1: " in told[0]
    assert "DCGM_FI_DEV_GPU_TEMP" in told[0]
    assert f"{counters}:3: " in told[1]
    assert "Traceback" not in done.stderr
