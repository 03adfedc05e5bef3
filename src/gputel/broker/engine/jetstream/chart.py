"""Where things lie in a stream: stream sequences by a value that grows with them.

Kept for offsets and for times of storing. It forgets every second point when it is full: what
is missing between two points is found by reading.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Final

POINTS_MAX: Final = 32_768


class Chart:
    """Known points (sequence, value); both grow."""

    def __init__(self, points_max: int = POINTS_MAX) -> None:
        self._points_max = points_max
        self._sequences: list[int] = []
        self._values: list[int] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def add(self, sequence: int, value: int) -> None:
        """Remember that `value` lies at `sequence`."""
        if not self._sequences or sequence > self._sequences[-1]:
            self._sequences.append(sequence)
            self._values.append(value)
        else:
            at = bisect_left(self._sequences, sequence)
            if self._sequences[at] == sequence:
                return
            self._sequences.insert(at, sequence)
            self._values.insert(at, value)
        if len(self._sequences) > self._points_max:
            # The newest half stays whole: it is what readers ask for.
            half = self._points_max // 2
            self._sequences[:half] = self._sequences[:half:2]
            self._values[:half] = self._values[:half:2]

    def drop_below(self, sequence: int) -> None:
        """Forget what lies before `sequence`."""
        at = bisect_left(self._sequences, sequence)
        del self._sequences[:at]
        del self._values[:at]

    def get(self, sequence: int) -> int | None:
        """The value at `sequence`, if it is known."""
        at = bisect_left(self._sequences, sequence)
        if at < len(self._sequences) and self._sequences[at] == sequence:
            return self._values[at]
        return None

    def last_at_most(self, value: int) -> int | None:
        """The last known sequence whose value is at most `value`."""
        at = bisect_right(self._values, value)
        return self._sequences[at - 1] if at else None

    def first_beyond(self, value: int) -> int | None:
        """The first known sequence whose value is above `value`."""
        at = bisect_right(self._values, value)
        return self._sequences[at] if at < len(self._sequences) else None
