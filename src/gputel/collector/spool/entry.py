"""One frame on its way, and how it lies in a spool. All integers little-endian.

A spool's segment is the broker's (`_reference/records.py` draws a record): producer,
epoch and sequence are the frame's, the key is its node, `stored_at_ns` is when it was
sealed. The record's payload is

     0      4       5        8              16
    +------+-------+--------+--------------+-------+
    | rows | flags | zeroes | rows_through | frame |
    | u32  | u8    | 3      | u64          |       |
    +------+-------+--------+--------------+-------+

`flags` bit 0: the frame carries events. `rows_through` counts the rows of all frames of
the epoch up to and with this one, so that the rows of frames that are gone are the
difference between their neighbours.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from gputel.broker.engine import Record
from gputel.limits import FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX

_ENVELOPE = struct.Struct("<IB3xQ")
_EVENTFUL = 1

assert _ENVELOPE.size == 16
assert FRAME_BYTES_MAX + _ENVELOPE.size <= PAYLOAD_BYTES_MAX

#: Orders the frames of a producer: (epoch, sequence).
Key = tuple[int, int]


class Entry(NamedTuple):
    """A numbered frame. `payload` is the encoded frame, `rows` its rows."""

    epoch: int
    sequence: int
    node: str
    payload: bytes
    sealed_at_ns: int
    rows: int
    rows_through: int
    eventful: bool

    @property
    def key(self) -> Key:
        return self.epoch, self.sequence


def to_record(entry: Entry, offset: int, producer: str) -> Record:
    """The record that keeps `entry` at `offset`."""
    flags = _EVENTFUL if entry.eventful else 0
    envelope = _ENVELOPE.pack(entry.rows, flags, entry.rows_through)
    return Record(
        offset,
        entry.sealed_at_ns,
        producer,
        entry.epoch,
        entry.sequence,
        entry.node.encode(),
        envelope + entry.payload,
    )


def from_record(record: Record) -> Entry | None:
    """The entry in `record`; None when it is sound but nothing that we have written."""
    if len(record.payload) < _ENVELOPE.size:
        return None
    rows, flags, rows_through = _ENVELOPE.unpack_from(record.payload)
    try:
        node = record.key.decode()
    except UnicodeDecodeError:
        return None
    return Entry(
        record.epoch,
        record.sequence,
        node,
        record.payload[_ENVELOPE.size :],
        record.stored_at_ns,
        rows,
        rows_through,
        bool(flags & _EVENTFUL),
    )
