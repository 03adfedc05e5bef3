"""A capture of one pipeline, played into another: the same values, each once."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gputel.sources.capture_file import CaptureFile
from support.account import expected_values, stored_values, until, write_dump
from support.pipeline import Start, gputel

pytestmark = pytest.mark.integration
DEADLINE_S = 60


def test_what_was_captured_is_replayed_once(
    start_pipeline: Start, run_gputel: Any, tmp_path: Path
) -> None:
    dump, path = tmp_path / "dump.csv", tmp_path / "a.cap"
    write_dump(dump, hosts=2, gpus=2, seconds=30, seed=5)
    expected = expected_values(dump)
    running = start_pipeline("--source", f"replay:{dump}", "--once", "--speed", "max")
    until(lambda: stored_values(running.ready["api"]) == expected, DEADLINE_S)
    capture = ("capture", "--data-dir", running.ready["data_dir"], "-o", str(path), "--json")
    ended = run_gputel(*capture, "--since", "10m", "--for", "10m")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rows"][0]["size_bytes"] == path.stat().st_size
    query = ("query", "--data-dir", running.ready["data_dir"], "--since", "5000d")
    ended = run_gputel(*query, "--gpu", "1", "--metric", "power_watts", "--format", "csv")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1 + 30
    assert running.stop() == 0

    other = start_pipeline("--source", "sim", "--gpus", "1").ready
    for _ in range(2):
        replay = ("replay", "--data-dir", other["data_dir"], str(path), "--speed", "max")
        ended = run_gputel(*replay)
        assert ended.returncode == 0, ended.stderr
        assert "all of it is acknowledged" in ended.stderr
    until(lambda: stored_values(other["api"]).total() >= expected.total(), DEADLINE_S)
    assert stored_values(other["api"]) == expected

    # Live, until Ctrl-C; what is known of the GPU was told before the capture began.
    live = tmp_path / "live.cap"
    process = gputel(
        "capture",
        "--data-dir",
        other["data_dir"],
        "-o",
        str(live),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert "frames" in process.stderr.readline()  # the first progress
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0
    file = CaptureFile(live)
    file.scan()
    assert any(gpu.model.startswith("NVIDIA H100") for gpu in file.gpus())
    assert file.faults == 0


def test_what_can_not_be_captured_is_one_clear_line(run_gputel: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "x.cap")
    empty = ("--data-dir", str(tmp_path))
    for arguments, code, message in (
        (("-o", out, "--for", "soon"), 4, "--for 'soon'"),
        (("-o", out, "--since", "then"), 4, "--since 'then'"),
        (("-o", out), 7, "is it running?"),
    ):
        ended = run_gputel("capture", *empty, *arguments, GPUTEL_MESSAGE_QUEUE__ADDRESS="[::1]:1")
        assert ended.returncode == code, ended.stderr
        assert message in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "x.cap").exists()
