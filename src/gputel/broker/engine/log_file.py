"""The writing end of a segment: whole blocks, past the page cache where the file system can.

    block               block               block
    +-------------------+-------------------+-------------------+
    | record | record | record              | record |0000000000|
    +-------------------+-------------------+-------------------+
                                            ^ last              ^ end of the file
                                                     ^ size_bytes

The last block is filled up with zeros, and written again with what comes behind. It is never
torn in what was synced: a disk writes a sector with the old bytes or the new ones, and up to
`size_bytes` they are the same. When the file is left its end is cut back to `size_bytes`.

PERF(direct): a copy into fresh pages of the page cache, and writing them back, cost more CPU
than all else that is done with a message, and nobody reads them there: readers at the tail
have the messages from memory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gputel import limits
from gputel.broker.engine.disk import (
    BLOCK_BYTES,
    NO_DIRECT,
    Disk,
    SyncFailed,
    direct_memory,
    is_direct,
    leave_direct,
    pread,
)
from gputel.broker.engine.record import Record
from gputel.kernels import encode_records

log = logging.getLogger(__name__)

STAGE_BYTES: Final = limits.COMMIT_BYTES_MAX + limits.MIB  # a commit with its heads, mostly
_ZEROS: Final = bytes(BLOCK_BYTES)

assert STAGE_BYTES % BLOCK_BYTES == 0
assert STAGE_BYTES >= limits.RECORD_BYTES_MAX + 2 * BLOCK_BYTES


class Stage:
    """Memory aligned to blocks, where commits are put together. For one thread."""

    def __init__(self, size_bytes: int = STAGE_BYTES) -> None:
        assert size_bytes % BLOCK_BYTES == 0
        self.view = direct_memory(size_bytes)


class LogFile:
    """A segment that is written. Every method may block, and all but `close` raise OSError."""

    def __init__(self, disk: Disk, path: Path, size_bytes: int, stage: Stage) -> None:
        self._disk = disk
        self.path = path
        self._stage = stage.view
        self.size_bytes = size_bytes  # of records
        self._last = b""  # what the last block holds, where blocks are written
        self._unsynced = size_bytes > 0  # what is there may be in the page cache only
        self._fd = disk.open_log(path)
        try:
            self._direct = is_direct(self._fd)
            self._read_last()
        except BaseException:
            os.close(self._fd)
            raise

    def _read_last(self) -> None:
        if self._direct:
            used = self.size_bytes % BLOCK_BYTES
            self._last = pread(self._fd, used, self.size_bytes - used)

    def append(
        self, records: Sequence[Record], unsynced_offset: int, *, durably: bool = False
    ) -> list[int]:
        """Write `records` behind what is there; returns the size of each.

        `unsynced_offset` is the first that is not durable yet. `durably`: `sync` follows, and
        finds it done where blocks are written. After an error, `cut` before going on.
        """
        try:
            return self._append(records, unsynced_offset, durably)
        except OSError as error:
            if isinstance(error, SyncFailed) or error.errno not in NO_DIRECT or not self._direct:
                raise
            log.info("%s is written through the page cache: %s", self.path, error.strerror)
            self.cut(self.size_bytes)
            leave_direct(self._fd)
            self._direct, self._last = False, b""
            return self._append(records, unsynced_offset, durably)

    def _append(self, records: Sequence[Record], unsynced_offset: int, durably: bool) -> list[int]:
        stage, last = self._stage, self._last
        durably = durably and self._direct
        write = self._disk.write_durably if durably else self._disk.write
        sizes: list[int] = []
        position = self.size_bytes - len(last)
        while len(sizes) < len(records):
            stage[: len(last)] = last
            filled, taken = encode_records(records, len(sizes), unsynced_offset, stage, len(last))
            assert taken, "a record and a block fit the stage"
            sizes += taken
            start = end = filled
            if self._direct:
                start -= filled % BLOCK_BYTES
                end += -filled % BLOCK_BYTES
                stage[filled:end] = _ZEROS[: end - filled]
            write(self._fd, stage[:end], position)
            position += start
            last = bytes(stage[start:filled])
        self._last = last
        self.size_bytes = position + len(last)
        self._unsynced = self._unsynced or not durably
        return sizes

    def sync(self) -> None:
        """Return once what was appended is durable."""
        if self._unsynced:
            self._disk.sync(self._fd)
            self._unsynced = False

    def cut(self, size_bytes: int) -> None:
        """Durably take away what lies behind the first `size_bytes`."""
        self._disk.truncate(self.path, size_bytes)
        if size_bytes != self.size_bytes:
            self.size_bytes = size_bytes
            self._read_last()

    def seal(self) -> None:
        """Durably let the file end with its last record. It is still open."""
        self.cut(self.size_bytes)

    def close(self) -> None:
        """Let go of the file, its end where the records end. Nothing is raised."""
        try:
            if os.fstat(self._fd).st_size > self.size_bytes:
                os.ftruncate(self._fd, self.size_bytes)
        except OSError as error:  # who opens it next cuts it
            log.warning("%s keeps zeros at its end: %s", self.path, error.strerror)
        finally:
            os.close(self._fd)
