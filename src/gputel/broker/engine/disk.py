"""The few things the engine asks of a file system, in one place that tests can make fail."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gputel.limits import KIB, MIB

#: What a file opened with O_DIRECT is read and written in. Disks whose own blocks are larger refuse
#: it, as file systems do that know no O_DIRECT: they get and give all through the page cache.
BLOCK_BYTES: Final = 4 * KIB
#: How O_DIRECT is refused: when a file is opened so, or only when it is written or read.
NO_DIRECT: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
PIECE_BYTES: Final = 512 * KIB
HUGE_PAGE_BYTES: Final = 2 * MIB
_READ_BYTES: Final = 1 * MIB + 128 * KIB  # one transfer from the disk
_TRIES: Final = 16
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


def is_direct(fd: int) -> bool:
    """Whether `fd` passes the page cache by, and is written in whole blocks."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def leave_direct(fd: int) -> None:
    """Use the page cache from now on."""
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)


def open_direct(path: Path, flags: int) -> int:
    """A descriptor that passes the page cache by, where the file system can; OSError."""
    flags |= os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o640)
    except OSError as error:
        if error.errno not in NO_DIRECT:
            raise
    return os.open(path, flags, 0o640)


def direct_memory(size_bytes: int) -> memoryview:
    """Memory for descriptors that pass the page cache by: writable, aligned, all zeros.

    PERF(huge): a disk is told of each page it reads or writes, where those don't lie side by side.
    Of huge pages it gets a MiB in one piece instead of 256. What has none gives usual ones.
    """
    memory = mmap.mmap(
        -1, size_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    first = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE_PAGE_BYTES
    return memoryview(memory)[first : first + size_bytes]


class _ReadingStage(threading.local):
    """Aligned memory of each thread that reads."""

    view: memoryview | None = None


_reading: Final = _ReadingStage()


def pread(fd: int, count: int, position: int) -> bytes:
    """Up to `count` bytes at `position`, fewer where the file ends, of any descriptor. OSError."""
    if is_direct(fd):
        try:
            return _pread_blocks(fd, count, position)
        except OSError as error:
            if error.errno not in NO_DIRECT:
                raise
            leave_direct(fd)
    return os.pread(fd, count, position)


def _pread_blocks(fd: int, count: int, position: int) -> bytes:
    if _reading.view is None:
        _reading.view = direct_memory(_READ_BYTES + BLOCK_BYTES)
    view, pieces = _reading.view, []
    end = position + count
    while position < end:
        lead = position % BLOCK_BYTES
        needed = lead + min(end - position, _READ_BYTES)
        got = os.preadv(fd, (view[: needed + -needed % BLOCK_BYTES],), position - lead)
        piece = bytes(view[lead : min(got, needed)])
        pieces.append(piece)
        position += len(piece)
        if got < needed:
            break
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class SyncFailed(OSError):
    """Nobody knows what the disk holds of what was not synced: fatal for the partition."""


class Disk:
    """Real files. Every method may block and raises OSError."""

    def open_log(self, path: Path) -> int:
        """A descriptor for `write`, which passes the page cache by where it can."""
        return open_direct(path, os.O_RDWR | os.O_CREAT)

    def write(self, fd: int, data: memoryview, position: int) -> None:
        """Write all of `data` at `position`: whole blocks where `fd` is direct.

        PERF(writeback): of a large commit the disk writes one piece while the next is copied into
        the page cache.
        """
        direct = is_direct(fd)
        while data:
            if direct:
                written = self._write_blocks(fd, data, position)
            else:
                written = os.pwrite(fd, data[:PIECE_BYTES], position)
            data = data[written:]
            position += written
            if data and not direct:
                begin_writeback(fd)

    def write_durably(self, fd: int, data: memoryview, position: int) -> None:
        """Write all of `data`, and return once it is durable. Also SyncFailed."""
        self.write(fd, data, position)
        try:
            self.sync(fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error

    def _write_blocks(self, fd: int, data: memoryview, position: int, flags: int = 0) -> int:
        """Write some of the blocks; a block that was written in part is to be written again."""
        for _ in range(_TRIES):
            written = os.pwritev(fd, (data,), position, flags)
            if written >= BLOCK_BYTES:
                return written - written % BLOCK_BYTES
        raise OSError(errno.EIO, f"the disk takes no whole block of {BLOCK_BYTES} bytes")

    def open_append(self, path: Path) -> int:
        """A descriptor that appends to `path`, which is made when missing."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def append(self, fd: int, buffers: Sequence[bytes | bytearray]) -> None:
        """Write all of `buffers` behind one another to a descriptor of `open_append`."""
        for first in range(0, len(buffers), _IOV_MAX):
            piece = buffers[first : first + _IOV_MAX]
            missing = sum(map(len, piece))
            written = os.writev(fd, piece)
            if written < missing:  # a short write: rare, so the rest may be copied
                rest = memoryview(b"".join(piece))[written:]
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


class OneCallDisk(Disk):
    """Real files, of which blocks are written and synced by one call.

    What fails in it may be the one or the other. Nothing of a direct descriptor waits in the page
    cache to be taken for written later: once the file is cut durably, all is as it was before.

    PERF(gil): behind each call a thread waits for the interpreter, which the event loop's thread
    may hold for some hundred microseconds, several times the call of a small commit.
    """

    def write_durably(self, fd: int, data: memoryview, position: int) -> None:
        try:
            while data:
                written = self._write_blocks(fd, data, position, os.RWF_DSYNC)
                data = data[written:]
                position += written
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            super().write_durably(fd, data, position)
