"""Burying messages: what can't be processed goes to `<topic>.dlq`, whole and with the reason."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import names
from gputel.broker.cursor import Dead
from gputel.broker.engine import Engine, PartitionFailed, PartitionLog, Record
from gputel.broker.groups import Group
from gputel.errors import GputelError

log = logging.getLogger(__name__)

#: The producer of all dead letters.
PRODUCER: Final = "gputel.dead-letters"


class Undertaker:
    """Moves what groups have given up. Counts what it does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._digging = asyncio.Lock()  # two calls would bury one message twice
        self.buried = 0
        self.discarded = 0  # given up by a reader of dead letters: there is no further place
        self.lost = 0  # deleted by retention, or damaged, before they could be moved

    async def bury(self, group: Group) -> None:
        """Bury what `group` has given up by now, in that order.

        What fails stays given up for the next call.
        """
        async with self._digging:
            for partition, cursor in enumerate(group.cursors):
                while cursor.dead:
                    dead = cursor.dead[0]
                    if not await self._try(group, partition, dead):
                        return
                    cursor.buried(dead.offset)

    async def _try(self, group: Group, partition: int, dead: Dead) -> bool:
        try:
            await self._bury(group, partition, dead)
        except (GputelError, OSError) as error:
            log.error(
                "%s/%d: can't move offset %d to the dead letters yet: %s",
                group.topic,
                partition,
                dead.offset,
                error,
            )
            return False
        return True

    async def _bury(self, group: Group, partition: int, dead: Dead) -> None:
        source = self._engine.topics[group.topic].partitions[partition]
        target = names.dead_letters(group.topic)
        if target is None:
            self.discarded += 1
            return
        chunk = await source.read(dead.offset, 1, 1)
        if not chunk.records or chunk.records[0].offset != dead.offset:
            self.lost += 1
            log.error(
                "%s/%d: offset %d can't be read any more and is lost (%s)",
                group.topic,
                partition,
                dead.offset,
                dead.reason,
            )
            return
        record = chunk.records[0]
        topic = await self._engine.open_topic(target)
        of = topic.partitions[names.partition_of(record.key, len(topic.partitions))]
        letter = _letter(group, partition, dead, record)
        await self._engine.room()
        ticket = of.append(
            PRODUCER, 1, dead.offset + 1, record.key, letter.SerializeToString(), repeatable=False
        )
        await _until_durable(of, ticket)
        self.buried += 1
        log.warning(
            "%s/%d: offset %d is a dead letter: %s",
            group.topic,
            partition,
            dead.offset,
            letter.reason,
        )


def _letter(group: Group, partition: int, dead: Dead, record: Record) -> mq.DeadLetter:
    reason = dead.reason.encode()[: limits.DEAD_REASON_BYTES_MAX].decode(errors="ignore")
    return mq.DeadLetter(
        topic=group.topic,
        partition=partition,
        offset=dead.offset,
        group=group.name,
        reason=reason,
        attempts=dead.attempts,
        stored_at_ns=record.stored_at_ns,
        producer=record.producer,
        epoch=record.epoch,
        sequence=record.sequence,
        key=record.key.decode(errors="replace"),
        payload=record.payload,
    )


async def _until_durable(of: PartitionLog, ticket: int) -> None:
    changed = asyncio.Event()
    of.watch(changed.set)
    try:
        while not of.is_durable(ticket):
            if of.failure:
                raise PartitionFailed(of.failure)
            changed.clear()
            await changed.wait()
    finally:
        of.unwatch(changed.set)
