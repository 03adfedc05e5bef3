"""Ring and columns: every row arrives once, in order, bit for bit, and the twins agree.

The same suite runs over the native kernels and the readable ones; the differential part
drives both with one input and compares every byte.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gputel import kernels
from gputel._reference.columns import Columns as ReferenceColumns
from gputel._reference.ring import Ring as ReferenceRing
from gputel.kernels import WhenFull

PAIRS = {"native": (kernels.Ring, kernels.Columns), "reference": (ReferenceRing, ReferenceColumns)}
STORAGES = st.text("fdqQ", min_size=1, max_size=12)


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


def random_rows(storages: str, n: int, gpus: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.zeros(n, kernels.row_dtype(storages))
    rows.view(np.uint8)[:] = rng.integers(0, 256, rows.nbytes, dtype=np.uint8)
    rows["gpu"] = rng.integers(0, gpus, n)
    rows["valid"] &= (1 << len(storages)) - 1
    return rows


def run(pair, storages, rows, gpus, capacity_rows, capacity_samples):
    """All rows through a ring and columns of that size; the sealed columns in order."""
    ring = pair[0](storages, capacity_rows, WhenFull.BLOCK)
    columns = pair[1](storages, gpus, capacity_samples)
    sealed, taken = [], 0
    while taken < len(rows) or ring.pending_rows or columns.pending_rows:
        taken += ring.push_rows(rows[taken:])
        columns.drain(ring)
        if ring.pending_rows or taken == len(rows):
            sealed += columns.seal()
    assert ring.dropped_rows == 0
    assert ring.pushed_rows == len(rows)
    return sealed


@settings(max_examples=60, deadline=None)
@given(
    storages=STORAGES,
    n=st.integers(1, 300),
    gpus=st.integers(1, 5),
    capacity_rows=st.integers(1, 64),
    capacity_samples=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_every_row_arrives_and_the_twins_agree(
    storages, n, gpus, capacity_rows, capacity_samples, seed
):
    rows = random_rows(storages, n, gpus, seed)
    native, reference = (
        run(pair, storages, rows, gpus, capacity_rows, capacity_samples) for pair in PAIRS.values()
    )
    for result in (native, reference):
        for gpu in range(gpus):
            mine = rows[rows["gpu"] == gpu]
            parts = [sealed for sealed in result if sealed.gpu == gpu]
            times = np.concatenate([part.time_ns for part in parts] or [np.array([], np.int64)])
            assert times.tolist() == mine["time_ns"].tolist()
            for column in range(len(storages)):
                bits = [
                    np.unpackbits(part.valid[column], count=len(part.time_ns), bitorder="little")
                    for part in parts
                ]
                valid = np.concatenate(bits or [np.array([], np.uint8)])
                assert valid.tolist() == ((mine["valid"] >> np.uint64(column)) & 1).tolist()
    assert len(native) == len(reference)
    for one, two in zip(native, reference, strict=True):
        assert one.gpu == two.gpu
        for a, b in zip(flat(one), flat(two), strict=True):
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes()


def flat(sealed):
    return [sealed.time_ns, sealed.sequence, sealed.valid, sealed.lateness_us, *sealed.columns]


def test_values_keep_their_bits_and_a_missing_one_is_zero(pair):
    ring = pair[0]("fdqQ", 8)
    columns = pair[1]("fdqQ", 1, 8)
    nan = float("nan")
    assert ring.push(1000, 0, 7, 3, [1.5, -0.0, -(2**63), 2**64 - 1])
    assert ring.push(2000, 0, 8, 0, [None, nan, None, None])
    assert columns.drain(ring) == 2
    (sealed,) = columns.seal()
    assert [column[0].item() for column in sealed.columns] == [1.5, -0.0, -(2**63), 2**64 - 1]
    assert str(sealed.columns[1][0]) == "-0.0"
    assert np.isnan(sealed.columns[1][1])
    assert [column[1].item() for column in sealed.columns[::2]] == [0, 0]
    assert sealed.valid[:, 0].tolist() == [1, 3, 1, 1]
    assert sealed.sequence.tolist() == [7, 8]
    assert sealed.lateness_us.tolist() == [3, 0]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 1.5, "1"])
def test_a_value_that_does_not_fit_names_its_column(pair, value):
    ring = pair[0]("qq", 4)
    with pytest.raises((OverflowError, TypeError, ValueError), match="1"):
        ring.push(0, 0, 0, 0, [1, value])
    assert ring.pending_rows == 0


def test_a_full_ring_drops_the_newest_and_counts(pair):
    ring = pair[0]("q", 3)
    assert [ring.push(0, 0, i, 0, [i]) for i in range(5)] == [True, True, True, False, False]
    assert (ring.pushed_rows, ring.dropped_rows, ring.free_rows) == (3, 2, 0)


def test_a_full_ring_that_blocks_counts_nothing(pair):
    ring = pair[0]("q", 1, WhenFull.BLOCK)
    assert ring.push(0, 0, 0, 0, [1])
    assert not ring.push(0, 0, 1, 0, [2])
    assert ring.dropped_rows == 0


def test_columns_stop_before_a_gpu_overflows_and_go_on(pair):
    ring, columns = pair[0]("q", 16), pair[1]("q", 1, 4)
    for i in range(6):
        ring.push(i, 0, i, 0, [i])
    assert columns.drain(ring) == 4
    assert columns.fullest == 4
    assert columns.seal()[0].sequence.tolist() == [0, 1, 2, 3]
    assert columns.drain(ring) == 2
    assert columns.seal()[0].sequence.tolist() == [4, 5]
    assert columns.seal() == []


def test_columns_grow_with_hot_plugged_gpus(pair):
    ring, columns = pair[0]("d", 16), pair[1]("d", 1, 4)
    ring.push(1, 0, 0, 0, [0.5])
    columns.drain(ring)
    columns.grow(3)
    ring.push(2, 2, 0, 0, [2.5])
    columns.drain(ring)
    assert [(s.gpu, s.columns[0][0].item()) for s in columns.seal()] == [(0, 0.5), (2, 2.5)]


def test_two_threads_lose_and_double_nothing():
    rows = random_rows("dq", 60_000, 4, seed=3)
    rows["sequence"] = np.arange(len(rows))
    ring = kernels.Ring("dq", 97, WhenFull.BLOCK)
    columns = kernels.Columns("dq", 4, 4096)
    arrived: list[np.ndarray] = []

    def produce() -> None:
        taken = 0
        while taken < len(rows):
            taken += ring.push_rows(rows[taken : taken + 61])

    thread = threading.Thread(target=produce)
    thread.start()
    received = 0
    while received < len(rows):
        received += columns.drain(ring)
        arrived += [s.sequence for s in columns.seal()]
    thread.join(10)
    assert not thread.is_alive()
    every = np.sort(np.concatenate(arrived))
    assert np.array_equal(every, np.arange(len(rows)))
    assert ring.dropped_rows == 0
