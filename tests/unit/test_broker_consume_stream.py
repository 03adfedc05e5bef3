"""One consumer's stream over a log that answers when the test lets it, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.consume_stream import ConsumeStream
from gputel.broker.engine import Chunk, PartitionLog, Record
from gputel.broker.groups import Group, Member
from gputel.broker.read_ahead import Room
from gputel.clock import NS_PER_S, SYSTEM_CLOCK

PARTITIONS = 3
END = 5


class Log:
    """A partition with END messages; a read waits until it is `open`."""

    def __init__(self) -> None:
        self.first_offset = 0
        self.next_offset = END
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.reads = 0

    async def catch_up(self) -> None:
        pass

    def watch(self, changed: Callable[[], None]) -> None:
        pass

    def unwatch(self, changed: Callable[[], None]) -> None:
        pass

    async def read(self, offset: int, messages_max: int, bytes_max: int) -> Chunk:
        self.asked.set()
        self.reads += 1
        await self.open.wait()
        records = [Record(at, 0, "p", 1, at + 1, b"", b"x") for at in range(offset, END)]
        return Chunk(records[:messages_max], offset + min(len(records), messages_max))


class Context:
    """A consumer that starts what is new in an assignment, and keeps what it has."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[mq.ConsumeRequest] = asyncio.Queue()
        self.assignments: list[frozenset[int]] = [frozenset()]
        self.taken: list[tuple[int, int]] = []
        self.heard = asyncio.Event()

    async def read(self) -> mq.ConsumeRequest:
        return await self.requests.get()

    async def write(self, sent: mq.ConsumeResponse | bytes) -> None:
        response = mq.ConsumeResponse.FromString(transport.write_consumed(sent))
        self.taken += [(of.partition, of.offset) for of in response.batch.deliveries]
        if response.HasField("assignment"):
            held = frozenset(response.assignment.partitions)
            for partition in held - self.assignments[-1]:
                generation = response.assignment.generation
                self.send(position=mq.Position(partition=partition, generation=generation))
            self.assignments.append(held)
        self.heard.set()

    def send(self, **request: Any) -> None:
        self.requests.put_nowait(mq.ConsumeRequest(**request))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.heard.clear()
                await self.heard.wait()


@asynccontextmanager
async def consuming(context: Context, group: Group, logs: list[Log]) -> AsyncIterator[None]:
    stream = ConsumeStream(
        cast(Any, context),
        group,
        cast(list[PartitionLog], logs),
        mq.ConsumeOpen(ack_timeout_ms=30_000, start_at=mq.START_AT_EARLIEST),
        "m",
        0,
        SYSTEM_CLOCK,
        Room(),
    )
    task = asyncio.create_task(stream.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def lose_the_share(group: Group) -> None:
    """As a broker does that could not renew its share for a while."""
    held = group.held
    group.hold(frozenset(), {})
    group.hold(held, {})


def have_a_visitor(group: Group) -> None:
    """A second member that takes some of the partitions, and leaves at once."""
    visitor = Member("v", lambda: None, NS_PER_S, 0, mq.START_AT_EARLIEST)
    group.join(visitor, SYSTEM_CLOCK.monotonic_ns())
    assert visitor.partitions
    group.leave(visitor, lost=False)


@pytest.mark.parametrize("upset", [lose_the_share, have_a_visitor])
async def test_what_is_lost_and_back_while_a_read_waits_is_delivered(
    upset: Callable[[Group], None],
) -> None:
    group, logs, context = Group("t", "g", PARTITIONS, {}), [Log() for _ in "abc"], Context()
    for log in logs:
        log.open.clear()
    everything = {(partition, at) for partition in range(PARTITIONS) for at in range(END)}
    async with consuming(context, group, logs):
        await context.until(lambda: len(context.assignments[-1]) == PARTITIONS)
        context.send(credit=mq.Credit(messages=1000, bytes=1 << 20))
        async with asyncio.timeout(10):
            await asyncio.wait(
                [asyncio.ensure_future(log.asked.wait()) for log in logs],
                return_when=asyncio.FIRST_COMPLETED,
            )
        upset(group)
        for log in logs:
            log.open.set()
        await context.until(lambda: set(context.taken) == everything)
    assert len(context.assignments) == 4, "none, all, without what was lost, all"
    assert context.assignments[1] == context.assignments[3] > context.assignments[2]


async def test_nothing_is_taken_of_a_partition_that_went_to_another_during_a_redelivery() -> None:
    group, logs, context = Group("t", "g", 1, {}), [Log()], Context()
    gate, blocked, whole = asyncio.Event(), asyncio.Event(), context.write
    gate.set()

    async def slow(sent: mq.ConsumeResponse | bytes) -> None:
        if not gate.is_set():
            blocked.set()
        await gate.wait()
        await whole(sent)

    context.write = slow  # type: ignore[method-assign]
    async with consuming(context, group, logs):
        await context.until(lambda: len(context.assignments[-1]) == 1)
        context.send(credit=mq.Credit(messages=2, bytes=1 << 20))
        await context.until(lambda: context.taken == [(0, 0), (0, 1)])
        context.send(nak=mq.Nak(partition=0, offset=0))
        async with asyncio.timeout(10):
            while not group.cursors[0].has_ready:  # the nak is taken in, and its back-off over
                group.tick(SYSTEM_CLOCK.monotonic_ns() + NS_PER_S)
                await asyncio.sleep(0)
            gate.clear()
            context.send(credit=mq.Credit(messages=100, bytes=1 << 20))
            await blocked.wait()
        (member,) = group.members.values()
        group.leave(member, lost=True)
        other = Member("other", lambda: None, NS_PER_S, 0, mq.START_AT_EARLIEST)
        group.join(other, SYSTEM_CLOCK.monotonic_ns())
        position = mq.Position(partition=0, next_offset=2, generation=other.generation)
        assert group.position(other, position, first_offset=0, end_offset=END)
        gate.set()
        for _ in range(100):  # everything that can go on does
            await asyncio.sleep(0)
        assert group.cursors[0].next_offset == 2
    assert context.taken == [(0, 0), (0, 1), (0, 0)]


async def test_the_partitions_whose_turn_is_next_are_read_meanwhile() -> None:
    """While what was read first is sent; and as much of each as it is asked for."""
    group, logs, context = Group("t", "g", PARTITIONS, {}), [Log() for _ in "abc"], Context()
    gate, whole = asyncio.Event(), context.write

    async def slow(sent: mq.ConsumeResponse | bytes) -> None:
        if isinstance(sent, bytes):
            await gate.wait()
        await whole(sent)

    context.write = slow  # type: ignore[method-assign]
    async with consuming(context, group, logs):
        await context.until(lambda: len(context.assignments[-1]) == PARTITIONS)
        context.send(credit=mq.Credit(messages=1000, bytes=1 << 30))
        async with asyncio.timeout(10):
            await asyncio.gather(*(log.asked.wait() for log in logs))
        assert not context.taken
        gate.set()
        await context.until(lambda: len(context.taken) == PARTITIONS * END)
    assert [log.reads for log in logs] == [1] * PARTITIONS
