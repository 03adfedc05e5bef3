"""The undertaker, when partitions change hands while it is at work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.dead_letters import Undertaker
from gputel.broker.engine import Chunk, Engine, Record
from gputel.broker.groups import Group, Member
from gputel.clock import NS_PER_S

DEADLINE_S = 10


class Log:
    """A partition that stores when the test says so."""

    failure = ""

    def __init__(self) -> None:
        self.stored = 0
        self.appended = 0
        self.waiting = asyncio.Event()
        self._changed: Callable[[], None] = lambda: None

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        return Chunk([Record(offset, 0, "p", 1, offset + 1, b"", b"x")], offset + 1)

    def append(self, *_: object, repeatable: bool) -> int:
        self.appended += 1
        return self.appended

    def is_durable(self, ticket: int) -> bool:
        return ticket <= self.stored

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self.waiting.set()

    def unwatch(self, changed: Callable[[], None]) -> None:
        self.waiting.clear()

    def store(self) -> None:
        self.stored = self.appended
        self._changed()


async def test_a_partition_may_be_lost_and_back_while_a_message_is_buried() -> None:
    letters = Log()
    dlq, topic = SimpleNamespace(partitions=[letters]), SimpleNamespace(partitions=[Log()])

    async def open_topic(name: str) -> Any:
        return dlq

    async def room() -> None:
        pass

    engine = SimpleNamespace(topics={"t": topic}, open_topic=open_topic, room=room)
    undertaker = Undertaker(cast(Engine, engine))
    group = Group("t", "g", 1, {})
    member = Member("m", lambda: None, NS_PER_S, 3, mq.START_AT_EARLIEST)
    group.join(member, 0)
    cursor = group.cursors[0]

    def begin() -> None:
        """The member has the two messages that there are."""
        position = mq.Position(partition=0, generation=member.generation)
        assert group.position(member, position, first_offset=0, end_offset=2)
        assert [cursor.take(offset, 0) for offset in range(2)] == [1, 1]

    begin()
    assert cursor.term(0, "bad")
    burying = asyncio.create_task(undertaker.bury(group))
    async with asyncio.timeout(DEADLINE_S):
        await letters.waiting.wait()
        # The share could not be renewed; it is back before the letter is durable.
        group.hold(frozenset(), {})
        group.hold(frozenset({0}), {})
        begin()
        letters.store()
        await burying
    assert cursor.floor == 1, "the message is done, though its member has it again"
    group.tick(NS_PER_S)  # and is not due again
    assert cursor.ack(1)
    assert cursor.floor == 2
    assert undertaker.buried == 1
