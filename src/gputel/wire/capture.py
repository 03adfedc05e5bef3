"""A capture file: frames as they travel, one after the other. docs/reference/capture.md.

    0             8
    +-------------+--------+--------+--------+--
    | "GPUTELC1"  | record | record | record | ...
    +-------------+--------+--------+--------+--

    a record, integers little-endian:

    0        4        8
    +--------+--------+------------------+
    | length | crc32c | frame (frame.md) |
    | u32    | u32    | `length` bytes   |
    +--------+--------+------------------+

`crc32c` covers the frame's bytes. A file may end within a record: whoever wrote it was cut
off, and all records before are whole. What is known of a GPU may stand in any frame.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

import google_crc32c

from gputel import limits
from gputel.errors import CaptureCorrupt

MAGIC: Final = b"GPUTELC1"
_HEAD: Final = struct.Struct("<II")
HEAD_BYTES: Final = _HEAD.size


class Recorded(NamedTuple):
    """One record of a capture and where it ends; `payload` is None when its checksum is wrong."""

    payload: bytes | None
    end: int


def record_head(payload: bytes) -> bytes:
    """What stands before `payload`, an encoded frame, in a capture."""
    assert 0 < len(payload) <= limits.FRAME_BYTES_MAX
    return _HEAD.pack(len(payload), google_crc32c.value(payload))


def read_records(file: BinaryIO, size_bytes: int) -> Iterator[Recorded]:
    """The records within the first `size_bytes` of a file that is open at its beginning.

    CaptureCorrupt: it is no capture, or a length makes no sense: nothing behind it can be
    found. A record that the file's end cuts off is not yielded.
    """
    if file.read(len(MAGIC)) != MAGIC:
        raise CaptureCorrupt(0, "a capture begins with GPUTELC1")
    position = len(MAGIC)
    while position + HEAD_BYTES <= size_bytes:
        length, crc = _HEAD.unpack(_exactly(file, HEAD_BYTES, position))
        if not 0 < length <= limits.FRAME_BYTES_MAX:
            raise CaptureCorrupt(position, f"a record of {length} bytes")
        end = position + HEAD_BYTES + length
        if end > size_bytes:
            return
        payload = _exactly(file, length, position)
        yield Recorded(payload if google_crc32c.value(payload) == crc else None, end)
        position = end


def _exactly(file: BinaryIO, count: int, position: int) -> bytes:
    data = file.read(count)
    if len(data) != count:
        raise CaptureCorrupt(position, "the file became shorter while it was read")
    return data
