"""The few things the engine asks of a file system, in one place that tests can make fail."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

_IOV_MAX = 1024  # UIO_MAXIOV of Linux


class Disk:
    """Real files. Every method may block and raises OSError."""

    def open_append(self, path: Path) -> int:
        """A descriptor that appends to `path`, which is made when missing."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def append(self, fd: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers` behind one another."""
        for first in range(0, len(buffers), _IOV_MAX):
            self._write_all(fd, buffers[first : first + _IOV_MAX])

    def _write_all(self, fd: int, buffers: Sequence[bytes]) -> None:
        missing = sum(map(len, buffers))
        written = os.writev(fd, buffers)
        if written < missing:  # a short write: rare, so the rest may be copied
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                rest = rest[os.write(fd, rest) :]

    def sync(self, fd: int) -> None:
        """Return once what was appended is durable."""
        os.fdatasync(fd)

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cut `path` to `size_bytes`, durably."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)

    def replace(self, path: Path, data: bytes) -> None:
        """Put `data` in the place of `path` so that a crash leaves the old or the new."""
        fresh = path.with_name(path.name + ".new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        try:
            self.append(fd, [data])
            os.fsync(fd)
        finally:
            os.close(fd)
        fresh.replace(path)
        self.sync_dir(path.parent)

    def sync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free_bytes(self, path: Path) -> int:
        """What an unprivileged process may still write to the file system of `path`."""
        facts = os.statvfs(path)
        return facts.f_bavail * facts.f_frsize
