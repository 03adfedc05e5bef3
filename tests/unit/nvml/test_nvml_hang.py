"""Calls that do not return: the other GPUs go on, the stuck one is told, nothing is asked of it."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import pytest

from gputel.catalog import Cadence
from gputel.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK
from gputel.collector.sampler import Sampler
from gputel.inventory import Event, EventKind
from support.simulation import Sim, simulated
from support.sweeping import Rig

PERIOD_NS = 100 * NS_PER_MS
SLOW_NS = 3600 * NS_PER_S
PERIODS_NS = {Cadence.FAST: PERIOD_NS, Cadence.MEDIUM: SLOW_NS, Cadence.SLOW: SLOW_NS}


class Sampling:
    """A sampler on the simulated driver, at 10 Hz, in real time."""

    def __init__(
        self, sim: Sim, *, twin: bool = False, periods_ns: dict[Cadence, int] = PERIODS_NS
    ) -> None:
        self.sim = sim
        self.rig = Rig(clock=SYSTEM_CLOCK, library=_library(), twin=twin, periods_ns=periods_ns)
        self.source = self.rig.source
        self.sampler = Sampler(
            self.source, self.rig.rings, lambda sealed: None, lambda late_s: None, SYSTEM_CLOCK
        )
        self.events: list[Event] = []
        self.rows: dict[int, list[int]] = {}
        self.sampler.start()

    def watch(self, seconds: float, until: Any = None) -> None:
        """Collect rows and events for `seconds`, or until it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until()):
            time.sleep(0.02)
            self.events += self.source.events()
            for slot, part in self.rig.take(Cadence.FAST).items():
                self.rows.setdefault(slot, []).extend(part.time_ns.tolist())

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


def _library() -> str:
    from support.simulation import LIBRARY

    return str(LIBRARY)


def longest_gap_s(times_ns: list[int]) -> float:
    return max(b - a for a, b in itertools.pairwise(times_ns)) / NS_PER_S


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize(
    "function", ["", ":function=nvmlDeviceGetFieldValues", ":function=nvmlDeviceGetMemoryInfo_v2"]
)
@simulated("gpus=4", start=False)
def test_one_gpu_hangs_and_comes_back(twin: bool, function: str) -> None:
    sim = Sim()
    sampling = Sampling(sim, twin=twin)
    sampling.watch(0.5)
    assert sim.inject(f"hang@0+3:gpu=1{function}")
    hung_ns = SYSTEM_CLOCK.time_ns()
    sampling.watch(2.5)
    (stalled,) = sampling.events
    assert stalled.kind is EventKind.STALLED
    assert stalled.gpu_uuid == sampling.rig.gpus[1].uuid
    assert stalled.time_ns - hung_ns < 2 * NS_PER_S
    sampling.watch(6, until=lambda: EventKind.RESTORED in sampling.kinds())
    sampling.watch(0.5)
    assert sampling.kinds() == [EventKind.STALLED, EventKind.RESTORED]
    assert sampling.sampler.takeovers >= 1
    for slot in (0, 2, 3):
        # Twice the period, and what two busy cores may take from any thread.
        assert longest_gap_s(sampling.rows[slot]) < 0.2 + 0.1
        assert len(set(sampling.rows[slot])) == len(sampling.rows[slot]), "no row twice"
    stuck = [t for t in sampling.rows[1] if hung_ns + 200 * NS_PER_MS < t < hung_ns + 3 * NS_PER_S]
    assert stuck == []
    assert sampling.rows[1][-1] > hung_ns + 3 * NS_PER_S
    assert sampling.sampler.stop(3)
    sampling.source.close()


@simulated("gpus=3", start=False)
def test_a_gpu_that_is_only_slow_goes_on_without_an_event() -> None:
    sim = Sim()
    sampling = Sampling(sim)
    sampling.watch(0.3)
    assert sim.inject("slow=70000@0:gpu=0")
    sampling.rows.clear()
    sampling.watch(4)
    assert sampling.events == []
    assert len(sampling.rows[0]) >= 3, "slow rows are rows"
    for slot in (1, 2):
        assert longest_gap_s(sampling.rows[slot]) < 0.3
    assert sampling.sampler.stop(3)
    assert threading.active_count() <= 4


@pytest.mark.parametrize("twin", [False, True])
@simulated("gpus=8,latency_us=1000,wait=sleep", start=False)
def test_a_slow_cadence_gives_way_to_a_fast_one_between_two_gpus(twin: bool) -> None:
    """A slow sweep of 8 x 22 ms, a fast one of 8 x 6 ms: together longer than a fast period."""
    periods_ns = {Cadence.FAST: PERIOD_NS, Cadence.SLOW: 10 * PERIOD_NS}
    sampling = Sampling(Sim(), twin=twin, periods_ns=periods_ns)
    sampling.watch(4.5)
    ticks = sampling.sampler.ticks
    assert sampling.sampler.stop(3)
    slow = sampling.rig.take(Cadence.SLOW)
    assert len(slow) == 8
    whole = min(len(part.time_ns) for part in slow.values())  # the last tick may be torn
    assert whole >= 2
    for part in slow.values():
        assert part.time_ns[:whole].tolist() == slow[0].time_ns[:whole].tolist()
        assert part.sequence.tolist() == list(range(len(part.time_ns)))
    # A slow sweep in one piece would cost two ticks of 10; some are lost to a busy machine.
    assert ticks[Cadence.FAST].swept >= 38


@simulated("gpus=2", start=False)
def test_every_gpu_hangs_and_the_sampler_still_stops() -> None:
    sim = Sim()
    sampling = Sampling(sim)
    sampling.watch(0.3)
    assert sim.inject("hang@0+600")
    sampling.watch(4, until=lambda: len(sampling.events) == 2)
    assert sampling.kinds() == [EventKind.STALLED] * 2
    started = time.monotonic()
    sampling.sampler.stop(1)
    sampling.source.close()
    assert time.monotonic() - started < 4
    assert sum(thread.name.startswith("sampler") for thread in threading.enumerate()) <= 3
    sim.ClearFaults()  # what a stuck thread writes now must not matter
    time.sleep(0.3)


@simulated("gpus=2", start=False)
def test_paused_means_no_driver_call_at_all() -> None:
    sim = Sim()
    sampling = Sampling(sim)
    sampling.watch(0.5)
    sampling.sampler.pause()
    sampling.sampler.pause()
    assert sampling.sampler.paused
    time.sleep(0.8)  # the wait for events that was under way ends by itself
    sim.ResetCounters()
    time.sleep(1.5)
    assert sim.calls() == 0
    assert sampling.sampler.problem() is None
    sampling.sampler.resume()
    sampling.watch(1.0)
    assert sim.calls("nvmlDeviceGetUtilizationRates") > 10
    assert sim.calls("nvmlEventSetWait_v2") > 0
    kinds = [event.kind for event in sampling.sampler.journal.take()]
    assert kinds == [EventKind.PAUSED, EventKind.RESUMED]
    assert sampling.sampler.stop(3)


@simulated("gpus=4,wait=spin", start=False)
def test_a_cadence_that_costs_too_much_is_demoted_and_told() -> None:
    sim = Sim()
    sampling = Sampling(sim)
    assert sim.inject("slow=20000")
    sampling.watch(14, until=lambda: sampling.sampler.ticks[Cadence.FAST].budget.factor > 1)
    ticks = sampling.sampler.ticks[Cadence.FAST]
    assert ticks.period_ns > 4 * PERIOD_NS, "480 ms of calls don't fit 100 ms"
    (event,) = sampling.sampler.journal.take()
    assert event.kind is EventKind.DEMOTED
    assert "cadence fast has a period of" in event.message
    assert sampling.sampler.stop(3)
