"""What the partitions share of the broker's memory: what is accepted, and the newest of the log."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from gputel import limits
from gputel.broker.engine.record import Record


class Block(msgspec.Struct, frozen=True, gc=False):
    """Neighbouring records of one producer and epoch; what a commit takes or leaves as a whole.

    `records` is not empty and never changed; `size_bytes` is what they count in memory.
    """

    records: list[Record]
    size_bytes: int

    @property
    def record_bytes(self) -> int:
        """What they take in a segment, where each names the producer."""
        return self.size_bytes + len(self.records) * len(self.records[0].producer.encode())


def cost_bytes(key: bytes, payload: bytes) -> int:
    """What a record counts in memory: an empty payload isn't free."""
    return limits.RECORD_HEADER_BYTES + len(key) + len(payload)


class Tail:
    """The newest committed records of all partitions, bounded in bytes together."""

    def __init__(self, bytes_max: int = limits.TAIL_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._order: deque[tuple[dict[int, Record], Block]] = deque()
        self._size_bytes = 0

    def add(self, records: dict[int, Record], block: Block) -> None:
        """Keep `block` in its partition's `records`; the oldest of any partition go."""
        for record in block.records:
            records[record.offset] = record
        self._order.append((records, block))
        self._size_bytes += block.size_bytes
        while self._size_bytes > self._bytes_max:
            kept, oldest = self._order.popleft()
            for record in oldest.records:
                del kept[record.offset]
            self._size_bytes -= oldest.size_bytes


class Backlog:
    """The bytes that all partitions together have accepted and not yet made durable."""

    def __init__(self, bytes_max: int = limits.PENDING_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._waiters: deque[asyncio.Future[None]] = deque()
        self.size_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Count what was accepted; negative when it is durable or lost."""
        self.size_bytes += size_bytes
        while self._waiters and self.size_bytes < self._bytes_max:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def room(self) -> None:
        """Return once there is room for more."""
        while self.size_bytes >= self._bytes_max:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
