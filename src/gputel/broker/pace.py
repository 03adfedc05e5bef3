"""Small writes to a stream wait for each other a moment, as small segments do in TCP (RFC 896).

A request or response costs as much as copying some hundred KiB: where each message goes alone, half
of what a broker can do keeps it busy, and messages queue. The first after a pause goes at once.

    producer --- 3 ms ---> broker --- 1 ms ---> consumer
                 <-- acks, 3 ms ---

What a consumer gets has waited already, in its producer's request; it shares with what others sent.
"""

from __future__ import annotations

import asyncio
from typing import Final

PACE_S: Final = 0.003
DELIVERIES: Final = 1 / 3  # of PACE_S


class Pace:
    """When a stream may write again: `part` of PACE_S after it did."""

    def __init__(self, part: float = 1.0) -> None:
        self._part = part
        self._next_s = 0.0  # of the event loop's time
        self._waiter: asyncio.Future[None] | None = None

    def wrote(self) -> None:
        """Something was written."""
        self._next_s = asyncio.get_running_loop().time() + PACE_S * self._part

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
