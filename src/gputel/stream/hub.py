"""The hub: reads the broker's topic as an observer and feeds every subscription.

An observer has no group: it gets every partition from now on, acknowledges nothing, and
can never slow a producer or another consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from gputel import wire
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import FrameCorrupt
from gputel.observe import Health, Telemetry
from gputel.stream import protocol
from gputel.stream.board import Board
from gputel.stream.client import CLOSE_GOING_AWAY, Client
from gputel.stream.feed import Feed, Slot
from gputel.stream.protocol import Selection
from gputel.stream.settings import StreamSettings

if TYPE_CHECKING:
    from gputel.broker import BrokerClient, Consumer

log = logging.getLogger(__name__)

WATCH_PERIOD_S: Final = 0.25
STOP_GRACE_S: Final = 2.0
LIVE: Final = "live"
RECONNECTING: Final = "reconnecting"


class Hub:
    """The state that all clients share. Use `start` and `stop`."""

    def __init__(
        self,
        settings: StreamSettings,
        broker: BrokerClient,
        topic: str,
        telemetry: Telemetry,
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings
        self.clients: set[Client] = set()
        self.board = Board()
        self._broker = broker
        self._topic = topic
        self._clock = clock
        self._feeds: dict[Selection, Feed] = {}
        self._consumer: Consumer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        #: As clients were told last: `live` while frames can arrive, else `reconnecting`.
        self.source = RECONNECTING
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._messages = 0
        self._bytes = 0
        self._conflated = 0  # of feeds that are gone
        self._frames = 0
        self._corrupt_frames = 0
        self._cut_off: dict[str, int] = {}
        self._observe_delay = telemetry.histogram(
            "gputel_stream_delay_seconds", "Time from sealing a frame to having it here"
        )
        self._describe(telemetry)
        health.ready("broker", self._broker_problem)
        health.live("hub", self._task_problem)

    def _source_now(self) -> str:
        connected = self._consumer is not None and self._consumer.connected
        return LIVE if connected else RECONNECTING

    async def start(self) -> None:
        """Begin to read; the broker may be away."""
        self._tasks = [
            asyncio.create_task(self._consume(), name="stream-consume"),
            asyncio.create_task(self._watch(), name="stream-watch"),
        ]

    async def stop(self) -> None:
        """Say goodbye to the clients and stop reading."""
        for client in tuple(self.clients):
            client.end(CLOSE_GOING_AWAY, "the streamer stops")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S):
                await self._nobody.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for feed in self._feeds.values():
            feed.close()

    def full(self) -> bool:
        """Are there as many clients as may be?"""
        return len(self.clients) >= self.settings.clients_max

    def refuse(self, reason: str) -> None:
        """Count a client that was turned away."""
        self._cut_off[reason] = self._cut_off.get(reason, 0) + 1

    async def serve(self, client: Client) -> None:
        """Serve `client` until it ends."""
        self.clients.add(client)
        self._nobody.clear()
        try:
            await client.serve()
        finally:
            self.clients.discard(client)
            if not self.clients:
                self._nobody.set()
            if client.cut_off is not None:
                self.refuse(client.cut_off)

    def join(self, id: str, selection: Selection, wake: asyncio.Event) -> Slot:
        """A slot in the feed of `selection`."""
        feed = self._feeds.get(selection)
        if feed is None:
            feed = self._feeds[selection] = Feed(selection, self.board, self._clock)
        slot = Slot(id, feed, wake)
        feed.slots.add(slot)
        return slot

    def leave(self, slot: Slot) -> None:
        """Give a slot back; the last one closes the feed."""
        feed = slot.feed
        feed.slots.discard(slot)
        if not feed.slots and self._feeds.get(feed.selection) is feed:
            feed.close()
            self._conflated += feed.conflated
            del self._feeds[feed.selection]

    def sent(self, size_chars: int) -> None:
        """Count one message of `size_chars` characters (JSON text, almost all ASCII)."""
        self._messages += 1
        self._bytes += size_chars

    def publish(self, payload: bytes) -> None:
        """Take one frame's bytes and pass on what it brings."""
        try:
            frame = wire.decode_frame(payload)
        except FrameCorrupt:
            self._corrupt_frames += 1
            return
        self._frames += 1
        self._observe_delay(max(self._clock.time_ns() - frame.sealed_at_ns, 0) / NS_PER_S)
        feeds = self._feeds.values()
        changes = self.board.apply(frame, lambda state: any(feed.wants(state) for feed in feeds))
        for feed in feeds:
            feed.add(changes)

    async def _consume(self) -> None:
        async with self._broker.consumer(self._topic) as consumer:
            self._consumer = consumer
            async for delivery in consumer:
                self.publish(delivery.payload)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_PERIOD_S)
            if self.source != self._source_now():
                self.source = self._source_now()
                log.info("the broker is %s", "here" if self.source == LIVE else "away")
                for client in tuple(self.clients):
                    client.tell(protocol.status(self.source, self._clock.time_ns()))

    def _broker_problem(self) -> str | None:
        return None if self._source_now() == LIVE else "not connected to the broker"

    def _task_problem(self) -> str | None:
        stopped = [task.get_name() for task in self._tasks if task.done()]
        return f"stopped: {', '.join(stopped)}" if stopped else None

    def _describe(self, telemetry: Telemetry) -> None:
        telemetry.observe_gauge(
            "gputel_stream_clients", "Connected clients", lambda: len(self.clients)
        )
        telemetry.observe_gauge(
            "gputel_stream_subscriptions", "Distinct subscriptions", lambda: len(self._feeds)
        )
        telemetry.observe_gauge(
            "gputel_stream_gpus", "GPUs whose latest values are held", lambda: len(self.board.gpus)
        )
        telemetry.observe_counter(
            "gputel_stream_frames", "Frames taken from the broker", lambda: self._frames
        )
        telemetry.observe_counter(
            "gputel_stream_messages", "Messages sent to clients", lambda: self._messages
        )
        telemetry.observe_counter(
            "gputel_stream_bytes", "Bytes of messages sent to clients", lambda: self._bytes
        )
        telemetry.observe_counter(
            "gputel_stream_conflated_updates",
            "Updates that slow clients skipped for a newer state",
            lambda: self._conflated + sum(feed.conflated for feed in self._feeds.values()),
        )
        telemetry.observe_counter(
            "gputel_stream_cut_off_clients",
            "Clients turned away or cut off, by reason",
            lambda: [(n, {"reason": reason}) for reason, n in self._cut_off.items()],
        )
        telemetry.observe_counter(
            "gputel_stream_discarded",
            "What could not be used, by place and reason",
            lambda: [
                (self._corrupt_frames, {"place": "frame", "reason": "corrupt"}),
                (self.board.corrupt_chunks, {"place": "chunk", "reason": "corrupt"}),
                (self.board.refused_gpus, {"place": "gpu", "reason": "too_many"}),
            ],
        )
