"""One message as it lies in a segment. All integers little-endian.

     0      4        8        12       20             28      36         44
    +------+--------+--------+--------+--------------+-------+----------+-----------+
    |"GQR1"| crc32c | length | offset | stored_at_ns | epoch | sequence | in_commit |
    | 4    | u32    | u32    | u64    | i64          | u64   | u64      | u32       |
    +------+--------+--------+--------+--------------+-------+----------+-----------+
     48             50        52
    +--------------+---------+----------+-----+---------+
    | producer_len | key_len | producer | key | payload |
    | u16          | u16     | UTF-8    |     |         |
    +--------------+---------+----------+-----+---------+

`length` counts the whole record; `crc32c` covers everything behind itself. `in_commit` is
the distance (in offsets) to the first record that was not yet synced when this one was
written. It tells a torn tail from damage: records of one commit reach the disk in any
order, so a hole followed by a record of the SAME commit was never acknowledged, while a
hole followed by one of a LATER commit was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import google_crc32c
import msgspec

from gputel import limits

MAGIC = b"GQR1"
HEADER = struct.Struct("<4sIIQqQQIHH")
_CHECKED = struct.Struct("<IQqQQIHH")  # the header behind the checksum
HEADER_BYTES = HEADER.size
#: Dead letters carry a payload of full size in an envelope with the names around it.
PAYLOAD_BYTES_MAX = limits.FRAME_BYTES_MAX + 8 * limits.KIB
RECORD_BYTES_MAX = (
    HEADER_BYTES + limits.PRODUCER_BYTES_MAX + limits.KEY_BYTES_MAX + PAYLOAD_BYTES_MAX
)

assert HEADER_BYTES == 52
assert _CHECKED.size + 8 == HEADER_BYTES
assert max(limits.PRODUCER_BYTES_MAX, limits.KEY_BYTES_MAX) < 1 << 16
assert PAYLOAD_BYTES_MAX < limits.GRPC_MESSAGE_BYTES_MAX
assert RECORD_BYTES_MAX <= limits.COMMIT_BYTES_MAX


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
    return HEADER_BYTES + len(record.producer.encode()) + len(record.key) + len(record.payload)


def encode_head(record: Record, in_commit: int) -> bytes:
    """Everything of a record before its payload, which is written behind it uncopied."""
    producer = record.producer.encode()
    length = HEADER_BYTES + len(producer) + len(record.key) + len(record.payload)
    checked = (
        _CHECKED.pack(
            length,
            record.offset,
            record.stored_at_ns,
            record.epoch,
            record.sequence,
            in_commit,
            len(producer),
            len(record.key),
        )
        + producer
        + record.key
    )
    crc: int = google_crc32c.extend(google_crc32c.value(checked), record.payload)
    return MAGIC + crc.to_bytes(4, "little") + checked


def decode(buffer: bytes, position: int) -> Located | None:
    """The record at `position` of `buffer`; None when no whole, sound one begins there."""
    if position + HEADER_BYTES > len(buffer):
        return None
    magic, crc, length, offset, stored_at_ns, epoch, sequence, in_commit, producers, keys = (
        HEADER.unpack_from(buffer, position)
    )
    head_end = position + HEADER_BYTES + producers + keys
    end = position + length
    if magic != MAGIC or length > RECORD_BYTES_MAX or not head_end <= end <= len(buffer):
        return None
    payload = buffer[head_end:end]
    checked = google_crc32c.value(buffer[position + 8 : head_end])
    if google_crc32c.extend(checked, payload) != crc:
        return None
    names = position + HEADER_BYTES
    try:
        producer = buffer[names : names + producers].decode()
    except UnicodeDecodeError:
        return None
    key = buffer[names + producers : head_end]
    record = Record(offset, stored_at_ns, producer, epoch, sequence, key, payload)
    return Located(record, position, length, in_commit)


def length_at(buffer: bytes, position: int) -> int | None:
    """The length which the header at `position` claims; None when it can't be a header.

    HEADER_BYTES stands for a header that `buffer` ends within.
    """
    if position + HEADER_BYTES > len(buffer):
        return HEADER_BYTES
    magic, _, length = struct.unpack_from("<4sII", buffer, position)
    if magic != MAGIC or not HEADER_BYTES <= length <= RECORD_BYTES_MAX:
        return None
    return int(length)


def find(buffer: bytes, position: int, offset_min: int) -> Located | None:
    """The first sound record at or behind `position` with an offset of at least `offset_min`."""
    for candidate in _magics(buffer, position):
        located = decode(buffer, candidate)
        if located is not None and located.record.offset >= offset_min:
            return located
    return None


def _magics(buffer: bytes, position: int) -> Iterator[int]:
    position = buffer.find(MAGIC, position)
    while position >= 0:
        yield position
        position = buffer.find(MAGIC, position + 1)
