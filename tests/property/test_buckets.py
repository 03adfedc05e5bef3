"""Buckets: the same from values as from minutes, in one go or in pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gputel.kernels import minute_statistics
from gputel.store.buckets import Aggregate, Buckets, Grid
from gputel.store.times import MINUTE_NS

START_NS = 1_760_000_040 * 10**9  # a whole minute
SPAN_NS = 40 * MINUTE_NS

samples = st.lists(
    st.tuples(st.integers(0, SPAN_NS - 1), st.floats(width=64)), min_size=1, max_size=60
)


def same(one: Buckets, other: Buckets) -> None:
    for aggregate in Aggregate:
        times, values = one.result(aggregate)
        others, theirs = other.result(aggregate)
        assert times.tolist() == others.tolist()
        if aggregate in (Aggregate.MIN, Aggregate.MAX, Aggregate.COUNT):
            np.testing.assert_array_equal(values, theirs)


@given(samples, st.integers(1, 20), st.integers(0, 60))
def test_values_and_minutes_come_to_the_same(
    arrived: list[tuple[int, float]], minutes: int, cut: int
) -> None:
    arrived.sort(key=lambda sample: sample[0])
    time_ns = START_NS + np.array([offset for offset, _ in arrived], np.int64)
    values = np.array([value for _, value in arrived])
    grid = Grid.around(int(time_ns[0]), int(time_ns[-1]) + 1, minutes * MINUTE_NS)
    assert grid.start_ns <= time_ns[0]
    assert time_ns[-1] < grid.end_ns
    assert grid.start_ns % grid.step_ns == 0
    by_value, in_pieces, by_minute = Buckets(grid), Buckets(grid), Buckets(grid)
    by_value.add_values(time_ns, values)
    for piece in (slice(cut), slice(cut, None)):
        in_pieces.add_values(time_ns[piece], values[piece])
    valid = np.packbits(np.ones((1, len(values)), np.uint8), axis=1, bitorder="little")
    found = minute_statistics(time_ns, [values], valid)
    for i, minute_ns in enumerate(found.minute_ns.tolist()):
        by_minute.add(
            np.array([(minute_ns - grid.start_ns) // grid.step_ns]),
            found.n[i],
            found.min[i],
            found.max[i],
            found.sum[i],
        )
    same(by_value, in_pieces)
    same(by_value, by_minute)


@given(st.lists(st.tuples(st.integers(0, SPAN_NS - 1), st.integers(-1000, 1000)), min_size=1))
def test_every_aggregate_of_whole_numbers(arrived: list[tuple[int, int]]) -> None:
    arrived.sort(key=lambda sample: sample[0])
    grid = Grid.around(START_NS, START_NS + SPAN_NS, 7_000_000_000)
    buckets = Buckets(grid)
    time_ns = START_NS + np.array([offset for offset, _ in arrived], np.int64)
    buckets.add_values(time_ns, np.array([value for _, value in arrived]))
    expected: dict[int, list[int]] = {}
    for time, (_, value) in zip(time_ns.tolist(), arrived, strict=True):
        expected.setdefault(time // grid.step_ns * grid.step_ns, []).append(value)
    for aggregate, function in (
        (Aggregate.AVG, lambda values: sum(values) / len(values)),
        (Aggregate.MIN, min),
        (Aggregate.MAX, max),
        (Aggregate.SUM, sum),
        (Aggregate.COUNT, len),
    ):
        times, values = buckets.result(aggregate)
        assert dict(zip(times.tolist(), values.tolist(), strict=True)) == {
            time: function(of_bucket) for time, of_bucket in expected.items()
        }
