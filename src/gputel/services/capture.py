"""`gputel capture`: the frames of a running pipeline into a file that `gputel replay` plays.

Frames are taken from the broker as they are, by offset; no group of consumers notices. What
is known of the GPUs is told once a minute, so reading begins a little earlier and takes
nothing but that from the frames before `since`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

from gputel import broker, limits, wire
from gputel.broker import BrokerClient
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.config import Config
from gputel.errors import FrameCorrupt, InputError, NotFound
from gputel.services.state import running_broker
from gputel.wire import capture as layout

INVENTORY_SPAN_NS: Final = 65 * NS_PER_S  # inventory is told every 60 s
POLL_S: Final = 0.25
PROGRESS_NS: Final = 2 * NS_PER_S


@dataclass(slots=True)
class Progress:
    """What is in the file so far. `skipped_frames` were damaged, or no frames."""

    frames: int = 0
    size_bytes: int = 0
    skipped_frames: int = 0
    #: Frames that the broker's retention took before they could be read.
    missing_frames: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Frames stored from `since` to `until` (None: without end), of `nodes` (empty: all)."""

    since: datetime
    until: datetime | None
    nodes: frozenset[str] = frozenset()


async def capture(
    config: Config,
    output: Path,
    wanted: Wanted,
    stop: asyncio.Event,
    *,
    force: bool,
    told: Callable[[Progress], None],
    clock: Clock = SYSTEM_CLOCK,
) -> Progress:
    """Write the file until `stop` is set or `wanted` is over. It is whole and durable then.

    InputError: the file exists (unless `force`) or can't be written. BrokerUnavailable,
    NotFound: nothing to take frames from.
    """
    client = await broker.connect(running_broker(config))
    progress = Progress()
    try:
        taker = _Taker(client, config.message_queue.topic, wanted, progress, clock)
        await taker.start()
        with _create(output, force=force) as file:
            taker.write(file, layout.MAGIC)
            await taker.run(file, stop, told)
    finally:
        await client.close()
    return progress


@contextlib.contextmanager
def _create(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    try:
        with path.open("wb" if force else "xb", buffering=limits.MIB) as file:
            try:
                yield file
            finally:
                file.flush()
                os.fsync(file.fileno())
    except FileExistsError:
        raise InputError(f"{path}: exists already", hint="--force overwrites it") from None
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", hint="what was written before it can be replayed"
        ) from None


class _Taker:
    """Follows the partitions of a topic."""

    def __init__(
        self, client: BrokerClient, topic: str, wanted: Wanted, progress: Progress, clock: Clock
    ) -> None:
        self._client = client
        self._topic = topic
        self._wanted = wanted
        self._since_ns = _nanoseconds(wanted.since)
        self._until_ns = None if wanted.until is None else _nanoseconds(wanted.until)
        self._progress = progress
        self._clock = clock
        self._offsets: dict[int, int] = {}
        self._over: set[int] = set()  # partitions that are read beyond `until`

    async def start(self) -> None:
        """Find where to begin. NotFound: no such topic."""
        for topic in await self._client.topics():
            if topic.name == self._topic:
                for of in topic.partitions:
                    self._offsets[of.partition] = await self._offset_at(
                        of.partition, of.first_offset, of.next_offset
                    )
                return
        raise NotFound(f"the broker has no topic {self._topic!r}")

    async def _offset_at(self, partition: int, first: int, end: int) -> int:
        """The first message that is new enough to be read, by bisection."""
        begin_ns = self._since_ns - INVENTORY_SPAN_NS
        while first < end:
            middle = (first + end) // 2
            found = (await self._client.fetch(self._topic, partition, middle, 1)).deliveries
            if found and found[0].stored_at_ns < begin_ns:
                first = middle + 1
            else:
                end = middle
        return first

    async def run(
        self, file: BinaryIO, stop: asyncio.Event, told: Callable[[Progress], None]
    ) -> None:
        """Until `stop` is set, or `until` has passed and all before it is read."""
        told_ns = self._clock.monotonic_ns()
        while not stop.is_set():
            past = self._until_ns is not None and self._clock.time_ns() >= self._until_ns
            moved = False
            for partition in self._offsets.keys() - self._over:
                moved |= await self._step(file, partition)
            now_ns = self._clock.monotonic_ns()
            if now_ns - told_ns >= PROGRESS_NS:
                told_ns = now_ns
                told(self._progress)
            if moved:
                continue
            if past:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_S)

    async def _step(self, file: BinaryIO, partition: int) -> bool:
        """Take one answer's worth; False when there was nothing new."""
        offset = self._offsets[partition]
        fetched = await self._client.fetch(self._topic, partition, offset)
        if fetched.next_offset == offset:
            return False
        self._offsets[partition] = fetched.next_offset
        self._progress.missing_frames += fetched.next_offset - offset - len(fetched.deliveries)
        for delivery in fetched.deliveries:
            if self._until_ns is not None and delivery.stored_at_ns >= self._until_ns:
                self._over.add(partition)
                return True
            self._take(file, delivery.payload, delivery.stored_at_ns)
        return True

    def _take(self, file: BinaryIO, payload: bytes, stored_at_ns: int) -> None:
        try:
            frame = wire.decode_frame(payload)
        except FrameCorrupt:
            self._progress.skipped_frames += 1
            return
        if self._wanted.nodes and frame.node not in self._wanted.nodes:
            return
        if stored_at_ns < self._since_ns:
            if not frame.inventory:
                return
            payload = wire.encode_frame(replace(frame, gpus=(), events=()))
        self.write(file, layout.record_head(payload) + payload)
        self._progress.frames += 1

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Append to the file. OSError."""
        file.write(data)
        self._progress.size_bytes += len(data)


def _nanoseconds(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000) * 1000
