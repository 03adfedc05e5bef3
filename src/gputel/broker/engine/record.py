"""A message of the log, and where it lies in a segment.

The bytes are drawn in `gputel._reference.records`, the readable twin of the kernel that writes
and reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from gputel.kernels import RECORD_MAGIC, decode_records
from gputel.limits import RECORD_BYTES_MAX, RECORD_HEADER_BYTES


class Record(msgspec.Struct, frozen=True, gc=False):
    """One stored message. `key` and `payload` are opaque.

    PERF(gc): there may be half a million of them, none in a cycle: the collector must not
    walk over them again and again.
    """

    offset: int
    stored_at_ns: int
    producer: str
    epoch: int
    sequence: int
    key: bytes
    payload: bytes


class Located(NamedTuple):
    """A record with where it lies: `position` in the file, `size_bytes`, and `in_commit`."""

    record: Record
    position: int
    size_bytes: int
    in_commit: int


def record_bytes(record: Record) -> int:
    """The size of `record` in a segment."""
    return (
        RECORD_HEADER_BYTES + len(record.producer.encode()) + len(record.key) + len(record.payload)
    )


def length_at(buffer: bytes, position: int) -> int | None:
    """The length which the header at `position` claims; None when it can't be a header.

    RECORD_HEADER_BYTES stands for a header that `buffer` ends within.
    """
    if position + RECORD_HEADER_BYTES > len(buffer):
        return RECORD_HEADER_BYTES
    magic, _, length = struct.unpack_from("<4sII", buffer, position)
    if magic != RECORD_MAGIC or not RECORD_HEADER_BYTES <= length <= RECORD_BYTES_MAX:
        return None
    return int(length)


def find(buffer: bytes, position: int, offset_min: int) -> Located | None:
    """The first sound record at or behind `position` with an offset of at least `offset_min`."""
    for candidate in _magics(buffer, position):
        for record, size_bytes, in_commit in decode_records(
            buffer, candidate, offset_min, 1, Record
        ):
            return Located(record, candidate, size_bytes, in_commit)
    return None


def _magics(buffer: bytes, position: int) -> Iterator[int]:
    position = buffer.find(RECORD_MAGIC, position)
    while position >= 0:
        yield position
        position = buffer.find(RECORD_MAGIC, position + 1)
