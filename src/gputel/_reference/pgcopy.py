r"""PostgreSQL's binary COPY stream, written from columns.

    +----------------------------+
    | "PGCOPY\n\xff\r\n\0"       |  11 bytes
    | flags            i32       |  0
    | header extension i32       |  0 bytes follow
    +----------------------------+
    | fields           i16       |  a row:
    |   length         i32       |    -1: NULL, nothing follows
    |   payload                  |    `length` bytes
    |   ... a field each         |
    +----------------------------+
    | ... a row each             |
    | trailer          i16       |  -1
    +----------------------------+

All in network byte order (PostgreSQL documentation, COPY, "Binary Format"). Payloads, and the
values that become them:

    int2 int4 int8         two's complement                         int64[rows] or an int
    timestamptz_ns         i64, us since 2000-01-01 00:00 UTC       int64[rows], ns since the Unix
                                                                    epoch, floored; or an int
    text bytea             the bytes, UTF-8 for text                list[str], list[bytes], or one
    int2[] int4[] float8[] ndim i32 = 1, has NULLs i32 = 0,         int64[rows, k], float64[rows, k]
                           element type's oid i32, k i32, first
                           index i32 = 1, then k elements, each a
                           length i32 and a payload; k = 0: ndim =
                           0 and neither k nor index (array_send
                           in arrayfuncs.c); float8 is IEEE 754

An int, str or bytes, and for arrays one of k elements, stands in every row. The native twin
is gputel._native.pgcopy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER: Final = struct.pack(">h", -1)
NULL: Final = struct.pack(">i", -1)
FIELDS_MAX: Final = 1600  # PostgreSQL's MaxHeapAttributeNumber
PAYLOAD_BYTES_MAX: Final = 2**30 - 1  # PostgreSQL's MaxAllocSize
EPOCH_2000_US: Final = 946_684_800_000_000

FieldType = Literal[
    "int2",
    "int4",
    "int8",
    "timestamptz_ns",
    "text",
    "bytea",
    "int2[]",
    "int4[]",
    "float8[]",
]
Values = npt.NDArray[Any] | list[str] | list[bytes] | int | str | bytes

# Elements of arrays: oid and length (pg_type.dat).
_ELEMENTS: Final = {"int2[]": ("int2", 21), "int4[]": ("int4", 23), "float8[]": ("float8", 701)}
_FORMATS: Final = {"int2": ">h", "int4": ">i", "int8": ">q"}
_DTYPES: Final = {
    "int2": "int64",
    "int4": "int64",
    "int8": "int64",
    "timestamptz_ns": "int64",
    "int2[]": "int64",
    "int4[]": "int64",
    "float8[]": "float64",
}
_INTEGERS: Final = {
    "int2": (-(2**15), 2**15 - 1),
    "int4": (-(2**31), 2**31 - 1),
    "int8": (-(2**63), 2**63 - 1),
    "timestamptz_ns": (-(2**63), 2**63 - 1),
}


class CopyStream:
    """A stream of rows whose fields have `types`; rows are appended a block at a time.

    ValueError: a type that is not in the table above, or more fields than PostgreSQL has.
    """

    def __init__(self, types: Sequence[FieldType]) -> None:
        if not 1 <= len(types) <= FIELDS_MAX:
            raise ValueError(f"{len(types)} fields; 1 to {FIELDS_MAX} are allowed")
        for number, kind in enumerate(types):
            if kind not in _DTYPES and kind not in ("text", "bytea"):
                raise ValueError(f"field {number}: unknown type {kind!r}")
        self._types = tuple(types)
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
        self, rows: int, values: Sequence[Values], valid: npt.NDArray[np.uint8] | None = None
    ) -> None:
        """Append `rows` rows; `values` gives each field its column, as the table above says.

        valid: uint8[c, ceil(rows/8)], the bitmaps (LSB first) of the last c fields: a cleared
        bit is NULL, and what it hides is not looked at. The fields before have no NULLs.

        ValueError: another number of fields or rows. TypeError: values that the type can't
        hold. OverflowError: a number outside the type's range. All name the field, and leave
        the stream as it was.
        """
        if self._finished:
            raise ValueError("the stream is finished")
        if rows < 0:
            raise ValueError(f"{rows} rows")
        if len(values) != len(self._types):
            raise ValueError(f"{len(values)} columns for {len(self._types)} fields")
        masks = _masks(rows, len(values), valid)
        columns = [
            _column(f"field {number} ({kind})", kind, column, rows, mask)
            for number, (kind, column, mask) in enumerate(
                zip(self._types, values, masks, strict=True)
            )
        ]
        count = struct.pack(">h", len(columns))
        for cells in zip(*columns, strict=True):
            self._parts += count
            self._parts += b"".join(cells)
        self._rows += rows

    def finish(self) -> memoryview:
        """The whole stream; nothing can be appended any more."""
        if not self._finished:
            self._parts += TRAILER
            self._finished = True
        return memoryview(self._parts).toreadonly()


def _masks(
    rows: int, fields: int, valid: npt.NDArray[np.uint8] | None
) -> list[npt.NDArray[np.bool_]]:
    """bool[rows] a field: where it is not NULL."""
    everywhere = np.ones(rows, np.bool_)
    if valid is None:
        return [everywhere] * fields
    if (
        valid.dtype != np.uint8
        or valid.ndim != 2
        or len(valid) > fields
        or valid.shape[1] != (rows + 7) // 8
    ):
        raise ValueError(
            f"valid is {valid.dtype}{valid.shape}, not uint8[c, {(rows + 7) // 8}] "
            f"with c of at most {fields} fields"
        )
    bits = np.unpackbits(valid, axis=1, count=rows, bitorder="little").astype(np.bool_)
    return [everywhere] * (fields - len(valid)) + list(bits)


def _column(
    name: str, kind: FieldType, values: Values, rows: int, mask: npt.NDArray[np.bool_]
) -> list[bytes]:
    """Length and payload of each row's field."""
    listed = _listed(name, kind, values, rows)
    encode = _encoder(name, kind)
    fields = []
    for value, present in zip(listed, mask.tolist(), strict=True):
        fields.append(_sized(encode(value)) if present else NULL)
    return fields


def _listed(name: str, kind: FieldType, values: Values, rows: int) -> list[Any]:
    """A value a row."""
    if isinstance(values, np.ndarray):
        if kind not in _DTYPES or values.dtype != _DTYPES[kind]:
            raise TypeError(f"{name}: can't hold {values.dtype}")
        if kind in _ELEMENTS and values.ndim == 1:
            return [values] * rows
        if values.ndim != (2 if kind in _ELEMENTS else 1) or len(values) != rows:
            raise ValueError(f"{name}: values of shape {values.shape} for {rows} rows")
        return list(values)
    if isinstance(values, list) and kind in ("text", "bytea"):
        if len(values) != rows:
            raise ValueError(f"{name}: {len(values)} values for {rows} rows")
        return values
    if isinstance(values, int | str | bytes) and kind not in _ELEMENTS:
        return [values] * rows
    raise TypeError(f"{name}: can't hold {type(values).__name__}")


def _encoder(name: str, kind: FieldType) -> Callable[[Any], bytes]:
    def encode(value: Any) -> bytes:
        if kind in _ELEMENTS:
            return _array(name, kind, value)
        if kind == "text" and isinstance(value, str):
            return _bounded(name, value.encode())
        if kind == "bytea" and isinstance(value, bytes):
            return _bounded(name, value)
        if isinstance(value, np.floating):
            # Bytes, not a Python float, which would quieten a NaN. Our machines are little-endian.
            return value.tobytes()[::-1]
        if kind in _INTEGERS and isinstance(value, int | np.integer):
            return _integer(name, kind, int(value))
        raise TypeError(f"{name}: can't hold {type(value).__name__}")

    return encode


def _bounded(name: str, payload: bytes) -> bytes:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise ValueError(f"{name}: {len(payload)} bytes; {PAYLOAD_BYTES_MAX} are allowed")
    return payload


def _integer(name: str, kind: FieldType, value: int) -> bytes:
    lowest, highest = _INTEGERS[kind]
    if not lowest <= value <= highest:
        raise OverflowError(f"{name}: {value} is outside {lowest} to {highest}")
    if kind == "timestamptz_ns":
        return struct.pack(">q", value // 1000 - EPOCH_2000_US)
    return struct.pack(_FORMATS[kind], value)


def _array(name: str, kind: FieldType, values: npt.NDArray[Any]) -> bytes:
    element, oid = _ELEMENTS[kind]
    if len(values) == 0:
        return struct.pack(">iii", 0, 0, oid)
    encode = _encoder(name, element)  # type: ignore[arg-type]
    head = struct.pack(">iiiii", 1, 0, oid, len(values), 1)
    return head + b"".join(_sized(encode(value)) for value in values)


def _sized(payload: bytes) -> bytes:
    return struct.pack(">i", len(payload)) + payload
