"""Numbers that survive kill -9: a small file in shared memory. All integers native.

     0      8              64                        64 + SLOT_BYTES
    +------+--------------+-------------------------+-------------------------+
    |"GQW1"| swept_rows   | slot 0                  | slot 1                  |
    | 8    | u64, u64     | SLOT_BYTES              | SLOT_BYTES              |
    +------+--------------+-------------------------+-------------------------+

    slot:  crc32c u32 | length u32 | generation u64 | word u64 | JSON of `Progress`

What a process has stored in a shared mapping is the page cache's, so it outlives the
process (not a loss of power: then the file may be older than the segments beside it).
The slots are written in turn: a write that was cut short fails its checksum, and the
other slot holds what was true just before. `swept_rows` are words of their own, because
the sampler's thread writes them; `word` says which of them is of the slot's epoch.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from pathlib import Path
from typing import Final, NamedTuple

import google_crc32c
import msgspec

from gputel.collector.spool.ledger import Progress
from gputel.limits import KIB

MAGIC: Final = b"GQW1\0\0\0\0"
HEAD_BYTES: Final = 64
SLOT_BYTES: Final = 32 * KIB
FILE_BYTES: Final = HEAD_BYTES + 2 * SLOT_BYTES
_SLOT = struct.Struct("=IIQQ")
_CHECKED = struct.Struct("=IQQ")  # a slot's head behind the checksum
_FIRST_WORD: Final = 1
_decode = msgspec.json.Decoder(Progress).decode


class Found(NamedTuple):
    """What a predecessor left."""

    progress: Progress
    swept_rows: int


class Watermark:
    """The file at `path`, made when missing; OSError. Its mapping goes with the object, so
    that a sampler that comes back late from the driver still finds it."""

    def __init__(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            # Blocks are reserved now: a store into a hole of a full disk is a SIGBUS.
            os.posix_fallocate(fd, 0, FILE_BYTES)
            self._map = mmap.mmap(fd, FILE_BYTES)
        finally:
            os.close(fd)
        self._words = memoryview(self._map)[:HEAD_BYTES].cast("Q")
        self._generation = 0
        self._word = 0
        self.found = self._load()

    def begin(self, progress: Progress) -> None:
        """From here on the file is about the epoch of `progress`, at once or not at all."""
        self._word = 1 - self._word
        self._words[_FIRST_WORD + self._word] = 0
        self._map[: len(MAGIC)] = MAGIC
        self.save(progress)

    def save(self, progress: Progress) -> None:
        """Remember `progress` in the place of what was remembered."""
        body = msgspec.json.encode(progress)
        assert _SLOT.size + len(body) <= SLOT_BYTES, "its lists are bounded"
        self._generation += 1
        checked = _CHECKED.pack(len(body), self._generation, self._word) + body
        crc: int = google_crc32c.value(checked)
        start = HEAD_BYTES + self._generation % 2 * SLOT_BYTES
        self._map[start : start + 4 + len(checked)] = crc.to_bytes(4, sys.byteorder) + checked

    def swept(self, rows: int) -> None:
        """The rings have taken `rows` rows in this epoch. Any one thread."""
        self._words[_FIRST_WORD + self._word] = rows

    def _load(self) -> Found | None:
        if self._map[: len(MAGIC)] != MAGIC:
            return None
        slots = [slot for slot in map(self._read_slot, (0, 1)) if slot is not None]
        if not slots:
            return None
        self._generation, self._word, progress = max(slots, key=lambda slot: slot[0])
        return Found(progress, self._words[_FIRST_WORD + self._word])

    def _read_slot(self, number: int) -> tuple[int, int, Progress] | None:
        start = HEAD_BYTES + number * SLOT_BYTES
        crc, length, generation, word = _SLOT.unpack_from(self._map, start)
        if length > SLOT_BYTES - _SLOT.size:
            return None
        checked = self._map[start + 4 : start + _SLOT.size + length]
        if google_crc32c.value(checked) != crc or word > 1:
            return None
        try:
            return generation, word, _decode(checked[_CHECKED.size :])
        except msgspec.DecodeError:
            return None
