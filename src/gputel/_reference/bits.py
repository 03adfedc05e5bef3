"""The small codings that chunks are made of: varints, zigzag, packed bits, a bounded cursor."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gputel.errors import ChunkCorrupt

U64 = 2**64 - 1
VARINT_BYTES_MAX = 10


def signed(number: int) -> int:
    """The i64 with the low 64 bits of `number`."""
    number &= U64
    return number - 2**64 if number >> 63 else number


def zigzag(number: int) -> int:
    """An i64 as u64 with small absolute values small: 0, -1, 1, -2, 2 ... -> 0, 1, 2, 3, 4 ..."""
    return (number << 1) & U64 if number >= 0 else ((-number) << 1) - 1


def unzigzag(number: int) -> int:
    """The inverse of `zigzag`."""
    return number >> 1 if not number & 1 else -((number + 1) >> 1)


def varint(number: int) -> bytes:
    """An u64 as LEB128: seven bits a byte, low ones first, the top bit says that more follow."""
    if number < 0x80:
        return number.to_bytes(1, "little")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def packed_bytes(count: int, width: int) -> int:
    """How long `count` packed numbers of `width` bits are."""
    return (count * width + 7) // 8


def width_of(numbers: Sequence[int]) -> int:
    """The bits that each of some unsigned numbers fits in; 0 for none."""
    return max(numbers, default=0).bit_length()


def pack(numbers: Sequence[int], width: int) -> bytes:
    """u64 numbers in `width` bits each, LSB first, without gaps; padded with zero bits."""
    out = bytearray()
    for start in range(0, len(numbers), 8):  # eight of them are whole bytes
        eight = numbers[start : start + 8]
        total = sum(number << (i * width) for i, number in enumerate(eight))
        out += total.to_bytes(packed_bytes(len(eight), width), "little")
    return bytes(out)


def unpack(packed: bytes, count: int, width: int) -> list[int]:
    """The inverse of `pack`. ChunkCorrupt: padding bits that are not zero."""
    numbers: list[int] = []
    mask = (1 << width) - 1
    for start in range(0, count, 8):
        eight = min(count - start, 8)
        total = int.from_bytes(packed[start // 8 * width :][: packed_bytes(eight, width)], "little")
        if total >> (eight * width):
            raise ChunkCorrupt("packed numbers: padding bits are set")
        numbers += [(total >> (i * width)) & mask for i in range(eight)]
    return numbers


class Cursor:
    """Reads bytes front to back and never past `end`. All methods: ChunkCorrupt."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, end: int) -> None:
        self.data = data
        self.position = 0
        self.end = end

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        stop = self.position + size
        if stop > self.end:
            raise ChunkCorrupt(
                f"truncated: {size} bytes wanted at byte {self.position}, the end is {self.end}"
            )
        taken = self.data[self.position : stop]
        self.position = stop
        return taken

    def byte(self) -> int:
        """The next byte."""
        if self.position >= self.end:
            raise ChunkCorrupt(f"truncated at byte {self.position}")
        value = self.data[self.position]
        self.position += 1
        return value

    def varint(self) -> int:
        """The next varint, an u64."""
        value = shift = 0
        start = self.position
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ChunkCorrupt(f"varint at byte {start} is longer than {VARINT_BYTES_MAX}")
        if value > U64:
            raise ChunkCorrupt(f"varint at byte {start} is above 2**64 - 1")
        return value

    def zigzag(self) -> int:
        """The next zigzag varint, an i64."""
        return unzigzag(self.varint())

    def i64(self) -> int:
        """The next little-endian i64."""
        number: int = struct.unpack("<q", self.take(8))[0]
        return number
