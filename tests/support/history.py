"""Producers and consumers that write down what they were told, and the laws of it.

Told by the broker           must hold at the end, whatever has happened to it
---------------------------  ---------------------------------------------------------------
ack of (producer, sequence)  the log has the message, once
delivery of an offset        the log has that very message at that offset, for ever
the log                      every message was published, with these bytes; in each partition
                             the sequences of a producer grow
a group that acknowledges    every message was delivered to it
a store with its own offset  every message was applied once
a group that gives up        what it gave up lies in the dead letters, whole, and nothing else:
                             a good message only when members were lost with it in hand
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import Delivery, StartAt
from gputel.errors import GputelError

TOPIC = "t"
KEYS = 8
POISON_EVERY = 89  # sequences that the group `strict` never accepts
SIZES = (40, 300, 3_000, 60_000)
GROUPS = frozenset({"group", "strict", "store"})
STRICT_DELIVERIES = 3
#: Of the group `strict`: so long that only losing a member makes a delivery fail.
STRICT_ACK_TIMEOUT_S = 30.0
POISON = "poison"


class Identity(NamedTuple):
    """What names a message for ever."""

    producer: str
    epoch: int
    sequence: int


def payload_of(identity: Identity) -> bytes:
    """The bytes that were published under an identity, and no others."""
    draw = random.Random(repr(identity))
    return repr(tuple(identity)).encode() + b"|" + draw.randbytes(draw.choice(SIZES))


@dataclass
class History:
    """What everybody saw."""

    published: set[Identity] = field(default_factory=set)
    acked: set[Identity] = field(default_factory=set)
    delivered: dict[tuple[int, int], Identity] = field(default_factory=dict)
    by_group: dict[str, set[Identity]] = field(default_factory=lambda: defaultdict(set))
    applied: list[Identity] = field(default_factory=list)
    #: Partition -> how often a member of `strict` was given it.
    takings: Counter[int] = field(default_factory=Counter)
    terminated: set[Identity] = field(default_factory=set)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def saw(self, group: str, delivery: Delivery) -> Identity:
        """Note a delivery; an offset never changes what it holds."""
        identity = Identity(delivery.producer, delivery.epoch, delivery.sequence)
        where = (delivery.partition, delivery.offset)
        before = self.delivered.setdefault(where, identity)
        assert before == identity, f"{where} held {before} and now holds {identity}"
        assert delivery.payload == payload_of(identity), f"{identity} has other bytes"
        self.by_group[group].add(identity)
        return identity


async def produce(history: History, address: str, name: str, draw: random.Random) -> None:
    """Publish until told to stop, then until all is acknowledged. Now and then die and come
    back as a new epoch: what was not acknowledged then may be stored or not."""
    client = await broker.connect(address)
    epoch = 0
    try:
        while not history.stop.is_set():
            epoch += 1
            publisher = await client.publisher(TOPIC, name, epoch, pending_bytes=1 << 20)
            sequence = 0
            for _ in range(draw.randint(200, 3000)):
                if history.stop.is_set():
                    break
                sequence += draw.choice((1, 1, 1, 5))
                identity = Identity(name, epoch, sequence)
                history.published.add(identity)
                key = f"{name}-{draw.randrange(KEYS)}"
                await publisher.publish(sequence, key, payload_of(identity))
                if draw.random() < 0.1:
                    await asyncio.sleep(draw.random() * 0.02)
            if history.stop.is_set() and not await publisher.flush(60):
                raise AssertionError(f"{name} is not acknowledged after the broker is well again")
            acked = publisher.last_acked_sequence
            history.acked |= {
                i for i in history.published if i[:2] == (name, epoch) and i.sequence <= acked
            }
            await publisher.close()
    finally:
        await client.close()


async def consume(history: History, address: str, group: str, draw: random.Random) -> None:
    """A member that acknowledges, asks again, forgets, leaves and dies."""
    strict = group == "strict"

    async def taken(partition: int) -> None:
        if strict:
            history.takings[partition] += 1

    while True:
        client = await broker.connect(address)
        try:
            consumer = client.consumer(
                TOPIC,
                group=group,
                ack_timeout_s=STRICT_ACK_TIMEOUT_S if strict else 1,
                messages=200,
                max_deliver=STRICT_DELIVERIES if strict else 1000,
                on_assign=taken,
            )
            async with consumer:
                left = draw.randint(500, 5000)
                async for delivery in consumer:
                    identity = history.saw(group, delivery)
                    chance = draw.random()
                    if strict and identity.sequence % POISON_EVERY == 0:
                        if chance < 0.5:
                            await consumer.nak(delivery.partition, delivery.offset, 0.01)
                        else:
                            history.terminated.add(identity)
                            await consumer.term(delivery.partition, delivery.offset, POISON)
                    elif not strict and chance < 0.02:
                        await consumer.nak(delivery.partition, delivery.offset, 0.01)
                    elif strict or chance > 0.03:  # else: forgotten, until the timeout
                        await consumer.ack(delivery.partition, [delivery.offset])
                    left -= 1
                    if not left:
                        break
                if draw.random() < 0.5:
                    await client.close()  # dies without a word
        finally:
            await client.close()


class Store:
    """A consumer with offsets and marks of its own, as the sink has them in PostgreSQL."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._next: dict[int, int] = {}
        self._marks: dict[tuple[int, str], tuple[int, int]] = {}

    async def run(self, address: str, draw: random.Random) -> None:
        """Apply what comes; forget now and then to acknowledge it."""
        client = await broker.connect(address)
        try:
            while True:
                consumer = client.consumer(
                    TOPIC,
                    group="store",
                    ack_timeout_s=1,
                    start_at=StartAt.EARLIEST,
                    max_deliver=2**31 - 1,
                    on_assign=self._position,
                )
                async with consumer:
                    left = draw.randint(500, 5000)
                    async for delivery in consumer:
                        self._apply(delivery)
                        if draw.random() > 0.02:
                            await consumer.ack(delivery.partition, [delivery.offset])
                        left -= 1
                        if not left:
                            break
        finally:
            await client.close()

    async def _position(self, partition: int) -> int | None:
        return self._next.get(partition)

    def _apply(self, delivery: Delivery) -> None:
        identity = self._history.saw("store", delivery)
        if delivery.offset < self._next.get(delivery.partition, 0):
            return
        self._next[delivery.partition] = delivery.offset + 1
        mark = self._marks.get((delivery.partition, delivery.producer), (0, 0))
        if mark < identity[1:]:
            self._marks[delivery.partition, delivery.producer] = identity[1:]
            self._history.applied.append(identity)


async def read_log(client: broker.BrokerClient, topic: str) -> dict[int, list[mq.Delivery]]:
    """All that a topic holds, by partition."""
    found: dict[int, list[mq.Delivery]] = {}
    for listed in await client.topics():
        if listed.name != topic:
            continue
        for of in listed.partitions:
            messages = found.setdefault(of.partition, [])
            offset = of.first_offset
            while offset < of.next_offset:
                fetched = await client.fetch(topic, of.partition, offset)
                messages += fetched.deliveries
                offset = fetched.next_offset
    return found


async def first_failure(tasks: Iterable[asyncio.Task[None]], timeout_s: float) -> None:
    """Wait; an exception of any task is ours."""
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        if not task.cancelled():
            task.result()


async def conclude(
    history: History,
    address: str,
    *,
    producers: Iterable[asyncio.Task[None]],
    others: Iterable[asyncio.Task[None]],
    timeout_s: float,
) -> None:
    """Once everything is well: all is acknowledged, each group comes to rest, the laws hold."""
    history.stop.set()
    await asyncio.wait_for(asyncio.gather(*producers), timeout_s)
    client = await broker.connect(address)
    try:
        async with asyncio.timeout(timeout_s):
            while not await caught_up(client, GROUPS):
                await first_failure(others, 0.2)
        broken = await check(history, client)
    except TimeoutError:
        raise AssertionError(
            f"not caught up in {timeout_s:g} s:\n{await standing(client)}"
        ) from None
    finally:
        await client.close()
    assert not broken, broken
    assert history.acked


def told(history: History, starts: int) -> str:
    """What happened, in words."""
    return (
        f"{starts} broker lives, {len(history.published)} messages published, "
        f"{len(history.acked)} acknowledged, {len(history.delivered)} delivered"
    )


async def caught_up(client: broker.BrokerClient, groups: frozenset[str]) -> bool:
    """Whether each group has acknowledged everything."""
    try:
        ends = {
            (topic.name, of.partition): of.next_offset
            for topic in await client.topics()
            for of in topic.partitions
        }
        known = {group.group: group for group in await client.groups() if group.topic == TOPIC}
    except GputelError:
        return False
    return groups <= known.keys() and all(
        {of.partition: of.next_offset for of in known[name].positions}
        == {partition: end for (topic, partition), end in ends.items() if topic == TOPIC}
        for name in groups
    )


async def standing(client: broker.BrokerClient) -> str:
    """Where the logs end and the groups stand, when they do not come to rest."""
    try:
        topics, groups = await client.topics(), await client.groups()
    except GputelError as error:
        return f"the broker does not tell: {error}"
    ends = [f"{t.name}: {[of.next_offset for of in t.partitions]}" for t in topics]
    stands = [
        f"{g.topic}, group {g.group}, {g.members} members: "
        f"{ {of.partition: (of.next_offset, of.in_flight) for of in g.positions} }"
        for g in groups
    ]
    return "\n".join([*ends, *stands])


async def check(history: History, client: broker.BrokerClient) -> list[str]:
    """The laws, once everything is quiet: a sentence for each that does not hold."""
    log = await read_log(client, TOPIC)
    letters = await read_log(client, f"{TOPIC}.dlq")
    return list(broken(history, log, [m for messages in letters.values() for m in messages]))


def broken(
    history: History, log: dict[int, list[mq.Delivery]], letters: list[mq.Delivery]
) -> Iterator[str]:
    """See `check`."""
    stored: list[Identity] = []
    for partition, messages in log.items():
        last: dict[str, tuple[int, int]] = {}
        for number, message in enumerate(messages):
            identity = Identity(message.producer, message.epoch, message.sequence)
            if message.payload != payload_of(identity):
                yield f"{identity} has other bytes"
            if message.offset != number:
                yield f"{partition}: message {number} has offset {message.offset}"
            if last.get(identity.producer, (0, 0)) >= identity[1:]:
                yield f"{partition}: {identity} lies behind {last[identity.producer]}"
            last[identity.producer] = identity[1:]
            seen = history.delivered.get((partition, message.offset))
            if seen not in (None, identity):
                yield f"{partition}/{message.offset} was delivered as {seen}, is {identity}"
            stored.append(identity)
        ghosts = [o for p, o in history.delivered if p == partition and o >= len(messages)]
        if ghosts:
            yield f"{partition}: offsets {sorted(ghosts)[:5]} were delivered and are gone"
    there = set(stored)
    if len(there) != len(stored):
        yield f"{len(stored) - len(there)} messages are stored twice"
    for words, wrong in (
        ("acknowledged and lost", history.acked - there),
        ("from nowhere", there - history.published),
        ("never delivered to `group`", there - history.by_group["group"]),
        ("never delivered to `strict`", there - history.by_group["strict"]),
        ("never applied", there - set(history.applied)),
        ("applied from nowhere", set(history.applied) - there),
    ):
        if wrong:
            yield f"{len(wrong)} {words}, such as {sorted(wrong)[:3]}"
    if len(set(history.applied)) != len(history.applied):
        yield f"{len(history.applied) - len(set(history.applied))} applied twice"
    yield from _broken_letters(history, there, letters)


def _broken_letters(
    history: History, there: set[Identity], letters: list[mq.Delivery]
) -> Iterator[str]:
    buried: dict[Identity, int] = {}
    for delivery in letters:
        letter = mq.DeadLetter.FromString(delivery.payload)
        identity = Identity(letter.producer, letter.epoch, letter.sequence)
        if letter.payload != payload_of(identity):
            yield f"the dead letter of {identity} has other bytes"
        by_word = letter.reason == POISON
        if identity in history.terminated if by_word else letter.attempts == STRICT_DELIVERIES:
            buried[identity] = letter.partition
        else:
            yield f"{identity} was given up after {letter.attempts} deliveries: {letter.reason}"
    poison = {identity for identity in there if identity.sequence % POISON_EVERY == 0}
    if poison - buried.keys():
        yield f"{len(poison - buried.keys())} given up and not among the dead letters"
    # A member that is lost fails one message of each partition that it had.
    good = Counter(partition for of, partition in buried.items() if of not in poison)
    for partition, count in good.items():
        if count * STRICT_DELIVERIES > history.takings[partition]:
            yield (
                f"{partition}: {count} dead letters that nobody gave up: members were given it "
                f"{history.takings[partition]} times"
            )
