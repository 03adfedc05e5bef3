"""Integer series and links: lossless for any 64 bits, small where there is an order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gputel._reference import links, series
from gputel._reference.bits import Cursor, pack, signed, unpack, varint
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
    return [signed(value) for value in values]


def decode(encoded: bytes, count: int) -> list[int]:
    cursor = Cursor(encoded, len(encoded))
    decoded = series.decode(cursor, cursor.byte(), count)
    assert cursor.position == len(encoded)
    return decoded


@given(shaped())
@example([-(2**63), 2**63 - 1, -(2**63), 5])
@example([2**63 - 1, -(2**63), -1, 0])
@example([-(2**63), 2**63 - 1, -(2**63), 5] * 20)
@example([0, 2**62, 0])
@example([0, 1, 0, 1, 2**62 - 1])
def test_a_series_gives_back_what_it_was_given(values: list[int]) -> None:
    encoded = series.encode(values)
    assert len(encoded) <= 1 + 8 * len(values) + 20 + len(values) // 16, "never far above raw"
    assert decode(encoded, len(values)) == values


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ([7], 2),
        ([7] * 1000, 2),
        (list(range(0, 10**6, 1000)), 4),
        # two bits each, after a divisor of 15
        ([1980, 1965, 1980, 1950] * 4, 1 + 2 + 1 + 1 + 4),
        # a byte and, at most, two bits a number for each block of 16
        ([10 + i % 2 for i in range(1025)], 1 + 1 + 64 * (1 + 1 + 2)),
        # a burst costs only the block that it is in
        ([100] * 512 + [10**9] + [100] * 512, 1 + 2 + 1 + 63 + 1 + 64),
    ],
)
def test_regular_series_are_small(values: list[int], size: int) -> None:
    encoded = series.encode(values)
    assert len(encoded) <= size
    assert decode(encoded, len(values)) == values


@given(shaped(), st.integers(-(2**63), 2**63 - 1), st.integers(0, links.SHIFT_MAX))
def test_a_link_is_exact_whatever_its_factor(base: list[int], factor: int, shift: int) -> None:
    values = base[::-1]
    link = links.Link(1, factor, shift)
    assert link.restore(link.residuals(values, base), base) == values
    encoded = link.encode()
    assert links.decode(Cursor(encoded, len(encoded))) == link


@given(st.integers(-5, 5).filter(bool), I64, st.sampled_from([1, 10**6]))
def test_columns_that_move_together_are_found(factor: int, start: int, scale: int) -> None:
    base = [scale * ((i * 7919) % 1009) for i in range(200)]
    noise = [(i * 31) % 97 for i in range(200)]
    values = [signed(start + factor * number) for number in base]
    link = links.find(values, [noise, base, None])
    assert link == (2, factor, 0)
    assert len(set(link.residuals(values, base))) == 1


def test_a_ratio_is_predicted_to_the_last_digit() -> None:
    base = [(i * 7919) % 100_003 for i in range(500)]
    values = [round(0.92 * number) for number in base]
    link = links.find(values, [base])
    assert link is not None
    assert set(link.residuals(values, base)) <= {-1, 0, 1}


def test_columns_without_a_common_motion_are_not_linked() -> None:
    noise = [(i * i * 7919) % 1009 for i in range(200)]
    other = [(i * 31) % 97 for i in range(200)]
    assert links.find(noise, [other, [5] * 200, other[:100], None]) is None
    assert links.find([5] * 200, [noise]) is None


@given(st.data(), st.integers(0, 64), st.integers(0, 40))
def test_packing(data: st.DataObject, width: int, count: int) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=count, max_size=count))
    packed = pack(numbers, width)
    assert len(packed) == (width * count + 7) // 8
    assert int.from_bytes(packed, "little") == sum(
        number << (i * width) for i, number in enumerate(numbers)
    )
    assert unpack(packed, count, width) == numbers


def test_padding_bits_are_zero() -> None:
    with pytest.raises(ChunkCorrupt, match="padding"):
        unpack(b"\xff", 2, 3)


@given(st.integers(0, 2**64 - 1))
def test_varints(number: int) -> None:
    encoded = varint(number)
    assert len(encoded) == max((number.bit_length() + 6) // 7, 1)
    assert Cursor(encoded, len(encoded)).varint() == number


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 11, b"\xff" * 9 + b"\x02"])
def test_bad_varints(data: bytes) -> None:
    with pytest.raises(ChunkCorrupt):
        Cursor(data, len(data)).varint()


@given(st.binary(max_size=80), st.integers(1, 100))
def test_hostile_bytes_are_refused_or_read(data: bytes, count: int) -> None:
    cursor = Cursor(data, len(data))
    try:
        decoded = series.decode(cursor, cursor.byte(), count)
    except ChunkCorrupt:
        return
    assert len(decoded) == count
