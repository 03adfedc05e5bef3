"""The HPC job mapping directory: one file a GPU, written by the batch system's prolog.

    N      jobs on GPU N, one id a line; empty or gone: none
    N.M    jobs on GPU instance M (MIG) of GPU N

It may be on a network file system that hangs, so it is read on a daemon thread.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from gputel.collector.attribution.origin import Assignment, ReadFailed, Reason
from gputel.collector.blocking import DaemonCaller
from gputel.inventory import Gpu

DEADLINE_S: Final = 2.0
ENTRIES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 16 * 1024
JOBS_PER_FILE_MAX: Final = 64
JOB_CHARS_MAX: Final = 128

_NAME: Final = re.compile(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?", re.ASCII)

#: (GPU index, GPU instance or "", job)
_Job = tuple[int, str, str]


class JobFiles:
    """Origin of jobs."""

    name = "hpc"

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files = DaemonCaller("hpc-jobs")
        self.skipped = 0

    async def read(self, gpus: Sequence[Gpu]) -> list[Assignment]:
        """One assignment a job and GPU. ReadFailed."""
        try:
            jobs, skipped = await self._files.call(lambda: read_jobs(self._directory), DEADLINE_S)
        except TimeoutError:
            raise ReadFailed("timeout", f"{self._directory}: its file system hangs") from None
        except OSError as error:
            reason: Reason = "unavailable"
            if isinstance(error, FileNotFoundError):
                reason = "absent"
            elif isinstance(error, PermissionError):
                reason = "denied"
            raise ReadFailed(reason, f"{self._directory}: {error.strerror}") from None
        by_index = {gpu.index: gpu for gpu in gpus if not gpu.mig_parent}
        found = set()
        for index, instance, job in jobs:
            gpu = by_index.get(index)
            if gpu is None:
                skipped += 1
                continue
            found.add(Assignment(gpu.uuid, hpc_job=job, part=bool(instance), gpu_instance=instance))
        self.skipped = skipped
        return sorted(found)

    async def close(self) -> None:
        """Nothing is held."""


def read_jobs(directory: str) -> tuple[list[_Job], int]:
    """(the jobs of all files, how many files or lines were absurd or too many).

    OSError: the directory itself can't be read. A file that goes away meanwhile has no jobs.
    """
    jobs: list[_Job] = []
    skipped = 0
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= ENTRIES_MAX:
                skipped += 1
                break
            matched = _NAME.fullmatch(entry.name)
            if matched is None:
                continue  # a README, an editor's backup: not ours to judge
            try:
                lines = list(_lines(entry.path))
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                skipped += 1
                continue
            usable = [line for line in lines if len(line) <= JOB_CHARS_MAX and line.isprintable()]
            kept = usable[:JOBS_PER_FILE_MAX]
            skipped += len(lines) - len(kept)
            jobs += [(int(matched[1]), _instance(matched[2]), job) for job in kept]
    return jobs, skipped


def _instance(text: str | None) -> str:
    return "" if text is None else str(int(text))


def _lines(path: str) -> Iterator[str]:
    """The lines that are not blank. ValueError: no regular file, no UTF-8, or too long."""
    # Without O_NONBLOCK, opening a FIFO would wait for a writer.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is no regular file")
        content = os.read(fd, FILE_BYTES_MAX + 1)
    finally:
        os.close(fd)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"{path} has more than {FILE_BYTES_MAX} bytes")
    for line in content.decode("utf-8").split("\n"):
        if line.strip():
            yield line.strip()
