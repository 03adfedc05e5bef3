"""The broker process: the durable log behind its gRPC port."""

from __future__ import annotations

from gputel.broker.background import first_of
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.services import heap
from gputel.services.process import ORPHAN_GRACE_S, Process


async def serve(process: Process) -> None:
    """Run the broker until it is told to stop."""
    heap.keep_freed()
    settings = process.config.broker
    async with process.status_port(settings.metrics_listen) as status:
        engine = make_engine(settings, process.data_dir / "broker")
        server = BrokerServer(settings, engine, process.telemetry, process.health)
        await server.start()
        try:
            process.ready(broker=server.address, metrics=status.url)
            # BrokerUnavailable when a restart would mend it.
            await first_of(process.stopping.wait(), server.until_failed())
            # Without a supervisor all services stop at once: let the others say their last.
            await process.orphan_grace(ORPHAN_GRACE_S)
        finally:
            await server.stop()
