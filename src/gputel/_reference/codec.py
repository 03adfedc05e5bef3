"""Chunk format, version 1: n samples of one GPU and one metric set, lossless.

    +------+---------+-------------------------------------------------------------+
    |  2   | "GC"    | magic                                                       |
    |  1   | 0x01    | version                                                     |
    |  v   | set     | id of the metric set, u16                                   |
    |  v   | n       | samples, 1 to 65,536                                        |
    |  8   | t0      | earliest time, i64 little-endian, ns since the epoch        |
    |  v   | span    | latest time - t0                                            |
    |  z   | first   | sequence of the first row                                   |
    |  v   | runs    | then `runs` pairs: which metrics are here                   |
    |  z,v |  gap,len|   `len` ids in a row; the first is `gap` after the last id  |
    +------+---------+-------------------------------------------------------------+
    | times          | n = 1: nothing. Else the series of time[i] - t0             |
    | sequences      | n = 1: nothing. Else the series of sequence[i] - first      |
    | a column each  | tag, [bitmap], values                                       |
    +----------------+-------------------------------------------------------------+
    |  4   | CRC32C  | of everything before, little-endian                         |
    +------+---------+-------------------------------------------------------------+

v is a varint, z a zigzag varint (bits.py); a series is drawn in series.py. The id "before
the first run" is 0. A column without any value is not in the chunk. A column:

    tag      bits 0-1  storage: 0 f32, 1 f64, 2 i64, 3 u64
             bit  2    a bitmap follows: ceil(n/8) bytes, bit i (LSB first) = row i has a value
             bits 3-4  values: 0 series, 1 decimal, 2 same, 3 raw
             bits 5-7  zero
    values   m of them, only those of rows that have one
             series   (i64, u64) an integer series
             decimal  (f32, f64) k (a byte, 0 to 9), then the series of u: v = u / 10**k,
                      divided as f64, then rounded to f32 for that storage
             same     (f32, f64) one value's 4 or 8 bytes: all m have these bits
             raw      (f32, f64) m values of 4 or 8 bytes

Raw numbers are little-endian. docs/reference/chunk-format.md has the same with an example.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from gputel import limits
from gputel._reference import series
from gputel._reference.bits import Cursor, varint, zigzag
from gputel.errors import ChunkCorrupt
from gputel.rows import check_storages

MAGIC = b"GC\x01"
CRC_BYTES = 4
METRIC_ID_MAX = 2**16 - 1
SET_ID_MAX = 2**16 - 1
DECIMALS_MAX = 9
DECIMAL_INTEGER_MAX = 2**53  # every integer up to here is a f64

_STORAGES = "fdqQ"
_DTYPES = {
    storage: np.dtype(f"<{code}")
    for storage, code in zip(_STORAGES, ("f4", "f8", "i8", "u8"), strict=True)
}
_PARTIAL = 0x04
_SERIES, _DECIMAL, _SAME, _RAW = (mode << 3 for mode in range(4))

Array = npt.NDArray[np.generic]
Bits = npt.NDArray[np.uint8]


class ChunkHeader(NamedTuple):
    """What a chunk says of itself before its values."""

    set_id: int
    samples: int
    t0_ns: int  # earliest
    t1_ns: int  # latest
    first_sequence: int  # of the first row
    metric_ids: tuple[int, ...]


class DecodedChunk(NamedTuple):
    """A chunk's columns; arrays as in `gputel.batch.Batch`, only the columns it contains."""

    set_id: int
    metric_ids: tuple[int, ...]
    storages: str
    time_ns: npt.NDArray[np.int64]
    sequence: npt.NDArray[np.int64]
    columns: tuple[Array, ...]
    valid: Bits


def encode_chunk(
    set_id: int,
    metric_ids: Sequence[int],
    storages: str,
    time_ns: npt.NDArray[np.int64],
    sequence: npt.NDArray[np.int64],
    columns: Sequence[Array],
    valid: Bits,
) -> bytes:
    """One chunk of n rows, 1 <= n <= CHUNK_SAMPLES_MAX; arrays as in `gputel.batch.Batch`.

    Columns without a value are left out. ValueError: arguments that contradict one another.
    """
    n = len(time_ns)
    _check_arguments(set_id, metric_ids, storages, n, sequence, columns, valid)
    counts = _valid_counts(valid, n)
    present = [j for j, count in enumerate(counts) if count]
    t0, t1 = int(time_ns.min()), int(time_ns.max())
    first = int(sequence[0])
    parts = [MAGIC, varint(set_id), varint(n), struct.pack("<q", t0), varint(t1 - t0)]
    parts.append(varint(zigzag(first)))
    parts.append(_encode_ids([metric_ids[j] for j in present]))
    if n > 1:
        parts.append(series.encode(_minus(time_ns, t0)))
        parts.append(series.encode(_minus(sequence, first)))
    for j in present:
        dense = columns[j]
        partial = counts[j] < n
        if partial:
            dense = dense[_mask(valid[j], n)]
        mode, values = _encode_values(storages[j], dense)
        tag = _STORAGES.index(storages[j]) | mode | (_PARTIAL if partial else 0)
        parts.append(bytes((tag,)))
        if partial:
            parts.append(_bitmap(valid[j], n))
        parts.append(values)
    body = b"".join(parts)
    return body + struct.pack("<I", google_crc32c.value(body))


def _check_arguments(
    set_id: int,
    metric_ids: Sequence[int],
    storages: str,
    n: int,
    sequence: npt.NDArray[np.int64],
    columns: Sequence[Array],
    valid: Bits,
) -> None:
    check_storages(storages)
    if not 1 <= n <= limits.CHUNK_SAMPLES_MAX:
        raise ValueError(f"{n} samples; a chunk holds 1 to {limits.CHUNK_SAMPLES_MAX}")
    if not 0 <= set_id <= SET_ID_MAX:
        raise ValueError(f"set id {set_id} is outside 0 to {SET_ID_MAX}")
    if not len(metric_ids) == len(columns) == len(storages):
        raise ValueError(f"{len(metric_ids)} ids, {len(columns)} columns, storages {storages!r}")
    if len(set(metric_ids)) != len(metric_ids):
        raise ValueError("a metric id occurs twice")
    if not all(0 < metric_id <= METRIC_ID_MAX for metric_id in metric_ids):
        raise ValueError(f"a metric id is outside 1 to {METRIC_ID_MAX}")
    if len(sequence) != n or valid.shape != (len(columns), (n + 7) // 8):
        raise ValueError(f"{n} times, {len(sequence)} sequences, valid of shape {valid.shape}")
    for j, (storage, column) in enumerate(zip(storages, columns, strict=True)):
        if column.shape != (n,) or column.dtype != _DTYPES[storage]:
            raise ValueError(f"column {j} is {column.dtype}{column.shape}, not {storage}[{n}]")


def _minus(values: npt.NDArray[np.int64], origin: int) -> npt.NDArray[np.int64]:
    """values - origin, modulo 2**64."""
    difference: npt.NDArray[np.int64] = values - np.int64(origin)
    return difference


def _valid_counts(valid: Bits, n: int) -> list[int]:
    if n <= 8:  # one byte a column
        return [(bits & ((1 << n) - 1)).bit_count() for bits in valid[:, 0].tolist()]
    used = valid
    if n % 8:
        used = valid.copy()
        used[:, -1] &= (1 << n % 8) - 1
    counts: list[int] = np.bitwise_count(used).sum(axis=1, dtype=np.int64).tolist()
    return counts


def _mask(bits: Bits, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bits, count=n, bitorder="little").astype(np.bool_)


def _bitmap(bits: Bits, n: int) -> bytes:
    bitmap = bytearray(bits.tobytes())
    if n % 8:
        bitmap[-1] &= (1 << n % 8) - 1
    return bytes(bitmap)


def _encode_ids(ids: Sequence[int]) -> bytes:
    runs: list[list[int]] = []  # [gap, length]
    last = 0
    for metric_id in ids:
        if runs and metric_id == last + 1:
            runs[-1][1] += 1
        else:
            runs.append([metric_id - last, 1])
        last = metric_id
    return varint(len(runs)) + b"".join(varint(zigzag(gap)) + varint(size) for gap, size in runs)


def _encode_values(storage: str, dense: Array) -> tuple[int, bytes]:
    if storage in "qQ":
        return _SERIES, series.encode(np.ascontiguousarray(dense).view(np.int64))
    raw = dense.tobytes()
    size = dense.dtype.itemsize
    same = raw == raw[:size] * len(dense)
    encoded = _encode_decimal(storage, dense[:1] if same else dense, raw[:size] if same else raw)
    if same:
        if encoded is None or len(encoded) >= size:
            return _SAME, raw[:size]
        return _DECIMAL, encoded
    if encoded is None or len(encoded) >= len(raw):
        return _RAW, raw
    return _DECIMAL, encoded


def _encode_decimal(storage: str, values: Array, raw: bytes) -> bytes | None:
    """k and the series of integers that give exactly the bits `raw`; None: there are none."""
    if len(values) <= series.SHORT_MAX:
        return _encode_decimal_floats(storage, values.tolist(), raw)
    if not np.isfinite(values).all():
        return None
    wide = values.astype(np.float64)
    # The decimals that a few values need are a cheap lower bound for all.
    probe = raw[: 16 * values.dtype.itemsize]
    for k in range(DECIMALS_MAX + 1):
        if _decimal_floats(storage, wide[:16].tolist(), probe, k) is None:
            continue
        with np.errstate(over="ignore"):
            scaled = np.rint(wide * 10.0**k)
        if np.abs(scaled).max() > DECIMAL_INTEGER_MAX:
            return None
        if (scaled / 10.0**k).astype(values.dtype).tobytes() == raw:
            return bytes((k,)) + series.encode(scaled.astype(np.int64))
    return None


def _encode_decimal_floats(storage: str, values: list[float], raw: bytes) -> bytes | None:
    if not all(map(math.isfinite, values)):
        return None
    for k in range(DECIMALS_MAX + 1):
        integers = _decimal_floats(storage, values, raw, k)
        if integers is not None:
            return bytes((k,)) + series.encode_ints(integers)
    return None


def _decimal_floats(storage: str, values: list[float], raw: bytes, k: int) -> list[int] | None:
    power = 10.0**k
    if not all(abs(value * power) <= DECIMAL_INTEGER_MAX for value in values):
        return None
    integers = [round(value * power) for value in values]
    back = [integer / power for integer in integers]
    same = struct.pack(f"<{len(back)}{storage}", *back) == raw
    return integers if same else None


def read_chunk_header(payload: bytes | memoryview) -> ChunkHeader:
    """The header of a chunk whose checksum is right. ChunkCorrupt."""
    return _read_header(_open(payload))


def decode_chunk(payload: bytes | memoryview) -> DecodedChunk:
    """All of a chunk. Allocates at most SET_COLUMNS_MAX arrays of n numbers. ChunkCorrupt."""
    cursor = _open(payload)
    header = _read_header(cursor)
    n = header.samples
    offsets = np.zeros(1, np.int64) if n == 1 else series.decode(cursor, n)
    # As unsigned: a chunk may span more than half of i64.
    unsigned = offsets.view(np.uint64)
    if int(unsigned.min()) != 0 or int(unsigned.max()) != header.t1_ns - header.t0_ns:
        raise ChunkCorrupt("the times contradict the header")
    time_ns = offsets + np.int64(header.t0_ns)
    steps = np.zeros(1, np.int64) if n == 1 else series.decode(cursor, n)
    if int(steps[0]) != 0:
        raise ChunkCorrupt("the sequences contradict the header")
    sequence = steps + np.int64(header.first_sequence)
    storages = []
    columns = []
    valid = np.full((len(header.metric_ids), (n + 7) // 8), 0xFF, np.uint8)
    if n % 8:
        valid[:, -1] = (1 << n % 8) - 1
    for j in range(len(header.metric_ids)):
        storage, column = _decode_column(cursor, n, valid[j])
        storages.append(storage)
        columns.append(column)
    if cursor.position != cursor.end:
        raise ChunkCorrupt(f"{cursor.end - cursor.position} bytes after the last column")
    return DecodedChunk(
        header.set_id,
        header.metric_ids,
        "".join(storages),
        time_ns,
        sequence,
        tuple(columns),
        valid,
    )


def _open(payload: bytes | memoryview) -> Cursor:
    data = bytes(payload)
    end = len(data) - CRC_BYTES
    if end < len(MAGIC) or data[: len(MAGIC)] != MAGIC:
        raise ChunkCorrupt(f"no chunk of version 1: {len(data)} bytes, {data[:3].hex()} first")
    (crc,) = struct.unpack_from("<I", data, end)
    found = google_crc32c.value(data[:end])
    if crc != found:
        raise ChunkCorrupt(f"CRC32C is {found:08x}, the chunk says {crc:08x}")
    cursor = Cursor(data, end)
    cursor.position = len(MAGIC)
    return cursor


def _read_header(cursor: Cursor) -> ChunkHeader:
    set_id = cursor.varint()
    if set_id > SET_ID_MAX:
        raise ChunkCorrupt(f"set id {set_id} is above {SET_ID_MAX}")
    n = cursor.varint()
    if not 1 <= n <= limits.CHUNK_SAMPLES_MAX:
        raise ChunkCorrupt(f"{n} samples; 1 to {limits.CHUNK_SAMPLES_MAX} are allowed")
    t0 = cursor.i64()
    t1 = t0 + cursor.varint()
    if t1 >= 2**63:
        raise ChunkCorrupt(f"the latest time, {t1} ns, is no i64")
    first = cursor.zigzag()
    return ChunkHeader(set_id, n, t0, t1, first, _read_ids(cursor))


def _read_ids(cursor: Cursor) -> tuple[int, ...]:
    ids: list[int] = []
    runs = cursor.varint()
    if runs > limits.SET_COLUMNS_MAX:
        raise ChunkCorrupt(f"{runs} runs of metric ids")
    last = 0
    for _ in range(runs):
        first = last + cursor.zigzag()
        size = cursor.varint()
        last = first + size - 1
        if not (0 < first <= last <= METRIC_ID_MAX and len(ids) + size <= limits.SET_COLUMNS_MAX):
            raise ChunkCorrupt(f"{size} metric ids from {first} on, after {len(ids)} others")
        ids.extend(range(first, last + 1))
    if len(set(ids)) != len(ids):
        raise ChunkCorrupt("a metric id occurs twice")
    return tuple(ids)


def _decode_column(cursor: Cursor, n: int, bits: Bits) -> tuple[str, Array]:
    """The next column's storage and values; `bits` says all valid, and is changed if not."""
    at = cursor.position
    tag = cursor.byte()
    storage = _STORAGES[tag & 0x03]
    mode = tag & 0x18
    if tag & 0xE0 or (storage in "qQ") != (mode == _SERIES):
        raise ChunkCorrupt(f"column at byte {at}: unknown tag {tag:#04x}")
    if not tag & _PARTIAL:
        return storage, _decode_values(cursor, storage, mode, n)
    bits[:] = np.frombuffer(cursor.take(len(bits)), np.uint8)
    present = int(np.bitwise_count(bits).sum())
    if not 1 <= present < n or (n % 8 and int(bits[-1]) >> (n % 8)):
        raise ChunkCorrupt(f"column at byte {at}: {present} values of {n} samples")
    column = np.zeros(n, _DTYPES[storage])
    column[_mask(bits, n)] = _decode_values(cursor, storage, mode, present)
    return storage, column


def _decode_values(cursor: Cursor, storage: str, mode: int, count: int) -> Array:
    dtype = _DTYPES[storage]
    if mode == _SERIES:
        integers = series.decode(cursor, count)
        return integers if storage == "q" else integers.view(dtype)
    if mode == _SAME:
        one = np.frombuffer(cursor.take(dtype.itemsize), dtype)
        return np.repeat(one, count)
    if mode == _RAW:
        return np.frombuffer(cursor.take(dtype.itemsize * count), dtype).copy()
    k = cursor.byte()
    if k > DECIMALS_MAX:
        raise ChunkCorrupt(f"{k} decimals, at most {DECIMALS_MAX} are allowed")
    integers = series.decode(cursor, count)
    if storage == "d":
        return integers / 10.0**k
    with np.errstate(over="ignore"):  # only a foreign chunk can hold what a f32 can't
        return (integers / 10.0**k).astype(dtype)
