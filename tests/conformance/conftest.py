"""One suite, three engines: what a broker promises does not depend on what keeps its messages."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from gputel.broker.engine import Engine
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings, JetStreamSettings
from gputel.observe import Health, Telemetry
from support.nats_servers import NatsServers, running

ENGINES = ("embedded", "jetstream-r1", "jetstream-r3")

_numbers = itertools.count(1)

#: Starts a broker over the test's own topics; one after the other, it finds what was there.
Serving = Callable[..., AbstractAsyncContextManager[BrokerServer]]


@pytest.fixture(scope="module")
def one_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with running(tmp_path_factory.mktemp("nats-1"), 1) as servers:
        yield servers


@pytest.fixture(scope="module")
def three_nats_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with running(tmp_path_factory.mktemp("nats-3"), 3) as servers:
        yield servers


@pytest.fixture(params=ENGINES)
def settings(request: pytest.FixtureRequest) -> Callable[..., BrokerSettings]:
    """Makes the settings of a broker with the engine under test, in a namespace of the test."""
    fixed: dict[str, Any] = {"listen": "127.0.0.1:0", "partitions": 2, "disk_reserve_bytes": 0}
    if request.param != "embedded":
        replicas: Literal[1, 3] = 3 if request.param == "jetstream-r3" else 1
        name = "three_nats_servers" if replicas == 3 else "one_nats_server"
        servers: NatsServers = request.getfixturevalue(name)
        fixed["engine"] = "jetstream"
        fixed["jetstream"] = JetStreamSettings(
            servers=tuple(servers.urls), replicas=replicas, namespace=f"t{next(_numbers)}"
        )
    return lambda **changed: BrokerSettings(**fixed | changed)


@pytest.fixture
def serving(settings: Callable[..., BrokerSettings], tmp_path: Path) -> Serving:
    @asynccontextmanager
    async def serve(**changed: Any) -> AsyncIterator[BrokerServer]:
        clock = changed.pop("clock", None)
        options = settings(**changed)
        extra = {"clock": clock} if clock else {}
        engine: Engine = make_engine(options, tmp_path / "broker", **extra)
        telemetry = Telemetry("broker")
        server = BrokerServer(options, engine, telemetry, Health("broker"), **extra)
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
            telemetry.close()

    return serve


@pytest.fixture
async def server(serving: Serving) -> AsyncIterator[BrokerServer]:
    async with serving() as server:
        yield server
