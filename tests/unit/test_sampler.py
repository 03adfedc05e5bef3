"""The schedule: tick n is due at start + n * period, whatever single sweeps take."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from gputel.catalog import METRIC_SETS, Cadence
from gputel.clock import NS_PER_MS, NS_PER_S, NS_PER_US, SYSTEM_CLOCK, Clock, ManualClock
from gputel.collector.sampler import Sampler, Ticks
from gputel.inventory import Event, Gpu, ProcessSample
from gputel.kernels import Ring
from gputel.sources.source import Rings

FAST, SLOW = Cadence.FAST, Cadence.SLOW
PERIOD_NS = 100 * NS_PER_MS
DEADLINE_S = 60


class Begun(NamedTuple):
    """A sweep, as the source sees it."""

    at_ns: int
    due_ns: int
    wall_ns: int
    lateness_us: int


class Scripted:
    """A source whose n-th sweep of a cadence takes `costs_s[cadence][n]`; the fastest one's last
    is the end."""

    name = "scripted"
    description = ""
    identity: str | None = None

    def __init__(
        self,
        clock: Clock,
        periods_ns: Mapping[Cadence, int],
        costs_s: Mapping[Cadence, list[float]],
    ) -> None:
        self.clock = clock
        self.periods_ns = dict(periods_ns)
        self.costs_s = costs_s
        self.begun: dict[Cadence, list[Begun]] = {cadence: [] for cadence in periods_ns}
        self.late_s: list[float] = []
        self.rings = {s: Ring(s.storages, 64) for s in METRIC_SETS}
        self.sampler = Sampler(self, self.rings, lambda sealed: None, self.late_s.append, clock)

    def open(self) -> Sequence[Gpu]:
        return ()

    def cadences(self) -> Mapping[Cadence, int]:
        return self.periods_ns

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        due_ns = self.sampler.ticks[cadence].due_ns
        begun = self.begun[cadence]
        begun.append(Begun(self.clock.monotonic_ns(), due_ns, time_ns, lateness_us))
        costs_s = self.costs_s[cadence]
        cost_s = costs_s[(len(begun) - 1) % len(costs_s)]
        if isinstance(self.clock, ManualClock):
            self.clock.advance(cost_s)
        elif cost_s:
            time.sleep(cost_s)  # the driver's call
        return False

    def events(self) -> Sequence[Event]:
        return ()

    def processes(self) -> Sequence[ProcessSample]:
        return ()

    @property
    def exhausted(self) -> bool:
        return len(self.begun[FAST]) == len(self.costs_s[FAST])

    def close(self) -> None:
        pass

    def run(self) -> Mapping[Cadence, Ticks]:
        """To its end."""
        self.sampler.start()
        deadline = time.monotonic() + DEADLINE_S
        while any(t.name == "sampler" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert self.sampler.failure is None
        return self.sampler.ticks


def check_grid(begun: Sequence[Begun], ticks: Ticks, start_ns: int, period_ns: int) -> None:
    """Each tick stands on the grid, none twice; those that are not there were missed."""
    numbers = [divmod(tick.due_ns - start_ns, period_ns) for tick in begun]
    assert {rest for _, rest in numbers} == {0}, "no drift"
    nth = [number for number, _ in numbers]
    assert nth[0] == 0
    assert sorted(set(nth)) == nth
    assert ticks.swept == len(begun)
    next_nth = (ticks.due_ns - start_ns) // period_ns
    assert ticks.swept + ticks.missed == next_nth, "swept, or missed and counted"
    for tick in begun:
        assert tick.at_ns >= tick.due_ns, "never early"


def test_no_tick_drifts_whatever_the_sweeps_before_it_took() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    draw = random.Random(seed)
    # Mostly short; some longer than a period, a few longer than many.
    costs_s = [
        draw.choice([draw.uniform(0, 0.09)] * 17 + [draw.uniform(0.1, 0.35), draw.uniform(1, 9)])
        for _ in range(20_000)
    ]
    clock = ManualClock()
    source = Scripted(clock, {FAST: PERIOD_NS}, {FAST: costs_s})
    ticks = source.run()[FAST]
    begun = source.begun[FAST]
    check_grid(begun, ticks, 0, PERIOD_NS)
    free_ns = due_ns = missed = 0
    for tick, cost_s, late_s in zip(begun, costs_s, source.late_s, strict=True):
        # A model in two lines: at its time or when the thread is free; what is over is missed.
        expected_ns = max(due_ns, free_ns)
        assert (tick.at_ns, tick.due_ns) == (expected_ns, due_ns)
        assert tick.lateness_us == (expected_ns - due_ns) // NS_PER_US
        assert late_s == pytest.approx((expected_ns - due_ns) / NS_PER_S, abs=1e-9)
        free_ns = expected_ns + round(cost_s * NS_PER_S)
        over = max(0, (free_ns - due_ns) // PERIOD_NS - 1)
        missed += over
        due_ns += (1 + over) * PERIOD_NS
    assert ticks.missed == missed > 0
    assert ticks.late_ns == sum(tick.at_ns - tick.due_ns for tick in begun) > 0


def test_one_slow_call_delays_its_neighbour_and_the_next_ticks_are_on_the_grid_again() -> None:
    clock = ManualClock()
    costs_s = [0.01, 0.01, 0.17, 0.01, 0.01, 0.43, 0.01, 0.01]
    source = Scripted(clock, {FAST: PERIOD_NS}, {FAST: costs_s})
    ticks = source.run()[FAST]
    at_ms = [tick.at_ns // NS_PER_MS for tick in source.begun[FAST]]
    # Tick 3 is late by 70 ms, 6, 7 and 8 are missed, and tick 9 is late by 30 ms.
    assert at_ms == [0, 100, 200, 370, 400, 500, 930, 1000]
    late_us = [tick.lateness_us for tick in source.begun[FAST]]
    assert late_us == [0, 0, 0, 70_000, 0, 0, 30_000, 0]
    assert (ticks.swept, ticks.missed, ticks.late_ns) == (8, 3, 100 * NS_PER_MS)


def test_cadences_keep_to_grids_of_their_own() -> None:
    clock = ManualClock()
    periods_ns = {FAST: PERIOD_NS, Cadence.MEDIUM: NS_PER_S, SLOW: 3 * NS_PER_S}
    costs_s = {FAST: [0.005] * 3000, Cadence.MEDIUM: [0.03], SLOW: [0.08, 0.14]}
    source = Scripted(clock, periods_ns, costs_s)
    ticks = source.run()
    for cadence, period_ns in periods_ns.items():
        check_grid(source.begun[cadence], ticks[cadence], 0, period_ns)
    # When all are due at once, the slow ones and their 175 ms delay one fast tick.
    assert ticks[FAST].missed == 0
    assert max(tick.lateness_us for tick in source.begun[FAST]) == 75_000
    assert ticks[SLOW].swept == 100


def test_the_wall_clock_does_not_move_the_schedule() -> None:
    clock = ManualClock()

    class Stepped(Scripted):
        def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
            clock.step_wall(3600 if len(self.begun[cadence]) % 2 else -3600)
            return super().sweep(cadence, time_ns, rings, lateness_us)

    source = Stepped(clock, {FAST: PERIOD_NS}, {FAST: [0.01] * 50})
    ticks = source.run()[FAST]
    check_grid(source.begun[FAST], ticks, 0, PERIOD_NS)
    assert ticks.missed == 0
    assert {tick.lateness_us for tick in source.begun[FAST]} == {0}


def test_a_real_thread_keeps_to_the_grid_however_busy_the_machine_is() -> None:
    period_ns = 10 * NS_PER_MS
    costs_s = [0.0] * 100
    costs_s[30], costs_s[60] = 0.013, 0.058
    source = Scripted(SYSTEM_CLOCK, {FAST: period_ns}, {FAST: costs_s})
    ticks = source.run()[FAST]
    begun = source.begun[FAST]
    check_grid(begun, ticks, begun[0].due_ns, period_ns)
    for tick, late_s in zip(begun, source.late_s, strict=True):
        late_ns = round(late_s * NS_PER_S)
        assert tick.lateness_us == late_ns // NS_PER_US
        assert 0 <= late_ns <= tick.at_ns - tick.due_ns, "measured before the source is asked"
    # After a slow sweep the next tick begins at once and says how late that is, or it is missed.
    gap_ns = begun[31].due_ns - begun[30].due_ns
    assert begun[31].lateness_us >= 3_000 or gap_ns > period_ns
    assert begun[61].due_ns - begun[60].due_ns >= 5 * period_ns
    assert ticks.missed >= 4
