r"""PostgreSQL's binary COPY stream, written straight from columns.

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

All in network byte order (PostgreSQL documentation, COPY, "Binary Format"). Payloads:

    int2 int4 int8         two's complement
    float4 float8          IEEE 754
    timestamptz_ns         i64, microseconds since 2000-01-01 00:00 UTC
    text bytea             the bytes, UTF-8 for text
    numeric_u64            ndigits i16, weight i16, sign i16 = 0, dscale i16 = 0, then ndigits
                           base-10,000 digits i16, the first one worth 10,000**weight
                           (numeric_send in PostgreSQL's numeric.c); 0 has no digits

A stretch of fields of fixed size is one byte matrix, a line a row, from which a mask then
cuts the payloads of NULLs.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
TRAILER = struct.pack(">h", -1)
FIELDS_MAX = 1600  # PostgreSQL's MaxHeapAttributeNumber
EPOCH_2000_US = 946_684_800_000_000

FieldType = Literal[
    "int2", "int4", "int8", "float4", "float8", "numeric_u64", "timestamptz_ns", "text", "bytea"
]
Bytes2d = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Scalar = int | float | str | bytes


class CopyField(NamedTuple):
    """One column of the stream.

    values  a numpy array[rows] (numbers; timestamptz_ns: int64 ns since the Unix epoch, floored
            to us), a list of str or bytes, or a scalar that every row repeats
    valid   bool[rows]: False is NULL; None: no NULLs
    """

    type: FieldType
    values: npt.NDArray[np.generic] | Sequence[str] | Sequence[bytes] | Scalar
    valid: npt.NDArray[np.bool_] | None = None


class _Block(NamedTuple):
    """A stretch of fields: `cells` uint8[rows, width], of which `keep` belong to the stream."""

    cells: Bytes2d
    keep: Mask


def copy_binary(rows: int, fields: Sequence[CopyField]) -> bytes:
    """The whole stream of `rows` rows; every field gives a value or NULL for each.

    ValueError: a field of another length. TypeError: values that the type can't hold.
    OverflowError: a number outside the type's range. All of them name the field.
    """
    if not 1 <= len(fields) <= FIELDS_MAX:
        raise ValueError(f"{len(fields)} fields; 1 to {FIELDS_MAX} are allowed")
    if rows == 0:
        return HEADER + TRAILER
    pieces: list[Iterable[bytes]] = []
    count = np.broadcast_to(_big_endian([len(fields)], ">i2"), (rows, 2))
    stretch = [_Block(count, np.ones((rows, 2), np.bool_))]
    for number, field in enumerate(fields):
        name = f"field {number} ({field.type})"
        valid = _valid(name, field, rows)
        if field.type in ("text", "bytea") and not isinstance(field.values, str | bytes):
            if stretch:
                pieces.append(_split(stretch))
                stretch = []
            pieces.append(_variable(name, field, valid, rows))
        else:
            stretch.extend(_fixed(name, field, valid, rows))
    if not pieces:
        return b"".join((HEADER, _flatten(stretch), TRAILER))
    if stretch:
        pieces.append(_split(stretch))
    body = b"".join(itertools.chain.from_iterable(zip(*pieces, strict=True)))
    return b"".join((HEADER, body, TRAILER))


def _valid(name: str, field: CopyField, rows: int) -> Mask:
    if field.valid is None:
        return np.ones(rows, np.bool_)
    if field.valid.shape != (rows,) or field.valid.dtype != np.bool_:
        raise ValueError(
            f"{name}: valid is {field.valid.dtype}{field.valid.shape}, not bool[{rows}]"
        )
    return field.valid


def _flatten(stretch: list[_Block]) -> bytes:
    cells = np.concatenate([block.cells for block in stretch], axis=1)
    keep = np.concatenate([block.keep for block in stretch], axis=1)
    return cells.tobytes() if keep.all() else cells[keep].tobytes()


def _split(stretch: list[_Block]) -> list[bytes]:
    """The stretch's bytes of each row."""
    flat = _flatten(stretch)
    sizes = sum(block.keep.sum(axis=1, dtype=np.int64) for block in stretch)
    ends = np.cumsum(sizes).tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _variable(name: str, field: CopyField, valid: Mask, rows: int) -> list[bytes]:
    values = field.values
    if isinstance(values, int | float | np.ndarray) or len(values) != rows:
        raise ValueError(f"{name}: needs one value a row, {rows} of them, or a scalar")
    pieces = []
    for value, present in zip(values, valid.tolist(), strict=True):
        if not present:
            pieces.append(b"\xff\xff\xff\xff")
            continue
        payload = _payload(name, field.type, value)
        pieces.append(struct.pack(">i", len(payload)) + payload)
    return pieces


def _payload(name: str, kind: FieldType, value: object) -> bytes:
    if kind == "text" and isinstance(value, str):
        return value.encode()
    if kind == "bytea" and isinstance(value, bytes):
        return value
    raise TypeError(f"{name}: can't hold {type(value).__name__}")


def _fixed(name: str, field: CopyField, valid: Mask, rows: int) -> list[_Block]:
    """The length and the payload of a field whose payload has one size, or a known largest."""
    if isinstance(field.values, str | bytes):
        payload = np.frombuffer(_payload(name, field.type, field.values), np.uint8)
        cells = np.broadcast_to(payload, (rows, len(payload)))
        return _blocks(cells, np.full(rows, len(payload)), valid)
    if not isinstance(field.values, np.ndarray | int | float):
        raise TypeError(f"{name}: needs a numpy array or a number")
    numbers = np.asarray(field.values)
    if numbers.ndim == 0:
        numbers = np.broadcast_to(numbers, (rows,))
    if numbers.shape != (rows,):
        raise ValueError(f"{name}: values of shape {numbers.shape} for {rows} rows")
    if field.type == "numeric_u64":
        return _numeric(name, numbers, valid)
    cells = _ENCODERS[field.type](name, numbers, valid)
    return _blocks(cells, np.full(rows, cells.shape[1]), valid)


def _blocks(cells: Bytes2d, sizes: npt.NDArray[np.int64], valid: Mask) -> list[_Block]:
    lengths = _big_endian(np.where(valid, sizes, -1), ">i4")
    keep = np.repeat(valid[:, None], cells.shape[1], axis=1)
    return [_Block(lengths, np.ones(lengths.shape, np.bool_)), _Block(cells, keep)]


def _big_endian(numbers: npt.ArrayLike, dtype: str) -> Bytes2d:
    """Each number's bytes as a line."""
    network = np.ascontiguousarray(np.asarray(numbers).astype(dtype))
    return network.view(np.uint8).reshape(-1, network.dtype.itemsize)


def _integers(name: str, numbers: npt.NDArray[np.generic], valid: Mask, dtype: str) -> Bytes2d:
    if numbers.dtype.kind not in "iub":
        raise TypeError(f"{name}: can't hold {numbers.dtype}")
    bounds = np.iinfo(dtype)
    held = numbers[valid]
    if len(held) and not bounds.min <= int(held.min()) <= int(held.max()) <= bounds.max:
        raise OverflowError(f"{name}: {held.min()} to {held.max()} is outside the type's range")
    return _big_endian(numbers, dtype)


def _floats(name: str, numbers: npt.NDArray[np.generic], dtype: str) -> Bytes2d:
    if numbers.dtype.kind not in "fiu":
        raise TypeError(f"{name}: can't hold {numbers.dtype}")
    return _big_endian(numbers, dtype)


def _timestamps(name: str, numbers: npt.NDArray[np.generic], valid: Mask) -> Bytes2d:
    if numbers.dtype != np.int64:
        raise TypeError(f"{name}: needs int64 nanoseconds, not {numbers.dtype}")
    return _big_endian(numbers.astype(np.int64) // 1000 - EPOCH_2000_US, ">i8")


_ENCODERS: dict[str, Callable[[str, npt.NDArray[np.generic], Mask], Bytes2d]] = {
    "int2": lambda name, numbers, valid: _integers(name, numbers, valid, ">i2"),
    "int4": lambda name, numbers, valid: _integers(name, numbers, valid, ">i4"),
    "int8": lambda name, numbers, valid: _integers(name, numbers, valid, ">i8"),
    "float4": lambda name, numbers, valid: _floats(name, numbers, ">f4"),
    "float8": lambda name, numbers, valid: _floats(name, numbers, ">f8"),
    "timestamptz_ns": _timestamps,
}


def _numeric(name: str, numbers: npt.NDArray[np.generic], valid: Mask) -> list[_Block]:
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"{name}: can't hold {numbers.dtype}")
    if numbers.dtype.kind == "i" and (numbers[valid] < 0).any():  # type: ignore[operator]
        raise OverflowError(f"{name}: a negative number")
    unsigned = numbers.astype(np.uint64)
    powers = np.uint64(10_000) ** np.arange(4, -1, -1, dtype=np.uint64)
    digits = (unsigned[:, None] // powers % np.uint64(10_000)).astype(np.int64)
    nonzero = digits != 0
    # Neither leading nor trailing zero digits are written.
    leading = np.logical_or.accumulate(nonzero, axis=1)
    trailing = np.logical_or.accumulate(nonzero[:, ::-1], axis=1)[:, ::-1]
    written = leading & trailing
    ndigits = written.sum(axis=1)
    weight = np.maximum(leading.sum(axis=1) - 1, 0)
    zero = np.zeros_like(ndigits)
    head = np.stack((ndigits, weight, zero, zero), axis=1)
    lengths, prefix = _blocks(_lines(head), 8 + 2 * ndigits, valid)
    keep = np.repeat(written & valid[:, None], 2, axis=1)
    return [lengths, prefix, _Block(_lines(digits), keep)]


def _lines(matrix: npt.NDArray[np.int64]) -> Bytes2d:
    """int16 in network order, a line a row."""
    return matrix.astype(">i2").view(np.uint8)
