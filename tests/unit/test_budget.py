"""The CPU budget: demotion, promotion, and no swinging between the two."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from gputel.clock import NS_PER_MS, NS_PER_S
from gputel.collector.budget import FACTOR_MAX, HOLD_MIN_NS, WINDOW_NS, Budget

PERIOD_NS = 100 * NS_PER_MS


class Run:
    """Sweeps one after the other; `costs_ms` is asked for each."""

    def __init__(self, share_max: float = 0.01) -> None:
        self.budget = Budget(PERIOD_NS, share_max)
        self.now_ns = 1
        self.changes: list[tuple[int, int]] = []

    def go(self, seconds: float, cpu_ms: float, wall_ms: float = 0, outlier_ms: float = 0) -> None:
        end_ns = self.now_ns + round(seconds * NS_PER_S)
        first = True
        while self.now_ns < end_ns:
            self.now_ns += self.budget.period_ns
            spent_ms = outlier_ms if first and outlier_ms else cpu_ms
            wall = max(spent_ms, wall_ms)
            first = False
            if self.budget.spend(round(spent_ms * NS_PER_MS), round(wall * NS_PER_MS), self.now_ns):
                self.changes.append((self.now_ns, self.budget.factor))


def test_within_the_budget_nothing_changes() -> None:
    run = Run()
    run.go(600, cpu_ms=0.9)
    assert run.changes == []


@pytest.mark.parametrize(
    ("cpu_ms", "factor"), [(1.1, 2), (1.9, 2), (2.1, 4), (30, 32), (1000, FACTOR_MAX)]
)
def test_the_period_grows_until_the_cost_fits(cpu_ms: float, factor: int) -> None:
    run = Run()
    run.go(30, cpu_ms=cpu_ms)
    assert run.budget.factor == factor
    assert run.budget.period_ns == factor * PERIOD_NS
    run.go(3600, cpu_ms=cpu_ms)
    assert len(run.changes) == 1


def test_one_outlier_does_not_demote() -> None:
    run = Run()
    for _ in range(20):
        run.go(WINDOW_NS / NS_PER_S, cpu_ms=0.5, outlier_ms=500)
    assert run.changes == []


def test_sweeps_longer_than_their_period_are_demoted_though_they_take_no_cpu() -> None:
    run = Run()
    run.go(30, cpu_ms=0.1, wall_ms=150)
    assert run.budget.factor == 2


def test_back_when_it_is_cheap_again_step_by_step() -> None:
    run = Run()
    run.go(30, cpu_ms=7)
    assert run.budget.factor == 8
    run.go(3600, cpu_ms=0.2)
    assert [factor for _, factor in run.changes] == [8, 4, 2, 1]
    gaps = [b - a for (a, _), (b, _) in pairwise(run.changes)]
    assert min(gaps) >= HOLD_MIN_NS


def test_a_cost_near_the_limit_does_not_swing() -> None:
    run = Run()
    chance = random.Random(7)
    for _ in range(2000):
        run.go(5, cpu_ms=chance.uniform(0.5, 1.6))
    assert len(run.changes) <= 2


def test_a_load_that_comes_and_goes_is_followed_ever_more_slowly() -> None:
    run = Run()
    for _ in range(60):
        run.go(120, cpu_ms=3)
        run.go(120, cpu_ms=0.1)
    hours = 60 * 240 / 3600
    assert len(run.changes) < 8 * hours
