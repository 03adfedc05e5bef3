"""The few things the engine asks of a file system, in one place that tests can make fail."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gputel.limits import KIB

PIECE_BYTES: Final = 512 * KIB
_IOV_MAX: Final = 1024  # UIO_MAXIOV of Linux
_SYNC_FILE_RANGE_WRITE: Final = 2


def _sync_file_range() -> Callable[[int, int, int, int], int]:
    try:
        found = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):  # Linux alone has it
        return lambda fd, offset, size_bytes, flags: 0
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    call: Callable[[int, int, int, int], int] = found
    return call


_sync_range: Final = _sync_file_range()


def begin_writeback(fd: int) -> None:
    """Let the disk begin with what was written. A hint: only `Disk.sync` says that it is there.

    What fails here fails in the next `fdatasync`, too: the kernel keeps the error for it.
    """
    _sync_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)  # up to the file's end


class Disk:
    """Real files. Every method may block and raises OSError."""

    def open_append(self, path: Path) -> int:
        """A descriptor that appends to `path`, which is made when missing."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def append(self, fd: int, buffers: Sequence[bytes]) -> None:
        """Write all of `buffers` behind one another.

        PERF(writeback): of a large commit the disk writes one piece while the next is copied.
        """
        piece: list[bytes] = []
        size_bytes = 0
        for buffer in buffers:
            piece.append(buffer)
            size_bytes += len(buffer)
            if size_bytes >= PIECE_BYTES or len(piece) == _IOV_MAX:
                self._write_all(fd, piece)
                begin_writeback(fd)
                piece, size_bytes = [], 0
        if piece:
            self._write_all(fd, piece)

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
