"""Calls that may never return, kept away from the event loop and from the process's end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonCaller:
    """Makes blocking calls (files on a dead mount, a driver) on daemon threads, one at a time.

    asyncio.to_thread would not do: its threads are joined when the process ends, so that one
    call that never returns would keep it from stopping.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = False

    @property
    def busy(self) -> bool:
        """True while a call, also one whose deadline is over, has not returned."""
        return self._busy

    async def call(self, function: Callable[[], T], timeout_s: float) -> T:
        """`function()` and what it raises. TimeoutError: it did not return in time, or the one
        before it still has not; then nothing new is begun."""
        if self._busy:
            raise TimeoutError(f"{self._name}: the call before has not returned")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        self._busy = True

        def settle(set_outcome: Callable[[Any], None], value: object) -> None:
            self._busy = False
            if not outcome.done():
                set_outcome(value)

        def work() -> None:
            try:
                settled: tuple[Callable[[Any], None], object] = outcome.set_result, function()
            except BaseException as error:
                settled = outcome.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(settle, *settled)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        async with asyncio.timeout(timeout_s):
            return await outcome
