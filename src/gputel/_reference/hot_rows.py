r"""Hot rows: samples of one metric set as rows of PostgreSQL's binary COPY stream, and back.

A row is five fields of the stream that gputel._reference.pgcopy draws:

    gpu_id     int8
    time       timestamptz, us since 2000-01-01 00:00 UTC
    epoch      int8
    sequence   int8
    cells      bytea, all values of the sample:

    byte  0       8          8 + size of c0
          +-------+----------+----------+---- ... ---+
          | valid | c0       | c1       | ...        |
          | 8     | 4 or 8   | 4 or 8   |            |
          +-------+----------+----------+---- ... ---+

c0, c1, ... are the set's metrics in column order, f32 in four bytes, f64, i64 and u64 in eight,
in network byte order as everything in the stream. Bit j % 8 (LSB first) of byte j / 8 of `valid`
says whether cj is a value; where it is not, its bytes are 0. So each metric of a set has one
place in all rows, which SQL finds as well as we (gputel/store/functions/1_numbers.sql).

Metrics are only ever added to the end of a set. A row that an older gputel wrote ends earlier: it
has no value of what came later. One of a newer gputel is longer: its end is not looked at.

The native twin is gputel._native.hot_rows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from gputel._reference.pgcopy import EPOCH_2000_US, HEADER, TRAILER
from gputel.limits import SET_COLUMNS_MAX
from gputel.rows import ReadRows, check_storages

FIELDS: Final = ("gpu_id", "time", "epoch", "sequence", "cells")
VALID_BYTES: Final = 8
_VALUES_BYTES_MAX: Final = VALID_BYTES + 8 * SET_COLUMNS_MAX
_I64: Final = (-(2**63), 2**63 - 1)
_TIME_US_MAX: Final = (2**63 - 1) // 1000
_BYTES: Final = {"f": 4, "d": 8, "q": 8, "Q": 8}
_DTYPES: Final = {"f": "float32", "d": "float64", "q": "int64", "Q": "uint64"}

Int64s = npt.NDArray[np.int64]


def places(storages: str) -> tuple[int, ...]:
    """Where each value begins in `cells`, and where the last one ends."""
    found = [VALID_BYTES]
    for storage in storages:
        found.append(found[-1] + _BYTES[storage])
    return tuple(found)


class HotStream:
    """A stream of the rows of a set whose columns are `storages`, struct codes such as "dqq".

    ValueError: a code that is none of f, d, q, Q, or more columns than a set has.
    """

    def __init__(self, storages: str) -> None:
        check_storages(storages)
        self._storages = storages
        self._parts = bytearray(HEADER)
        self._rows = 0
        self._finished = False

    @property
    def rows(self) -> int:
        """Rows appended so far."""
        return self._rows

    @property
    def size_bytes(self) -> int:
        """Bytes of the stream so far."""
        return len(self._parts)

    def append(
        self,
        gpu_id: int | Int64s,
        epoch: int,
        time_ns: Int64s,
        sequence: Int64s,
        columns: Sequence[npt.NDArray[np.generic]],
        valid: npt.NDArray[np.uint8],
    ) -> None:
        """Append n samples: time_ns and sequence int64[n]; columns one array[n] a metric.

        gpu_id: int64[n], or one for all. valid: uint8[c, ceil(n/8)], bitmaps (LSB first); what a
        cleared bit hides is not looked at. Times are floored to the microsecond.

        ValueError: another number of columns or rows. TypeError: another dtype. OverflowError: a
        GPU or epoch that is no i64. All name what is wrong, and leave the stream as it was.
        """
        if self._finished:
            raise ValueError("the stream is finished")
        rows = _rows_of(time_ns)
        arrays: dict[str, tuple[Any, str]] = {
            "time_ns": (time_ns, "int64"),
            "sequence": (sequence, "int64"),
        }
        if not isinstance(gpu_id, int):
            arrays["gpu_id"] = (gpu_id, "int64")
        if len(columns) != len(self._storages):
            raise ValueError(f"{len(columns)} columns for a set of {len(self._storages)} metrics")
        for j, (column, storage) in enumerate(zip(columns, self._storages, strict=True)):
            arrays[f"column {j}"] = (column, _DTYPES[storage])
        for name, (array, dtype) in arrays.items():
            _check(name, array, dtype, rows)
        shape = (len(columns), (rows + 7) // 8)
        if valid.dtype != np.uint8 or valid.shape != shape:
            raise ValueError(f"valid is {valid.dtype}{valid.shape}, not uint8{shape}")
        gpu_ids = [_i64("gpu_id", gpu_id)] * rows if isinstance(gpu_id, int) else gpu_id.tolist()
        epoch = _i64("epoch", epoch)
        masks = np.unpackbits(valid, axis=1, count=rows, bitorder="little")
        for i in range(rows):
            time_us = int(time_ns[i]) // 1000 - EPOCH_2000_US
            values = _values([column[i] for column in columns], masks[:, i])
            self._parts += struct.pack(">h", len(FIELDS))
            for number in (gpu_ids[i], time_us, epoch, int(sequence[i])):
                self._parts += struct.pack(">iq", 8, number)
            self._parts += struct.pack(">i", len(values)) + values
        self._rows += rows

    def finish(self) -> memoryview:
        """The whole stream; nothing can be appended any more."""
        if not self._finished:
            self._parts += TRAILER
            self._finished = True
        return memoryview(self._parts).toreadonly()


def _rows_of(time_ns: Any) -> int:
    if not isinstance(time_ns, np.ndarray):
        raise TypeError(f"time_ns: can't hold {type(time_ns).__name__}")
    return len(time_ns) if time_ns.ndim else 0


def _check(name: str, array: Any, dtype: str, rows: int) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: can't hold {type(array).__name__}")
    if array.dtype != dtype:
        raise TypeError(f"{name}: can't hold {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"{name}: values of shape {array.shape} for {rows} rows")


def _i64(name: str, number: int) -> int:
    if not _I64[0] <= number <= _I64[1]:
        raise OverflowError(f"{name}: {number} is outside {_I64[0]} to {_I64[1]}")
    return number


def _values(cells: Sequence[np.generic], mask: npt.NDArray[np.uint8]) -> bytes:
    bitmap = np.packbits(mask, bitorder="little").tobytes().ljust(VALID_BYTES, b"\0")
    # Bytes, not Python floats, which would quieten a NaN. Our machines are little-endian.
    found = [
        cell.tobytes()[::-1] if there else bytes(cell.nbytes)
        for cell, there in zip(cells, mask.tolist(), strict=True)
    ]
    return bitmap + b"".join(found)


class HotRows:
    """Takes a stream of the rows of a set in pieces, and gives the columns `wanted` (indices).

    ValueError: `storages` as for HotStream. IndexError: a column that the set does not have.
    """

    def __init__(self, storages: str, wanted: Sequence[int]) -> None:
        check_storages(storages)
        for j in wanted:
            if not 0 <= j < len(storages):
                raise IndexError(f"column {j} of a set of {len(storages)} metrics")
        self._storages = storages
        self._places = places(storages)
        self._wanted = tuple(wanted)
        self._stream = bytearray()
        self._at = 0
        self._keys: list[tuple[int, ...]] = []
        self._cells: list[list[tuple[bytes, bool]]] = []
        self._begun = self._ended = self._broken = False

    @property
    def rows(self) -> int:
        """Whole rows so far."""
        return len(self._keys)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the stream, cut anywhere.

        ValueError: they are no rows of this set. It names the field or the row; nothing can be
        fed any more.
        """
        if self._broken:
            raise ValueError("the stream is broken")
        self._stream += data
        if not self._begun and len(self._stream) >= len(HEADER):
            if self._stream[: len(HEADER)] != HEADER:
                self._refuse("no binary COPY stream without flags and extension")
            self._at = len(HEADER)
            self._begun = True
        while self._begun and self._row():
            pass

    def _row(self) -> bool:
        """Read the next row; False: it is not whole yet, or was the trailer."""
        at = self._at + 2
        if self._ended and self._at < len(self._stream):
            self._refuse("bytes after the trailer")
        if at > len(self._stream):
            return False
        (fields,) = struct.unpack_from(">h", self._stream, self._at)
        if fields == -1:
            self._at = at
            self._ended = True
            return self._row()
        if fields != len(FIELDS):
            self._refuse(f"a row of {fields} fields, not {len(FIELDS)}")
        keys = []
        for number, name in enumerate(FIELDS[:-1]):
            if at + 4 > len(self._stream):
                return False
            (length,) = struct.unpack_from(">i", self._stream, at)
            if length != 8:
                self._refuse(f"field {number} ({name}): {length} bytes")
            if at + 12 > len(self._stream):
                return False
            (key,) = struct.unpack_from(">q", self._stream, at + 4)
            keys.append(self._time_ns(key) if name == "time" else key)
            at += 12
        if at + 4 > len(self._stream):
            return False
        (length,) = struct.unpack_from(">i", self._stream, at)
        at += 4
        columns = self._columns(length)
        origin = f"cells of GPU {keys[0]}, epoch {keys[2]}, sequence {keys[3]}"
        if columns is None:
            self._refuse(
                f"{origin}: {length} bytes, where {self._places[-1]} hold the set's "
                f"{len(self._storages)} metrics"
            )
        if at + length > len(self._stream):
            return False
        values = bytes(self._stream[at : at + length])
        mask = int.from_bytes(values[:VALID_BYTES], "little")
        if length <= self._places[-1] and mask >> columns:
            self._refuse(
                f"{origin}: metric {mask.bit_length() - 1} of {columns} is said to be valid"
            )
        self._keys.append(tuple(keys))
        self._cells.append([self._cell(values, mask, j) for j in self._wanted])
        self._at = at + length
        return True

    def _time_ns(self, time_us: int) -> int:
        time_us += EPOCH_2000_US
        if not -_TIME_US_MAX <= time_us <= _TIME_US_MAX:
            self._refuse("field 1 (time): a time out of range")
        return time_us * 1000

    def _columns(self, length: int) -> int | None:
        """How many of the set's metrics a row of so many bytes has; None: there is no such row."""
        longer = length - self._places[-1]
        if longer > 0 and longer % 4 == 0 and length <= _VALUES_BYTES_MAX:
            return len(self._storages)
        return self._places.index(length) if length in self._places else None

    def _cell(self, values: bytes, mask: int, j: int) -> tuple[bytes, bool]:
        first, end = self._places[j : j + 2]
        there = bool(mask >> j & 1)
        return (values[first:end] if there else bytes(end - first)), there

    def _refuse(self, reason: str) -> NoReturn:
        self._broken = True
        raise ValueError(reason)

    def finish(self) -> ReadRows:
        """All columns. ValueError: the stream has no end yet."""
        if not self._ended or self._broken:
            raise ValueError(f"the stream ends after {self.rows} rows, without a trailer")
        keys = np.array(self._keys, np.int64).reshape(-1, len(FIELDS) - 1)
        gpu_id, time_ns, epoch, sequence = (key.copy() for key in keys.T)
        columns, valid = [], []
        for k, j in enumerate(self._wanted):
            joined = b"".join(row[k][0] for row in self._cells)
            column = np.frombuffer(joined, np.dtype(_DTYPES[self._storages[j]]).newbyteorder(">"))
            columns.append(column.astype(column.dtype.newbyteorder("=")))
            valid.append(np.array([row[k][1] for row in self._cells], np.bool_))
        return ReadRows(gpu_id, time_ns, epoch, sequence, tuple(columns), tuple(valid))
