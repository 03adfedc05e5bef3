"""Floats as integers, where nothing is lost by it: decimals, or the numbers of their bits."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from gputel.errors import ChunkCorrupt

DECIMALS_MAX = 9
DECIMAL_INTEGER_MAX = 2**53  # every integer up to here is a f64
_BITS = {"f": "I", "d": "q"}
_F32_BITS_MAX = 2**32 - 1


def to_decimals(storage: str, values: Sequence[float], raw: bytes) -> tuple[int, list[int]] | None:
    """(k, u) of the fewest decimals k for which every u / 10**k has the bits in `raw`; None:
    there are none, as for NaN, infinities and -0."""
    if not all(map(math.isfinite, values)):
        return None
    for k in range(DECIMALS_MAX + 1):
        power = 10.0**k
        if not all(abs(value * power) <= DECIMAL_INTEGER_MAX for value in values):
            return None
        integers = [round(value * power) for value in values]
        back = [integer / power for integer in integers]
        if struct.pack(f"<{len(back)}{storage}", *back) == raw:
            return k, integers
    return None


def from_decimals(k: int, integers: Sequence[int]) -> list[float]:
    """The inverse of `to_decimals`, before a f32 is rounded."""
    power = 10.0**k
    return [integer / power for integer in integers]


def to_bits(storage: str, raw: bytes) -> list[int]:
    """The numbers that the bits of floats are: a f32 as u32, a f64 as i64."""
    size = struct.calcsize(storage)
    return list(struct.unpack(f"<{len(raw) // size}{_BITS[storage]}", raw))


def from_bits(storage: str, numbers: Sequence[int]) -> bytes:
    """The inverse of `to_bits`. ChunkCorrupt: a number that is no f32's bits."""
    if storage == "f" and not all(0 <= number <= _F32_BITS_MAX for number in numbers):
        raise ChunkCorrupt("the bits of a f32 are above 2**32 - 1")
    return struct.pack(f"<{len(numbers)}{_BITS[storage]}", *numbers)
