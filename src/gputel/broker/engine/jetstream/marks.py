"""Snapshots of a partition's producers in the bucket, so that a start reads the log's end only.

    marks.<topic>.<partition>.<part>  {"collector:n1": [17, 4], ...}   epoch, sequence
    marks.<topic>.<partition>.upto    {"sequence": 812, "next_offset": 4711}

A mark only grows, and putting two tables together keeps the larger of each: so brokers may
write in any order, none undoes what another has saved, and reading blocks twice does no harm.
`upto` is written last: the parts hold all that blocks up to it said.
"""

from __future__ import annotations

import asyncio
from typing import Final

import google_crc32c
import msgspec

from gputel import limits
from gputel.broker.engine.jetstream.bucket import Bucket
from gputel.broker.engine.producers import Mark, Producers

PARTS: Final = 128
#: Between two snapshots: what a start reads at most.
BLOCKS: Final = 512
BLOCK_BYTES: Final = 16 * limits.MIB


class Saved(msgspec.Struct):
    """Where a snapshot was taken."""

    sequence: int = 0
    next_offset: int = 0


_Part = dict[str, tuple[int, int]]
_PART = msgspec.json.Decoder(_Part)
_SAVED = msgspec.json.Decoder(Saved)

# The largest names, all in one part's fair share, still fit a message.
assert limits.PRODUCERS_PER_PARTITION_MAX // PARTS * (limits.PRODUCER_BYTES_MAX + 64) < limits.MIB


class Marks:
    """The saved producers of one partition."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._touched: set[int] = set()
        self._blocks = 0
        self._size_bytes = 0

    @property
    def due(self) -> bool:
        """Whether enough has changed for a snapshot."""
        return self._blocks >= BLOCKS or self._size_bytes >= BLOCK_BYTES

    @property
    def stale(self) -> bool:
        """Whether anything has changed since the last snapshot."""
        return self._blocks > 0

    def touch(self, producer: str) -> None:
        """A producer's mark has moved."""
        self._touched.add(_part_of(producer))

    def grow(self, size_bytes: int) -> None:
        """The log has a block more."""
        self._blocks += 1
        self._size_bytes += size_bytes

    async def load(self, into: Producers) -> Saved:
        """Bring what is saved into a table."""
        entries = await self._bucket.list(f"{self._prefix}.*", PARTS + 1)
        saved = Saved()
        for key, entry in entries.items():
            if key.endswith(".upto"):
                saved = _SAVED.decode(entry.value)
                continue
            for producer, mark in _PART.decode(entry.value).items():
                into.rebuild(producer, Mark(*mark, 0))
        return saved

    async def save(self, producers: Producers, sequence: int, next_offset: int) -> None:
        """Save a table that holds all blocks up to `sequence`."""
        touched, self._touched = self._touched, set()
        blocks, self._blocks = self._blocks, 0
        self._size_bytes = 0
        try:
            parts: dict[int, _Part] = {part: {} for part in touched}
            for producer, mark in producers.items():
                part = parts.get(_part_of(producer))
                if part is not None:
                    part[producer] = (mark.epoch, mark.sequence)
            await asyncio.gather(*(self._save_part(*part) for part in parts.items()))
            await self._save_place(Saved(sequence, next_offset))
        except BaseException:
            self._touched |= touched
            self._blocks += blocks
            raise

    async def _save_part(self, number: int, part: _Part) -> None:
        key = f"{self._prefix}.{number}"
        while True:
            entry = await self._bucket.get(key)
            if entry is not None:
                for producer, mark in _PART.decode(entry.value).items():
                    part[producer] = max(part.get(producer, mark), mark)
            revision = entry.revision if entry else 0
            if await self._bucket.put(key, msgspec.json.encode(part), revision) is not None:
                return

    async def _save_place(self, place: Saved) -> None:
        key = f"{self._prefix}.upto"
        while True:
            entry = await self._bucket.get(key)
            if entry is not None and _SAVED.decode(entry.value).sequence >= place.sequence:
                return
            revision = entry.revision if entry else 0
            if await self._bucket.put(key, msgspec.json.encode(place), revision) is not None:
                return


def _part_of(producer: str) -> int:
    return int(google_crc32c.value(producer.encode())) % PARTS
