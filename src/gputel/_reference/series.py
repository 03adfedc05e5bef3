"""Integer series: m 64-bit integers, m >= 1, in the smallest of six shapes.

    shape                     bytes after the tag
    -----                     -------------------
    0 CONSTANT  all equal     value
    1 STEP      one distance  first, step                          v[i] = v[i-1] + step
    2 OFFSET    near a floor  floor, [g], width, packed x[0..m)    v[i] = floor + g x[i]
    3 DELTA     near the last first, [g], width, packed x[1..m)    v[i] = v[i-1] + g unzigzag(x[i])
    4 DELTA2    near a line   first, [g], delta, width, packed x[2..m)
                              d[1] = delta, d[i] = d[i-1] + unzigzag(x[i]), v[i] = v[i-1] + g d[i]
    5 RAW       none of them  m x 8 bytes, little-endian

The tag is one byte: the shape in its low three bits, and 0x08 when the common divisor `g`
(varint, >= 2) is there. value, first, floor, step and delta are zigzag varints; width is a byte
of 0 to 64; x are unsigned and packed in `width` bits each, LSB first. All arithmetic is
modulo 2**64, so that i64 and u64 are the same thing here.

Short series are coded with Python's own integers and long ones with numpy, to the same bytes:
a numpy call costs as much as coding several numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel._reference.bits import (
    U64,
    Cursor,
    pack,
    pack_array,
    signed,
    unpack,
    unpack_array,
    unzigzag,
    varint,
    zigzag,
)
from gputel.errors import ChunkCorrupt

CONSTANT, STEP, OFFSET, DELTA, DELTA2, RAW = range(6)
SCALED = 0x08
SHORT_MAX = 24
# Only where no difference can leave i64 is a common divisor of them meaningful.
SPAN_SCALED_MAX = 2**62

Int64s = npt.NDArray[np.int64]


def encode(values: Int64s, *, short_max: int = SHORT_MAX) -> bytes:
    """The series `values` (u64 viewed as i64), tag included."""
    if len(values) <= short_max:
        return encode_ints(values.tolist())
    return _encode_array(values)


def encode_ints(values: Sequence[int]) -> bytes:
    """`encode` for a list of i64."""
    first = values[0]
    if values.count(first) == len(values):
        return b"\x00" + varint(zigzag(first))
    floor = min(values)
    span = max(values) - floor
    scalable = span < SPAN_SCALED_MAX
    deltas = [b - a for a, b in itertools.pairwise(values)]
    if not scalable:
        deltas = [signed(delta) for delta in deltas]
    if deltas.count(deltas[0]) == len(deltas):
        return b"\x01" + varint(zigzag(first)) + varint(zigzag(deltas[0]))
    divisor = math.gcd(*deltas) if scalable else 1
    if divisor > 1:
        deltas = [delta // divisor for delta in deltas]
    seconds = [b - a for a, b in itertools.pairwise(deltas)]
    if not scalable:
        seconds = [signed(second) for second in seconds]
    delta_width = _zigzag_width(min(deltas), max(deltas))
    second_width = _zigzag_width(min(seconds), max(seconds))
    shape, width = _choose(len(values), span // divisor, delta_width, second_width)
    if shape == RAW:
        return b"\x05" + pack([value & U64 for value in values], 64)
    if shape == OFFSET:
        head, packed = floor, [(value - floor) // divisor for value in values]
    elif shape == DELTA:
        head, packed = first, [zigzag(delta) for delta in deltas]
    else:
        head, packed = first, [zigzag(second) for second in seconds]
    return _head(shape, head, divisor, deltas[0], width) + pack(packed, width)


def _encode_array(values: Int64s) -> bytes:
    first = int(values[0])
    if (values == first).all():
        return b"\x00" + varint(zigzag(first))
    with np.errstate(over="ignore"):
        deltas = np.diff(values)
    step = int(deltas[0])
    if (deltas == step).all():
        return b"\x01" + varint(zigzag(first)) + varint(zigzag(step))
    floor = int(values.min())
    span = int(values.max()) - floor
    divisor = 1
    if span < SPAN_SCALED_MAX:
        divisor = int(np.gcd.reduce(deltas))
        deltas //= divisor
    deltas_zigzag = zigzag_array(deltas)
    seconds_zigzag = zigzag_array(np.diff(deltas))
    delta_width = int(deltas_zigzag.max()).bit_length()
    second_width = int(seconds_zigzag.max()).bit_length()
    shape, width = _choose(len(values), span // divisor, delta_width, second_width)
    if shape == RAW:
        return b"\x05" + values.astype("<i8", copy=False).tobytes()
    head = first
    if shape == OFFSET:
        head = floor
        packed = (values.view(np.uint64) - np.uint64(floor & U64)) // np.uint64(divisor)
    elif shape == DELTA:
        packed = deltas_zigzag
    else:
        packed = seconds_zigzag
    return _head(shape, head, divisor, int(deltas[0]), width) + pack_array(packed, width)


def _zigzag_width(low: int, high: int) -> int:
    """The bits that every zigzag of low to high fits in."""
    return max(zigzag(low), zigzag(high)).bit_length()


def _choose(count: int, span: int, delta_width: int, second_width: int) -> tuple[int, int]:
    """The shape with the fewest packed bits, and its width; the simpler one when equal."""
    offset_width = span.bit_length()
    return min(
        (count * offset_width, OFFSET, offset_width),
        ((count - 1) * delta_width, DELTA, delta_width),
        # Its extra first delta costs about as much as a number.
        ((count - 2) * second_width + delta_width + 8, DELTA2, second_width),
        (count * 64, RAW, 64),
    )[1:]


def _head(shape: int, head: int, divisor: int, delta: int, width: int) -> bytes:
    tag = shape | (SCALED if divisor > 1 else 0)
    parts = [bytes((tag,)), varint(zigzag(head))]
    if divisor > 1:
        parts.append(varint(divisor))
    if shape == DELTA2:
        parts.append(varint(zigzag(delta)))
    parts.append(bytes((width,)))
    return b"".join(parts)


def zigzag_array(numbers: Int64s) -> npt.NDArray[np.uint64]:
    """`zigzag` of every number."""
    folded: npt.NDArray[np.uint64] = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    return folded


def unzigzag_array(numbers: npt.NDArray[np.uint64]) -> Int64s:
    """The inverse of `zigzag_array`."""
    one = np.uint64(1)
    return ((numbers >> one) ^ (np.uint64(0) - (numbers & one))).view(np.int64)


def decode(cursor: Cursor, count: int, *, short_max: int = SHORT_MAX) -> Int64s:
    """The next series, of `count` numbers (1 to CHUNK_SAMPLES_MAX). ChunkCorrupt."""
    at = cursor.position
    tag = cursor.byte()
    shape = tag & 0x07
    if tag & ~(0x07 | SCALED) or shape > RAW or (tag & SCALED and shape not in (2, 3, 4)):
        raise ChunkCorrupt(f"series at byte {at}: unknown tag {tag:#04x}")
    if shape == RAW:
        return np.frombuffer(cursor.take(8 * count), "<i8").copy()
    first = cursor.zigzag()
    if shape == CONSTANT:
        return np.full(count, first, np.int64)
    if shape == STEP:
        steps = np.uint64(cursor.zigzag() & U64) * np.arange(count, dtype=np.uint64)
        return (steps + np.uint64(first & U64)).view(np.int64)
    divisor = cursor.varint() if tag & SCALED else 1
    if tag & SCALED and divisor < 2:
        raise ChunkCorrupt(f"series at byte {at}: common divisor {divisor}")
    delta = cursor.zigzag() if shape == DELTA2 else 0
    width = cursor.byte()
    packed_count = count - (shape - OFFSET)
    if width > 64 or packed_count < 0:
        raise ChunkCorrupt(f"series at byte {at}: width {width}, shape {shape}, {count} numbers")
    packed = cursor.take((packed_count * width + 7) // 8)
    if count <= short_max:
        numbers = unpack(packed, packed_count, width)
        return _restore_ints(shape, first, divisor, delta, numbers)
    return _restore_array(shape, first, divisor, delta, unpack_array(packed, packed_count, width))


def _restore_ints(shape: int, first: int, divisor: int, delta: int, numbers: list[int]) -> Int64s:
    if shape == OFFSET:
        values = [signed(first + divisor * number) for number in numbers]
        return np.array(values, np.int64)
    deltas = [unzigzag(number) for number in numbers]
    if shape == DELTA2:
        seconds, deltas = deltas, [delta]
        for second in seconds:
            deltas.append(deltas[-1] + second)
    values = [first]
    for number in deltas:
        values.append(signed(values[-1] + divisor * number))
    return np.array(values, np.int64)


def _restore_array(
    shape: int, first: int, divisor: int, delta: int, numbers: npt.NDArray[np.uint64]
) -> Int64s:
    base, scale = np.uint64(first & U64), np.uint64(divisor)
    if shape == OFFSET:
        return (base + scale * numbers).view(np.int64)
    deltas = unzigzag_array(numbers).view(np.uint64)
    if shape == DELTA2:
        start = np.array([delta & U64], np.uint64)
        deltas = np.cumsum(np.concatenate((start, deltas)), dtype=np.uint64)
    values = np.empty(len(deltas) + 1, np.uint64)
    values[0] = base
    values[1:] = scale * deltas
    return np.cumsum(values, dtype=np.uint64).view(np.int64)
