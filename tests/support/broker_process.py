"""A broker as a process of its own: `python -m support.broker_process SETTINGS DATA_DIR`.

SETTINGS is JSON. It prints its address once it serves, and serves until it is killed or told to
stop.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from gputel.broker.background import first_of
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.observe import Health, Telemetry

START_S = 100.0


@asynccontextmanager
async def broker_process(
    settings: BrokerSettings, data_dir: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A running broker and its address; it is killed when the context ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.broker_process",
        msgspec.json.encode(settings).decode(),
        str(data_dir),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_S):
            address = (await process.stdout.readline()).decode().strip()
        yield process, address
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    settings = msgspec.json.decode(sys.argv[1], type=BrokerSettings)
    engine = make_engine(settings, Path(sys.argv[2]))
    server = BrokerServer(settings, engine, Telemetry("broker"), Health("broker"))
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    await server.start()
    print(server.address, flush=True)
    await first_of(stopping.wait(), server.until_failed())
    await server.stop()


if __name__ == "__main__":
    asyncio.run(main())
