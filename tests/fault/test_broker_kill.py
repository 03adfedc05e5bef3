"""kill -9 of the broker while a producer publishes: what was acknowledged is there, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gputel import limits
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq

pytestmark = pytest.mark.fault

KEYS = 8
KILLS = 6
MESSAGES = 3000
BROKER = """
import asyncio, sys
from pathlib import Path
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.observe import Health, Telemetry

async def main():
    settings = BrokerSettings(listen="127.0.0.1:0", partitions=3, segment_bytes=1 << 20)
    engine = make_engine(settings, Path(sys.argv[1]))
    server = BrokerServer(settings, engine, Telemetry("broker"), Health("broker"))
    await server.start()
    print(server.address, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def payload(sequence: int) -> bytes:
    return random.Random(sequence).randbytes(200 + sequence % 20_000)


@asynccontextmanager
async def broker(path: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROKER, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            address = (await process.stdout.readline()).decode().strip()
        assert address
        yield process, address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def stream(channel: grpc.aio.Channel, method: str, request: Any, response: Any) -> Any:
    return channel.stream_stream(
        f"/gputel.mq.v1.Broker/{method}",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )()


async def publish(address: str, acked: int, kill_at: int, kill: Any) -> int:
    """Publish from behind `acked` on until the end; `kill` once `kill_at` is acknowledged."""

    async def write(call: Any) -> None:
        for first in range(acked + 1, MESSAGES + 1, 10):
            sequences = range(first, min(first + 10, MESSAGES + 1))
            messages = [
                mq.Message(sequence=s, key=str(s % KEYS), payload=payload(s)) for s in sequences
            ]
            await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=messages)))
        await call.done_writing()

    async with grpc.aio.insecure_channel(address) as channel:
        call = stream(channel, "Publish", mq.PublishRequest, mq.PublishResponse)
        opened = mq.PublishOpen(topic="t", producer="p", epoch=1)
        await call.write(mq.PublishRequest(open=opened))
        # What the broker knows to be durable need not be sent again, acknowledged or not.
        acked = max(acked, (await call.read()).opened.last_sequence)
        writer = asyncio.create_task(write(call))
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                acked = max(acked, response.ack.sequence)
                if acked >= kill_at:
                    kill()
                    kill_at = MESSAGES + 1
        except grpc.aio.AioRpcError:
            assert kill_at > MESSAGES, "the broker has ended by itself"
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
    return acked


async def read_all(address: str) -> list[mq.Delivery]:
    taken: list[mq.Delivery] = []
    options = [("grpc.max_receive_message_length", limits.GRPC_MESSAGE_BYTES_MAX)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = stream(channel, "Consume", mq.ConsumeRequest, mq.ConsumeResponse)
        opened = mq.ConsumeOpen(topic="t", start_at=mq.START_AT_EARLIEST)
        await call.write(mq.ConsumeRequest(open=opened))
        await call.write(mq.ConsumeRequest(credit=mq.Credit(messages=1 << 20, bytes=1 << 40)))
        async with asyncio.timeout(30):
            while len(taken) < MESSAGES:
                response = await call.read()
                for partition in response.assignment.partitions:
                    position = mq.Position(
                        partition=partition, generation=response.assignment.generation
                    )
                    await call.write(mq.ConsumeRequest(position=position))
                taken += response.batch.deliveries
        with pytest.raises(TimeoutError):  # and no more than that
            async with asyncio.timeout(0.3):
                await call.read()
    return taken


async def test_kill_9_loses_and_doubles_nothing_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    acked = 0
    for _ in range(KILLS):
        async with broker(tmp_path) as (process, address):
            kill_at = min(acked + dice.randrange(1, MESSAGES // KILLS), MESSAGES - 1)

            def kill(process: asyncio.subprocess.Process = process) -> None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()

            acked = await publish(address, acked, kill_at, kill)
    async with broker(tmp_path) as (process, address):
        acked = await publish(address, min(acked, MESSAGES - 1), MESSAGES + 1, lambda: None)
        assert acked == MESSAGES
        taken = await read_all(address)
    assert sorted(d.sequence for d in taken) == list(range(1, MESSAGES + 1))
    assert all(d.payload == payload(d.sequence) for d in taken)
    for partition in range(3):
        of = [d for d in taken if d.partition == partition]
        assert [d.offset for d in of] == list(range(len(of)))
        assert [d.sequence for d in of] == sorted(d.sequence for d in of)
