"""The spool's directory: segments of entries, oldest first.

    DIRECTORY/lock               held by the collector that uses it
    DIRECTORY/watermark          watermark.py
    DIRECTORY/<offset>.log       segments (entry.py), named by the offset of the first record

    segments  |  read, not acknowledged  |  unread  | active |
              ^ release                  ^ cursor            ^ append

A file is never appended to by another process than the one that made it: what a dead one
left torn stays as it is, and is skipped when it is read. What is not yet synced survives
the process, not the machine; `sync` is for the caller to decide.

Everything here blocks and is used by one thread at a time. OSError is the disk's word.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gputel.broker.engine.disk import Disk
from gputel.broker.engine.record import Located, record_bytes
from gputel.broker.engine.segment import SUFFIX, Gap, Segment, walk
from gputel.collector.spool.entry import Entry, Key, from_record, to_record
from gputel.errors import InputError
from gputel.kernels import encode_records
from gputel.limits import KIB, MIB

log = logging.getLogger(__name__)

SPOOL_BYTES_MIN: Final = 8 * MIB
SEGMENT_BYTES_MAX: Final = 16 * MIB
#: A segment whose frames are all acknowledged makes place for a new one at this size: small
#: enough to be deleted before the kernel has written any of it to the disk.
IDLE_BYTES: Final = 256 * KIB
#: What is read beside the payloads that are asked for.
HEADS_BYTES: Final = 128 * KIB


@dataclass(slots=True, eq=False)
class _File:
    """One segment. `newest` is the last entry known to be in it."""

    path: Path
    base_offset: int
    size_bytes: int
    newest: Key | None = None


class Spool:
    """The frames of one producer in `directory`; `open`, then `close`."""

    def __init__(
        self, directory: Path, producer: str, bytes_max: int, disk: Disk | None = None
    ) -> None:
        self.directory = directory
        self.bytes_max = max(bytes_max, SPOOL_BYTES_MIN)
        self.segment_bytes = min(SEGMENT_BYTES_MAX, self.bytes_max // 8)
        self._producer = producer
        self._disk = disk or Disk()
        self._lock = -1
        self._files: list[_File] = []
        self._active = -1  # descriptor of the last file, when it is ours
        self._reading = 0  # index of the file under the cursor
        self._position = 0
        self._name_synced = True
        self.next_offset = 0
        self.size_bytes = 0
        self.unsynced_bytes = 0
        self.damaged_bytes = 0
        #: The last entry on disk, of this process or its predecessor.
        self.newest: Entry | None = None
        #: What lay beside it when we came.
        self.recent: frozenset[Key] = frozenset()

    def open(self) -> int:
        """Lock the directory and take in what lies there; returns the number of records.

        InputError when another collector has it, OSError when it can't be used.
        """
        self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            raise InputError(
                f"spool {self.directory} is in use by another collector",
                hint="stop that one, or give this one another collector.spool_dir",
            ) from None
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            if path.stem.isdigit():
                file = _File(path, int(path.stem), path.stat().st_size)
                self._files.append(file)
                self.size_bytes += file.size_bytes
        self._take_in_newest()
        return self.next_offset - self._files[0].base_offset if self._files else 0

    def close(self) -> None:
        """Let the next collector have it."""
        with contextlib.suppress(OSError):
            self._retire()
        self._unlock()

    @property
    def unread(self) -> bool:
        """Lie entries behind the cursor?"""
        return self._reading < len(self._files) - 1 or (
            self._reading < len(self._files)
            and self._position < self._files[self._reading].size_bytes
        )

    def append(self, entries: Sequence[Entry]) -> None:
        """Put `entries` behind what is there, all or none."""
        if self._active >= 0 and self._files[-1].size_bytes >= self.segment_bytes:
            self._retire()
        if self._active < 0:
            self._begin()
        file = self._files[-1]
        records = [
            to_record(entry, self.next_offset + i, self._producer)
            for i, entry in enumerate(entries)
        ]
        size_bytes = sum(map(record_bytes, records))
        # The distance to the first unsynced record: at least to this call's first.
        unsynced_offset = file.base_offset if self.unsynced_bytes > 0 else self.next_offset
        data = bytearray(size_bytes)
        encode_records(records, 0, unsynced_offset, memoryview(data), 0)
        try:
            self._disk.append(self._active, [data])
        except OSError:
            self._cut(file)
            raise
        file.size_bytes += size_bytes
        self.size_bytes += size_bytes
        self.unsynced_bytes += size_bytes
        self.next_offset += len(records)
        file.newest = entries[-1].key
        self.newest = entries[-1]._replace(payload=b"")

    def pass_over(self) -> None:
        """Move the cursor to the end: the reader has had all of it from elsewhere."""
        if self._files:
            self._reading, self._position = len(self._files) - 1, self._files[-1].size_bytes

    def read(self, bytes_max: int) -> list[Entry]:
        """The next entries, up to `bytes_max` and one more; empty at the end."""
        entries: list[Entry] = []
        taken_bytes = 0
        while self.unread:
            file = self._files[self._reading]
            for entry in self._walk(file, bytes_max + HEADS_BYTES):
                entries.append(entry)
                taken_bytes += len(entry.payload)
                if taken_bytes >= bytes_max:
                    return entries
            if self._reading == len(self._files) - 1:
                break
            self.skip_file()
        return entries

    def skip_file(self) -> None:
        """Move the cursor to the next file, whatever is left in this one."""
        self._reading, self._position = self._reading + 1, 0

    def releasable(self, acked: Key) -> bool:
        """Would `release` delete anything?"""
        return bool(self._files) and self._is_done(0, acked, IDLE_BYTES)

    def release(self, acked: Key, *, all: bool = False) -> None:
        """Delete the files whose entries were read and acknowledged, the active one only
        from IDLE_BYTES on or when `all` of them shall go."""
        while self._files and self._is_done(0, acked, 0 if all else IDLE_BYTES):
            self.delete_oldest()

    def oldest(self) -> tuple[list[Entry], Key]:
        """What the oldest file holds: entries not read yet, of which only eventful ones have
        a payload, and its newest key."""
        unread: list[Entry] = []
        file = self._files[0]
        if self._reading == 0:
            with contextlib.suppress(OSError):  # what can't be read is lost all the same
                unread.extend(
                    entry if entry.eventful else entry._replace(payload=b"")
                    for entry in self._walk(file)
                )
        return unread, file.newest or (0, 0)

    def delete_oldest(self) -> None:
        """Delete the oldest file, whatever it holds."""
        file = self._files.pop(0)
        if not self._files:
            if self._active >= 0:
                os.close(self._active)
                self._active = -1
            self.unsynced_bytes = 0
        self.size_bytes -= file.size_bytes
        if self._reading == 0:
            self._position = 0
        self._reading = max(self._reading - 1, 0)
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s can't be deleted: %s", file.path, error.strerror)

    def sync(self) -> None:
        """Make everything appended so far durable."""
        if self._active >= 0 and self.unsynced_bytes:
            self._disk.sync(self._active)
            if not self._name_synced:
                self._disk.sync_dir(self.directory)
                self._name_synced = True
        self.unsynced_bytes = 0

    # -- files -------------------------------------------------------------------------

    def _take_in_newest(self) -> None:
        """Find the last sound entry; it names the next offset and the last epoch."""
        for file in reversed(self._files):
            self.next_offset = max(self.next_offset, file.base_offset + 1)
            newest, recent = None, set()
            for found in self._records(file, 0):
                if isinstance(found, Located):
                    self.next_offset = max(self.next_offset, found.record.offset + 1)
                    newest = from_record(found.record) or newest
                    recent.add((found.record.epoch, found.record.sequence))
            if newest is not None:
                file.newest = newest.key
                self.newest = newest._replace(payload=b"")
                self.recent = frozenset(recent)
                return

    def _begin(self) -> None:
        if self._files and self._files[-1].base_offset == self.next_offset:
            self.next_offset += 1  # that file could not be used any more
        path = Segment.named(self.directory, self.next_offset)
        self._active = self._disk.open_append(path)
        self._files.append(_File(path, self.next_offset, 0))
        self._name_synced = False

    def _retire(self) -> None:
        """Close the active file, durable if anything of it was wanted so."""
        if self._active < 0:
            return
        fd, self._active = self._active, -1
        try:
            if self.unsynced_bytes and self._name_synced:
                self._disk.sync(fd)
        finally:
            self.unsynced_bytes = 0
            os.close(fd)

    def _cut(self, file: _File) -> None:
        """Take a half written append back, or leave the file as it is for good."""
        try:
            os.ftruncate(self._active, file.size_bytes)
        except OSError:
            os.close(self._active)
            self._active = -1

    def _is_done(self, index: int, acked: Key, idle_bytes: int) -> bool:
        file = self._files[index]
        if file.newest is not None and file.newest > acked:
            return False
        if index < self._reading:
            return True
        if index < len(self._files) - 1 or self._position < file.size_bytes:
            return False
        return file.size_bytes >= max(idle_bytes, 1)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- reading -----------------------------------------------------------------------

    def _records(
        self, file: _File, position: int, first_bytes: int = MIB
    ) -> Iterator[Located | Gap]:
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # somebody has cleaned up
            yield Gap(position, file.size_bytes)
            return
        try:
            yield from walk(
                fd,
                file.size_bytes,
                position=position,
                offset_min=file.base_offset,
                first_bytes=first_bytes,
                window_bytes=MIB,
            )
        finally:
            os.close(fd)

    def _walk(self, file: _File, first_bytes: int = MIB) -> Iterator[Entry]:
        """Entries from the cursor on, which moves along."""
        for found in self._records(file, self._position, first_bytes):
            if isinstance(found, Gap):
                self._damage(file, found)
                continue
            entry = from_record(found.record)
            end = found.position + found.size_bytes
            if entry is None or found.record.producer != self._producer:
                self._damage(file, Gap(found.position, end))
                continue
            self._position = end
            file.newest = max(file.newest or entry.key, entry.key)
            yield entry

    def _damage(self, file: _File, gap: Gap) -> None:
        self._position = gap.end
        self.damaged_bytes += gap.end - gap.position
        log.warning("%s: bytes %d to %d are no frames", file.path, gap.position, gap.end)
