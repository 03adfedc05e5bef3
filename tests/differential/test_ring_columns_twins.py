"""The native ring and columns equal their twins on the same generated operations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gputel._native.columns
import gputel._native.ring
import gputel._reference.columns
import gputel._reference.ring
from gputel.kernels import WhenFull, row_dtype

PAIRS: tuple[tuple[Any, Any], ...] = (
    (gputel._native.ring.Ring, gputel._native.columns.Columns),
    (gputel._reference.ring.Ring, gputel._reference.columns.Columns),
)


def same(native: list[Any], twin: list[Any]) -> None:
    assert len(native) == len(twin)
    for a, b in zip(native, twin, strict=True):
        assert a.gpu == b.gpu
        for name in ("time_ns", "sequence", "valid", "lateness_us"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())
        for x, y in zip(a.columns, b.columns, strict=True):
            assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@pytest.mark.parametrize("seed", range(40))
def test_random_operations(seed: int) -> None:
    random = np.random.default_rng(seed)
    storages = "".join(random.choice(list("fdqQ"), int(random.integers(1, 65))))
    capacity, gpus, samples = (int(random.integers(1, high)) for high in (200, 6, 40))
    when_full = WhenFull(int(random.integers(2)))
    rings = [ring(storages, capacity, when_full) for ring, _ in PAIRS]
    columns = [column(storages, gpus, samples) for _, column in PAIRS]
    copies = [column(storages, gpus, 2 * samples) for _, column in PAIRS]
    dtype = row_dtype(storages)
    for _ in range(60):
        operation = int(random.integers(5))
        if operation <= 1:
            count = int(random.integers(0, 80))
            # Any bits at all: NaNs with payloads, mask bits that have no cell.
            rows = np.frombuffer(random.bytes(count * dtype.itemsize), dtype).copy()
            # One slot too many now and then, so that `grow` is needed.
            rows["gpu"] %= gpus + int(random.integers(20) == 0)
            assert len({ring.push_rows(rows) for ring in rings}) == 1
        elif operation == 2:
            rows_max = int(random.choice([0, 5, 10_000]))
            outcomes = [drain(c, ring, rows_max) for c, ring in zip(columns, rings, strict=True)]
            assert outcomes[0] == outcomes[1]
            if isinstance(outcomes[0], str):
                gpus += 1
                for c in columns:
                    c.grow(gpus)
        elif operation == 3:
            takes = [take(copy, c) for copy, c in zip(copies, columns, strict=True)]
            assert takes[0] == takes[1]
            if takes[0] is not True:
                same(copies[0].seal(), copies[1].seal())
            for copy in copies:
                copy.grow(gpus)
        else:
            same(columns[0].seal(), columns[1].seal())
        for name in ("pushed_rows", "dropped_rows", "pending_rows", "free_rows"):
            assert getattr(rings[0], name) == getattr(rings[1], name)
        for name in ("pending_rows", "fullest", "gpus"):
            assert getattr(columns[0], name) == getattr(columns[1], name)
            assert getattr(copies[0], name) == getattr(copies[1], name)
    same(copies[0].seal(), copies[1].seal())


def drain(columns: Any, ring: Any, rows_max: int) -> int | str:
    """Rows moved, or what was wrong."""
    try:
        moved: int = columns.drain(ring, rows_max)
    except ValueError as error:
        return str(error)
    return moved


def take(columns: Any, other: Any) -> bool | str:
    """Was there room; or what was wrong."""
    try:
        taken: bool = columns.take(other)
    except ValueError as error:
        return str(error)
    return taken


@pytest.mark.parametrize(
    "row",
    [
        (0, 0, 0, 0, (1.0, 2.0, 3, 4)),
        (0, 0, 0, 0, (True, np.float32(2), np.int32(3), np.uint64(2**64 - 1))),
        (0, 0, 0, 0, (3.4028234663852886e38, 2**1000, 3, 4)),
        (0, 0, 0, 0, (3.4028236e38, 2.0, 3, 4)),
        (0, 0, 0, 0, (1.0, 2.0, 3.0, 4)),
        (0, 0, 0, 0, (1.0, "2.0x", 3, 4)),
        (0, 0, 0, 0, (None, None, None, None)),
        (0, 0, 0, 0, ()),
        (0.0, 0, 0, 0, (1.0, 2.0, 3, 4)),
        (0, 2**32, 0, 0, (1.0, 2.0, 3, 4)),
        (0, 0, 0, 2**64, (1.0, 2.0, 3, 4)),
    ],
)
def test_push_agrees_on_values_and_on_errors(row: Any) -> None:
    outcomes: list[tuple[Any, ...]] = []
    for make_ring, make_columns in PAIRS:
        ring, columns = make_ring("fdqQ", 2), make_columns("fdqQ", 1, 2)
        try:
            ring.push(*row)
        except (TypeError, ValueError, OverflowError) as error:
            outcomes.append((type(error), str(error)))
            continue
        columns.drain(ring)
        (sealed,) = columns.seal()
        outcomes.append((*(c.tobytes() for c in sealed.columns), sealed.valid.tobytes()))
    assert outcomes[0] == outcomes[1]
