"""The CPU budget of a cadence: one that costs too much is asked less often, and says so.

A window is at least WINDOW_NS and SWEEPS_MIN sweeps. Its mean leaves the most expensive sweep
out: one outlier proves nothing. Demoted, the period grows by a power of two, at most
FACTOR_MAX. It shrinks again, a step at a time, when the mean says that half the period would
still cost clearly less than the budget, and not before a pause that doubles each time that a
promotion has to be taken back: so it never swings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from gputel.clock import NS_PER_S

WINDOW_NS: Final = 10 * NS_PER_S
SWEEPS_MIN: Final = 5
FACTOR_MAX: Final = 64
PROMOTED_SHARE_MAX: Final = 0.5  # of the budget, at the period that it would get
HOLD_MIN_NS: Final = 60 * NS_PER_S
HOLD_MAX_NS: Final = 3600 * NS_PER_S
#: A promotion that does not last for this many holds was a mistake.
LASTING_HOLDS: Final = 5


@dataclass(slots=True)
class Budget:
    """Of one cadence: `share_max` of a core, and no more than its own period of time."""

    nominal_ns: int
    share_max: float
    factor: int = 1
    _since_ns: int = 0
    _sweeps: int = 0
    _cpu_ns: list[int] = field(default_factory=lambda: [0, 0])  # sum, largest
    _wall_ns: list[int] = field(default_factory=lambda: [0, 0])
    _changed_ns: int | None = None
    _promoted: bool = False
    _hold_ns: int = HOLD_MIN_NS

    @property
    def period_ns(self) -> int:
        """The period now."""
        return self.nominal_ns * self.factor

    def spend(self, cpu_ns: int, wall_ns: int, now_ns: int) -> bool:
        """Account one sweep that ended at `now_ns`; True when the period has changed."""
        if self._sweeps == 0 and self._since_ns == 0:
            self._since_ns = now_ns - wall_ns
        self._sweeps += 1
        for total, spent_ns in ((self._cpu_ns, cpu_ns), (self._wall_ns, wall_ns)):
            total[0] += spent_ns
            total[1] = max(total[1], spent_ns)
        if self._sweeps < SWEEPS_MIN or now_ns - self._since_ns < WINDOW_NS:
            return False
        load = self._load()
        self._begin(now_ns)
        return self._demote(load, now_ns) if load > 1 else self._promote(load, now_ns)

    def _begin(self, now_ns: int) -> None:
        self._since_ns, self._sweeps = now_ns, 0
        self._cpu_ns, self._wall_ns = [0, 0], [0, 0]

    def _load(self) -> float:
        """What this period takes of what it may take: 1 is the budget."""
        typical = [
            (t - largest) / (self._sweeps - 1) for t, largest in (self._cpu_ns, self._wall_ns)
        ]
        return max(typical[0] / (self.share_max * self.period_ns), typical[1] / self.period_ns)

    def _demote(self, load: float, now_ns: int) -> bool:
        factor = self.factor
        while load > 1 and factor < FACTOR_MAX:
            factor, load = 2 * factor, load / 2
        if factor == self.factor:
            return False
        if self._promoted and now_ns - (self._changed_ns or 0) < LASTING_HOLDS * self._hold_ns:
            self._hold_ns = min(2 * self._hold_ns, HOLD_MAX_NS)
        return self._change(factor, now_ns, promoted=False)

    def _promote(self, load: float, now_ns: int) -> bool:
        if self.factor == 1 or load * 2 > PROMOTED_SHARE_MAX:
            return False
        if now_ns - (self._changed_ns or 0) < self._hold_ns:
            return False
        return self._change(self.factor // 2, now_ns, promoted=True)

    def _change(self, factor: int, now_ns: int, *, promoted: bool) -> bool:
        self.factor = factor
        self._changed_ns = now_ns
        self._promoted = promoted
        return True
