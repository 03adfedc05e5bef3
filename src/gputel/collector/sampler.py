"""The sampler: a thread that asks the source on an absolute schedule.

Tick k of a cadence is due at start + k * period, so that lateness never adds up. A tick
that is overdue by a whole period is missed: it is counted, never made up for.

Of the cadences that are due, the fastest goes first, and a slower one gives way to it between
two GPUs; its tick goes on afterwards, with its own time.

A driver call that does not return must not stop the other GPUs. For a source that asks a
driver (gputel.sources.source.Hardware) a second thread watches, and takes over:

    sampler      tick 7: GPU 0, 1, 2 (hangs) ................................ ends
    watch                          | for half a period: abandon
    sampler-2                      +-- tick 7: GPU 3, 4, ...  tick 8, 9, ...

At most one thread a GPU is stuck, for a GPU that a thread is stuck in is not asked.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gputel.catalog import Cadence
from gputel.clock import NS_PER_MS, NS_PER_S, NS_PER_US, Clock
from gputel.collector.budget import Budget
from gputel.inventory import EventKind
from gputel.sources import Rings, Source
from gputel.sources.journal import Journal
from gputel.sources.source import Abandoned, Hardware, Preempted

log = logging.getLogger(__name__)

STALLED_S: Final = 10.0
RATE_WINDOW_NS: Final = 10 * NS_PER_S
ERRORS_LOGGED: Final = 5
CALL_LIMIT_MIN_NS: Final = 25 * NS_PER_MS
CALL_LIMIT_MAX_NS: Final = NS_PER_S // 2


@dataclass(slots=True)
class Ticks:
    """What happened to the ticks of one cadence."""

    budget: Budget
    due_ns: int = 0
    swept: int = 0
    missed: int = 0
    busy_ns: int = 0
    late_ns: int = 0
    errors: int = 0
    effective_hz: float = 0.0
    window_start_ns: int = field(default=0, repr=False)
    window_swept: int = field(default=0, repr=False)

    @property
    def period_ns(self) -> int:
        """The period now, which is longer than configured when it costs too much."""
        return self.budget.period_ns

    @property
    def period_s(self) -> float:
        """The same in seconds."""
        return self.period_ns / NS_PER_S

    def start(self, now_ns: int) -> None:
        """Begin to tick, now or again."""
        self.due_ns = now_ns
        self.window_start_ns, self.window_swept = now_ns, self.swept

    def count(self, busy_ns: int, ended_ns: int, late_ns: int) -> None:
        """One sweep is done."""
        self.swept += 1
        self.busy_ns += busy_ns
        self.late_ns += late_ns
        elapsed_ns = ended_ns - self.window_start_ns
        # A slow cadence needs two of its own periods to have a rate at all.
        if elapsed_ns >= max(RATE_WINDOW_NS, 2 * self.period_ns):
            self.effective_hz = (self.swept - self.window_swept) * NS_PER_S / elapsed_ns
            self.window_start_ns, self.window_swept = ended_ns, self.swept

    def advance(self, now_ns: int) -> None:
        """The next tick is due a period after this one was; those that are over are missed."""
        self.due_ns += self.period_ns
        if now_ns >= self.due_ns + self.period_ns:
            missed = (now_ns - self.due_ns) // self.period_ns
            self.missed += missed
            self.due_ns += missed * self.period_ns


@dataclass(slots=True)
class _Tick:
    """A tick that has begun; who takes it over, or comes back to it, goes on with it."""

    cadence: Cadence
    late_ns: int
    time_ns: int
    wall_ns: int = 0
    cpu_ns: int = 0
    taken_over: bool = False


class Sampler:
    """Calls `source.sweep` until stopped. `swept(sealed)` is called on the thread after
    every sweep; it may block to hold a replay back. `cpu_share_max` is what each cadence may
    take of a core."""

    def __init__(
        self,
        source: Source,
        rings: Rings,
        swept: Callable[[bool], None],
        observe_late_s: Callable[[float], None],
        clock: Clock,
        cpu_share_max: float = 1.0,
    ) -> None:
        self._source = source
        self._hardware = source if isinstance(source, Hardware) else None
        self._rings = rings
        self._swept = swept
        self._observe_late_s = observe_late_s
        self._clock = clock
        self._cpu_share_max = cpu_share_max
        self._stop = threading.Event()
        # PERF(sampler): held until `stop`; to wait for a lock with a timeout is one call, and to
        # wait for an Event is much Python, all of it cold after each sleep.
        self._stopped = threading.Lock()
        self._stopped.acquire()
        self._awake = threading.Event()  # cleared: paused
        self._awake.set()
        self._alive_ns = clock.monotonic_ns()
        self._tick: _Tick | None = None
        self._waiting: dict[Cadence, _Tick] = {}  # gave way
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="sampler-watch", daemon=True)
        self.journal = Journal(clock)
        self.ticks: dict[Cadence, Ticks] = {}
        self.takeovers = 0
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to sweep; the source is open."""
        now_ns = self._clock.monotonic_ns()
        for cadence, period_ns in self._source.cadences().items():
            self.ticks[cadence] = Ticks(Budget(period_ns, self._cpu_share_max))
            self.ticks[cadence].start(now_ns)
        self._thread.start()
        if self._hardware is not None:
            self._watcher.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end; False when it hangs in the driver."""
        if not self._stop.is_set():
            self._stop.set()
            self._stopped.release()
        self._awake.set()
        if self._hardware is not None and self._watcher.ident is not None:
            self._hardware.unwatch()
            self._watcher.join(timeout_s)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # ---- The kill-switch --------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """True while no driver call is made, on request."""
        return not self._awake.is_set()

    def pause(self) -> None:
        """Make no more driver calls; the sweep in progress is the last."""
        if self.paused:
            return
        self._awake.clear()
        if self._hardware is not None:
            self._hardware.pause()
        self.journal.tell(EventKind.PAUSED, "", 0, "driver calls stopped on request")
        log.warning("paused: no driver calls are made until this is taken back")

    def resume(self) -> None:
        """Go on."""
        if not self.paused:
            return
        now_ns = self._alive_ns = self._clock.monotonic_ns()
        for ticks in self.ticks.values():
            ticks.start(now_ns)
        if self._hardware is not None:
            self._hardware.resume()
        self.journal.tell(EventKind.RESUMED, "", 0, "driver calls go on")
        log.warning("resumed")
        self._awake.set()

    def problem(self) -> str | None:
        """Why no samples come, None when they do."""
        if self.failure is not None:
            return f"the sampler died: {self.failure!r}"
        if self.paused:
            return None
        idle_s = (self._clock.monotonic_ns() - self._alive_ns) / NS_PER_S
        longest_s = min((t.period_ns for t in self.ticks.values()), default=0) / NS_PER_S
        if self._thread.is_alive() and idle_s > STALLED_S + longest_s:
            return f"no sweep has ended for {idle_s:.0f} s"
        return None

    # ---- The thread -------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            if self._tick is not None:  # of the thread that this one takes over from
                self._sweep(self._tick)
            while not self._stop.is_set() and not self._source.exhausted:
                cadence = self._next()
                ticks = self.ticks[cadence]
                if self._stops_before(ticks.due_ns):
                    return
                if self.paused:
                    self._awake.wait()
                    self._waiting.clear()
                    continue
                waiting = cadence in self._waiting
                self._sweep(self._waiting.pop(cadence) if waiting else self._begin(cadence, ticks))
        except Abandoned:
            return
        except BaseException as failure:
            self.failure = failure
            log.exception("the sampler died")

    def _stops_before(self, due_ns: int) -> bool:
        """Wait until it is `due_ns`; True when the thread shall end instead."""
        wait_ns = due_ns - self._clock.monotonic_ns()
        if wait_ns <= 0 or not self._clock.acquire(self._stopped, wait_ns / NS_PER_S):
            return False
        self._stopped.release()  # another thread may wait too
        return True

    def _next(self) -> Cadence:
        """Of those that are due the fastest, else the one that is due first."""
        now_ns = self._clock.monotonic_ns()
        # (0, period) of one that is due is less than (1, due time) of one that isn't.
        return min(
            (0, ticks.budget.period_ns, i, cadence)
            if ticks.due_ns <= now_ns
            else (1, ticks.due_ns, i, cadence)
            for i, (cadence, ticks) in enumerate(self.ticks.items())
        )[3]

    def _begin(self, cadence: Cadence, ticks: Ticks) -> _Tick:
        late_ns = max(0, self._clock.monotonic_ns() - ticks.due_ns)
        return _Tick(cadence, late_ns, self._clock.time_ns() // NS_PER_US * NS_PER_US)

    def _sweep(self, tick: _Tick) -> None:
        self._tick = tick
        ticks = self.ticks[tick.cadence]
        if self._hardware is not None:
            faster = [t.due_ns for t in self.ticks.values() if t.period_ns < ticks.period_ns]
            self._hardware.give_way_at(min(faster, default=None))
        started_ns, cpu_ns = self._clock.monotonic_ns(), self._clock.thread_cpu_ns()
        sealed = finished = False
        try:
            sealed = self._source.sweep(
                tick.cadence, tick.time_ns, self._rings, tick.late_ns // NS_PER_US
            )
            finished = True
        except Abandoned:
            raise
        except Preempted:
            self._waiting[tick.cadence] = tick
        except Exception:
            finished = True
            ticks.errors += 1
            if ticks.errors <= ERRORS_LOGGED:
                log.exception("sweep of cadence %s failed", tick.cadence.value)
        self._tick = None
        ended_ns = self._alive_ns = self._clock.monotonic_ns()
        tick.wall_ns += ended_ns - started_ns
        tick.cpu_ns += self._clock.thread_cpu_ns() - cpu_ns
        if finished:
            self._finish(tick, ticks, ended_ns, sealed=sealed)

    def _finish(self, tick: _Tick, ticks: Ticks, ended_ns: int, *, sealed: bool) -> None:
        ticks.count(tick.wall_ns, ended_ns, tick.late_ns)
        if (
            self._hardware is not None
            and not tick.taken_over
            and ticks.budget.spend(tick.cpu_ns, tick.wall_ns, ended_ns)
        ):
            self._period_changed(tick.cadence, ticks)
        self._observe_late_s(tick.late_ns / NS_PER_S)
        self._swept(sealed)
        now_ns = self._alive_ns = self._clock.monotonic_ns()
        ticks.advance(now_ns)

    def _period_changed(self, cadence: Cadence, ticks: Ticks) -> None:
        budget = ticks.budget
        message = (
            f"cadence {cadence.value} has a period of {budget.period_ns / NS_PER_S:g} s now, "
            f"{budget.factor} times the configured one, to keep to "
            f"{100 * self._cpu_share_max:g} % of a core"
        )
        self.journal.tell(EventKind.DEMOTED, "", budget.factor, message)
        log.warning("%s", message)

    # ---- The watch --------------------------------------------------------------------------

    def _watch(self) -> None:
        assert self._hardware is not None
        fastest_ns = min((ticks.budget.nominal_ns for ticks in self.ticks.values()), default=0)
        limit_ns = min(max(fastest_ns // 2, CALL_LIMIT_MIN_NS), CALL_LIMIT_MAX_NS)
        while self._hardware.watch(limit_ns):
            # Between the two the call may have returned: then there is nothing to take over.
            if not self._stop.is_set() and self._hardware.abandon(limit_ns):
                self._take_over()

    def _take_over(self) -> None:
        self.takeovers += 1
        if self._tick is not None:
            self._tick.taken_over = True
        name = f"sampler-{self.takeovers + 1}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
