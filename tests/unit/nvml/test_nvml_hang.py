"""Calls that do not return: the other GPUs go on, the stuck one is told, nothing is asked of it."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from typing import Any, NamedTuple

import pytest

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_MS, NS_PER_S, SYSTEM_CLOCK
from gputel.collector import Collector
from gputel.collector.exporter import Format
from gputel.collector.sampler import Sampler
from gputel.collector.settings import CollectorSettings
from gputel.inventory import Event, EventKind
from gputel.observe import Health, Telemetry
from gputel.sources.nvml import Nvml
from gputel.sources.source import Abandoned, Preempted, Rings
from support.simulation import LIBRARY, Sim, simulated
from support.sweeping import Rig

PERIOD_NS = 100 * NS_PER_MS
SLOW_NS = 3600 * NS_PER_S
PERIODS_NS = {Cadence.FAST: PERIOD_NS, Cadence.MEDIUM: SLOW_NS, Cadence.SLOW: SLOW_NS}
LOOK_S = 0.02


class Piece(NamedTuple):
    """One call of the source's `sweep`."""

    cadence: Cadence
    time_ns: int
    rows: int
    ended: str  # "done", "gave way", "taken over"


class Sampling:
    """A sampler on the simulated driver, at 10 Hz, in real time."""

    def __init__(
        self, sim: Sim, *, twin: bool = False, periods_ns: dict[Cadence, int] = PERIODS_NS
    ) -> None:
        self.sim = sim
        library = str(LIBRARY)
        self.rig = Rig(clock=SYSTEM_CLOCK, library=library, twin=twin, periods_ns=periods_ns)
        self.source = self.rig.source
        self.pieces: list[Piece] = []
        self._sweep = self.source.sweep
        self.source.sweep = self._logged  # type: ignore[method-assign]
        self.sampler = Sampler(
            self.source, self.rig.rings, lambda sealed: None, lambda late_s: None, SYSTEM_CLOCK
        )
        self.events: list[Event] = []
        self.rows: dict[int, list[int]] = {}
        self.stolen_s = 0.0
        self.sampler.start()

    def _logged(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        ring = rings[SET_BY_CADENCE[cadence]]
        before, ended = ring.pushed_rows, "done"
        try:
            return self._sweep(cadence, time_ns, rings, lateness_us)
        except Preempted:
            ended = "gave way"
            raise
        except Abandoned:
            ended = "taken over"
            raise
        finally:
            self.pieces.append(Piece(cadence, time_ns, ring.pushed_rows - before, ended))

    def watch(self, seconds: float, until: Any = None) -> None:
        """Collect rows and events for `seconds`, or until it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (until and until()):
            began = time.monotonic()
            time.sleep(LOOK_S)
            self.stolen_s = max(self.stolen_s, time.monotonic() - began - LOOK_S)
            self.events += self.source.events()
            for slot, part in self.rig.take(Cadence.FAST).items():
                self.rows.setdefault(slot, []).extend(part.time_ns.tolist())

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    def check_cadence(self, slot: int) -> None:
        """No gap of two periods, but for what the machine took from threads: from ours that only
        slept, as it was measured, and from the three that hand a sweep on as much each."""
        gaps_ns = [b - a for a, b in itertools.pairwise(self.rows[slot])]
        assert max(gaps_ns) / NS_PER_S < 0.2 + 0.05 + 3 * self.stolen_s


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
        sampling.check_cadence(slot)
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
        sampling.check_cadence(slot)
    assert sampling.sampler.stop(3)
    assert threading.active_count() <= 4


@pytest.mark.parametrize("twin", [False, True])
@simulated("gpus=8,latency_us=1000,wait=sleep", start=False)
def test_a_slow_cadence_gives_way_to_a_fast_one_between_two_gpus(twin: bool) -> None:
    """A slow sweep of 8 x 22 ms, a fast one of 8 x 6 ms: together longer than a fast period. A
    busy machine makes both longer, never shorter."""
    periods_ns = {Cadence.FAST: PERIOD_NS, Cadence.SLOW: 10 * PERIOD_NS}
    sampling = Sampling(Sim(), twin=twin, periods_ns=periods_ns)
    ticks = sampling.sampler.ticks
    sampling.watch(60, until=lambda: ticks[Cadence.SLOW].swept >= 3)
    assert sampling.sampler.stop(3)
    pieces = [piece for piece in sampling.pieces if piece.ended != "taken over"]
    for piece, after in itertools.pairwise(pieces):
        if piece.ended == "gave way":
            assert (piece.cadence, after.cadence) == (Cadence.SLOW, Cadence.FAST)
    done = [p.time_ns for p in pieces if p.cadence is Cadence.SLOW and p.ended == "done"]
    for time_ns in done:
        rows = [p.rows for p in sampling.pieces if p.time_ns == time_ns]
        # 100 ms are over after the fifth GPU at the latest: then it is the fast cadence's turn.
        assert max(rows) <= 6
        assert len(rows) >= 2
    slow = sampling.rig.take(Cadence.SLOW)
    assert len(slow) == 8
    whole = min(len(part.time_ns) for part in slow.values())  # the last tick may be torn
    assert whole >= 2
    for part in slow.values():
        assert part.time_ns[:whole].tolist() == slow[0].time_ns[:whole].tolist()
        assert part.sequence.tolist() == list(range(len(part.time_ns)))


def up(collector: Collector) -> list[str]:
    """gputel_gpu_up by GPU, as a scrape shows it now."""
    page = collector.exporter.page("gputel", Format.TEXT).decode()
    return re.findall(r"^gputel_gpu_up\{.*\} (\d)$", page, re.MULTILINE)


async def until(true: Any, deadline_s: float = 30) -> None:
    async with asyncio.timeout(deadline_s):
        while not true():  # noqa: ASYNC110 - a deadline around any condition
            await asyncio.sleep(LOOK_S)


@pytest.mark.quiet
@pytest.mark.parametrize("function", ["", ":function=nvmlDeviceGetFieldValues"])
@simulated("gpus=3", start=False)
def test_a_hung_gpu_is_down_on_the_exporter_within_two_seconds(function: str) -> None:
    asyncio.run(_hung_gpu_is_down(Sim(), function))


async def _hung_gpu_is_down(sim: Sim, function: str) -> None:
    source = Nvml(node="n", periods_ns=PERIODS_NS, library=str(LIBRARY))
    telemetry = Telemetry("collector")
    collector = Collector(
        CollectorSettings(), source, None, "telemetry", telemetry, Health("collector")
    )
    await collector.start()
    await until(lambda: up(collector) == ["1"] * 3)
    assert sim.inject(f"hang@0:gpu=1{function}")
    hung = time.monotonic()
    await until(lambda: up(collector) == ["1", "0", "1"])
    assert time.monotonic() - hung < 2
    page = collector.exporter.page("dcgm", Format.TEXT).decode()
    of_gpu = [len(re.findall(rf'^DCGM_\w+\{{gpu="{gpu}"', page, re.MULTILINE)) for gpu in range(3)]
    assert of_gpu[0] == of_gpu[2] > 10
    assert of_gpu[1] == 0, "no value of a GPU that may be anything"
    sim.ClearFaults()
    await until(lambda: up(collector) == ["1"] * 3)
    await collector.stop()
    telemetry.close()


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
