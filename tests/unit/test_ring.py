"""The ring: one suite over the native one and its twin."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gputel.kernels import WhenFull, row_dtype

STORAGES = "fdqQ"
THREADED_S = 4.0
THREADED_ROWS_MAX = 400_000
LAPS_MIN = 20


@pytest.fixture
def make_ring(kernels: tuple[Any, Any]) -> Any:
    return kernels[0]


def one_gpu(kernels: tuple[Any, Any], ring: Any, capacity: int = 100) -> Any:
    """Everything pending in `ring`, sealed, of slot 0."""
    columns = kernels[1](ring.storages, 1, capacity)
    columns.drain(ring)
    (sealed,) = columns.seal()
    return sealed


def rows_of(count: int, storages: str = "q", start: int = 0) -> npt.NDArray[np.void]:
    rows = np.zeros(count, row_dtype(storages))
    rows["sequence"] = np.arange(start, start + count)
    rows["valid"] = 1
    rows["c0"] = rows["sequence"] * 3
    return rows


def test_row_layout_is_the_drawn_one() -> None:
    dtype = row_dtype(STORAGES)
    assert dtype.itemsize == 32 + 8 * 4
    offsets = {name: dtype.fields[name][1] for name in dtype.names or () if dtype.fields}
    assert offsets == {
        "time_ns": 0, "gpu": 8, "lateness_us": 12, "valid": 16, "sequence": 24,
        "c0": 32, "c1": 40, "c2": 48, "c3": 56,
    }  # fmt: skip


@pytest.mark.parametrize("storages", ["", "x", "qqb", "q" * 65])
def test_storages_are_checked(make_ring: Any, storages: str) -> None:
    with pytest.raises(ValueError, match=r"storages|columns"):
        make_ring(storages, 4)


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_is_checked(make_ring: Any, capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity_rows"):
        make_ring("q", capacity)


def test_push_keeps_every_bit(kernels: tuple[Any, Any]) -> None:
    ring = kernels[0](STORAGES, 8)
    assert ring.push(-(2**63), 0, 2**63 - 1, 2**40, (1.5, math.inf, -(2**63), 2**64 - 1))
    assert ring.push(5, 0, -1, 7, (-0.0, -0.0, 2**63 - 1, 0))
    assert ring.push(6, 0, 0, 0, (None, math.nan, None, None))
    sealed = one_gpu(kernels, ring)
    assert sealed.time_ns.tolist() == [-(2**63), 5, 6]
    assert sealed.sequence.tolist() == [2**63 - 1, -1, 0]
    assert sealed.lateness_us.tolist() == [2**32 - 1, 7, 0], "lateness saturates"
    f32, f64, i64, u64 = sealed.columns
    assert f32.tobytes() == np.array([1.5, -0.0, 0.0], "<f4").tobytes()
    assert f64.tobytes() == np.array([math.inf, -0.0, math.nan], "<f8").tobytes()
    assert i64.tolist() == [-(2**63), 2**63 - 1, 0]
    assert u64.tolist() == [2**64 - 1, 0, 0]
    assert sealed.valid.tolist() == [[0b011], [0b111], [0b011], [0b011]], "NaN is a value"


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ((0.0, 0.0, 2**63, 0), OverflowError, r"column 2 \(q\)"),
        ((0.0, 0.0, -(2**63) - 1, 0), OverflowError, r"column 2 \(q\)"),
        ((0.0, 0.0, 0, -1), OverflowError, r"column 3 \(Q\)"),
        ((0.0, 0.0, 0, 2**64), OverflowError, r"column 3 \(Q\)"),
        ((1e39, 0.0, 0, 0), OverflowError, r"column 0 \(f\)"),
        ((0.0, 10**400, 0, 0), OverflowError, r"column 1 \(d\)"),
        ((0.0, 0.0, 1.0, 0), TypeError, r"column 2 \(q\)"),
        ((0.0, "N/A", 0, 0), TypeError, r"column 1 \(d\)"),
        ((0.0, 0.0, 0), ValueError, "3 values for 4 columns"),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    make_ring: Any, values: tuple[Any, ...], error: type[Exception], text: str
) -> None:
    ring = make_ring(STORAGES, 2)
    with pytest.raises(error, match=text):
        ring.push(0, 0, 0, 0, values)
    assert (ring.pushed_rows, ring.dropped_rows) == (0, 0)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ((2**63, 0, 0, 0), "time_ns"),
        ((0, 2**32, 0, 0), "gpu"),
        ((0, -1, 0, 0), "gpu"),
        ((0, 0, 2**63, 0), "sequence"),
        ((0, 0, 0, -1), "lateness_us"),
    ],
)
def test_a_header_that_does_not_fit_is_named(
    make_ring: Any, header: tuple[int, ...], text: str
) -> None:
    with pytest.raises(OverflowError, match=text):
        make_ring("q", 2).push(*header, (1,))


def test_a_full_ring_drops_the_newest_and_counts(kernels: tuple[Any, Any]) -> None:
    ring = kernels[0]("q", 3)
    assert [ring.push(0, 0, i, 0, (i,)) for i in range(5)] == [True] * 3 + [False] * 2
    assert ring.push_rows(rows_of(4)) == 0
    assert (ring.pushed_rows, ring.dropped_rows, ring.pending_rows) == (3, 6, 3)
    assert ring.free_rows == 0
    assert one_gpu(kernels, ring).sequence.tolist() == [0, 1, 2]
    assert (ring.pending_rows, ring.free_rows) == (0, 3)


def test_a_blocking_ring_leaves_the_row_with_the_caller(make_ring: Any) -> None:
    ring = make_ring("q", 3, WhenFull.BLOCK)
    assert ring.push_rows(rows_of(5)) == 3
    assert not ring.push(0, 0, 3, 0, (3,))
    assert (ring.pushed_rows, ring.dropped_rows) == (3, 0)
    assert ring.when_full is WhenFull.BLOCK


def test_rows_wrap_around(kernels: tuple[Any, Any]) -> None:
    ring = kernels[0]("q", 5)
    columns = kernels[1]("q", 1, 100)
    for start in range(0, 30, 3):
        assert ring.push_rows(rows_of(3, start=start)) == 3
        assert columns.drain(ring) == 3
    (sealed,) = columns.seal()
    assert sealed.sequence.tolist() == list(range(30))
    assert sealed.columns[0].tolist() == [3 * i for i in range(30)]


def test_push_rows_takes_any_layout_but_no_other_dtype(kernels: tuple[Any, Any]) -> None:
    ring = kernels[0]("q", 10)
    frozen = rows_of(2)
    frozen.flags.writeable = False
    assert ring.push_rows(frozen) == 2
    assert ring.push_rows(rows_of(6)[::2]) == 3
    assert ring.push_rows(rows_of(0)) == 0
    for wrong in (rows_of(1, "d"), rows_of(2).reshape(1, 2), np.zeros(3)):
        with pytest.raises(TypeError):
            ring.push_rows(wrong)
    assert one_gpu(kernels, ring).sequence.tolist() == [0, 1, 0, 2, 4]


def let_the_other_in() -> None:
    """Give up the interpreter: a thread that finds nothing to do would keep it for 5 ms."""
    time.sleep(0)


def test_two_threads_lose_and_swap_nothing(kernels: tuple[Any, Any]) -> None:
    """A busy machine may end it early, but not before the ring has gone round a few times."""
    capacity, batch = 64, 97
    rows = rows_of(THREADED_ROWS_MAX)
    ring = kernels[0]("q", capacity, WhenFull.BLOCK)
    columns = kernels[1]("q", 1, 512)
    failures: list[BaseException] = []
    pushed = 0
    until_s = time.monotonic() + THREADED_S

    def produce() -> None:
        nonlocal pushed
        try:
            while pushed < len(rows):
                if time.monotonic() > until_s and pushed > capacity * LAPS_MIN:
                    break
                taken = ring.push_rows(rows[pushed : pushed + batch])
                pushed += taken
                if not taken:
                    let_the_other_in()
        except BaseException as error:
            failures.append(error)

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    seen = 0
    while producer.is_alive() or ring.pending_rows:
        if not columns.drain(ring):
            let_the_other_in()
        for sealed in columns.seal():
            n = len(sealed.sequence)
            expected = np.arange(seen, seen + n)
            assert np.array_equal(sealed.sequence, expected)
            assert np.array_equal(sealed.columns[0], expected * 3)
            seen += n
    producer.join()
    assert not failures
    assert capacity * LAPS_MIN < seen == pushed == ring.pushed_rows
    assert ring.dropped_rows == 0
