"""What no consumer could process: the whole payload goes to `<topic>.dlq` with the reason."""

from __future__ import annotations

import asyncio
import logging

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.engine import Engine, PartitionFailed, Record
from gputel.broker.names import dead_letters

log = logging.getLogger(__name__)


class DeadLetters:
    """Stores dead letters durably, and counts them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.stored = 0
        self.discarded = 0  # dead letters of a topic of dead letters have no place to go

    async def store(
        self, topic: str, partition: int, group: str, record: Record, reason: str, attempts: int
    ) -> None:
        """Return when the message is durable among the dead letters of its topic."""
        log.warning(
            "group %s gives up %s/%d offset %d: %s", group, topic, partition, record.offset, reason
        )
        name = dead_letters(topic)
        if name is None:
            self.discarded += 1
            return
        letter = mq.DeadLetter(
            topic=topic,
            partition=partition,
            offset=record.offset,
            group=group,
            reason=reason.encode()[: limits.DEAD_REASON_BYTES_MAX].decode(errors="ignore"),
            attempts=attempts,
            stored_at_ns=record.stored_at_ns,
            producer=record.producer,
            epoch=record.epoch,
            sequence=record.sequence,
            key=record.key.decode(errors="replace"),
            payload=record.payload,
        )
        dead = await self._engine.open_topic(name)
        plog = dead.partitions[partition % len(dead.partitions)]
        ticket = plog.append(
            f"dlq:{group}",
            1,
            record.offset + 1,
            record.key,
            letter.SerializeToString(),
            repeatable=False,
        )
        changed = asyncio.Event()
        plog.watch(changed.set)
        try:
            while not plog.is_durable(ticket):
                if plog.failure:
                    raise PartitionFailed(f"partition {name}/{plog.index}: {plog.failure}")
                await changed.wait()
                changed.clear()
        finally:
            plog.unwatch(changed.set)
        self.stored += 1
