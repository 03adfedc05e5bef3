"""Integer series: m 64-bit integers, m >= 1, in one of seven shapes.

    shape                     bytes after the tag and the link
    -----                     --------------------------------
    0 CONSTANT  all equal     value
    1 STEP      one distance  first, step                          v[i] = v[i-1] + step
    2 OFFSET    near a floor  floor, [g], width, packed x[0..m)    v[i] = floor + g x[i]
    3 DELTA     near the last first, [g], width, packed x[1..m)    v[i] = v[i-1] + g unzigzag(x[i])
    4 DELTA2    near a line   first, [g], delta, width, packed x[2..m)
                              d[1] = delta, d[i] = d[i-1] + unzigzag(x[i]), v[i] = v[i-1] + g d[i]
    5 RAW       none of them  m x 8 bytes, little-endian
    6 BLOCKS    changing      first, [g], blocks of s[1..m)        v[i] = first + g s[i], s[0] = 0
                with DIFFERENCES: first, [g], delta, blocks of d[2..m)
                                                                   v[i] = v[i-1] + g d[i]

A block is up to 16 numbers with a width of their own, so that a burst costs bits only where
it is; p is the number before the block, 0 or delta before the first one:

      0x00 + width          packed x    n[i] = n[i-1] + unzigzag(x[i]), n[-1] = p
      0x80 + width   base   packed x    n[i] = p + base + x[i]

The tag is one byte: the shape in its low three bits, 0x08 when the common divisor `g` (varint,
>= 2) is there, 0x10 for DIFFERENCES, and 0x20 when a link (links.py) follows at once: then the
series is what its prediction misses. value, first, floor, step, delta and base are zigzag
varints; width is a byte of 0 to 64; x are unsigned and packed in `width` bits each, LSB first.
All arithmetic is modulo 2**64, so that i64 and u64 are the same thing here.

Version 1 of a chunk has shapes 0 to 5 and no link. Short series are written in these still: a
single width costs them less than blocks.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence

from gputel._reference.bits import (
    Cursor,
    pack,
    packed_bytes,
    signed,
    unpack,
    unzigzag,
    varint,
    width_of,
    zigzag,
)
from gputel.errors import ChunkCorrupt

CONSTANT, STEP, OFFSET, DELTA, DELTA2, RAW, BLOCKS = range(7)
SHAPE = 0x07
SCALED = 0x08
DIFFERENCES = 0x10
LINKED = 0x20
FLOOR = 0x80  # of a block
BLOCK_NUMBERS = 16
BLOCKS_SAMPLES_MIN = 32  # from here on blocks are written
WIDTH_MAX = 64
# Only where no difference can leave i64 is a common divisor of them meaningful.
SPAN_SCALED_MAX = 2**62


def encode(values: Sequence[int]) -> bytes:
    """The series of i64 `values` (u64 as the i64 of the same bits), tag included."""
    first = values[0]
    if values.count(first) == len(values):
        return bytes((CONSTANT,)) + varint(zigzag(first))
    deltas = [signed(b - a) for a, b in itertools.pairwise(values)]
    if deltas.count(deltas[0]) == len(deltas):
        return bytes((STEP,)) + varint(zigzag(first)) + varint(zigzag(deltas[0]))
    span = max(values) - min(values)
    divisor = math.gcd(*deltas) if span < SPAN_SCALED_MAX else 1
    deltas = [delta // divisor for delta in deltas]
    if len(values) < BLOCKS_SAMPLES_MIN:
        return _encode_short(values, deltas, divisor, span // divisor)
    return _encode_blocks(values, deltas, divisor)


def _encode_short(values: Sequence[int], deltas: list[int], divisor: int, span: int) -> bytes:
    """One width for all numbers, in the shape that needs the fewest packed bits."""
    count = len(values)
    seconds = [zigzag(signed(b - a)) for a, b in itertools.pairwise(deltas)]
    folded = [zigzag(delta) for delta in deltas]
    offset_width, delta_width, second_width = span.bit_length(), width_of(folded), width_of(seconds)
    _, shape, width = min(  # the simpler one when equal
        (count * offset_width, OFFSET, offset_width),
        ((count - 1) * delta_width, DELTA, delta_width),
        # Its extra first delta costs about as much as a number.
        ((count - 2) * second_width + delta_width + 8, DELTA2, second_width),
        (count * WIDTH_MAX, RAW, WIDTH_MAX),
    )
    if shape == RAW:
        return bytes((RAW,)) + struct.pack(f"<{count}q", *values)
    if shape == OFFSET:
        floor = min(values)
        numbers = [(value - floor) // divisor for value in values]
        return _head(OFFSET, floor, divisor) + bytes((width,)) + pack(numbers, width)
    head = _head(shape, values[0], divisor)
    if shape == DELTA:
        return head + bytes((width,)) + pack(folded, width)
    return head + varint(zigzag(deltas[0])) + bytes((width,)) + pack(seconds, width)


def _head(tag: int, head: int, divisor: int) -> bytes:
    scaled = varint(divisor) if divisor > 1 else b""
    return bytes((tag | (SCALED if scaled else 0),)) + varint(zigzag(head)) + scaled


def _encode_blocks(values: Sequence[int], deltas: list[int], divisor: int) -> bytes:
    """Blocks of the numbers or of their differences, whichever takes fewer bytes."""
    numbers = [signed(number) for number in itertools.accumulate(deltas)]
    plain = _blocks(numbers, 0)
    differences = varint(zigzag(deltas[0])) + _blocks(deltas[1:], deltas[0])
    if len(plain) <= len(differences):
        return _head(BLOCKS, values[0], divisor) + plain
    return _head(BLOCKS | DIFFERENCES, values[0], divisor) + differences


def _blocks(numbers: Sequence[int], before: int) -> bytes:
    out = bytearray()
    for start in range(0, len(numbers), BLOCK_NUMBERS):
        block = numbers[start : start + BLOCK_NUMBERS]
        out += _block(block, before)
        before = block[-1]
    return bytes(out)


def _block(block: Sequence[int], before: int) -> bytes:
    steps = [zigzag(signed(b - a)) for a, b in itertools.pairwise([before, *block])]
    floor = min(block)
    offsets = [number - floor for number in block]
    base = varint(zigzag(signed(floor - before)))
    step_width, offset_width = width_of(steps), width_of(offsets)
    step_bytes = packed_bytes(len(block), step_width)
    offset_bytes = packed_bytes(len(block), offset_width)
    if step_bytes <= len(base) + offset_bytes:
        return bytes((step_width,)) + pack(steps, step_width)
    return bytes((FLOOR | offset_width,)) + base + pack(offsets, offset_width)


def decode(cursor: Cursor, tag: int, count: int) -> list[int]:
    """The series behind its `tag` and link, of `count` numbers, at least one. ChunkCorrupt.

    Which bits a tag may have is the caller's knowledge, but for SCALED and DIFFERENCES.
    """
    at = cursor.position
    shape = tag & SHAPE
    divides = shape in (OFFSET, DELTA, DELTA2, BLOCKS)
    if shape > BLOCKS or (tag & SCALED and not divides) or (tag & DIFFERENCES and shape != BLOCKS):
        raise ChunkCorrupt(f"series before byte {at}: unknown tag {tag:#04x}")
    if shape == RAW:
        return list(struct.unpack(f"<{count}q", cursor.take(8 * count)))
    first = cursor.zigzag()
    if shape == CONSTANT:
        return [first] * count
    if shape == STEP:
        step = cursor.zigzag()
        return [signed(first + i * step) for i in range(count)]
    divisor = cursor.varint() if tag & SCALED else 1
    if tag & SCALED and divisor < 2:
        raise ChunkCorrupt(f"series before byte {at}: common divisor {divisor}")
    if shape == OFFSET:
        return [signed(first + divisor * number) for number in _packed(cursor, count)]
    if shape == BLOCKS and not tag & DIFFERENCES:
        numbers = _decode_blocks(cursor, count - 1, 0)
        return [first, *(signed(first + divisor * number) for number in numbers)]
    deltas = _deltas(cursor, shape, count)
    return [
        signed(value)
        for value in itertools.accumulate((divisor * delta for delta in deltas), initial=first)
    ]


def _deltas(cursor: Cursor, shape: int, count: int) -> list[int]:
    """The count - 1 differences of a DELTA, a DELTA2, or BLOCKS of differences."""
    if shape == DELTA:
        return [unzigzag(number) for number in _packed(cursor, count - 1)]
    delta = cursor.zigzag()
    if count < 2:
        raise ChunkCorrupt(f"series before byte {cursor.position}: differences of one number")
    if shape == BLOCKS:
        return [delta, *_decode_blocks(cursor, count - 2, delta)]
    seconds = (unzigzag(number) for number in _packed(cursor, count - 2))
    return list(itertools.accumulate(seconds, initial=delta))


def _packed(cursor: Cursor, count: int) -> list[int]:
    width = cursor.byte()
    if width > WIDTH_MAX:
        raise ChunkCorrupt(f"series before byte {cursor.position}: width {width}")
    return unpack(cursor.take(packed_bytes(count, width)), count, width)


def _decode_blocks(cursor: Cursor, count: int, before: int) -> list[int]:
    numbers: list[int] = []
    for start in range(0, count, BLOCK_NUMBERS):
        size = min(count - start, BLOCK_NUMBERS)
        control = cursor.byte()
        width = control & ~FLOOR
        if width > WIDTH_MAX:
            raise ChunkCorrupt(f"block before byte {cursor.position}: width {width}")
        base = signed(before + cursor.zigzag()) if control & FLOOR else 0
        packed = unpack(cursor.take(packed_bytes(size, width)), size, width)
        if control & FLOOR:
            block = [signed(base + number) for number in packed]
        else:
            steps = (unzigzag(number) for number in packed)
            block = [signed(n) for n in itertools.accumulate(steps, initial=before)][1:]
        numbers += block
        before = block[-1]
    return numbers
