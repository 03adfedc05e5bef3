"""Time is injected: code asks a `Clock`, tests turn the hands.

Wall time is nanoseconds since the Unix epoch (UTC), monotonic time nanoseconds since an
arbitrary start. Nothing else in gputel calls `time.*` to decide anything.
"""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime
from typing import Protocol

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
NS_PER_US = 1_000


class Clock(Protocol):
    """What gputel asks of time."""

    def time_ns(self) -> int:
        """Wall time, nanoseconds since the Unix epoch."""
        ...

    def monotonic_ns(self) -> int:
        """Monotonic time, nanoseconds; only differences mean something."""
        ...

    def thread_cpu_ns(self) -> int:
        """CPU time of the calling thread, nanoseconds; only differences mean something."""
        ...

    async def sleep(self, delay_s: float) -> None:
        """Return after at least `delay_s` seconds (at once when <= 0)."""
        ...

    def acquire(self, lock: threading.Lock, timeout_s: float) -> bool:
        """Take `lock`; False when others held it for `timeout_s` seconds."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def thread_cpu_ns(self) -> int:
        return time.thread_time_ns()

    async def sleep(self, delay_s: float) -> None:
        await asyncio.sleep(max(delay_s, 0.0))

    def acquire(self, lock: threading.Lock, timeout_s: float) -> bool:
        return lock.acquire(timeout=timeout_s)


class ManualClock:
    """A clock for tests: it stands still until `advance` is called, and waiting
    (`sleep`, `acquire`) advances it."""

    def __init__(self, time_ns: int = 1_700_000_000 * NS_PER_S) -> None:
        self._time_ns = time_ns
        self._monotonic_ns = 0
        self._cpu_ns = 0

    def time_ns(self) -> int:
        return self._time_ns

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def thread_cpu_ns(self) -> int:
        return self._cpu_ns

    def spend(self, cpu_s: float) -> None:
        """Let the thread have used `cpu_s` seconds of CPU, while both clocks go on."""
        self._cpu_ns += round(cpu_s * NS_PER_S)
        self.advance(cpu_s)

    def advance(self, delay_s: float) -> None:
        """Move both clocks forward by `delay_s` seconds."""
        delta_ns = round(delay_s * NS_PER_S)
        assert delta_ns >= 0, "monotonic time never goes back"
        self._time_ns += delta_ns
        self._monotonic_ns += delta_ns

    def step_wall(self, delta_s: float) -> None:
        """Step the wall clock only, as NTP may do; `delta_s` may be negative."""
        self._time_ns += round(delta_s * NS_PER_S)

    async def sleep(self, delay_s: float) -> None:
        self.advance(max(delay_s, 0.0))
        await asyncio.sleep(0)

    def acquire(self, lock: threading.Lock, timeout_s: float) -> bool:
        if lock.acquire(blocking=False):
            return True
        self.advance(timeout_s)
        return False


SYSTEM_CLOCK = SystemClock()


def rfc3339(time_ns: int) -> str:
    """Wall time as RFC 3339 text in UTC, microseconds kept: `2026-01-02T03:04:05.5Z` is
    written `2026-01-02T03:04:05.500000Z`, whole seconds have no fraction."""
    seconds, rest_ns = divmod(time_ns, NS_PER_S)
    text = datetime.fromtimestamp(seconds, UTC).isoformat()[:19]
    fraction_us = rest_ns // NS_PER_US
    return f"{text}.{fraction_us:06d}Z" if fraction_us else f"{text}Z"
