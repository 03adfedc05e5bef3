"""The small codings that chunks are made of: varints, zigzag, packed bits, a bounded cursor."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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


def pack(numbers: Sequence[int], width: int) -> bytes:
    """u64 numbers in `width` bits each, LSB first, without gaps; padded with zero bits."""
    total = 0
    for i, number in enumerate(numbers):
        total |= number << (i * width)
    return total.to_bytes((len(numbers) * width + 7) // 8, "little")


def pack_array(numbers: npt.NDArray[np.uint64], width: int) -> bytes:
    """`pack`, for many numbers."""
    as_bytes = numbers.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    if width % 8 == 0:
        return as_bytes[:, : width // 8].tobytes()
    bits = np.unpackbits(as_bytes, axis=1, count=width, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(packed: bytes, count: int, width: int) -> list[int]:
    """The inverse of `pack`. ChunkCorrupt: padding bits that are not zero."""
    total = int.from_bytes(packed, "little")
    if total >> (count * width):
        raise ChunkCorrupt("packed numbers: padding bits are set")
    mask = (1 << width) - 1
    return [(total >> (i * width)) & mask for i in range(count)]


def unpack_array(packed: bytes, count: int, width: int) -> npt.NDArray[np.uint64]:
    """`unpack`, for many numbers."""
    out = np.zeros((count, 8), np.uint8)
    flat = np.frombuffer(packed, np.uint8)
    if width % 8 == 0:
        out[:, : width // 8] = flat.reshape(count, width // 8)
    else:
        bits = np.unpackbits(flat, bitorder="little")
        if bits[count * width :].any():
            raise ChunkCorrupt("packed numbers: padding bits are set")
        low = np.packbits(bits[: count * width].reshape(count, width), axis=1, bitorder="little")
        out[:, : low.shape[1]] = low
    return out.view("<u8").reshape(count)


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
