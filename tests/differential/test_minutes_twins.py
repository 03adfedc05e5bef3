"""Statistics by minute: both kernels agree, and with numpy where numpy's meaning is the same."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import gputel._native.minutes
import gputel._reference.minutes

MINUTE_NS = 60 * 10**9
TWINS: tuple[Any, ...] = (
    gputel._native.minutes.minute_statistics,
    gputel._reference.minutes.minute_statistics,
)


@pytest.fixture(params=TWINS, ids=["native", "reference"])
def statistics(request: pytest.FixtureRequest) -> Any:
    return request.param


def same(native: Any, twin: Any) -> None:
    assert native.columns == twin.columns
    for name in ("minute_ns", "n", "min", "max", "sum"):
        a, b = getattr(native, name), getattr(twin, name)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def column(random: np.random.Generator, rows: int) -> Any:
    dtype: Any = np.dtype(str(random.choice(["f4", "f8", "i8", "u8"])))
    values = np.frombuffer(random.bytes(rows * dtype.itemsize), dtype)
    if dtype.kind == "f":
        values = np.where(random.random(rows) < 0.5, values, random.random(rows).astype(dtype))
    return np.repeat(values, 2)[::2] if random.integers(4) == 0 else values


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("seed", range(60))
def test_random_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(0, 300))
    times = random.integers(-(2**40), 2**40) + np.cumsum(random.integers(0, MINUTE_NS // 9, rows))
    if random.integers(2):
        times = random.permutation(times)
    columns = tuple(column(random, rows) for _ in range(int(random.integers(0, 8))))
    valid = random.integers(0, 256, (len(columns), (rows + 7) // 8), np.uint8)
    valid[random.random(len(columns)) < 0.2] = 0
    native, twin = (function(times, columns, valid) for function in TWINS)
    same(native, twin)


def test_a_column_at_a_time(statistics: Any) -> None:
    times = np.array([0, 59, 60, 61, 30, 240]) * 10**9
    columns = (np.array([4, 2, 8, 9, 3, 7]), np.array([0.5, 1.5, math.nan, 2.5, -1, math.nan]))
    found = statistics(times, columns, np.array([[0b111111], [0b011101]], np.uint8))
    assert found.minute_ns.tolist() == [0, MINUTE_NS, 4 * MINUTE_NS]
    assert found.columns == (0, 1)
    assert found.n.T.tolist() == [[3, 2, 1], [2, 2, 0]]
    assert found.min[:, 0].tolist() == [2, 8, 7]
    assert found.max[:, 0].tolist() == [4, 9, 7]
    assert found.sum[:, 0].tolist() == [9, 17, 7]
    np.testing.assert_array_equal(found.min[:, 1], [-1, 2.5, math.nan])
    np.testing.assert_array_equal(found.max[:, 1], [0.5, math.nan, -math.inf])
    np.testing.assert_array_equal(found.sum[:, 1], [-0.5, math.nan, 0])


def test_bits_behind_the_last_row_mean_nothing(statistics: Any) -> None:
    found = statistics(
        np.zeros(3, np.int64), (np.ones(3), np.ones(3)), np.array([[0xF8], [0xFF]], np.uint8)
    )
    assert found.columns == (1,)
    assert found.n.tolist() == [[3]]


def test_shapes_that_contradict_are_refused(statistics: Any) -> None:
    times, column = np.zeros(9, np.int64), np.zeros(9)
    for columns, valid in (
        ((column,), np.zeros((1, 1), np.uint8)),
        ((column,), np.zeros((2, 2), np.uint8)),
        ((column[1:],), np.zeros((1, 2), np.uint8)),
    ):
        with pytest.raises(ValueError, match="9 times"):
            statistics(times, columns, valid)
