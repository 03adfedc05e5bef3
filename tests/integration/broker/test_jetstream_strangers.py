"""Others than brokers publish to a partition's subject or purge it, on real servers; see
test_cluster_partition."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats

from gputel.broker import BrokerClient, StartAt
from gputel.broker.engine.jetstream.reader import READ_BLOCKS
from gputel.broker.settings import JetStreamSettings
from support.brokers import connected, serving
from support.messages import publish
from support.nats_servers import running

WAIT_S = 60.0


async def intrude(url: str, count: int) -> None:
    client = await nats.connect(url)
    for _ in range(count):
        await client.publish("gputel.log.t.0", b"a stranger's")
    await client.flush()
    await client.close()


async def read(client: BrokerClient, count: int) -> list[tuple[int, int]]:
    """(offset, sequence) of the first messages."""
    async with client.consumer("t", start_at=StartAt.EARLIEST) as observer:
        taken = [await anext(observer) for _ in range(count)]
    return [(of.offset, of.sequence) for of in taken]


async def test_they_neither_stop_readers_nor_move_offsets_back(tmp_path: Path) -> None:
    with running(tmp_path / "nats", 1) as servers:
        cluster = JetStreamSettings(servers=tuple(servers.urls), replicas=1)
        options: dict[str, Any] = {"engine": "jetstream", "jetstream": cluster}
        async with asyncio.timeout(WAIT_S):
            async with serving(tmp_path, **options) as server, connected(server.address) as client:
                await publish(client, 3)
                await intrude(servers.urls[0], READ_BLOCKS + 88)
                assert await read(client, 3) == [(0, 1), (1, 2), (2, 3)]
            # It begins where the stream ends with theirs.
            async with serving(tmp_path, **options) as server, connected(server.address) as client:
                await publish(client, 2, first=4)
                found = await read(client, 5)
        assert [sequence for _, sequence in found] == [1, 2, 3, 4, 5]
        assert [offset for offset, _ in found[:3]] == [0, 1, 2]
        assert found[3][0] == 3 + READ_BLOCKS + 88, "each of theirs has an offset of its own"


async def empty(url: str) -> None:
    """What an operator does with `nats stream purge`."""
    client = await nats.connect(url)
    streams = client.jetstream()
    for stream in await streams.streams_info():
        if stream.config.subjects == ["gputel.log.t.0"]:
            assert stream.config.name
            assert await streams.purge_stream(stream.config.name)
    await client.close()


async def test_a_purge_by_hand_takes_what_is_there_and_nothing_that_comes(tmp_path: Path) -> None:
    with running(tmp_path / "nats", 1) as servers:
        cluster = JetStreamSettings(servers=tuple(servers.urls), replicas=1)
        options: dict[str, Any] = {"engine": "jetstream", "jetstream": cluster}
        async with (
            asyncio.timeout(WAIT_S),
            serving(tmp_path / "a", **options) as a,
            serving(tmp_path / "b", **options) as b,
            connected(a.address) as writes,
            connected(b.address) as reads,
        ):
            await publish(writes, 3)
            async with reads.consumer("t", start_at=StartAt.EARLIEST) as observer:
                assert [(await anext(observer)).sequence for _ in range(3)] == [1, 2, 3]
                await empty(servers.urls[0])
                # Who runs goes on, and who begins finds what came since, at either broker.
                await publish(writes, 2, first=4)
                assert [(await anext(observer)).offset for _ in range(2)] == [3, 4]
            for client in (writes, reads):
                assert await read(client, 2) == [(3, 4), (4, 5)]
            await empty(servers.urls[0])
            # With nothing left to say which offset is next.
            await publish(reads, 2, first=6)
            assert await read(writes, 2) == [(5, 6), (6, 7)]
