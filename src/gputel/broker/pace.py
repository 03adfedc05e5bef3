"""Small writes to a stream wait for each other a moment, as small segments do in TCP (RFC 896).

A request or response costs as much as copying some hundred KiB: where each message goes alone, half
of what a broker can do keeps it busy, and messages queue. The first after a pause goes at once.

    producer --- 2 ms ---> broker --- at once ---> consumer
                 <-- acks, 3 ms ---

What a consumer gets has waited already, in its producer's request.
"""

from __future__ import annotations

import asyncio
from typing import Final

REQUESTS_S: Final = 0.002
ACKS_S: Final = 0.003


class Pace:
    """When a stream may write again: `pause_s` after it did."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._next_s = 0.0  # of the event loop's time
        self._waiter: asyncio.Future[None] | None = None

    def wrote(self) -> None:
        """Something was written."""
        self._next_s = asyncio.get_running_loop().time() + self._pause_s

    async def wait(self) -> None:
        """Return once that has passed since something was written, or at `hurry`."""
        loop = asyncio.get_running_loop()
        pause_s = self._next_s - loop.time()
        if pause_s <= 0:
            return
        self._waiter = loop.create_future()
        timer = loop.call_later(pause_s, self.hurry)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def hurry(self) -> None:
        """What is to be written will not become more."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
