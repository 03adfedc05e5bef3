"""The cluster engine: a broker that keeps nothing itself.

    stream   <ns>_<topic>_<partition>        subject <ns>.log.<topic>.<partition>: blocks
    headers  <ns>.committed.<topic>.<partition>     of every stored block, to all brokers
    bucket   <ns>: topic.<topic>, marks.<topic>.<partition>.*, group.<topic>.<group>
    words    <ns>.epoch    a producer was opened: older epochs of it are fenced

A topic's '.' is written '=' in these names. Brokers of one namespace are interchangeable.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec
from nats.aio.msg import Msg

from gputel import limits
from gputel.broker.background import Background
from gputel.broker.engine import NoRoom
from gputel.broker.engine.jetstream import block
from gputel.broker.engine.jetstream.block import Head
from gputel.broker.engine.jetstream.bucket import Bucket
from gputel.broker.engine.jetstream.cluster import NOT_ENABLED, Cluster, Refused
from gputel.broker.engine.jetstream.marks import Marks
from gputel.broker.engine.jetstream.partition import STORED_BYTES, Partition
from gputel.broker.engine.jetstream.reader import Blocks
from gputel.broker.engine.jetstream.shares import Shares
from gputel.broker.engine.memory import Backlog
from gputel.broker.engine.producers import Opened
from gputel.broker.settings import BrokerSettings
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import BrokerUnavailable, InputError, LogCorrupt
from gputel.observe import Health, Telemetry

log = logging.getLogger(__name__)

START_NS: Final = 60 * NS_PER_S
START_RETRY_S: Final = 0.2
THROTTLE_MS: Final = 250
TEND_S: Final = 1.0
TEND_ALL_EVERY: Final = 10  # rounds; in the others only what is in use is looked at
STOP_S: Final = 5.0


class _TopicFacts(msgspec.Struct):
    id: str
    partitions: int


class Topic:
    """See `TopicLog`."""

    def __init__(
        self, name: str, id: str, partitions: tuple[Partition, ...], engine: JetStreamEngine
    ) -> None:
        self.name = name
        self.id = id
        self._partitions = partitions
        self._engine = engine
        self.opened = Opened(name)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        return self._partitions

    async def open_producer(self, producer: str, epoch: int) -> int:
        # What other brokers have stored of it counts.
        await asyncio.gather(*(partition.catch_up() for partition in self._partitions))
        self.opened.open(producer, epoch, self.newest_epoch(producer))
        await self._engine.announce_epoch(self.name, producer, epoch)
        durable = []
        for partition in self._partitions:
            mark = partition.durable.get(producer)
            known = mark is not None and mark.epoch == epoch
            durable.append(mark.sequence if known and mark is not None else 0)
        return min(durable)

    def newest_epoch(self, producer: str) -> int:
        marks = [partition.durable.get(producer) for partition in self._partitions]
        stored = max((mark.epoch for mark in marks if mark is not None), default=0)
        return max(stored, self.opened.get(producer))


class JetStreamEngine:
    """Topics in a NATS cluster. See `Engine`."""

    def __init__(self, settings: BrokerSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._clock = clock
        self._namespace = settings.jetstream.namespace
        self.name = uuid.uuid4().hex[:12]
        self._background = Background()
        self.cluster = Cluster(settings.jetstream, f"gputel-broker-{self.name}")
        self._bucket = Bucket(self.cluster, self._namespace, settings.jetstream.replicas)
        self._shares = Shares(self._bucket, self.cluster, self._namespace, self.name, clock)
        self._topics: dict[str, Topic] = {}
        self._streams: dict[str, Partition] = {}
        self._opening = asyncio.Lock()
        self._backlog = Backlog()
        self._blocks = Blocks()
        self._tending: asyncio.Task[None] | None = None

    @property
    def sharing(self) -> Shares:
        return self._shares

    @property
    def topics(self) -> Mapping[str, Topic]:
        return self._topics

    async def start(self) -> None:
        """Connect, and open all topics. BrokerUnavailable, InputError."""
        self.cluster.on_change = self._on_change
        await self.cluster.connect()
        try:
            await self._patiently(self._bucket.open)
            await self.cluster.subscribe(f"{self._namespace}.committed.>", self._on_committed)
            await self.cluster.subscribe(f"{self._namespace}.epoch", self._on_epoch)
            await self._shares.start()
            for event in ("LEADER_ELECTED", "QUORUM_LOST"):
                subject = f"$JS.EVENT.ADVISORY.STREAM.{event}.*"
                await self.cluster.subscribe(subject, self._on_leader)
            await self._patiently(self._open_known)
        except Refused as refused:
            await self.stop()
            raise _as_input(refused) from None
        except BaseException:
            await self.stop()
            raise
        self._tending = self._background.start(self._tend(), "jetstream-tend")

    async def _patiently(self, step: Callable[[], Awaitable[None]]) -> None:
        """A step of the start; a cluster that starts beside us has no leaders yet."""
        deadline_ns = self._clock.monotonic_ns() + START_NS
        while True:
            try:
                return await step()
            except BrokerUnavailable as error:
                # Also what is refused may pass: a server that has just begun knows no streams.
                if isinstance(error, Refused) and error.number in NOT_ENABLED:
                    raise
                if self._clock.monotonic_ns() >= deadline_ns:
                    raise BrokerUnavailable(
                        str(error),
                        hint="does nats-server run with JetStream, and a majority of it?",
                    ) from None
                log.debug("tried again: %s", error)
            await self._clock.sleep(START_RETRY_S)

    async def stop(self) -> None:
        if self._tending is not None:
            await self._background.stop(self._tending)
            self._tending = None
        partitions = list(self._streams.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*map(_until_idle, partitions))
                with contextlib.suppress(BrokerUnavailable):
                    await asyncio.gather(*(of.save_marks() for of in partitions if not of.failure))
        await asyncio.gather(*(partition.close() for partition in partitions))
        await self.cluster.close()
        self._topics.clear()
        self._streams.clear()

    # -- topics ------------------------------------------------------------------------

    async def open_topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is not None:
            return topic
        async with self._opening:
            topic = self._topics.get(name)
            if topic is not None:
                return topic
            return await self._open(name, await self._facts(name))

    async def find_topic(self, name: str) -> Topic | None:
        topic = self._topics.get(name)
        if topic is not None or await self._bucket.get(f"topic.{encode(name)}") is None:
            return topic
        return await self.open_topic(name)

    async def _facts(self, name: str) -> _TopicFacts:
        """What the bucket says of a topic; a new one is entered, by whoever comes first."""
        key = f"topic.{encode(name)}"
        while True:
            entry = await self._bucket.get(key)
            if entry is not None:
                return msgspec.json.decode(entry.value, type=_TopicFacts)
            if len(await self._bucket.list("topic.*", limits.TOPICS_MAX + 1)) >= limits.TOPICS_MAX:
                raise NoRoom(f"this broker holds {limits.TOPICS_MAX} topics, the most it may")
            facts = _TopicFacts(uuid.uuid4().hex, self._settings.partitions)
            if await self._bucket.put(key, msgspec.json.encode(facts), 0) is not None:
                return facts

    async def _open(self, name: str, facts: _TopicFacts) -> Topic:
        partitions = tuple(self._partition(name, index) for index in range(facts.partitions))
        await asyncio.gather(*map(self._create_stream, partitions))
        try:
            await asyncio.gather(*(partition.open() for partition in partitions))
        except BaseException:
            await asyncio.gather(*(partition.close() for partition in partitions))
            raise
        topic = Topic(name, facts.id, partitions, self)
        self._topics[name] = topic
        self._streams.update({partition.stream: partition for partition in partitions})
        # What was stored between opening and being known here went by unheard.
        await asyncio.gather(*(partition.catch_up() for partition in partitions))
        return topic

    def _partition(self, topic: str, index: int) -> Partition:
        word = encode(topic)
        return Partition(
            topic,
            index,
            f"{self._namespace}_{word}_{index}",
            f"{self._namespace}.log.{word}.{index}",
            self.cluster,
            Marks(self._bucket, f"marks.{word}.{index}"),
            background=self._background,
            clock=self._clock,
            backlog=self._backlog,
            blocks=self._blocks,
            writer_name=self.name,
        )

    async def _create_stream(self, of: Partition) -> None:
        subject = of.subject
        # Without `max_bytes`, which a server reserves at once: brokers purge what is too much.
        config = {
            "name": of.stream,
            "subjects": [subject],
            "storage": "file",
            "num_replicas": self._settings.jetstream.replicas,
            "retention": "limits",
            "discard": "old",
            "allow_direct": True,
            "republish": {
                "src": subject,
                "dest": subject.replace(".log.", ".committed.", 1),
                "headers_only": True,
            },
        }
        await self.cluster.create(config)

    async def _open_known(self) -> None:
        known = await self._bucket.list("topic.*", limits.TOPICS_MAX)
        for key in sorted(known):
            await self.open_topic(decode(key.removeprefix("topic.")))

    async def refresh(self) -> None:
        await self._open_known()
        await asyncio.gather(*(partition.catch_up() for partition in self._streams.values()))

    # -- what is heard -----------------------------------------------------------------

    async def _on_committed(self, message: Msg) -> None:
        headers = message.headers or {}
        partition = self._streams.get(headers.get("Nats-Stream", ""))
        if partition is None:
            return
        sequence = int(headers["Nats-Sequence"])
        try:
            head = Head.decode(headers.get(block.HEAD))
        except LogCorrupt:
            partition.follow(sequence)
            return
        size_bytes = int(headers.get("Nats-Msg-Size", 0)) + len(headers[block.HEAD]) + STORED_BYTES
        partition.fold(sequence, head, size_bytes)

    async def _on_epoch(self, message: Msg) -> None:
        with contextlib.suppress(ValueError, TypeError):
            name, producer, epoch = json.loads(message.data)
            topic = self._topics.get(name)
            if topic is not None:
                topic.opened.hear(str(producer), int(epoch))
                for partition in topic.partitions:
                    partition.notify()

    async def announce_epoch(self, topic: str, producer: str, epoch: int) -> None:
        """Fence older epochs at the other brokers; the log itself is the last fence."""
        word = json.dumps([topic, producer, epoch]).encode()
        await self.cluster.announce(f"{self._namespace}.epoch", word)

    async def _on_leader(self, message: Msg) -> None:
        partition = self._streams.get(message.subject.rpartition(".")[2])
        if partition is not None:
            partition.interrupt()

    def _on_change(self) -> None:
        for partition in self._streams.values():
            partition.interrupt()
            partition.notify()

    # -- the rest of the seam ----------------------------------------------------------

    async def until_failed(self) -> str:
        # The cluster mends itself.
        return await self._background.until_ended()

    def throttle_ms(self) -> int:
        stalled = any(partition.writer.stalled for partition in self._streams.values())
        return THROTTLE_MS if stalled or not self.cluster.connected else 0

    async def room(self) -> None:
        await self._backlog.room()

    async def load_positions(self) -> Mapping[tuple[str, str], Mapping[int, int]]:
        return {
            key: share.positions for key, share in (await self._shares.groups(self._topics)).items()
        }

    async def save_positions(self, topic: str, group: str, positions: Mapping[int, int]) -> None:
        raise AssertionError("positions are kept with the share of a group")

    def observe(self, telemetry: Telemetry, health: Health) -> None:
        count, level = telemetry.observe_counter, telemetry.observe_gauge
        level(
            "gputel_broker_cluster_connected",
            "Whether a NATS server is connected",
            lambda: int(self.cluster.connected),
        )
        count(
            "gputel_broker_cluster_reconnects",
            "Connections to NATS servers that were lost and made anew",
            lambda: self.cluster.reconnects,
        )
        count(
            "gputel_broker_conflicts",
            "Blocks that another broker's came before",
            lambda: sum(partition.writer.conflicts for partition in self._streams.values()),
        )
        health.live("engine", lambda: self._background.problem or None)
        health.ready("cluster", self._check_cluster)

    def _check_cluster(self) -> str | None:
        if not self.cluster.connected:
            return "no NATS server is connected"
        stalled = [p.name for p in self._streams.values() if p.writer.stalled]
        return f"the cluster does not store now: {', '.join(stalled)}" if stalled else None

    async def _tend(self) -> None:
        round_ = 0
        while True:
            await self._clock.sleep(TEND_S)
            round_ += 1
            after_ns = self._clock.time_ns() - self._settings.retention_seconds * NS_PER_S
            for partition in tuple(self._streams.values()):
                if partition.watched or round_ % TEND_ALL_EVERY == 0:
                    try:
                        await partition.tend(self._settings.retention_bytes, after_ns)
                    except BrokerUnavailable as error:
                        log.debug("partition %s: %s", partition.name, error)


async def _until_idle(of: Partition) -> None:
    changed = asyncio.Event()
    of.watch(changed.set)
    try:
        while not of.writer.idle and not of.failure:
            changed.clear()
            await changed.wait()
    finally:
        of.unwatch(changed.set)


def encode(topic: str) -> str:
    """A topic as one word of a subject."""
    return topic.replace(".", "=")


def decode(word: str) -> str:
    """The topic of a word."""
    return word.replace("=", ".")


def _as_input(refused: Refused) -> InputError | Refused:
    if refused.number in NOT_ENABLED:
        return InputError(
            f"broker.jetstream: {refused}",
            hint="start nats-server with JetStream enabled (-js, or a `jetstream` block)",
        )
    return refused
