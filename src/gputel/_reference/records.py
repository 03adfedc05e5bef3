"""Messages as they lie in a segment of the log, one record each. All integers little-endian.

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
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

import google_crc32c

from gputel import limits

MAGIC: Final = b"GQR1"
HEADER: Final = struct.Struct("<4sIIQqQQIHH")
_CHECKED: Final = struct.Struct("<IQqQQIHH")  # the header behind the checksum
HEADER_BYTES: Final = HEADER.size
RUN_MAX: Final = 64  # records that are decoded at once

assert HEADER_BYTES == limits.RECORD_HEADER_BYTES
assert _CHECKED.size + 8 == HEADER_BYTES

Made = TypeVar("Made")
#: offset, stored_at_ns, producer, epoch, sequence, key, payload -> a record
MakeRecord = Callable[[int, int, str, int, int, bytes, bytes], Made]


class Logged(Protocol):
    """A message with its place in the log."""

    @property
    def offset(self) -> int: ...
    @property
    def stored_at_ns(self) -> int: ...
    @property
    def producer(self) -> str: ...
    @property
    def epoch(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    @property
    def payload(self) -> bytes: ...


def encode_records(
    records: Sequence[Logged], first: int, unsynced_offset: int, out: memoryview, filled: int
) -> tuple[int, list[int]]:
    """Write `records[first:]` into `out[filled:]`, as many whole ones as there is room for.

    `in_commit` counts from `unsynced_offset`. Returns how far `out` is filled then, and the size
    of each record written. OverflowError for what a field can't hold.
    """
    sizes: list[int] = []
    for record in records[first:]:
        data = encode_record(record, record.offset - unsynced_offset)
        if filled + len(data) > len(out):
            break
        out[filled : filled + len(data)] = data
        filled += len(data)
        sizes.append(len(data))
    return filled, sizes


def encode_record(record: Logged, in_commit: int) -> bytes:
    """One record."""
    producer = record.producer.encode()
    length = HEADER_BYTES + len(producer) + len(record.key) + len(record.payload)
    try:
        checked = _CHECKED.pack(
            length,
            record.offset,
            record.stored_at_ns,
            record.epoch,
            record.sequence,
            in_commit,
            len(producer),
            len(record.key),
        )
    except struct.error as error:
        raise OverflowError(f"a record of offset {record.offset}: {error}") from None
    checked += producer + record.key + record.payload
    return MAGIC + struct.pack("<I", google_crc32c.value(checked)) + checked


def decode_records(
    buffer: bytes, position: int, offset_min: int, count_max: int, make: MakeRecord[Made]
) -> list[tuple[Made, int, int]]:
    """The sound records that lie at `position` of `buffer` one behind the other, up to `count_max`.

    (record, size in bytes, `in_commit`) each. At most RUN_MAX, none behind one that is not sound,
    not whole in `buffer`, or whose offset is below `offset_min` or not above the one before.
    """
    found: list[tuple[Made, int, int]] = []
    while len(found) < min(count_max, RUN_MAX) and position + HEADER_BYTES <= len(buffer):
        magic, crc, length, offset, stored_at_ns, epoch, sequence, in_commit, producers, keys = (
            HEADER.unpack_from(buffer, position)
        )
        names = position + HEADER_BYTES
        key_at, payload_at, end = names + producers, names + producers + keys, position + length
        if (
            magic != MAGIC
            or length > limits.RECORD_BYTES_MAX
            or not payload_at <= end <= len(buffer)
        ):
            break
        if google_crc32c.value(buffer[position + 8 : end]) != crc or offset < offset_min:
            break
        try:
            producer = buffer[names:key_at].decode()
        except UnicodeDecodeError:
            break
        key, payload = buffer[key_at:payload_at], buffer[payload_at:end]
        record = make(offset, stored_at_ns, producer, epoch, sequence, key, payload)
        found.append((record, length, in_commit))
        position, offset_min = end, offset + 1
    return found
