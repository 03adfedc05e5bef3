"""Samples that wait until somebody looks."""

from __future__ import annotations

from typing import Any

import pytest

from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, ManualClock
from gputel.collector.exporter.latest import Arrivals
from gputel.collector.recent import CAPACITY_SAMPLES, LOOK_S, Recent
from gputel.kernels import Columns, Ring

FAST = SET_BY_CADENCE[Cadence.FAST]
VALUES: list[Any] = [None] * len(FAST.metrics)


class Looking:
    """A `Recent` of two GPUs, and what it handed out."""

    def __init__(self, capacity_min: int = 1, waits_ns: int = 0) -> None:
        self.clock = ManualClock()
        self.rings = {s: Ring(s.storages, 4096) for s in METRIC_SETS}
        self.seen: list[tuple[int, list[int], Arrivals]] = []
        self.recent = Recent(2, capacity_min, waits_ns, self.clock, self._look)
        self.pushed = [0, 0]

    def _look(self, slot: int, batch: Batch, arrivals: Arrivals) -> None:
        assert batch.metric_set is FAST
        self.seen.append((slot, batch.sequence.tolist(), arrivals))

    def push(self, slot: int, samples: int = 1) -> None:
        for _ in range(samples):
            self.rings[FAST].push(self.clock.time_ns(), slot, self.pushed[slot], 0, VALUES)
            self.pushed[slot] += 1

    def sequences(self, slot: int) -> list[int]:
        return [number for s, numbers, _ in self.seen if s == slot for number in numbers]


def test_nothing_is_handed_out_before_somebody_looks() -> None:
    looking = Looking()
    looking.push(0, 3)
    looking.push(1)
    assert looking.recent.drain(looking.rings) == 4
    assert looking.seen == []
    looking.recent.look()
    assert [(slot, numbers) for slot, numbers, _ in looking.seen] == [(0, [0, 1, 2]), (1, [0])]
    looking.recent.look()
    assert len(looking.seen) == 2


def test_more_than_there_is_room_for_is_looked_at_in_order() -> None:
    looking = Looking()
    many = 3 * CAPACITY_SAMPLES + 7
    looking.push(1, many)
    assert looking.recent.drain(looking.rings) == many
    looking.recent.look()
    assert looking.sequences(1) == list(range(many))


def test_copies_make_room_for_themselves_too() -> None:
    columns = Columns(FAST.storages, 2, 100)
    looking = Looking(capacity_min=100)
    for _ in range(3):
        looking.push(0, 60)
        columns.drain(looking.rings[FAST])
        looking.recent.take(FAST, columns)
        assert columns.pending_rows == 60, "they stay there"
        columns.seal()
    looking.recent.look()
    assert looking.sequences(0) == list(range(180))


def test_it_is_due_after_a_while() -> None:
    looking = Looking()
    due = [looking.recent.due]
    looking.clock.advance(LOOK_S)
    due.append(looking.recent.due)
    looking.recent.look()
    due.append(looking.recent.due)
    assert due == [False, True, False]


@pytest.mark.parametrize(("step_s", "age_s"), [(0, 2), (-3600, 0), (3600, 4)])
def test_a_sample_came_when_it_was_taken_whatever_the_wall_clock_does(
    step_s: float, age_s: float
) -> None:
    """With the wall clock set back it came now at the latest, set ahead after the last look."""
    looking = Looking()
    looking.clock.advance(2)
    looking.push(0)
    taken_ns = looking.clock.time_ns()
    looking.clock.advance(2)
    looking.clock.step_wall(step_s)
    looking.recent.drain(looking.rings)
    looking.recent.look()
    ((_, _, arrivals),) = looking.seen
    assert looking.clock.monotonic_ns() - arrivals.of(taken_ns) == age_s * NS_PER_S


def test_what_was_on_its_way_at_the_last_look_may_be_older() -> None:
    looking = Looking(waits_ns=NS_PER_S)
    looking.clock.advance(5)
    looking.push(0)
    taken_ns = looking.clock.time_ns()
    looking.recent.look()
    looking.clock.advance(1)
    looking.recent.drain(looking.rings)
    looking.recent.look()
    ((_, _, arrivals),) = looking.seen
    assert looking.clock.monotonic_ns() - arrivals.of(taken_ns) == NS_PER_S
