"""The HPC job mapping directory, as prologs and vandals write it."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from gputel.collector.attribution import slurm
from gputel.collector.attribution.origin import Assignment, ReadFailed
from gputel.collector.attribution.slurm import JobFiles, read_jobs
from gputel.inventory import Gpu

GPUS = [Gpu(f"GPU-{i}", "node-1", i) for i in range(4)]


async def test_jobs_of_gpus_and_of_mig_instances(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("4711\n")
    (tmp_path / "1").write_text("4711\n\n  4712  \r\n4711\n")
    (tmp_path / "2.7").write_text("13")
    (tmp_path / "3").write_text("")
    origin = JobFiles(str(tmp_path))
    assert await origin.read(GPUS) == [
        Assignment("GPU-0", hpc_job="4711"),
        Assignment("GPU-1", hpc_job="4711"),
        Assignment("GPU-1", hpc_job="4712"),
        Assignment("GPU-2", hpc_job="13", part=True, gpu_instance="7"),
    ]
    assert origin.skipped == 0
    (tmp_path / "0").unlink()
    (tmp_path / "1").write_text("4799\n")
    assert await origin.read(GPUS) == [
        Assignment("GPU-1", hpc_job="4799"),
        Assignment("GPU-2", hpc_job="13", part=True, gpu_instance="7"),
    ]


async def test_what_is_not_ours_and_what_is_absurd(tmp_path: Path) -> None:
    for name in ("README", "0~", ".0.swp", "a", "1.2.3", "-1", "00000", "٣"):
        (tmp_path / name).write_text("1")
    (tmp_path / "9").write_text("for a GPU that is not there")
    (tmp_path / "0").mkdir()
    os.mkfifo(tmp_path / "1")
    (tmp_path / "2").write_bytes(b"\xff\xfe")
    (tmp_path / "3").write_text("x" * 129 + "\nbell\a\ngood\n")
    (tmp_path / "4").write_text("1\n" * slurm.FILE_BYTES_MAX)
    (tmp_path / "5").symlink_to(tmp_path / "nowhere")
    (tmp_path / "6").symlink_to("/dev/zero")
    origin = JobFiles(str(tmp_path))
    assert await origin.read(GPUS) == [Assignment("GPU-3", hpc_job="good")]
    assert origin.skipped == 1 + 1 + 1 + 1 + 2 + 1 + 1


def test_bounds(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("\n".join(str(i) for i in range(70)))
    jobs, skipped = read_jobs(str(tmp_path))
    assert (len(jobs), skipped) == (slurm.JOBS_PER_FILE_MAX, 6)


def test_a_directory_full_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ENTRIES_MAX", 10)
    for i in range(12):
        (tmp_path / str(i)).write_text("1")
    jobs, skipped = read_jobs(str(tmp_path))
    assert (len(jobs), skipped) == (10, 1)


@pytest.mark.parametrize("kind", ["absent", "unavailable"])
async def test_a_directory_that_is_none(tmp_path: Path, kind: str) -> None:
    where = tmp_path / "jobs"
    if kind == "unavailable":
        shutil.copy(__file__, where)
    with pytest.raises(ReadFailed) as failed:
        await JobFiles(str(where)).read(GPUS)
    assert failed.value.reason == kind


async def test_a_file_system_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(slurm, "DEADLINE_S", 0.02)
    monkeypatch.setattr(slurm, "read_jobs", lambda directory: go_on.wait())
    origin = JobFiles(str(tmp_path))
    for _ in range(3):
        with pytest.raises(ReadFailed) as failed:
            await origin.read(GPUS)
        assert failed.value.reason == "timeout"
    go_on.set()
