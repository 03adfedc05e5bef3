"""The broker process: the durable log behind its gRPC port."""

from __future__ import annotations

import asyncio

from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.services.process import ORPHAN_GRACE_S, Process


async def serve(process: Process) -> None:
    """Run the broker until it is told to stop."""
    settings = process.config.broker
    async with process.status_port(settings.metrics_listen) as status:
        engine = make_engine(settings, process.data_dir / "broker")
        server = BrokerServer(settings, engine, process.telemetry, process.health)
        await server.start()
        try:
            process.ready(broker=server.address, metrics=status.url)
            await _until_stopped(process, server)
            # Without a supervisor all services stop at once: let the others say their last.
            await process.orphan_grace(ORPHAN_GRACE_S)
        finally:
            await server.stop()


async def _until_stopped(process: Process, server: BrokerServer) -> None:
    """As `Process.until_stopped`; BrokerUnavailable when a restart would mend the broker."""
    failing = asyncio.create_task(server.until_failed(), name="failures")
    stopping = asyncio.create_task(process.stopping.wait(), name="stopping")
    try:
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            failing.result()
    finally:
        failing.cancel()
        stopping.cancel()
        await asyncio.gather(failing, stopping, return_exceptions=True)
