"""Reading a partition's stream: where an offset or a time lies, and the blocks around it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from gputel import limits
from gputel.broker.engine import Chunk
from gputel.broker.engine.jetstream import block
from gputel.broker.engine.jetstream.block import Head
from gputel.broker.engine.jetstream.chart import Chart
from gputel.broker.engine.jetstream.cluster import Cluster
from gputel.broker.engine.record import Record
from gputel.errors import BrokerUnavailable, LogCorrupt

log = logging.getLogger(__name__)

READ_BYTES: Final = 2 * limits.MIB
READ_BLOCKS: Final = 512


class Block:
    """A stored block; decoded when it is first looked into."""

    def __init__(self, sequence: int, head: Head, payload: bytes) -> None:
        self.sequence = sequence
        self.head = head
        self.size_bytes = len(payload)
        self._payload = payload
        self._records: list[Record] | None = None

    @property
    def records(self) -> list[Record]:
        """The messages. LogCorrupt."""
        if self._records is None:
            self._records = block.decode(self.head, self._payload)
            self._payload = b""
        return self._records


class Blocks:
    """The blocks that were read or written last, of all partitions, bounded in bytes."""

    def __init__(self, bytes_max: int = limits.TAIL_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._kept: OrderedDict[tuple[str, int], Block] = OrderedDict()
        self._size_bytes = 0

    def add(self, stream: str, block: Block) -> None:
        """Keep a block."""
        key = (stream, block.sequence)
        if key in self._kept:
            return
        self._kept[key] = block
        self._size_bytes += block.size_bytes
        while self._size_bytes > self._bytes_max:
            _, oldest = self._kept.popitem(last=False)
            self._size_bytes -= oldest.size_bytes

    def get(self, stream: str, sequence: int) -> Block | None:
        """The block, if it is kept."""
        found = self._kept.get((stream, sequence))
        if found is not None:
            self._kept.move_to_end((stream, sequence))
        return found


class Reader:
    """The blocks of one stream, and what is known of where they lie."""

    def __init__(
        self, name: str, stream: str, subject: str, cluster: Cluster, blocks: Blocks
    ) -> None:
        self._name = name
        self._stream = stream
        self._subject = subject
        self._cluster = cluster
        self._blocks = blocks
        self._damaged: set[int] = set()  # of what is kept
        self._damages = 0
        self.first_sequence = 1
        self.offsets = Chart()
        self.times = Chart()
        self.damage = ""
        self.damaged_bytes = 0

    def note(self, sequence: int, head: Head) -> None:
        """A block is known to lie at `sequence`."""
        self.offsets.add(sequence, head.base)
        self.times.add(sequence, head.stored_at_ns)

    def keep(self, stored: Block) -> None:
        """A block that was written here will be read soon."""
        self._blocks.add(self._stream, stored)

    async def begin_at(self, first_sequence: int, tip: int) -> int | None:
        """The stream begins there now; the first offset up to `tip`, if it can be read."""
        self.first_sequence = first_sequence
        self.offsets.drop_below(first_sequence)
        self.times.drop_below(first_sequence)
        self._damaged = {sequence for sequence in self._damaged if sequence >= first_sequence}
        first = self.offsets.get(first_sequence)
        if first is None or self.times.get(first_sequence) is None:
            found, beyond = await self.fetch(first_sequence, 1, 1)
            if found:
                return found[0].head.base
            behind, _ = await self._block(beyond, tip) if beyond > first_sequence else (None, 0)
            return behind.head.base if behind else None
        return first

    async def read(
        self, offset: int, tip: int, end_offset: int, messages_max: int, bytes_max: int
    ) -> Chunk | None:
        """Messages from `offset` on, of blocks up to `tip`, behind which `end_offset` is next;
        None when the servers have nothing there.

        Neighbouring blocks are read ahead and kept for a while.
        """
        sequence = await self.search(self.offsets, offset, tip)
        records: list[Record] = []
        taken_bytes = 0
        while sequence <= tip:
            found = self._blocks.get(self._stream, sequence)
            if found is None:
                if records:  # it is not worth a wait
                    break
                found, beyond = await self._block(sequence, tip)
                if found is None:
                    return Chunk((), end_offset) if beyond > tip else None
            for record in self._records(found):
                if record.offset < offset:
                    continue
                taken_bytes += len(record.payload)
                if records and (taken_bytes > bytes_max or len(records) >= messages_max):
                    return Chunk(records, offset)
                records.append(record)
                offset = record.offset + 1
            offset = max(offset, found.head.end)
            sequence = found.sequence + 1
            if taken_bytes >= bytes_max or len(records) >= messages_max:
                break
        return Chunk(records, offset if sequence <= tip else max(offset, end_offset))

    def _records(self, of: Block) -> Sequence[Record]:
        try:
            return of.records
        except LogCorrupt as error:
            self.note_damage(of.sequence, of.size_bytes, str(error))
            return ()

    async def _block(self, sequence: int, tip: int) -> tuple[Block | None, int]:
        """The first block from `sequence` on that is kept, and where the look for it ended.

        None when all up to `tip` is passed by, or, if the look ended before, can't be read.
        """
        while sequence <= tip:
            found, beyond = await self.fetch(sequence, READ_BLOCKS, READ_BYTES)
            if found or beyond == sequence:
                return (found[0] if found else None), beyond
            sequence = beyond
        return None, sequence

    async def fetch(self, sequence: int, messages: int, size_bytes: int) -> tuple[list[Block], int]:
        """Blocks from `sequence` on, of as many messages as are asked for and kept; and where the
        next look begins: at `sequence` again when there was no message at all."""
        stored = await self._cluster.read(
            self._stream, self._subject, sequence, messages, size_bytes
        )
        blocks: list[Block] = []
        for each in stored:
            try:
                head = Head.decode(each.headers.get(block.HEAD))
            except LogCorrupt as error:
                self.note_damage(each.sequence, len(each.data), str(error))
                continue
            if head.after != each.sequence - 1:
                continue  # out of place: as if it were not there
            self.note(each.sequence, head)
            blocks.append(Block(each.sequence, head, each.data))
            self._blocks.add(self._stream, blocks[-1])
        return blocks, stored[-1].sequence + 1 if stored else sequence

    async def search(self, chart: Chart, value: int, tip: int) -> int:
        """The last block whose value is at most `value`; the first when there is none."""
        while True:
            low = chart.last_at_most(value)
            high = chart.first_beyond(value) or tip + 1
            if low is not None and high <= low + 1:
                return low
            if low is None and high <= self.first_sequence:
                return high
            middle = self.first_sequence if low is None else (low + high) // 2
            found, _ = await self.fetch(middle, 1, 1)
            if not found:
                return middle if low is None else low
            if found[0].sequence >= high:
                return high if low is None else low

    async def offset_at(self, time_ns: int, tip: int, end_offset: int) -> int:
        """The first offset that was stored at or after `time_ns`; `tip` and `end_offset` as in
        `read`. BrokerUnavailable."""
        at = await self.search(self.times, time_ns - 1, tip)
        found, beyond = self._blocks.get(self._stream, at), at
        if found is None:
            found, beyond = await self._block(at, tip)
        if found is None:
            if beyond > tip:
                return end_offset
            raise BrokerUnavailable(f"partition {self._name}: block {at} can't be read now")
        return found.head.end if found.head.stored_at_ns < time_ns else found.head.base

    def note_damage(self, sequence: int, size_bytes: int, reason: str) -> None:
        """A block can't be read: tell it once."""
        if sequence in self._damaged:
            return
        self._damaged.add(sequence)
        self._damages += 1
        self.damaged_bytes += size_bytes
        self.damage = (
            f"{self.damaged_bytes} bytes in {self._damages} blocks can't be read, the latest "
            f"at sequence {sequence} of stream {self._stream} ({reason}); readers go on behind them"
        )
        log.error("partition %s is damaged: %s", self._name, self.damage)
