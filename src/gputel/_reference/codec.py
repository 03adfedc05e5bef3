"""Chunk format, version 2: n samples of one GPU and one metric set, lossless.

    +------+---------+-------------------------------------------------------------+
    |  2   | "GC"    | magic                                                       |
    |  1   | 0x02    | version; 0x01 is read too                                   |
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

v is a varint, z a zigzag varint (bits.py); a series is drawn in series.py and its link in
links.py. The id "before the first run" is 0. A column without any value is not in the chunk.
A column:

    tag      bits 0-1  storage: 0 f32, 1 f64, 2 i64, 3 u64
             bit  2    a bitmap follows: ceil(n/8) bytes, bit i (LSB first) = row i has a value
             bits 3-4  values: 0 series, 1 decimal, 2 same, 3 raw
             bits 5-7  zero
    values   m of them, only those of rows that have one
             series   an integer series: the i64 or u64, or the bits of f64 or f32 as integers
             decimal  (f32, f64) k (a byte, 0 to 9), then the series of u: v = u / 10**k,
                      divided as f64, then rounded to f32 for that storage
             same     (f32, f64) one value's 4 or 8 bytes: all m have these bits
             raw      (f32, f64) m values of 4 or 8 bytes

Raw numbers are little-endian. Version 1 has no blocks, no links and no series of floats' bits.
docs/reference/chunk-format.md has the same with an example.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from gputel import limits
from gputel._reference import floats, links, series
from gputel._reference.bits import U64, Cursor, signed, varint, zigzag
from gputel.chunks import (
    METRIC_ID_MAX,
    SET_ID_MAX,
    STORAGE_DTYPES,
    Array,
    Bits,
    ChunkHeader,
    DecodedChunk,
    check_chunk_arguments,
)
from gputel.errors import ChunkCorrupt

MAGIC = b"GC"
VERSION = 2  # what is written
PREAMBLE_BYTES = 3  # magic and version
CRC_BYTES = 4

_STORAGES = "fdqQ"
_PARTIAL = 0x04
_SERIES, _DECIMAL, _SAME, _RAW = (mode << 3 for mode in range(4))

Integers = Sequence[int]


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
    check_chunk_arguments(set_id, metric_ids, storages, time_ns, sequence, columns, valid)
    n = len(time_ns)
    masks = [_mask(bits, n) for bits in valid]
    present = [j for j, mask in enumerate(masks) if mask.any()]
    times: list[int] = time_ns.tolist()
    sequences: list[int] = sequence.tolist()
    t0, first = min(times), sequences[0]
    parts = [MAGIC, bytes((VERSION,)), varint(set_id), varint(n), struct.pack("<q", t0)]
    parts += [varint(max(times) - t0), varint(zigzag(first))]
    parts.append(_encode_ids([metric_ids[j] for j in present]))
    if n > 1:
        parts.append(series.encode([signed(time - t0) for time in times]))
        parts.append(series.encode([signed(number - first) for number in sequences]))
    integers: list[Integers | None] = []
    for j in present:
        mask = masks[j]
        partial = not mask.all()
        column = _encode_values(storages[j], columns[j][mask], integers)
        integers.append(column.integers)
        tag = _STORAGES.index(storages[j]) | column.mode | (_PARTIAL if partial else 0)
        parts.append(bytes((tag,)))
        if partial:
            parts.append(np.packbits(mask, bitorder="little").tobytes())
        parts.append(column.encoded)
    body = b"".join(parts)
    return body + struct.pack("<I", google_crc32c.value(body))


def _mask(bits: Bits, n: int) -> npt.NDArray[np.bool_]:
    return np.unpackbits(bits, count=n, bitorder="little").astype(np.bool_)


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


class _Column(NamedTuple):
    """A column's values, encoded; the integers that a later column may be predicted from."""

    mode: int
    encoded: bytes
    integers: Integers | None


def _encode_values(storage: str, dense: Array, earlier: Sequence[Integers | None]) -> _Column:
    """The smallest form of a column's m values; the simpler one when equal."""
    raw = dense.astype(STORAGE_DTYPES[storage], copy=False).tobytes()
    if storage in "qQ":
        integers = list(struct.unpack(f"<{len(dense)}q", raw))
        return _Column(_SERIES, _encode_series(integers, earlier), integers)
    size = dense.dtype.itemsize
    if raw == raw[:size] * len(dense):
        return _encode_same(storage, dense[:1].tolist(), raw[:size])
    decimals = floats.to_decimals(storage, dense.tolist(), raw)
    if decimals is not None:
        k, integers = decimals
        mode, encoded = _DECIMAL, bytes((k,)) + _encode_series(integers, earlier)
    else:
        integers = floats.to_bits(storage, raw)
        mode, encoded = _SERIES, _encode_series(integers, earlier)
    if len(encoded) >= len(raw):
        return _Column(_RAW, raw, None)
    return _Column(mode, encoded, integers)


def _encode_same(storage: str, values: list[float], raw: bytes) -> _Column:
    """All values have the bits `raw` of the one in `values`; nothing is predicted from them."""
    decimals = floats.to_decimals(storage, values, raw)
    if decimals is not None:
        k, integers = decimals
        encoded = bytes((k,)) + series.encode(integers)
        if len(encoded) < len(raw):
            return _Column(_DECIMAL, encoded, None)
    return _Column(_SAME, raw, None)


def _encode_series(integers: Integers, earlier: Sequence[Integers | None]) -> bytes:
    """The series, linked to one of the earlier columns where that is smaller."""
    plain = series.encode(integers)
    if len(integers) < links.LINK_SAMPLES_MIN or plain[0] & series.SHAPE != series.BLOCKS:
        return plain
    link = links.find(integers, earlier)
    if link is None:
        return plain
    base = earlier[-link.back]
    assert base is not None
    rest = series.encode(link.residuals(integers, base))
    linked = bytes((rest[0] | series.LINKED,)) + link.encode() + rest[1:]
    return linked if len(linked) < len(plain) else plain


def read_chunk_header(payload: bytes | memoryview) -> ChunkHeader:
    """The header of a chunk whose checksum is right. ChunkCorrupt."""
    return _read_header(_open(payload)[0])


def decode_chunk(payload: bytes | memoryview) -> DecodedChunk:
    """All of a chunk. Allocates at most SET_COLUMNS_MAX arrays of n numbers. ChunkCorrupt."""
    cursor, version = _open(payload)
    header = _read_header(cursor)
    n = header.samples
    # As unsigned: a chunk may span more than half of i64.
    offsets = [0] if n == 1 else [offset & U64 for offset in _unlinked_series(cursor, version, n)]
    if min(offsets) != 0 or max(offsets) != header.t1_ns - header.t0_ns:
        raise ChunkCorrupt("the times contradict the header")
    steps = [0] if n == 1 else _unlinked_series(cursor, version, n)
    if steps[0] != 0:
        raise ChunkCorrupt("the sequences contradict the header")
    storages = []
    columns = []
    integers: list[Integers | None] = []
    valid = np.packbits(np.ones((len(header.metric_ids), n), np.uint8), axis=1, bitorder="little")
    for j in range(len(header.metric_ids)):
        storage, column = _decode_column(cursor, version, n, valid[j], integers)
        storages.append(storage)
        columns.append(column)
    if cursor.position != cursor.end:
        raise ChunkCorrupt(f"{cursor.end - cursor.position} bytes after the last column")
    return DecodedChunk(
        header.set_id,
        header.metric_ids,
        "".join(storages),
        np.array([header.t0_ns + offset for offset in offsets], np.int64),
        np.array([signed(header.first_sequence + step) for step in steps], np.int64),
        tuple(columns),
        valid,
    )


def _open(payload: bytes | memoryview) -> tuple[Cursor, int]:
    """A cursor at the set id, and the version."""
    data = bytes(payload)
    end = len(data) - CRC_BYTES
    if end < PREAMBLE_BYTES or data[: len(MAGIC)] != MAGIC or not 1 <= data[2] <= VERSION:
        raise ChunkCorrupt(
            f"no chunk of version 1 to {VERSION}: {len(data)} bytes, {data[:3].hex()} first"
        )
    (crc,) = struct.unpack_from("<I", data, end)
    found = google_crc32c.value(data[:end])
    if crc != found:
        raise ChunkCorrupt(f"CRC32C is {found:08x}, the chunk says {crc:08x}")
    cursor = Cursor(data, end)
    cursor.position = PREAMBLE_BYTES
    return cursor, data[2]


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


def _decode_column(
    cursor: Cursor, version: int, n: int, bits: Bits, earlier: list[Integers | None]
) -> tuple[str, Array]:
    """The next column's storage and values; `bits` says all valid, and is changed if not.

    Its integers, or None, are added to those of the columns before.
    """
    at = cursor.position
    tag = cursor.byte()
    storage = _STORAGES[tag & 0x03]
    mode = tag & 0x18
    floating = storage in "fd"
    if (
        tag & 0xE0
        or (mode != _SERIES and not floating)
        or (mode == _SERIES and floating and version == 1)
    ):
        raise ChunkCorrupt(f"column at byte {at}: unknown tag {tag:#04x}")
    count = n
    if tag & _PARTIAL:
        bits[:] = np.frombuffer(cursor.take(len(bits)), np.uint8)
        count = int(np.bitwise_count(bits).sum())
        if not 1 <= count < n or (n % 8 and int(bits[-1]) >> (n % 8)):
            raise ChunkCorrupt(f"column at byte {at}: {count} values of {n} samples")
    column = np.zeros(n, STORAGE_DTYPES[storage])
    column[_mask(bits, n)] = _decode_values(cursor, version, storage, mode, count, earlier)
    return storage, column


def _decode_values(
    cursor: Cursor,
    version: int,
    storage: str,
    mode: int,
    count: int,
    earlier: list[Integers | None],
) -> Array:
    dtype = STORAGE_DTYPES[storage]
    if mode in (_SAME, _RAW):
        earlier.append(None)
        size = dtype.itemsize
        raw = cursor.take(size) * count if mode == _SAME else cursor.take(size * count)
        return np.frombuffer(raw, dtype)
    k = cursor.byte() if mode == _DECIMAL else 0
    if k > floats.DECIMALS_MAX:
        raise ChunkCorrupt(f"{k} decimals, at most {floats.DECIMALS_MAX} are allowed")
    integers = _decode_series(cursor, version, count, earlier)
    earlier.append(integers)
    if mode == _DECIMAL:
        with np.errstate(over="ignore"):  # only a foreign chunk can hold what a f32 can't
            return np.array(floats.from_decimals(k, integers), np.float64).astype(dtype)
    if storage in "fd":
        return np.frombuffer(floats.from_bits(storage, integers), dtype)
    return np.array(integers, np.int64).view(dtype)


def _unlinked_series(cursor: Cursor, version: int, count: int) -> list[int]:
    return _decode_series(cursor, version, count, ())


def _decode_series(
    cursor: Cursor, version: int, count: int, earlier: Sequence[Integers | None]
) -> list[int]:
    """The next series, of `count` numbers, with the link it may have."""
    at = cursor.position
    tag = cursor.byte()
    known = series.SHAPE | series.SCALED
    if version > 1:
        known |= series.DIFFERENCES | series.LINKED
    if tag & ~known or (version == 1 and tag & series.SHAPE == series.BLOCKS):
        raise ChunkCorrupt(f"series at byte {at}: unknown tag {tag:#04x}")
    if not tag & series.LINKED:
        return series.decode(cursor, tag, count)
    link = links.decode(cursor)
    base = earlier[-link.back] if 1 <= link.back <= len(earlier) else None
    if base is None or len(base) != count:
        raise ChunkCorrupt(f"series at byte {at}: no column to predict it from")
    return link.restore(series.decode(cursor, tag & ~series.LINKED, count), base)
