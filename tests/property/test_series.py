"""Integer series: lossless for any 64 bits, and one coding whichever path writes or reads it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gputel._reference import series
from gputel._reference.bits import Cursor, pack, pack_array, unpack, unpack_array, varint
from gputel.errors import ChunkCorrupt

I64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def shaped(draw: st.DrawFn) -> list[int]:
    """Series of the kinds that metrics are, and of none."""
    n = draw(st.integers(1, 60))
    first, scale = draw(I64), draw(st.sampled_from([1, 1000, 2**20]))
    small = st.integers(-9, 9)
    match draw(st.sampled_from(["constant", "step", "floor", "walk", "line", "any"])):
        case "constant":
            values = [first] * n
        case "step":
            step = draw(I64)
            values = [first + i * step for i in range(n)]
        case "floor":
            values = [first + scale * draw(small) for _ in range(n)]
        case "walk":
            values = list(itertools.accumulate(scale * draw(small) for _ in range(n)))
        case "line":
            deltas = itertools.accumulate((draw(small) for _ in range(n)), initial=10**6)
            values = list(itertools.accumulate(deltas))
        case _:
            values = draw(st.lists(I64, min_size=n, max_size=n))
    return [(value + 2**63) % 2**64 - 2**63 for value in values]


@given(shaped())
@example([-(2**63), 2**63 - 1, -(2**63), 5])
@example([2**63 - 1, -(2**63), -1, 0])
@example([0, 2**62, 0])
@example([0, 1, 0, 1, 2**62 - 1])
def test_both_paths_write_the_same_and_read_it_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    encoded = series.encode_ints(values)
    assert series.encode(array, short_max=0) == encoded, "numpy's path"
    assert len(encoded) <= 1 + 8 * len(values) + 9, "never much larger than raw"
    for short_max in (0, 10**6):
        cursor = Cursor(encoded, len(encoded))
        decoded = series.decode(cursor, len(values), short_max=short_max)
        assert decoded.tolist() == values
        assert decoded.dtype == np.int64
        assert cursor.position == len(encoded)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([7], 2),
        ([7] * 1000, 2),
        (list(range(0, 10**6, 1000)), 4),
        ([1980, 1965, 1980, 1950] * 8, 1 + 2 + 1 + 1 + 8),  # two bits each, after a divisor of 15
        ([10 + i % 2 for i in range(1000)], 1 + 1 + 1 + 125),
    ],
)
def test_regular_series_are_small(values: list[int], size: int) -> None:
    assert len(series.encode(np.array(values, np.int64))) == size


@given(st.data(), st.integers(0, 64), st.integers(0, 40))
def test_packing(data: st.DataObject, width: int, count: int) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=count, max_size=count))
    packed = pack(numbers, width)
    assert len(packed) == (width * count + 7) // 8
    assert pack_array(np.array(numbers, np.uint64), width) == packed
    assert unpack(packed, count, width) == numbers
    assert unpack_array(packed, count, width).tolist() == numbers


def test_padding_bits_are_zero() -> None:
    for read in (unpack, unpack_array):
        with pytest.raises(ChunkCorrupt, match="padding"):
            read(b"\xff", 2, 3)


@given(st.integers(0, 2**64 - 1))
def test_varints(number: int) -> None:
    encoded = varint(number)
    assert len(encoded) == max((number.bit_length() + 6) // 7, 1)
    assert Cursor(encoded, len(encoded)).varint() == number


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff" * 9 + b"\x02"])
def test_bad_varints(data: bytes) -> None:
    with pytest.raises(ChunkCorrupt):
        Cursor(data, len(data)).varint()


@given(st.binary(max_size=80), st.integers(1, 100), st.sampled_from([0, 10**6]))
def test_hostile_bytes_are_refused_or_read(data: bytes, count: int, short_max: int) -> None:
    cursor = Cursor(data, len(data))
    try:
        decoded = series.decode(cursor, count, short_max=short_max)
    except ChunkCorrupt:
        return
    assert len(decoded) == count
