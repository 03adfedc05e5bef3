"""Partitions of the cluster engine over a stream in memory that loses words and answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from gputel.broker.background import Background
from gputel.broker.engine import Message, Record
from gputel.broker.engine.jetstream import block, reader, writer
from gputel.broker.engine.jetstream.block import Head
from gputel.broker.engine.jetstream.chart import Chart
from gputel.broker.engine.jetstream.cluster import Stored, StreamState
from gputel.broker.engine.jetstream.marks import Marks
from gputel.broker.engine.jetstream.partition import Partition
from gputel.broker.engine.jetstream.reader import Blocks
from gputel.broker.engine.memory import Backlog
from gputel.clock import SYSTEM_CLOCK, Clock, ManualClock
from gputel.errors import BrokerUnavailable, LogCorrupt, ProducerFenced
from support.fake_cluster import FakeBucket, FakeCluster, FakeStream

STREAM = "s"


@asynccontextmanager
async def opened(
    cluster: FakeCluster, bucket: FakeBucket, name: str = "a", clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[Partition]:
    partition = Partition(
        "t",
        0,
        STREAM,
        STREAM,
        cast("Any", cluster),
        Marks(cast("Any", bucket), "marks.t.0"),
        background=Background(),
        clock=clock,
        backlog=Backlog(),
        blocks=Blocks(),
        writer_name=name,
    )
    try:
        await partition.open()
        yield partition
    finally:
        await partition.close()


def cluster(draw: random.Random | None = None) -> FakeCluster:
    return FakeCluster({STREAM: FakeStream()}, draw)


async def durable(partition: Partition, ticket: int) -> None:
    changed = asyncio.Event()
    partition.watch(changed.set)
    async with asyncio.timeout(10):
        while not partition.is_durable(ticket):
            changed.clear()
            await changed.wait()
    partition.unwatch(changed.set)


async def read_all(partition: Partition, step: int = 7) -> list[Record]:
    await partition.catch_up()
    records: list[Record] = []
    offset = partition.first_offset
    while offset < partition.next_offset:
        chunk = await partition.read(offset, step, 1 << 20)
        assert chunk.next_offset > offset
        records += chunk.records
        offset = chunk.next_offset
    return records


def message(sequence: int) -> Message:
    return Message(sequence, b"k", b"%d" % sequence)


async def test_messages_are_stored_in_order_and_once() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for sequence in range(1, 101):
            partition.append("p", 1, sequence, b"k", b"%d" % sequence)
        again = partition.append("p", 1, 100, b"k", b"again")
        await durable(partition, again)
        records = await read_all(partition)
        assert [record.sequence for record in records] == list(range(1, 101))
        assert [record.offset for record in records] == list(range(100))
        assert partition.duplicates == 1
        # What gathers while a block is on its way shares the next one.
        assert fake.published < 10


async def test_two_brokers_write_one_log() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        for sequence in range(1, 51):
            first = a.append("p", 1, sequence, b"k", b"%d" % sequence)
            second = b.append("q", 1, sequence, b"k", b"%d" % sequence)
            if sequence % 5 == 0:
                await asyncio.gather(durable(a, first), durable(b, second))
        for partition in (a, b):
            records = await read_all(partition)
            assert [record.offset for record in records] == list(range(100))
            for producer in "pq":
                sequences = [r.sequence for r in records if r.producer == producer]
                assert sequences == list(range(1, 51))


async def test_a_producer_that_changes_brokers_is_recognised() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        await durable(a, a.extend("p", 1, [message(n) for n in range(1, 6)]))
        # What the producer has not seen acknowledged it sends again, to the other broker.
        await durable(b, b.extend("p", 1, [message(n) for n in range(3, 9)]))
        assert [record.sequence for record in await read_all(a)] == list(range(1, 9))
        assert b.duplicates == 3


async def test_an_older_epoch_that_waits_is_never_called_durable() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        fake.connected = False
        late = a.append("p", 1, 1, b"k", b"old")
        fake.connected = True
        await durable(b, b.append("p", 2, 1, b"k", b"new"))
        await a.catch_up()
        other = a.append("q", 1, 1, b"k", b"other")
        a.interrupt()
        await durable(a, other)
        assert not a.is_durable(late)
        with pytest.raises(ProducerFenced):
            a.append("p", 1, 2, b"k", b"older")
        assert [record.producer for record in await read_all(a)] == ["p", "q"]


async def test_a_block_of_another_broker_right_behind_ours_stops_nobody() -> None:
    """Its word may come before the answer to ours: the chain goes on behind it."""
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        held = asyncio.Event()
        publish, stored = fake.publish, asyncio.Event()

        async def slow(subject: str, data: bytes, headers: dict[str, str]) -> int:
            sequence = await publish(subject, data, headers)
            stored.set()
            await held.wait()
            return sequence

        fake.publish = slow  # type: ignore[method-assign]
        first = a.append("p", 1, 1, b"k", b"1")
        await stored.wait()
        fake.publish = publish  # type: ignore[method-assign]
        await b.catch_up()
        await durable(b, b.append("q", 1, 1, b"k", b"1"))
        await a.catch_up()
        assert a.is_durable(first)
        second = a.append("p", 1, 2, b"k", b"2")
        held.set()
        await durable(a, second)


async def test_producers_are_known_after_a_start_beyond_what_is_kept() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in range(1, 30):
            await durable(partition, partition.append(f"p{n}", 1, n, b"k", bytes(100)))
        await partition.save_marks()
        for _ in range(3):  # sizes are estimates: it may take another look
            await partition.tend(bytes_max=1, stored_after_ns=0)
        assert len(fake.streams[STREAM].messages) == 1
    async with opened(fake, bucket) as partition:
        assert (partition.first_offset, partition.next_offset) == (28, 29)
        again = partition.append("p1", 1, 1, b"k", b"again")
        assert partition.is_durable(again)
        assert partition.duplicates == 1
        await durable(partition, partition.append("p1", 1, 2, b"k", b"next"))
        assert [record.offset for record in await read_all(partition)] == [28, 29]


async def test_a_stream_that_was_put_back_takes_no_more() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
        await partition.save_marks()
    fake.streams[STREAM] = FakeStream()
    async with opened(fake, bucket, clock=ManualClock()) as partition:
        assert "it was deleted or put back" in partition.failure


async def test_a_leader_that_has_not_caught_up_yet_is_not_believed() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
        await partition.save_marks()
    whole, short = fake.streams[STREAM], FakeStream()

    class Later(ManualClock):
        async def sleep(self, delay_s: float) -> None:
            fake.streams[STREAM] = whole

    fake.streams[STREAM] = short
    async with opened(fake, bucket, clock=Later()) as partition:
        assert not partition.failure
        assert [record.sequence for record in await read_all(partition)] == [1, 2]


async def test_age_lets_all_go_but_the_last_block() -> None:
    clock = ManualClock()
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, clock=clock) as partition:
        for n in range(1, 11):
            clock.advance(1.0)
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
        first = (await read_all(partition))[0]
        assert await partition.offset_at(first.stored_at_ns + 1) == 1
        await partition.tend(1 << 30, first.stored_at_ns)
        assert partition.first_offset == 1
        await partition.tend(1 << 30, clock.time_ns())
        assert [record.sequence for record in await read_all(partition)] == [10]
        assert await partition.offset_at(clock.time_ns() + 1) == partition.next_offset


async def test_damage_is_told_and_passed_by() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2, 3):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
    kept = fake.streams[STREAM].messages
    kept[1] = kept[1]._replace(data=kept[1].data[:-1] + b"?")
    async with opened(fake, bucket) as partition:
        assert [record.sequence for record in await read_all(partition)] == [1, 3]
        assert "fails its checksum" in partition.damage
        fake.streams[STREAM].force({}, b"a stranger's")
        await durable(partition, partition.append("p", 1, 4, b"k", b"x"))
        assert [record.sequence for record in await read_all(partition)] == [1, 3, 4]
        assert "without a sound" in partition.damage


async def test_a_block_that_a_server_let_pass_out_of_place_counts_as_not_stored() -> None:
    fake, bucket = cluster(), FakeBucket()
    stream = fake.streams[STREAM]
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        await durable(a, a.append("p", 1, 1, b"k", b"1"))
        await b.catch_up()
        publish = fake.publish

        async def late(subject: str, data: bytes, headers: dict[str, str]) -> int:
            """Another block comes between, and the server does not look at what was expected."""
            fake.publish = publish  # type: ignore[method-assign]
            await durable(b, b.append("q", 1, 1, b"k", b"1"))
            return stream.force(headers, data)

        fake.publish = late  # type: ignore[method-assign]
        await durable(a, a.append("p", 1, 2, b"k", b"2"))
        for partition in (a, b):
            found = [(r.producer, r.sequence, r.offset) for r in await read_all(partition)]
            assert found == [("p", 1, 0), ("q", 1, 1), ("p", 2, 2)]
    assert len(stream.messages) == 4
    async with opened(fake, bucket) as partition:
        assert [r.offset for r in await read_all(partition)] == [0, 1, 2]


async def test_what_can_not_be_read_now_is_not_passed_by() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2, 3):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
    async with opened(fake, bucket) as partition:
        stream = fake.streams[STREAM]

        async def read(*_: Any) -> list[Stored]:
            return []

        whole, fake.read = fake.read, read  # type: ignore[method-assign, assignment]
        with pytest.raises(BrokerUnavailable, match="offset 0 can't be read now"):
            await partition.read(0, 10, 1 << 20)
        fake.read = whole  # type: ignore[method-assign]
        assert len((await partition.read(0, 10, 1 << 20)).records) == 3
        # An operator has emptied the stream: there is nothing to wait for.
        stream.messages = []
    async with opened(fake, bucket) as partition:
        assert partition.first_offset == partition.next_offset >= 3


@pytest.mark.parametrize("reads", ["who wrote it", "another broker"])
async def test_what_is_stored_while_an_emptied_stream_is_looked_at_is_not_passed_by(
    reads: str,
) -> None:
    fake, bucket = cluster(), FakeBucket()
    stream = fake.streams[STREAM]
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        await durable(a, a.append("p", 1, 1, b"k", b"1"))
        await b.catch_up()
        of = a if reads == "who wrote it" else b
        of._reader._blocks = Blocks()
        stream.messages = []  # by an operator
        state = fake.state

        async def late(name: str, *, timeout_s: float = 0) -> StreamState:
            """The answer is on its way when a block is stored."""
            answer = await state(name)
            fake.state = state  # type: ignore[method-assign]
            await durable(a, a.append("p", 1, 2, b"k", b"2"))
            await b.catch_up()
            return answer

        fake.state = late  # type: ignore[method-assign, assignment]
        chunk = await of.read(0, 10, 1 << 20)
        assert (chunk.records, chunk.next_offset) == ((), 1)
        assert [r.sequence for r in (await of.read(1, 10, 1 << 20)).records] == [2]


async def test_a_leader_that_lags_lets_no_reader_pass_by_what_it_lacks() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2, 3):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
    async with opened(fake, bucket) as partition:
        whole, fake.streams[STREAM] = fake.streams[STREAM], FakeStream()
        for kept in (0, 1):
            lagging = FakeStream(whole.messages[:kept], kept)
            fake.streams[STREAM] = lagging
            with pytest.raises(BrokerUnavailable, match="offset 2 can't be read now"):
                await partition.read(2, 10, 1 << 20)
        fake.streams[STREAM] = whole
        assert [r.offset for r in (await partition.read(2, 10, 1 << 20)).records] == [2]


@pytest.mark.parametrize("saves", ["before", "behind", "never"])
async def test_a_strangers_message_at_the_end_gives_no_offset_a_second_time(saves: str) -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket, "a") as a:
        for n in (1, 2, 3):
            await durable(a, a.append("p", 1, n, b"k", b"x"))
        if saves == "before":
            await a.save_marks()
        fake.streams[STREAM].force({}, b"a stranger's")
        await a.catch_up()
        assert a.next_offset == 4
        if saves == "behind":
            await a.save_marks()
        # Both know the same of it: a reader that changes brokers misses nothing.
        async with opened(fake, bucket, "b") as b:
            assert (b.tip, b.next_offset) == (a.tip, a.next_offset)
            await durable(b, b.append("p", 1, 4, b"k", b"x"))
            for of in (a, b):
                assert [r.offset for r in await read_all(of)] == [0, 1, 2, 4]


async def test_a_block_out_of_place_at_the_end_hides_nothing() -> None:
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        for n in (1, 2):
            await durable(partition, partition.append("p", 1, n, b"k", b"x"))
        kept = fake.streams[STREAM]
        kept.force(dict(kept.messages[-1].headers), kept.messages[-1].data)
        await partition.catch_up()
        await partition.save_marks()
    async with opened(fake, bucket) as partition:
        assert (partition.tip, partition.next_offset) == (3, 2)
        assert [record.sequence for record in await read_all(partition, step=1)] == [1, 2]


async def test_a_stranger_behind_a_purge_by_hand_gives_no_offset_a_second_time() -> None:
    fake, bucket = cluster(), FakeBucket()
    stream = fake.streams[STREAM]
    async with opened(fake, bucket, "a") as a:
        await durable(a, a.extend("p", 1, [message(n) for n in range(1, 6)]))
        await a.save_marks()
        await durable(a, a.append("p", 1, 6, b"k", b"x"))
        stream.messages = []
        stream.force({}, b"a stranger's")
        # One that starts, and one that runs and had not seen the last block before it went.
        async with opened(fake, bucket, "b") as b:
            assert b.next_offset > 6
        stream.store(
            {block.HEAD: Head("c-1", 3, 7, 1, 1, [("p", 1, 7)]).encode()},
            block.encode([("p", 1, [message(7)])]),
        )
        stream.messages = []
        stream.force({}, b"a stranger's")
        await a.catch_up()
        assert a.next_offset > 8
        await durable(a, a.append("p", 1, 8, b"k", b"8"))
        assert [record.sequence for record in await read_all(a)] == [8]


@pytest.mark.parametrize("ends", ["ours", "theirs"])
async def test_strangers_messages_are_passed_by_however_many(
    ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "READ_BLOCKS", 4)
    fake, bucket = cluster(), FakeBucket()
    async with opened(fake, bucket) as partition:
        await durable(partition, partition.append("p", 1, 1, b"k", b"x"))
        for _ in range(10):
            fake.streams[STREAM].force({}, b"a stranger's")
        await partition.catch_up()
        expected = [1]
        if ends == "ours":
            await durable(partition, partition.append("p", 1, 2, b"k", b"x"))
            expected = [1, 2]
        assert [record.sequence for record in await read_all(partition)] == expected
        assert await partition.offset_at(partition.newest_ns + 1) == partition.next_offset
    async with opened(fake, bucket) as partition:
        assert [record.sequence for record in await read_all(partition)] == expected
        # What was kept of ours is gone, and nothing else is left to read.
        fake.streams[STREAM].messages = fake.streams[STREAM].messages[1:11]
        if ends == "theirs":
            async with opened(fake, FakeBucket()) as anew:
                assert await read_all(anew) == []


async def publish(
    name: str, brokers: tuple[Partition, Partition], draw: random.Random
) -> list[int]:
    """Publish in order, changing brokers now and then; the sequences that were acknowledged."""
    of = brokers[0]
    acked = sent = 0
    for _ in range(80):
        if draw.random() < 0.1:
            # The connection is lost with what waits there, and another broker takes over.
            of, sent = draw.choice(brokers), acked
        first, sent = sent + 1, sent + draw.randint(1, 5)
        ticket = of.extend(name, 1, [message(n) for n in range(first, sent + 1)])
        if draw.random() < 0.3:
            await durable(of, ticket)
            acked = sent
        if draw.random() < 0.05:
            of.interrupt()
        await asyncio.sleep(0)
    await durable(of, ticket)
    return list(range(1, sent + 1))


async def test_any_trouble_leaves_one_log_that_keeps_what_was_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "GATHER_BYTES", 0)  # as many blocks in flight as there may be
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    fake, bucket = cluster(draw), FakeBucket()
    fake.well = True
    names = "pqrs"
    async with opened(fake, bucket, "a") as a, opened(fake, bucket, "b") as b:
        fake.well = False
        acked = await asyncio.gather(*(publish(name, (a, b), draw) for name in names))
        fake.well = True
        logs = [await read_all(of) for of in (a, b)]
    assert [record.offset for record in logs[0]] == list(range(len(logs[0])))
    assert logs[0] == logs[1][: len(logs[0])]  # what waited in vain may follow
    for name, sequences in zip(names, acked, strict=True):
        stored = [record.sequence for record in logs[1] if record.producer == name]
        assert stored[: len(sequences)] == sequences
        assert stored == sorted(set(stored)), "stored twice, or out of order"
    assert all(record.payload == b"%d" % record.sequence for record in logs[1])


def test_a_block_is_read_as_it_was_written_and_damage_is_found() -> None:
    runs = [("p", 3, [message(1), message(2)]), ("märz", 1, [Message(9, b"", b"")])]
    head = Head("w-1", 40, 17, 3, 5, [("p", 3, 2), ("märz", 1, 9)])
    assert Head.decode(head.encode()) == head
    assert head.encode().isascii()
    payload = block.encode(runs)
    records = block.decode(head, payload)
    assert [(r.offset, r.producer, r.epoch, r.sequence) for r in records] == [
        (17, "p", 3, 1),
        (18, "p", 3, 2),
        (19, "märz", 1, 9),
    ]
    for at in range(len(payload)):
        broken = payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]
        with pytest.raises(LogCorrupt):
            block.decode(head, broken)
    for text in (None, "", "{}", "[1]", '{"id": 1}'):
        with pytest.raises(LogCorrupt):
            Head.decode(text)


def test_a_full_chart_keeps_its_newest_half_whole() -> None:
    chart = Chart(points_max=100)
    for n in range(1, 201):
        chart.add(n, n * 10)
    assert len(chart) <= 100
    assert all(chart.get(n) == n * 10 for n in range(160, 201))
    assert chart.last_at_most(2000) == 200
    assert chart.first_beyond(2000) is None
    low, high = chart.last_at_most(555), chart.first_beyond(555)
    assert low is None or low <= 55
    assert high is not None
    assert high > 55
    chart.drop_below(190)
    assert chart.first_beyond(-1) == 190
