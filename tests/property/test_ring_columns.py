"""Ring and columns against a model, a list a GPU, under random operations."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gputel.kernels import WhenFull, row_dtype

CELLS = {
    "f": st.floats(width=32),
    "d": st.floats(),
    "q": st.integers(-(2**63), 2**63 - 1),
    "Q": st.integers(0, 2**64 - 1),
}
DTYPES = {"f": "<f4", "d": "<f8", "q": "<i8", "Q": "<u8"}


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, int, int, list[Any]]:
    """Storages, GPUs, samples a GPU, and what is done: rows to push, or a seal."""
    storages = draw(st.text("fdqQ", min_size=1, max_size=6))
    gpus = draw(st.integers(1, 4))
    cells = st.tuples(*(st.none() | CELLS[storage] for storage in storages))
    row = st.tuples(CELLS["q"], st.integers(0, gpus - 1), CELLS["q"], st.integers(0, 2**33), cells)
    steps = draw(st.lists(st.lists(row, max_size=12) | st.just("seal"), max_size=12))
    return storages, gpus, draw(st.integers(1, 9)), steps


def bits(storage: str, values: list[Any]) -> bytes:
    return np.array([0 if value is None else value for value in values], DTYPES[storage]).tobytes()


def check(storages: str, sealed: Any, rows: list[Any]) -> None:
    """`sealed` is exactly `rows`."""
    n = len(rows)
    assert sealed.time_ns.tolist() == [row[0] for row in rows]
    assert sealed.sequence.tolist() == [row[2] for row in rows]
    assert sealed.lateness_us.tolist() == [min(row[3], 2**32 - 1) for row in rows]
    for j, storage in enumerate(storages):
        cells = [row[4][j] for row in rows]
        assert sealed.columns[j].tobytes() == bits(storage, cells)
        expected = np.packbits([cell is not None for cell in cells], bitorder="little")
        assert sealed.valid[j].tobytes() == expected.tobytes()
    assert sealed.valid.shape == (len(storages), (n + 7) // 8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories(), capacity=st.integers(1, 20), blocking=st.booleans())
def test_every_row_taken_comes_out_once_in_order(
    kernels: tuple[Any, Any], history: Any, capacity: int, blocking: bool
) -> None:
    storages, gpus, samples, steps = history
    ring = kernels[0](storages, capacity, WhenFull.BLOCK if blocking else WhenFull.DROP_NEWEST)
    columns = kernels[1](storages, gpus, samples)
    pending: list[Any] = []
    held: list[list[Any]] = [[] for _ in range(gpus)]
    pushed = dropped = 0
    for step in [*steps, "seal"]:
        if step != "seal":
            for row in step:
                taken = ring.push(*row)
                assert taken == (len(pending) < capacity)
                pushed += taken
                dropped += not taken and not blocking
                if taken:
                    pending.append(row)
        else:
            moved = columns.drain(ring)
            for _ in range(moved):
                row = pending.pop(0)
                held[row[1]].append(row)
            assert not pending or len(held[pending[0][1]]) == samples
            assert columns.pending_rows == sum(map(len, held))
            assert columns.fullest == max(map(len, held))
            sealed = columns.seal()
            assert [one.gpu for one in sealed] == [gpu for gpu in range(gpus) if held[gpu]]
            for one in sealed:
                check(storages, one, held[one.gpu])
            held = [[] for _ in range(gpus)]
        assert (ring.pushed_rows, ring.dropped_rows) == (pushed, dropped)
        assert (ring.pending_rows, ring.free_rows) == (len(pending), capacity - len(pending))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), capacity=st.integers(1, 30))
def test_rows_in_bulk_are_rows_one_by_one(
    kernels: tuple[Any, Any], data: st.DataObject, capacity: int
) -> None:
    storages = data.draw(st.text("fdqQ", min_size=1, max_size=4))
    ring = kernels[0](storages, capacity)
    columns = kernels[1](storages, 3, 200)
    itemsize = row_dtype(storages).itemsize
    expected: list[bytes] = []
    for count in data.draw(st.lists(st.integers(0, 20), max_size=6)):
        raw = data.draw(st.binary(min_size=count * itemsize, max_size=count * itemsize))
        rows = np.frombuffer(raw, row_dtype(storages)).copy()
        rows["gpu"] %= 3
        taken = ring.push_rows(rows)
        assert taken == min(count, capacity - (ring.pending_rows - taken))
        expected.extend(rows["time_ns"][:taken].tolist())
        if data.draw(st.booleans()):
            columns.drain(ring)
    columns.drain(ring)
    times = [time for one in columns.seal() for time in one.time_ns.tolist()]
    assert sorted(times) == sorted(expected)
