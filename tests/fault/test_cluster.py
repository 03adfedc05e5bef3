"""Two brokers over three NATS servers, while brokers and leaders are killed: the laws hold.

Each broker has a proxy, as a load balancer would be: when its broker is gone, it leads to the
other one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gputel.broker.settings import BrokerSettings, JetStreamSettings
from support import history as laws
from support.broker_process import broker_process
from support.history import History, Store
from support.nats_servers import NatsServers, running
from support.proxy import Proxy
from support.wire import Consumer, Producer, connected

pytestmark = [pytest.mark.fault, pytest.mark.slow]

ROUND_S = 20.0
QUIET_S = 90.0
MOVE_S = 20.0  # four of silence, and what a loaded machine takes


class Mode(NamedTuple):
    """What is killed."""

    brokers: bool = False
    servers: bool = False


MODES = {
    "brokers": Mode(brokers=True),
    "servers": Mode(servers=True),
    "everything": Mode(brokers=True, servers=True),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with running(tmp_path_factory.mktemp("nats"), 3) as servers:
        yield servers


def settings_for(servers: NatsServers, namespace: str) -> BrokerSettings:
    """Of brokers over `servers`, with topics that nobody else uses."""
    return BrokerSettings(
        listen="127.0.0.1:0",
        engine="jetstream",
        jetstream=JetStreamSettings(servers=tuple(servers.urls), replicas=3, namespace=namespace),
    )


class Brokers:
    """Two broker processes, each behind a proxy, that are killed and come again."""

    def __init__(
        self, settings: BrokerSettings, path: Path, draw: random.Random, mode: Mode
    ) -> None:
        self._settings = settings
        self._path = path
        self._draw = draw
        self._mode = mode
        self.proxies = (Proxy(), Proxy())
        self._addresses = ["", ""]
        self.well = asyncio.Event()
        self.starts = 0

    def _lead(self) -> None:
        """Each proxy to its own broker, or to the other."""
        for number, proxy in enumerate(self.proxies):
            proxy.target = self._addresses[number] or self._addresses[1 - number]

    async def run(self, number: int) -> None:
        """Start one of them until cancelled."""
        while True:
            self.starts += 1
            async with broker_process(self._settings, self._path) as (process, address):
                assert address, "the broker did not start"
                self._addresses[number] = address
                self._lead()
                ends: list[asyncio.Task[Any]] = [asyncio.create_task(process.wait())]
                if self._mode.brokers:
                    ends.append(asyncio.create_task(self._end_of_life()))
                try:
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    code = process.returncode
                    assert code is None, f"a broker ended by itself, with exit code {code}"
                finally:
                    for task in ends:
                        task.cancel()
                    self._addresses[number] = ""
                    self._lead()

    async def _end_of_life(self) -> None:
        await asyncio.sleep(self._draw.uniform(1, 5))
        if self.well.is_set():
            await asyncio.Event().wait()


async def kill_servers(servers: NatsServers, draw: random.Random) -> None:
    """Kill one server after the other, the next once all are well."""
    while True:
        # An election takes 4 to 10 s, in which nothing happens that could go wrong.
        await asyncio.sleep(draw.uniform(1, 8))
        victim = draw.randrange(servers.count)
        servers.kill(victim)
        try:
            await asyncio.sleep(draw.uniform(0.2, 3))
        finally:
            servers.launch(victim)
        await asyncio.to_thread(servers.wait_ready)


async def live_through(servers: NatsServers, path: Path, seed: int, mode: Mode) -> str:
    """One round; what happened in it, in words."""
    draw = random.Random(seed)
    history = History()
    kills = servers.kills
    settings = settings_for(servers, f"s{seed}")
    brokers = Brokers(settings, path, draw, mode)
    store = Store(history)

    def fork() -> random.Random:
        return random.Random(draw.randrange(2**32))

    async with brokers.proxies[0], brokers.proxies[1]:
        a, b = (proxy.address for proxy in brokers.proxies)
        running_ = [asyncio.create_task(brokers.run(number)) for number in range(2)]
        producers = [
            asyncio.create_task(laws.produce(history, address, f"p{number}", fork()))
            for number, address in enumerate((a, b, a))
        ]
        consumers = [
            asyncio.create_task(consuming)
            for consuming in (
                laws.consume(history, a, "group", fork()),
                laws.consume(history, b, "group", fork()),
                laws.consume(history, b, "strict", fork()),
                store.run(a, fork()),
            )
        ]
        trouble = [asyncio.create_task(kill_servers(servers, fork()))] if mode.servers else []
        everything = [*running_, *producers, *consumers, *trouble]
        try:
            await laws.first_failure(everything, ROUND_S)
            for task in trouble:
                task.cancel()
            await asyncio.gather(*trouble, return_exceptions=True)
            await asyncio.to_thread(servers.wait_ready)
            brokers.well.set()
            await laws.conclude(
                history,
                b,
                producers=producers,
                others=[*running_, *consumers],
                timeout_s=QUIET_S,
            )
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
    return f"{laws.told(history, brokers.starts)}, {servers.kills - kills} servers killed"


@pytest.mark.timeout(0)
@pytest.mark.parametrize("mode", MODES)
def test_a_random_history_of_a_cluster_obeys_the_laws(
    servers: NatsServers, mode: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    deadline = time.monotonic() + 60 * float(pytestconfig.getoption("--minutes"))
    first = True
    while first or time.monotonic() < deadline:
        first = False
        seed = random.randrange(2**32)
        print(f"{mode}: seed {seed}", flush=True)
        told = asyncio.run(live_through(servers, tmp_path, seed, MODES[mode]))
        print(f"{mode}: {told}", flush=True)


async def test_a_killed_brokers_partitions_move_within_seconds(
    servers: NatsServers, tmp_path: Path
) -> None:
    settings = settings_for(servers, f"k{random.randrange(2**32)}")
    async with (
        broker_process(settings, tmp_path) as (victim, a),
        broker_process(settings, tmp_path) as (_, b),
        connected(a) as to_a,
        connected(b) as to_b,
    ):
        producer = Producer(to_b)
        await producer.open()
        await producer.send([(s, str(s), b"%d" % s) for s in range(1, 201)])
        await producer.acked(200)
        first, second = Consumer(to_a), Consumer(to_b)
        await asyncio.gather(first.open(), second.open())
        await asyncio.gather(first.assigned(2), second.assigned(2))
        await asyncio.gather(first.credit(1000), second.credit(1000))
        done = await first.deliveries(1)
        await first.ack(done)
        victim.kill()
        killed = time.monotonic()
        async with asyncio.timeout(MOVE_S):
            await second.assigned(4)
        print(f"moved after {time.monotonic() - killed:.1f} s")
        while len({d.sequence for d in second.taken} | {d.sequence for d in done}) < 200:
            await second.step()
        assert all(d.payload == b"%d" % d.sequence for d in second.taken)
