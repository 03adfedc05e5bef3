"""What happened to each GPU, counted: in a sliding window as dcgm-exporter does, and in all."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

#: A window slides in this many steps.
STEPS: Final = 300
#: Different codes a GPU; a driver knows about two hundred XIDs and nine clock events.
CODES_MAX: Final = 256

#: Code to count.
Counts = Mapping[int, int]
NONE: Final[Counts] = MappingProxyType({})


class _Steps:
    """The counts of one code, a step each; the oldest first."""

    __slots__ = ("steps", "sum", "total")

    def __init__(self) -> None:
        self.steps: deque[tuple[int, int]] = deque()
        self.sum = 0
        self.total = 0

    def add(self, step: int, n: int) -> None:
        self.total += n
        self.sum += n
        if self.steps and self.steps[-1][0] == step:
            n += self.steps.pop()[1]
        self.steps.append((step, n))

    def forget(self, before: int) -> None:
        while self.steps and self.steps[0][0] < before:
            self.sum -= self.steps.popleft()[1]


class Window:
    """Occurrences of codes, by GPU slot, in the last `window_ms` and since the start.

    What is counted stays for a whole window, and at most one step (a 300th) longer.
    """

    def __init__(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.refused = 0  # occurrences of codes beyond CODES_MAX
        self._step_ns = max(1, window_ms * 1_000_000 // STEPS)
        self._gpus: dict[int, dict[int, _Steps]] = {}

    def add(self, slot: int, code: int, n: int, now_ns: int) -> None:
        """Count `n` occurrences; `now_ns` is monotonic."""
        codes = self._gpus.setdefault(slot, {})
        steps = codes.get(code)
        if steps is None:
            if len(codes) == CODES_MAX:
                self.refused += n
                return
            steps = codes[code] = _Steps()
        step = now_ns // self._step_ns
        steps.forget(step - STEPS)
        steps.add(step, n)

    def counts(self, now_ns: int) -> dict[int, Counts]:
        """Slot to the counts of the window that are not 0, ordered by code."""
        oldest = now_ns // self._step_ns - STEPS
        found: dict[int, Counts] = {}
        for slot, codes in self._gpus.items():
            for steps in codes.values():
                steps.forget(oldest)
            counts = {code: codes[code].sum for code in sorted(codes) if codes[code].sum}
            if counts:
                found[slot] = counts
        return found

    def totals(self) -> dict[int, Counts]:
        """Slot to the counts since the start, ordered by code."""
        return {
            slot: {code: codes[code].total for code in sorted(codes)}
            for slot, codes in self._gpus.items()
        }
