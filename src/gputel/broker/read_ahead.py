"""What a stream reads of its partitions, the next messages while it sends those before.

    partition 0 ---> chunk --- sent ----- chunk --- sent --- ...
                          \\             /     \\
                partition 1, 2 .........      partition 3 ...

Without it the disk waits for the network, and the network for the disk. What lies ready is bounded
for a stream, and for all streams of a broker together: a consumer may give credit and read nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple

from gputel import limits
from gputel.broker.engine import Chunk, PartitionLog

READ_BYTES_MAX: Final = limits.BATCH_BYTES_MAX
#: Of all partitions of a stream together.
AHEAD_BYTES_MAX: Final = 2 * limits.BATCH_BYTES_MAX

assert limits.READ_AHEAD_BYTES_MAX >= AHEAD_BYTES_MAX >= READ_BYTES_MAX


class Room:
    """How much the streams of a broker may still have lying ready."""

    def __init__(self, bytes_max: int = limits.READ_AHEAD_BYTES_MAX) -> None:
        self.left_bytes = bytes_max


class _Read(NamedTuple):
    offset: int
    run: int  # of the cursor
    bytes_max: int
    task: asyncio.Task[Chunk]


class ReadAhead:
    """Reads for one stream. At most AHEAD_BYTES_MAX, and a message more each, lie ready; nothing
    is read ahead where `room` has not enough left."""

    def __init__(self, logs: Sequence[PartitionLog], room: Room) -> None:
        self._logs = logs
        self._room = room
        self._left_bytes = AHEAD_BYTES_MAX
        self._begun: dict[int, _Read] = {}

    async def read(
        self, partition: int, offset: int, run: int, messages_max: int, bytes_max: int
    ) -> Chunk:
        """See `PartitionLog.read`. `run` tells deliveries apart that began anew."""
        begun = self._take(partition)
        if begun is not None and (begun.offset, begun.run) == (offset, run):
            return _fitting(await begun.task, messages_max, bytes_max)
        if begun is not None:
            _drop(begun)
        return await self._logs[partition].read(
            offset, messages_max, min(bytes_max, READ_BYTES_MAX)
        )

    def begin(
        self, partition: int, offset: int, run: int, messages_max: int, bytes_max: int
    ) -> None:
        """Begin to read what `read` is asked for soon: whole batches, so of few partitions, in the
        order of their turns. What was begun before comes first and takes of `bytes_max`."""
        bytes_max = min(bytes_max - (AHEAD_BYTES_MAX - self._left_bytes), READ_BYTES_MAX)
        log = self._logs[partition]
        if (
            messages_max <= 0
            or bytes_max <= 0
            or offset >= log.next_offset
            or partition in self._begun
            or bytes_max > min(self._left_bytes, self._room.left_bytes)
        ):
            return
        self._left_bytes -= bytes_max
        self._room.left_bytes -= bytes_max
        task = asyncio.create_task(log.read(offset, messages_max, bytes_max))
        self._begun[partition] = _Read(offset, run, bytes_max, task)

    def keep(self, partitions: frozenset[int]) -> None:
        """Forget what was read of other partitions."""
        for partition in self._begun.keys() - partitions:
            begun = self._take(partition)
            if begun is not None:
                _drop(begun)

    def _take(self, partition: int) -> _Read | None:
        """What was begun of a partition, no longer counted."""
        begun = self._begun.pop(partition, None)
        if begun is not None:
            self._left_bytes += begun.bytes_max
            self._room.left_bytes += begun.bytes_max
        return begun


def _drop(begun: _Read) -> None:
    begun.task.cancel()
    # What went wrong is met again by whoever reads it again.
    begun.task.add_done_callback(lambda task: task.cancelled() or task.exception())


def _fitting(chunk: Chunk, messages_max: int, bytes_max: int) -> Chunk:
    """The first messages of `chunk`, as a read with these bounds has them."""
    taken_bytes = 0
    for number, record in enumerate(chunk.records):
        taken_bytes += len(record.payload)
        if number and (taken_bytes > bytes_max or number >= messages_max):
            return Chunk(chunk.records[:number], chunk.records[number - 1].offset + 1)
    return chunk
