"""A broker process whose disk fails for a while: it ends itself, and its successor is whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from gputel._proto.gputel.mq.v1 import broker_pb2 as mq

#: `gputel broker` on a disk whose syncs fail while a file is there.
BROKER = """
import errno, os, sys
from gputel.broker.engine.disk import Disk, OneCallDisk
from gputel.cli import main

broken, config = sys.argv[1:]

def breaking(really):
    def call(*arguments):
        if os.path.exists(broken):
            raise OSError(errno.EIO, "injected")
        really(*arguments)
    return call

Disk.sync = breaking(Disk.sync)
OneCallDisk.write_durably = breaking(OneCallDisk.write_durably)
sys.argv = ["gputel", "broker", "--config", config, "--log-format", "text"]
main()
"""
UNAVAILABLE = 7


@asynccontextmanager
async def broker(
    broken: Path, config: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROKER, str(broken), str(config), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            async for line in process.stderr:
                if b"ready: broker " in line:
                    break
        address = line.decode().partition("ready: broker ")[2].partition(",")[0]
        assert address, line
        yield process, address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@asynccontextmanager
async def publishing(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(
            "/gputel.mq.v1.Broker/Publish",
            request_serializer=mq.PublishRequest.SerializeToString,
            response_deserializer=mq.PublishResponse.FromString,
        )()
        opened = mq.PublishOpen(topic="t", producer="p", epoch=1)
        await call.write(mq.PublishRequest(open=opened))
        yield call, (await call.read()).opened.last_sequence


async def send(call: Any, sequence: int) -> int:
    """Publish a message and wait for its answer; the sequence that is acknowledged."""
    message = mq.Message(sequence=sequence, key="k", payload=b"x")
    await call.write(mq.PublishRequest(batch=mq.MessageBatch(messages=[message])))
    return int((await call.read()).ack.sequence)


async def test_a_broker_ends_when_its_disk_is_well_again_and_its_successor_is_whole(
    tmp_path: Path,
) -> None:
    broken, config = tmp_path / "broken", tmp_path / "gputel.json"
    loopback = {"listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0", "partitions": 1}
    config.write_text(json.dumps({"data_dir": str(tmp_path / "data"), "broker": loopback}))
    async with asyncio.timeout(60):
        async with broker(broken, config) as (process, address):
            async with publishing(address) as (call, _):
                assert await send(call, 1) == 1
                broken.touch()
                with pytest.raises(grpc.aio.AioRpcError, match="injected while writing"):
                    await send(call, 2)
                assert await call.code() is grpc.StatusCode.UNAVAILABLE
            os.unlink(broken)
            _, errors = await process.communicate()
            assert process.returncode == UNAVAILABLE, errors.decode()
            assert "the disk takes writes again" in errors.decode()
        async with broker(broken, config) as (_, address), publishing(address) as (call, last):
            assert last == 1
            assert await send(call, 2) == 2
