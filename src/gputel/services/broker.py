"""The broker process: the durable log behind its gRPC port."""

from __future__ import annotations

from gputel.broker.server import BrokerServer
from gputel.services.process import ORPHAN_GRACE_S, Process


async def serve(process: Process) -> None:
    """Run the broker until it is told to stop."""
    settings = process.config.broker
    async with process.status_port(settings.metrics_listen) as status:
        server = BrokerServer(
            settings, process.data_dir / "broker", process.telemetry, process.health
        )
        await server.start()
        try:
            process.ready(broker=server.address, metrics=status.url)
            await process.until_stopped()
            # Without a supervisor all services stop at once: let the others say their last.
            await process.orphan_grace(ORPHAN_GRACE_S)
        finally:
            await server.stop()
