"""The sampler: a thread that asks the source on an absolute schedule.

Tick k of a cadence is due at start + k * period, so that lateness never adds up. A tick
that is overdue by a whole period is missed: it is counted, never made up for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from gputel.catalog import Cadence
from gputel.clock import NS_PER_S, NS_PER_US, Clock
from gputel.sources import Rings, Source

log = logging.getLogger(__name__)

STALLED_S: Final = 10.0
RATE_WINDOW_NS: Final = 10 * NS_PER_S
ERRORS_LOGGED: Final = 5


@dataclass(slots=True)
class Ticks:
    """What happened to the ticks of one cadence."""

    period_ns: int
    due_ns: int = 0
    swept: int = 0
    missed: int = 0
    busy_ns: int = 0
    late_ns: int = 0
    errors: int = 0
    effective_hz: float = 0.0
    window_start_ns: int = field(default=0, repr=False)
    window_swept: int = field(default=0, repr=False)

    def count(self, started_ns: int, ended_ns: int, late_ns: int) -> None:
        """One sweep is done."""
        self.swept += 1
        self.busy_ns += ended_ns - started_ns
        self.late_ns += late_ns
        elapsed_ns = ended_ns - self.window_start_ns
        # A slow cadence needs two of its own periods to have a rate at all.
        if elapsed_ns >= max(RATE_WINDOW_NS, 2 * self.period_ns):
            self.effective_hz = (self.swept - self.window_swept) * NS_PER_S / elapsed_ns
            self.window_start_ns, self.window_swept = ended_ns, self.swept


class Sampler:
    """Calls `source.sweep` until stopped. `swept(sealed)` is called on the thread after
    every sweep; it may block to hold a replay back."""

    def __init__(
        self,
        source: Source,
        rings: Rings,
        swept: Callable[[bool], None],
        observe_late_s: Callable[[float], None],
        clock: Clock,
    ) -> None:
        self._source = source
        self._rings = rings
        self._swept = swept
        self._observe_late_s = observe_late_s
        self._clock = clock
        self._stop = threading.Event()
        self._alive_ns = clock.monotonic_ns()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.ticks: dict[Cadence, Ticks] = {}
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to sweep; the source is open."""
        now_ns = self._clock.monotonic_ns()
        self.ticks = {
            cadence: Ticks(period_ns, due_ns=now_ns, window_start_ns=now_ns)
            for cadence, period_ns in self._source.cadences().items()
        }
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask the thread to end; False when it hangs in the driver."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def problem(self) -> str | None:
        """Why no samples come, None when they do."""
        if self.failure is not None:
            return f"the sampler died: {self.failure!r}"
        idle_s = (self._clock.monotonic_ns() - self._alive_ns) / NS_PER_S
        longest_s = min((t.period_ns for t in self.ticks.values()), default=0) / NS_PER_S
        if self._thread.is_alive() and idle_s > STALLED_S + longest_s:
            return f"no sweep has ended for {idle_s:.0f} s"
        return None

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._source.exhausted:
                cadence = min(self.ticks, key=lambda c: self.ticks[c].due_ns)
                ticks = self.ticks[cadence]
                wait_ns = ticks.due_ns - self._clock.monotonic_ns()
                if wait_ns > 0 and self._stop.wait(wait_ns / NS_PER_S):
                    return
                self._tick(cadence, ticks)
        except BaseException as failure:
            self.failure = failure
            log.exception("the sampler died")

    def _tick(self, cadence: Cadence, ticks: Ticks) -> None:
        started_ns = self._clock.monotonic_ns()
        late_ns = max(0, started_ns - ticks.due_ns)
        time_ns = self._clock.time_ns() // NS_PER_US * NS_PER_US
        sealed = False
        try:
            sealed = self._source.sweep(cadence, time_ns, self._rings, late_ns // NS_PER_US)
        except Exception:
            ticks.errors += 1
            if ticks.errors <= ERRORS_LOGGED:
                log.exception("sweep of cadence %s failed", cadence.value)
        ended_ns = self._clock.monotonic_ns()
        ticks.count(started_ns, ended_ns, late_ns)
        self._observe_late_s(late_ns / NS_PER_S)
        self._swept(sealed)
        now_ns = self._alive_ns = self._clock.monotonic_ns()
        ticks.due_ns += ticks.period_ns
        if now_ns >= ticks.due_ns + ticks.period_ns:
            missed = (now_ns - ticks.due_ns) // ticks.period_ns
            ticks.missed += missed
            ticks.due_ns += missed * ticks.period_ns
