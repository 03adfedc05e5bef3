"""The sink: frames from the broker into PostgreSQL, exactly once.

    consumer --frames--> batch --one transaction a partition--> commit --then--> ack

Never an ack before the commit. PostgreSQL knows where each partition stands: on taking a
partition over, its offset is asked for, and the broker goes on there. While PostgreSQL is
away a worker holds its batch and tries again; the broker keeps the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from gputel import limits
from gputel.broker import BrokerClient, Consumer, Delivery, StartAt
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import BrokerUnavailable, DatabaseUnavailable
from gputel.observe import Health, Telemetry
from gputel.store.claim import Claim, ClaimLost, Claims
from gputel.store.frames import Message
from gputel.store.ingest import Committed, Ingest
from gputel.store.maintain import Maintainer
from gputel.store.settings import SINK_GROUP, StoreSettings

if TYPE_CHECKING:
    from gputel.store import Store

log = logging.getLogger(__name__)

BATCH_BYTES_MAX: Final = 8 * limits.MIB
RETRY_FIRST_S: Final = 0.1
RETRY_LAST_S: Final = 2.0
#: A frame that can't be stored goes to `dead_letter` by our own transaction; the broker
#: must never give one up behind our back, however often a sink dies with it in hand.
DELIVER_ALWAYS: Final = 2**31 - 1


class DeliverySettings(Protocol):
    """The keys of the section `collector` that govern delivery into the store."""

    @property
    def batch_size(self) -> int: ...
    @property
    def max_in_flight(self) -> int: ...
    @property
    def ack_timeout_seconds(self) -> float: ...
    @property
    def worker_count(self) -> int: ...


class Sink:
    """`worker_count` workers, each a member of the broker's group with its own partitions."""

    def __init__(
        self,
        settings: DeliverySettings,
        store: Store,
        store_settings: StoreSettings,
        broker: BrokerClient,
        topic: str,
        telemetry: Telemetry,
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.settings = settings
        self.store = store
        self.broker = broker
        self.topic = topic
        self.clock = clock
        self.ingest = Ingest(store, store_settings, clock)
        self.maintainer = Maintainer(store, store_settings, clock)
        self.done = Committed()
        self.commits = 0
        self.retries = 0
        self.skipped = 0
        self.missing = 0
        self.problem: str | None = None
        self._workers: list[_Worker] = []
        self.observe_commit_s = telemetry.histogram(
            "gputel_sink_commit_seconds", "Time to commit one batch"
        )
        self.observe_delay_s = telemetry.histogram(
            "gputel_sink_delay_seconds", "Time from sealing a frame to its commit"
        )
        self._describe(telemetry, health)

    async def run(self, stop: asyncio.Event) -> None:
        """Store frames until `stop` is set; a batch in hand is finished first."""
        self._workers = [_Worker(self) for _ in range(self.settings.worker_count)]
        async with asyncio.TaskGroup() as group:
            maintenance = group.create_task(self.maintainer.run(), name="sink-maintenance")
            try:
                async with asyncio.TaskGroup() as workers:
                    for worker in self._workers:
                        workers.create_task(worker.run(stop), name="sink-worker")
            finally:
                maintenance.cancel()

    def committed(self, done: Committed, seconds: float) -> None:
        """Account for the transactions of one batch."""
        if not done.transactions:
            return
        self.commits += done.transactions
        self.observe_commit_s(seconds)
        now_ns = self.clock.time_ns()
        for sealed_at_ns in done.sealed_at_ns:
            self.observe_delay_s(max(0, now_ns - sealed_at_ns) / NS_PER_S)
        done.sealed_at_ns = ()
        self.done.add(done)

    def database_is(self, problem: str | None) -> None:
        """Note a change of PostgreSQL's state; it is logged once."""
        if problem and not self.problem:
            log.warning("%s; frames wait in the broker", problem)
        elif self.problem and not problem:
            log.info("PostgreSQL is back")
        self.problem = problem

    def _describe(self, telemetry: Telemetry, health: Health) -> None:
        counter = telemetry.observe_counter
        counter("gputel_sink_frames", "Frames stored", lambda: self.done.frames)
        counter("gputel_sink_rows", "Rows stored", lambda: self.done.rows)
        counter("gputel_sink_chunks", "Chunks stored as they were", lambda: self.done.chunks)
        counter("gputel_sink_processes", "Process samples stored", lambda: self.done.processes)
        counter("gputel_sink_bytes", "Bytes of the frames stored", lambda: self.done.size_bytes)
        counter("gputel_sink_commits", "Transactions committed", lambda: self.commits)
        counter(
            "gputel_sink_repeated_frames",
            "Frames recognised as stored before",
            lambda: self.done.repeated_frames + self.skipped,
        )
        counter(
            "gputel_sink_repeated_rows",
            "Rows recognised as stored before",
            lambda: self.done.repeated_rows,
        )
        counter(
            "gputel_sink_dead_letters",
            "Frames that can't be stored",
            lambda: self.done.dead_letters,
        )
        counter(
            "gputel_sink_missing_frames",
            "Frames that the broker had dropped before they were stored",
            lambda: self.missing,
        )
        counter("gputel_sink_retries", "Transactions tried again", lambda: self.retries)
        self.maintainer.counts.describe(telemetry)
        telemetry.observe_gauge(
            "gputel_store_workers",
            "Nodes over which Citus distributes the tables; 0: plain PostgreSQL",
            lambda: self.store.workers,
        )
        health.ready("database", lambda: self.problem)
        health.ready("broker", self._broker_problem)

    def _broker_problem(self) -> str | None:
        if self._workers and all(worker.connected for worker in self._workers):
            return None
        return f"not connected to the broker at {self.broker.address}"


class _Worker:
    """One member of the group, its claims, and its loop."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._claims = Claims(sink.store, sink.clock)
        self._owned: set[int] = set()  # what the broker has assigned to us
        self._held: dict[int, Claim] = {}
        self._consumer: Consumer | None = None
        self._log_name = ""

    @property
    def connected(self) -> bool:
        return self._consumer is not None and self._consumer.connected

    async def run(self, stop: asyncio.Event) -> None:
        sink = self._sink
        consumer = sink.broker.consumer(
            sink.topic,
            group=SINK_GROUP,
            ack_timeout_s=sink.settings.ack_timeout_seconds,
            messages=sink.settings.max_in_flight,
            start_at=StartAt.EARLIEST,
            max_deliver=DELIVER_ALWAYS,
            on_assign=self._assigned,
            on_revoke=self._revoked,
        )
        self._consumer = consumer
        stopped = asyncio.create_task(stop.wait(), name="sink-stop")
        try:
            async with consumer:
                deliveries = aiter(consumer)
                while not stop.is_set():
                    batch = await self._gather(consumer, deliveries, stopped)
                    for partition in sorted({delivery.partition for delivery in batch}):
                        mine = [d for d in batch if d.partition == partition]
                        await self._store(consumer, partition, mine, stop)
        finally:
            stopped.cancel()
            await self._claims.close()

    async def _gather(
        self, consumer: Consumer, deliveries: AsyncIterator[Delivery], stopped: asyncio.Task[bool]
    ) -> list[Delivery]:
        """What is waiting, at least one delivery, within `batch_size`; empty on stop."""
        first = asyncio.ensure_future(anext(deliveries))
        try:
            await asyncio.wait({first, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not first.done():
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
        if first.cancelled():
            return []
        batch = [first.result()]
        size_bytes = len(batch[0].payload)
        while (
            consumer.waiting_messages
            and len(batch) < self._sink.settings.batch_size
            and size_bytes < BATCH_BYTES_MAX
        ):
            batch.append(await anext(deliveries))
            size_bytes += len(batch[-1].payload)
        return batch

    async def _assigned(self, partition: int) -> int | None:
        """PostgreSQL says where to go on; waits for it, and for the sink that had it before."""
        self._owned.add(partition)
        claim = await self._claim(partition, lambda: True)
        return claim.next_offset if claim else None

    async def _revoked(self, partition: int) -> None:
        self._owned.discard(partition)
        self._held.pop(partition, None)
        await self._claims.release(self._log_name, partition)

    async def _claim(self, partition: int, wanted: Callable[[], bool]) -> Claim | None:
        """Wait for the claim; None as soon as the partition is another member's, or not `wanted`.

        Without that, a worker would wait for ever for what another sink rightly has, and
        its other partitions with it.
        """

        def still() -> bool:
            return partition in self._owned and wanted()

        delay_s = RETRY_FIRST_S
        while still():
            try:
                self._log_name = await self._name_of_log()
                claim = await self._claims.acquire(self._log_name, partition, still)
            except DatabaseUnavailable as error:
                self._sink.database_is(str(error))
            except BrokerUnavailable as error:
                log.debug("%s", error)
            else:
                self._sink.database_is(None)
                if claim is not None:
                    self._held[partition] = claim
                return claim
            await self._sink.clock.sleep(delay_s)
            delay_s = min(delay_s * 2, RETRY_LAST_S)
        return None

    async def _name_of_log(self) -> str:
        """The topic with the id of its log: a broker that lost its disk begins a new one."""
        for topic in await self._sink.broker.topics():
            if topic.name == self._sink.topic:
                return f"{topic.name}@{topic.id}"
        raise BrokerUnavailable(f"the broker does not know topic {self._sink.topic!r} yet")

    async def _store(
        self, consumer: Consumer, partition: int, batch: Sequence[Delivery], stop: asyncio.Event
    ) -> None:
        """Commit a batch of one partition and acknowledge it, as often as it takes."""
        delay_s = RETRY_FIRST_S
        deliveries = sorted({d.offset: d for d in batch}.values(), key=lambda d: d.offset)
        while partition in self._owned:
            claim = self._held.get(partition)
            try:
                if claim is None:
                    claim = await self._claim(partition, lambda: not stop.is_set())
                if claim is None:
                    return
                await self._commit(claim, deliveries)
                break
            except ClaimLost as error:
                log.info("%s", error)
                self._held.pop(partition, None)
                await self._claims.release(self._log_name, partition)
            except DatabaseUnavailable as error:
                self._sink.database_is(str(error))
                self._held.pop(partition, None)  # whether it was committed is unknown: ask
            self._sink.retries += 1
            if stop.is_set():
                return  # unacknowledged: the broker delivers it again
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), delay_s)
            delay_s = min(delay_s * 2, RETRY_LAST_S)
        else:
            return  # another member has it now
        await consumer.ack(partition, [delivery.offset for delivery in batch])

    async def _commit(self, claim: Claim, deliveries: Sequence[Delivery]) -> None:
        new = [d for d in deliveries if d.offset >= claim.next_offset]
        self._sink.skipped += len(deliveries) - len(new)
        if not new:
            return
        # The broker numbers without holes: what is missing fell to its retention.
        self._sink.missing += new[-1].offset + 1 - claim.next_offset - len(new)
        messages = [Message(d.offset, d.producer, d.epoch, d.sequence, d.payload) for d in new]
        started_ns = self._sink.clock.monotonic_ns()
        done = Committed()
        try:
            await self._sink.ingest.commit(claim, messages, done)
        finally:
            elapsed_s = (self._sink.clock.monotonic_ns() - started_ns) / NS_PER_S
            self._sink.committed(done, elapsed_s)
        self._sink.database_is(None)
