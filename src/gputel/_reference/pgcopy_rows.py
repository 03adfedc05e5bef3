"""PostgreSQL's binary COPY stream, read into columns; its bytes are drawn in
gputel._reference.pgcopy.

    int8              int64[rows]
    float4            float32[rows]
    float8            float64[rows]
    timestamptz_ns    int64[rows], ns since the Unix epoch
    numeric_u64       uint64[rows], of whole numbers only

A NULL is 0 in its column and False beside it. The native twin is gputel._native.pgcopy_rows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np

from gputel._reference.pgcopy import EPOCH_2000_US, FIELDS_MAX, HEADER, FieldType
from gputel.rows import CopiedRows

_DTYPES: Final = {
    "int8": ">i8",
    "float4": ">f4",
    "float8": ">f8",
    "timestamptz_ns": ">i8",
    "numeric_u64": ">u8",
}
_TIME_US_MAX: Final = (2**63 - 1) // 1000


class CopyRows:
    """Takes a stream of rows whose fields have `types` in pieces, and gives its columns.

    ValueError: a type that is not in the table above, or more fields than PostgreSQL has.
    """

    def __init__(self, types: Sequence[FieldType]) -> None:
        if not 1 <= len(types) <= FIELDS_MAX:
            raise ValueError(f"{len(types)} fields; 1 to {FIELDS_MAX} are allowed")
        for number, kind in enumerate(types):
            if kind not in _DTYPES:
                raise ValueError(f"field {number}: unknown type {kind!r}")
        self._types = tuple(types)
        self._stream = bytearray()
        self._at = 0
        self._cells: list[list[bytes | None]] = []
        self._begun = self._ended = False

    @property
    def rows(self) -> int:
        """Whole rows so far."""
        return len(self._cells)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the stream, cut anywhere.

        ValueError: they are not what `types` says. It names the field; nothing can be fed any
        more.
        """
        self._stream += data
        if not self._begun and len(self._stream) >= len(HEADER):
            if self._stream[: len(HEADER)] != HEADER:
                raise ValueError("no binary COPY stream without flags and extension")
            self._at = len(HEADER)
            self._begun = True
        while self._begun and (cells := self._row()) is not None:
            self._cells.append(cells)

    def _row(self) -> list[bytes | None] | None:
        """The payloads of the next row; None: it is not whole yet, or was the trailer."""
        if self._ended and self._at < len(self._stream):
            raise ValueError("bytes after the trailer")
        at = self._at + 2
        if at > len(self._stream):
            return None
        (fields,) = struct.unpack_from(">h", self._stream, self._at)
        if fields == -1:
            self._at = at
            self._ended = True
            return self._row()
        if fields != len(self._types):
            raise ValueError(f"a row of {fields} fields, not {len(self._types)}")
        cells: list[bytes | None] = []
        for number, kind in enumerate(self._types):
            if at + 4 > len(self._stream):
                return None
            (length,) = struct.unpack_from(">i", self._stream, at)
            at += 4
            if length == -1:
                cells.append(None)
                continue
            if not _fits(kind, length):
                raise ValueError(f"field {number} ({kind}): {length} bytes")
            if at + length > len(self._stream):
                return None
            cells.append(_number(number, kind, bytes(self._stream[at : at + length])))
            at += length
        self._at = at
        return cells

    def finish(self) -> CopiedRows:
        """All columns. ValueError: the stream has no end yet."""
        if not self._ended:
            raise ValueError(f"the stream ends after {self.rows} rows, without a trailer")
        columns, valid = [], []
        for number, kind in enumerate(self._types):
            cells = [row[number] for row in self._cells]
            zero = bytes(np.dtype(_DTYPES[kind]).itemsize)
            joined = b"".join(zero if cell is None else cell for cell in cells)
            column = np.frombuffer(joined, _DTYPES[kind])
            columns.append(column.astype(column.dtype.newbyteorder("=")))
            valid.append(np.array([cell is not None for cell in cells], np.bool_))
        return CopiedRows(tuple(columns), tuple(valid))


def _fits(kind: FieldType, length: int) -> bool:
    if kind == "numeric_u64":
        # With zeros at both ends, as nobody sends them, it might be longer.
        return length in (8, 10, 12, 14, 16, 18)
    return length == (4 if kind == "float4" else 8)


def _number(number: int, kind: FieldType, payload: bytes) -> bytes:
    """The column's bytes of a payload, still in network byte order."""
    if kind == "timestamptz_ns":
        (time_us,) = struct.unpack(">q", payload)
        time_us += EPOCH_2000_US
        if not -_TIME_US_MAX <= time_us <= _TIME_US_MAX:
            raise ValueError(f"field {number} ({kind}): a time out of range")
        return struct.pack(">q", time_us * 1000)
    if kind == "numeric_u64":
        value = _whole(payload)
        if value is None:
            raise ValueError(f"field {number} ({kind}): no whole number from 0 to 2**64 - 1")
        return struct.pack(">Q", value)
    return payload


def _whole(payload: bytes) -> int | None:
    """A numeric, where it is a u64."""
    count, weight, sign, _, *digits = struct.unpack(f">hhHh{len(payload) // 2 - 4}H", payload)
    if (
        count != len(digits)
        or sign
        or not count - 1 <= weight <= 4
        or max(digits, default=0) > 9999
    ):
        return 0 if (count, sign, digits) == (0, 0, []) else None
    value = sum(int(digit) * 10_000 ** (weight - i) for i, digit in enumerate(digits))
    return value if value < 2**64 else None
