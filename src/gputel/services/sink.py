"""The sink process: from the broker into PostgreSQL, exactly once."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from gputel import broker, store
from gputel.broker import BrokerClient
from gputel.errors import GputelError
from gputel.services import heap
from gputel.services.process import Process
from gputel.sink import Sink
from gputel.store.settings import SINK_GROUP, DatabaseSettings

log = logging.getLogger(__name__)

DRAIN_DEADLINE_S: Final = 8.0
DRAIN_POLL_S: Final = 0.1
DRAIN_POLLS: Final = round(DRAIN_DEADLINE_S / DRAIN_POLL_S) + 1


async def serve(process: Process) -> None:
    """Bring the schema up to date, then store frames until told to stop."""
    heap.keep_freed()
    config = process.config
    async with process.status_port(config.sink.listen) as status:
        database = await store.connect(config.database or DatabaseSettings())
        client = await broker.connect(config.message_queue.address)
        try:
            await database.migrate(config.store)
            sink = Sink(
                config.collector,
                database,
                config.store,
                client,
                config.message_queue.topic,
                process.telemetry,
                process.health,
            )
            stop = asyncio.Event()
            process.ready(sink=status.url)
            await process.until_stopped(sink.run(stop), _drain(process, client, stop))
        finally:
            await client.close()
            await database.close()


async def _drain(process: Process, client: BrokerClient, stop: asyncio.Event) -> None:
    """Under a supervisor the sources have stopped before us: store what is still queued.

    What a deadline leaves behind stays in the broker's log until the next start.
    """
    await process.stopping.wait()
    topic = process.config.message_queue.topic
    try:
        async with asyncio.timeout(DRAIN_DEADLINE_S):
            for _ in range(DRAIN_POLLS):
                if not process.supervised or await _lag(client, topic) == 0:
                    break
                await asyncio.sleep(DRAIN_POLL_S)
    except TimeoutError:
        log.warning("frames are left in the broker after %.0f s of draining", DRAIN_DEADLINE_S)
    except GputelError as error:
        log.info("not drained: %s", error)
    stop.set()


async def _lag(client: BrokerClient, topic: str) -> int:
    groups = await client.groups()
    return sum(
        position.lag
        for group in groups
        if group.topic == topic and group.group == SINK_GROUP
        for position in group.positions
    )
