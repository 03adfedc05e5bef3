"""A broker, or a client, that has lost a task of its own says so and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gputel.broker import BrokerClient, dead_letters, registry
from gputel.broker.engine import commit
from gputel.broker.engine.jetstream import partition, writer
from gputel.broker.server import BrokerServer
from gputel.broker.settings import JetStreamSettings
from gputel.errors import BrokerUnavailable
from gputel.observe import Health
from support.brokers import connected, serving
from support.nats_servers import running

WAIT_S = 30.0


class Broken(Exception):
    """A mistake of ours."""


def fail(*_: Any, **__: Any) -> Any:
    raise Broken("a mistake of ours")


@asynccontextmanager
async def consuming(address: str) -> AsyncIterator[BrokerClient]:
    """A client with a message published and a group that has it."""
    async with connected(address) as client:
        publisher = await client.publisher("t", "p", 1)
        await publisher.publish(1, "k", b"x")
        assert await publisher.flush(WAIT_S)
        async with client.consumer("t", group="g") as consumer:
            await anext(consumer)
            yield client
        await publisher.close()


async def it_ends_because_of(of: BrokerServer, health: Health, task: str) -> None:
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(BrokerUnavailable, match=rf"{task} has ended: Broken.*: ending"):
            await of.until_failed()
    assert task in " ".join(filter(None, health.liveness().values()))


@pytest.mark.parametrize(
    ("of", "name", "task"),
    [
        (registry.Registry, "tick", "broker-tick"),
        (dead_letters.Undertaker, "bury", "broker-keep"),
        (commit.Committer, "_housekeep", "the committer"),
    ],
)
async def test_an_embedded_broker_ends(
    of: type, name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    health = Health("broker")
    async with serving(tmp_path, health=health) as served, consuming(served.address):
        monkeypatch.setattr(of, name, fail)
        await it_ends_because_of(served, health, task)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("of", "name", "task"),
    [
        (registry._Lease, "_renew", "share-t-g"),
        (registry.Registry, "refresh", "registry-look"),
        (partition.Partition, "tend", "jetstream-tend"),
        (writer.Writer, "_fill", "writer-t/0"),
    ],
)
async def test_a_broker_of_a_cluster_ends(
    of: type, name: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path / "nats", 1) as servers:
        cluster = JetStreamSettings(servers=tuple(servers.urls), replicas=1)
        options: dict[str, Any] = {"engine": "jetstream", "jetstream": cluster}
        health = Health("broker")
        async with (
            serving(tmp_path, health=health, **options) as served,
            consuming(served.address),
        ):
            monkeypatch.setattr(of, name, fail)
            for log in served._engine.topics["t"].partitions:
                log.interrupt()  # type: ignore[attr-defined]  # what it waits for may be long
            await it_ends_because_of(served, health, task)
            monkeypatch.undo()


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[BrokerServer, BrokerClient]]:
    async with serving(tmp_path) as server, consuming(server.address) as client:
        yield server, client


async def test_a_publisher_that_cannot_go_on_tells_who_publishes(
    served: tuple[BrokerServer, BrokerClient],
) -> None:
    _, client = served
    publisher = await client.publisher("t", "q", 1)
    await publisher.publish(1, "\ud800", b"no text that could be sent")
    async with asyncio.timeout(WAIT_S):
        with pytest.raises(UnicodeEncodeError):
            await publisher.flush(WAIT_S)
    with pytest.raises(UnicodeEncodeError):
        await publisher.publish(2, "k", b"x")
    await publisher.close()


@pytest.mark.parametrize("callback", ["on_assign", "on_revoke"])
async def test_a_consumers_callback_that_fails_is_told(
    callback: str, served: tuple[BrokerServer, BrokerClient]
) -> None:
    server, client = served

    async def broken(partition: int) -> None:
        raise Broken(f"at partition {partition}")

    options: dict[str, Any] = {callback: broken}
    async with client.consumer("t", group="h", **options) as consumer, asyncio.timeout(WAIT_S):
        if callback == "on_revoke":
            await anext(consumer)
            await server.stop()
        with pytest.raises(Broken, match="at partition 0"):
            await anext(consumer)
