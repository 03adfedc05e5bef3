"""Looking at dead letters, and publishing them again.

How far a topic's dead letters have been published again is the position of the group REPLAY
in `<topic>.dlq`. A letter is published under an identity made of the place where it lies, so
a replay that was cut off and is done again stores none of them twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import names
from gputel.broker.client import BrokerClient
from gputel.errors import BrokerUnavailable, InputError, NotFound

REPLAY: Final = "gputel.replay"
FLUSH_TIMEOUT_S: Final = 30.0
STEP_MESSAGES: Final = 256


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of `<topic>.dlq` at (partition, offset); `letter` is None when it is none."""

    partition: int
    offset: int
    letter: mq.DeadLetter | None
    replayed: bool


async def letters(client: BrokerClient, topic: str) -> AsyncIterator[Letter]:
    """All that are kept, partition by partition. NotFound: `topic` has none, or is unknown."""
    dlq = await _dead_topic(client, topic)
    replayed = await _replayed(client, dlq.name)
    for partition in dlq.partitions:
        offset = partition.first_offset
        while offset < partition.next_offset:
            fetched = await client.fetch(dlq.name, partition.partition, offset, STEP_MESSAGES)
            for delivery in fetched.deliveries:
                done = delivery.offset < replayed.get(partition.partition, 0)
                yield Letter(partition.partition, delivery.offset, _open(delivery), done)
            if fetched.next_offset <= offset:
                break
            offset = fetched.next_offset


async def replay(
    client: BrokerClient, topic: str, *, limit: int | None = None, told: Callable[[int], None]
) -> tuple[int, int]:
    """Publish those that were not yet; (how many, how many were no dead letters and passed by).

    `told` hears the running number. BrokerUnavailable: not acknowledged in time; what was is
    not done again.
    """
    dlq = await _dead_topic(client, topic)
    replayed = await _replayed(client, dlq.name)
    published = passed = 0
    for partition in dlq.partitions:
        first = max(partition.first_offset, replayed.get(partition.partition, 0))
        if first >= partition.next_offset:
            continue
        producer = f"{REPLAY}:{dlq.name}@{dlq.id}/{partition.partition}"
        publisher = await client.publisher(topic, producer, epoch=1)
        try:
            while first < partition.next_offset and (limit is None or published < limit):
                count = STEP_MESSAGES if limit is None else min(limit - published, STEP_MESSAGES)
                fetched = await client.fetch(dlq.name, partition.partition, first, count)
                for delivery in fetched.deliveries:
                    letter = _open(delivery)
                    if letter is None:
                        passed += 1
                        continue
                    await publisher.publish(delivery.offset + 1, letter.key, letter.payload)
                    published += 1
                if not await publisher.flush(FLUSH_TIMEOUT_S):
                    raise BrokerUnavailable(
                        f"the broker did not acknowledge within {FLUSH_TIMEOUT_S:.0f} s",
                        hint="run it again: what was acknowledged is not published twice",
                    )
                if fetched.next_offset <= first:
                    break
                first = fetched.next_offset
                await client.seek(dlq.name, REPLAY, first, [partition.partition])
                told(published)
        finally:
            await publisher.close()
    return published, passed


async def _dead_topic(client: BrokerClient, topic: str) -> mq.Topic:
    name = names.dead_letters(topic)
    if name is None:
        raise InputError(f"{topic!r} holds dead letters; name the topic that they come from")
    for listed in await client.topics():
        if listed.name == name:
            return listed
    raise NotFound(f"topic {topic!r} has no dead letters")


async def _replayed(client: BrokerClient, name: str) -> dict[int, int]:
    for group in await client.groups():
        if group.topic == name and group.group == REPLAY:
            return {of.partition: of.next_offset for of in group.positions}
    return {}


def _open(delivery: mq.Delivery) -> mq.DeadLetter | None:
    """The letter; None for a message that somebody published there himself."""
    letter = mq.DeadLetter()
    try:
        letter.ParseFromString(delivery.payload)
    except Exception:  # protobuf's DecodeError differs between its implementations
        return None
    return letter if letter.topic else None
