"""What clients and operators see of a broker whose disk fails, fills or is slow."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.engine.disk import Disk
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock, ManualClock
from gputel.errors import BrokerUnavailable, InputError
from gputel.observe import Health, Telemetry


class BrokenDisk(Disk):
    """Fails when told to."""

    write_errno = 0
    sync_errno = 0
    failed_syncs = 0

    def write(self, fd: int, data: memoryview, position: int) -> None:
        if self.write_errno:
            raise OSError(self.write_errno, "injected")
        super().write(fd, data, position)

    def sync(self, fd: int) -> None:
        if self.sync_errno:
            self.failed_syncs += 1
            raise OSError(self.sync_errno, "injected")
        super().sync(fd)


class Broker:
    """A broker on a disk that can be broken, and its only client."""

    def __init__(
        self, path: Path, listen: str = "127.0.0.1:0", *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.disk = BrokenDisk()
        self.health = Health("broker")
        self.telemetry = Telemetry("broker")
        settings = BrokerSettings(listen=listen, partitions=1)
        engine = make_engine(settings, path, clock=clock, disk=self.disk)
        self.server = BrokerServer(settings, engine, self.telemetry, self.health, clock)

    @property
    def metrics(self) -> str:
        return self.telemetry.exposition()[0].decode()


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    broker = Broker(tmp_path)
    await broker.server.start()
    yield broker
    await broker.server.stop()
    broker.telemetry.close()


@asynccontextmanager
async def publishing(broker: Broker) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(broker.server.address) as channel:
        call = channel.stream_stream(
            "/gputel.mq.v1.Broker/Publish",
            request_serializer=mq.PublishRequest.SerializeToString,
            response_deserializer=mq.PublishResponse.FromString,
        )()
        opened = mq.PublishOpen(topic="t", producer="p", epoch=1)
        await call.write(mq.PublishRequest(open=opened))
        await call.read()
        yield call


async def send(call: Any, sequence: int) -> None:
    message = mq.Message(sequence=sequence, key="k", payload=b"x")
    await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=[message])))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is watched tells nobody
            await asyncio.sleep(0.01)


async def test_a_full_disk_throttles_and_acknowledges_later(broker: Broker) -> None:
    async with asyncio.timeout(20), publishing(broker) as call:
        broker.disk.write_errno = errno.ENOSPC
        await send(call, 1)
        await until(lambda: broker.health.readiness()["disk"] is not None)
        await send(call, 2)
        assert (await call.read()).throttle.delay_ms > 0
        assert broker.health.liveness()["partitions"] is None
        broker.disk.write_errno = 0
        acked = 0
        while acked < 2:
            acked = max(acked, (await call.read()).ack.sequence)
        await until(lambda: broker.health.readiness()["disk"] is None)


async def test_a_failed_sync_ends_streams_and_liveness(broker: Broker) -> None:
    async with asyncio.timeout(20), publishing(broker) as call:
        await send(call, 1)
        assert (await call.read()).ack.sequence == 1
        broker.disk.sync_errno = errno.EIO
        await send(call, 2)
        with pytest.raises(grpc.aio.AioRpcError, match="injected while writing"):
            await call.read()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "injected" in str(broker.health.liveness()["partitions"])
        assert "gputel_broker_failed_partitions 1.0" in broker.metrics


async def test_it_ends_itself_when_a_new_process_could_open_what_failed(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = Broker(tmp_path, clock=clock)
    await broker.server.start()
    ending: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(20), publishing(broker) as call:
            broker.disk.sync_errno = errno.EIO
            await send(call, 1)
            with pytest.raises(grpc.aio.AioRpcError, match="injected while writing"):
                await call.read()
            ending = asyncio.create_task(broker.server.until_failed())
            await until(lambda: broker.disk.failed_syncs >= 4)  # one of a commit, then probes
            assert not ending.done()
            assert broker.server.address, "it still serves its other partitions"
            broker.disk.sync_errno = 0
            with pytest.raises(BrokerUnavailable, match=r"t/0: injected while writing .* again"):
                await ending
            assert not list(tmp_path.rglob("probe"))  # noqa: ASYNC240 - a test
    finally:
        if ending is not None:
            ending.cancel()
        await broker.server.stop()
        broker.telemetry.close()


async def test_a_healthy_broker_does_not_end_itself(tmp_path: Path) -> None:
    clock = ManualClock()
    broker = Broker(tmp_path, clock=clock)
    await broker.server.start()
    async with asyncio.timeout(20), publishing(broker) as call:
        ending = asyncio.create_task(broker.server.until_failed())
        await send(call, 1)
        assert (await call.read()).ack.sequence == 1
        begun_ns = clock.monotonic_ns()
        await until(lambda: clock.monotonic_ns() - begun_ns > 600 * NS_PER_S)
        assert not ending.done()
        ending.cancel()
    await broker.server.stop()
    broker.telemetry.close()


async def test_the_metrics_say_what_was_done(broker: Broker) -> None:
    async with asyncio.timeout(20), publishing(broker) as call:
        for sequence in (1, 2, 3):
            await send(call, sequence)
            while (await call.read()).ack.sequence < sequence:
                pass
        assert 'gputel_broker_messages_in_total{topic="t"} 3.0' in broker.metrics
        assert "gputel_broker_streams 1.0" in broker.metrics
        assert "gputel_broker_commit_seconds_count" in broker.metrics
        assert not any(broker.health.readiness().values())


async def test_reflection_names_the_service(broker: Broker) -> None:
    async with grpc.aio.insecure_channel(broker.server.address) as channel:
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = (await call.read()).list_services_response.service
        assert "gputel.mq.v1.Broker" in {service.name for service in listed}
        await call.done_writing()


async def test_an_address_that_makes_no_sense_is_said(tmp_path: Path) -> None:
    broker = Broker(tmp_path, "nonsense")
    with pytest.raises(InputError, match="'nonsense' is no `host:port`"):
        await broker.server.start()
    broker.telemetry.close()
