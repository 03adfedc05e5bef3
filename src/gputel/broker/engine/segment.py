"""One append-only file of records, named by the offset of its first.

Reading opens the file anew each time, so that retention may delete it under a reader and
descriptors stay few. The sparse index is never stored: the active segment's grows with
its appends, a sealed one's with what is read of it.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from gputel import limits
from gputel.broker.engine import record as layout
from gputel.broker.engine.disk import BLOCK_BYTES, open_direct, pread
from gputel.broker.engine.record import Located, Record
from gputel.kernels import decode_records
from gputel.limits import RECORD_BYTES_MAX, RECORD_HEADER_BYTES

INDEX_INTERVAL_BYTES = 64 * limits.KIB
_WINDOW_BYTES = 4 * limits.MIB
_RUN_RECORDS = 32  # decoded at once: as many frames as two windows of a read have
SUFFIX = ".log"
SNAPSHOT_SUFFIX = ".producers"

assert _WINDOW_BYTES >= 2 * RECORD_BYTES_MAX


class Gap(NamedTuple):
    """Bytes [position, end) of a segment that are no sound records."""

    position: int
    end: int


class Part(NamedTuple):
    """What a read of one segment found. `gaps` lie among the records."""

    records: list[Record]
    next_offset: int
    gaps: list[Gap]


class _Window:
    """A sliding view of a file's first `size_bytes` bytes.

    It takes `first_bytes` in, and at least `window_bytes` when it goes on.
    """

    def __init__(self, fd: int, size_bytes: int, first_bytes: int, window_bytes: int) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._next_bytes = first_bytes
        self._window_bytes = window_bytes
        self._start = 0
        self._buffer = b""

    def at(self, position: int, needed_bytes: int) -> tuple[bytes, int]:
        """(buffer, index of `position` in it), with `needed_bytes` unless the file ends."""
        end = min(position + needed_bytes, self._size_bytes)
        if position < self._start or end > self._start + len(self._buffer):
            count = min(max(self._next_bytes, needed_bytes), self._size_bytes - position)
            self._next_bytes = self._window_bytes
            self._buffer = pread(self._fd, count, position)
            self._start = position
        return self._buffer, position - self._start


def walk(
    fd: int,
    size_bytes: int,
    *,
    position: int = 0,
    offset_min: int = 0,
    first_bytes: int = _WINDOW_BYTES,
    window_bytes: int = _WINDOW_BYTES,
) -> Iterator[Located | Gap]:
    """All records of a file from `position` on, in order, and the gaps between them.

    Record offsets grow strictly from `offset_min`; what does not is part of a gap. The file is
    read `first_bytes` at first, then `window_bytes` at a time.
    """
    window = _Window(fd, size_bytes, first_bytes, window_bytes)
    while position < size_bytes:
        buffer, at = window.at(position, RECORD_HEADER_BYTES)
        run = decode_records(buffer, at, offset_min, _RUN_RECORDS, Record)
        if not run:
            length = layout.length_at(buffer, at)
            if length is not None and position + length <= size_bytes:
                buffer, at = window.at(position, length)
                run = decode_records(buffer, at, offset_min, _RUN_RECORDS, Record)
        if not run:
            found = _resume(window, position + 1, size_bytes, offset_min)
            yield Gap(position, size_bytes if found is None else found.position)
            if found is None:
                return
            run = [(found.record, found.size_bytes, found.in_commit)]
            position = found.position
        for record, record_bytes, in_commit in run:
            yield Located(record, position, record_bytes, in_commit)
            position += record_bytes
            offset_min = record.offset + 1


def is_padding(fd: int, gap: Gap) -> bool:
    """Whether `gap`, the end of a file, is what fills up the last block."""
    size_bytes = gap.end - gap.position
    return size_bytes < BLOCK_BYTES and not any(pread(fd, size_bytes, gap.position))


def _resume(window: _Window, position: int, size_bytes: int, offset_min: int) -> Located | None:
    while position < size_bytes:
        buffer, at = window.at(position, _WINDOW_BYTES)
        found = layout.find(buffer, at, offset_min)
        if found is not None:
            return found._replace(position=position - at + found.position)
        if position - at + len(buffer) >= size_bytes or len(buffer) - at <= RECORD_BYTES_MAX:
            return None  # the file's end, also of one that somebody has cut
        # A record that begins near the end of this window lies wholly in the next.
        position += len(buffer) - at - RECORD_BYTES_MAX
    return None


class Segment:
    """A segment file. Written by the committer only, read by any thread."""

    def __init__(self, path: Path, base_offset: int, size_bytes: int) -> None:
        self.path = path
        self.base_offset = base_offset
        self.size_bytes = size_bytes
        self.first_stored_at_ns = 0  # 0: not known yet
        self._offsets: list[int] = []
        self._positions: list[int] = []
        self._indexed_bytes = 0
        self._indexed_offset = base_offset  # the first that is not indexed
        self._lock = threading.Lock()

    @classmethod
    def named(cls, directory: Path, base_offset: int) -> Path:
        """The path of the segment that begins with `base_offset`."""
        return directory / f"{base_offset:020d}{SUFFIX}"

    @property
    def snapshot_path(self) -> Path:
        """Where the producers known before this segment are kept."""
        return self.path.with_suffix(SNAPSHOT_SUFFIX)

    def note(self, record: Record, position: int, size_bytes: int) -> None:
        """Take a record into the index that lies right behind what is indexed."""
        if not self._offsets or position - self._positions[-1] >= INDEX_INTERVAL_BYTES:
            if not self._offsets:
                self.first_stored_at_ns = record.stored_at_ns
            # Readers look into `_offsets` first: a position must be there before.
            self._positions.append(position)
            self._offsets.append(record.offset)
        self._indexed_bytes = position + size_bytes
        self._indexed_offset = record.offset + 1

    def note_all(self, records: Sequence[Record], sizes: Sequence[int]) -> None:
        """Take records into the index and the size that were written behind what is there."""
        position = self.size_bytes
        due = self._positions[-1] + INDEX_INTERVAL_BYTES if self._positions else position
        for record, size_bytes in zip(records, sizes, strict=True):
            if position >= due:
                self.note(record, position, size_bytes)
                due = position + INDEX_INTERVAL_BYTES
            position += size_bytes
        self._indexed_bytes = position
        self._indexed_offset = records[-1].offset + 1
        self.size_bytes = position

    def open(self, *, cached: bool = False) -> int:
        """A descriptor for reading; FileNotFoundError after retention.

        `cached`: through the page cache, for a segment that is no longer written.
        """
        if cached:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return open_direct(self.path, os.O_RDONLY)

    def first_time(self) -> int:
        """When the first record was stored, ns since the epoch; 0 when that can't be read."""
        if not self.first_stored_at_ns and self.size_bytes:
            fd = self.open()
            try:
                records = walk(
                    fd,
                    self.size_bytes,
                    offset_min=self.base_offset,
                    # Of hundreds of segments after a start.
                    first_bytes=INDEX_INTERVAL_BYTES,
                    window_bytes=INDEX_INTERVAL_BYTES,
                )
                found = next(records, None)
            finally:
                os.close(fd)
            if isinstance(found, Located):
                self.first_stored_at_ns = found.record.stored_at_ns
        return self.first_stored_at_ns

    def offset_at(self, time_ns: int) -> int | None:
        """The first record stored at or after `time_ns`; None when there is none. Blocks."""
        fd = self.open()
        try:
            for found in walk(fd, self.size_bytes, offset_min=self.base_offset):
                if isinstance(found, Located) and found.record.stored_at_ns >= time_ns:
                    return found.record.offset
        finally:
            os.close(fd)
        return None

    def read(
        self,
        offset: int,
        end_offset: int,
        messages_max: int,
        bytes_max: int,
        *,
        cached: bool = False,
    ) -> Part:
        """Records of [offset, end_offset); at least one where there is one. See `open`.

        Blocks. Raises FileNotFoundError when the segment is gone, OSError on disk errors.
        """
        fd = self.open(cached=cached)
        try:
            with self._lock:
                position = self._position_of(fd, offset)
            return self._collect(fd, position, offset, end_offset, messages_max, bytes_max)
        finally:
            os.close(fd)

    def _collect(
        self,
        fd: int,
        position: int,
        offset: int,
        end_offset: int,
        messages_max: int,
        bytes_max: int,
    ) -> Part:
        part = Part([], offset, [])
        next_offset, taken_bytes = offset, 0
        # The record behind is looked at, too, and mostly by its header only.
        for found in walk(
            fd,
            self.size_bytes,
            position=position,
            first_bytes=bytes_max + INDEX_INTERVAL_BYTES,
            window_bytes=INDEX_INTERVAL_BYTES,
        ):
            if found.position == self._indexed_bytes:
                with self._lock:
                    self._pass(found)
            if isinstance(found, Gap):
                part.gaps.append(found)
                continue
            record = found.record
            if record.offset < offset:
                part.gaps.clear()  # they lie before what was asked for
                continue
            if record.offset >= end_offset:
                break
            taken_bytes += len(record.payload)
            if part.records and taken_bytes > bytes_max:
                return part._replace(next_offset=next_offset)
            part.records.append(record)
            next_offset = record.offset + 1
            if taken_bytes >= bytes_max or len(part.records) >= messages_max:
                return part._replace(next_offset=next_offset)
        return part._replace(next_offset=end_offset)

    def _position_of(self, fd: int, offset: int) -> int:
        """Where to begin to look for `offset`; what a restart left is indexed up to there."""
        if self._indexed_bytes < self.size_bytes and offset > self._indexed_offset:
            for found in walk(fd, self.size_bytes, position=self._indexed_bytes):
                self._pass(found)
                if self._indexed_offset >= offset:
                    break
        if offset == self._indexed_offset:
            return self._indexed_bytes
        entry = max(bisect_right(self._offsets, offset) - 1, 0)
        return self._positions[entry] if self._positions else 0

    def _pass(self, found: Located | Gap) -> None:
        """Index what was read right behind what is indexed."""
        if found.position != self._indexed_bytes:
            return
        if isinstance(found, Gap):
            self._indexed_bytes = found.end
        else:
            self.note(found.record, found.position, found.size_bytes)
