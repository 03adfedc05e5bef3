"""A JetStream cluster in memory: compare-and-set, and whatever may go wrong on the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from gputel.broker.engine.jetstream.cluster import Refused, Stored, StreamState
from gputel.errors import BrokerUnavailable


@dataclass
class FakeStream:
    """Messages 1 to n; the first may be gone."""

    messages: list[Stored] = field(default_factory=list)
    last_sequence: int = 0

    def store(self, headers: dict[str, str], data: bytes) -> int:
        expected = headers.get("Nats-Expected-Last-Sequence")
        if expected is not None and int(expected) != self.last_sequence:
            raise Refused("store", {"err_code": 10071, "description": "wrong last sequence"})
        return self.force(headers, data)

    def force(self, headers: dict[str, str], data: bytes) -> int:
        self.last_sequence += 1
        headers = headers | {"Nats-Sequence": str(self.last_sequence)}
        self.messages.append(Stored(self.last_sequence, headers, data))
        return self.last_sequence


class FakeCluster:
    """What `Cluster` does for a partition and a bucket. `draw` decides what goes wrong."""

    def __init__(self, streams: dict[str, FakeStream], draw: random.Random | None = None) -> None:
        self.streams = streams
        self.connected = True
        self.well = draw is None
        self._draw = draw or random.Random(0)
        self._late: set[asyncio.Task[None]] = set()
        self.published = 0

    def _chance(self, chance: float) -> bool:
        return not self.well and self._draw.random() < chance

    async def _travel(self) -> None:
        for _ in range(self._draw.randint(0, 3)):
            await asyncio.sleep(0)
        if self._chance(0.05):
            raise BrokerUnavailable("lost on the way")

    async def publish(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        stream = self.streams[subject]
        self.published += 1
        await self._travel()
        if self._chance(0.03):
            # It arrives when nobody waits for it any more.
            task = asyncio.create_task(self._arrive_late(stream, headers, data))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            raise BrokerUnavailable("no answer")
        sequence = stream.store(headers, data)
        await self._travel()
        return sequence

    async def _arrive_late(self, stream: FakeStream, headers: dict[str, str], data: bytes) -> None:
        await asyncio.sleep(self._draw.random() * 0.02)
        with contextlib.suppress(Refused):
            stream.store(headers, data)

    async def state(self, stream: str, *, timeout_s: float = 0) -> StreamState:
        await self._travel()
        of = self.streams[stream]
        first = of.messages[0].sequence if of.messages else of.last_sequence + 1
        size_bytes = sum(
            len(message.data)
            + sum(len(name) + len(value) for name, value in message.headers.items())
            for message in of.messages
        )
        return StreamState(first, of.last_sequence, len(of.messages), size_bytes)

    async def read(
        self, stream: str, subject: str, sequence: int, messages: int, size_bytes: int
    ) -> list[Stored]:
        await self._travel()
        found: list[Stored] = []
        taken = 0
        for message in self.streams[stream].messages:
            if message.sequence < sequence:
                continue
            taken += len(message.data)
            if found and (len(found) >= messages or taken > size_bytes):
                break
            found.append(message)
        return found

    async def call(self, operation: str, body: Any = None) -> dict[str, Any]:
        await self._travel()
        kind, name = operation.rsplit(".", 1)
        assert kind == "STREAM.PURGE"
        of = self.streams[name]
        of.messages = [message for message in of.messages if message.sequence >= body["seq"]]
        return {}


class FakeBucket:
    """A bucket that never fails."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[bytes, int]] = defaultdict(lambda: (b"", 0))

    async def get(self, key: str) -> Any:
        from gputel.broker.engine.jetstream.bucket import Entry

        value, revision = self.values[key]
        return Entry(value, revision) if revision else None

    async def put(self, key: str, value: bytes, revision: int) -> int | None:
        if self.values[key][1] != revision:
            return None
        self.values[key] = (value, revision + 1)
        return revision + 1

    async def list(self, pattern: str, entries_max: int) -> dict[str, Any]:
        from gputel.broker.engine.jetstream.bucket import Entry

        return {k: Entry(*v) for k, v in self.values.items() if fnmatchcase(k, pattern) and v[1]}
