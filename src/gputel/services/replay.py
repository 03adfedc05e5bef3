"""`gputel replay FILE`: a recorded file into the queue of a running pipeline, and then the end."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from gputel import broker
from gputel.collector.collector import Collector
from gputel.services.collector import source_of
from gputel.services.process import Process
from gputel.services.state import running_broker

log = logging.getLogger(__name__)

POLL_S: Final = 0.1
PROGRESS_S: Final = 2.0


async def serve(process: Process) -> None:
    """Publish the file to its end, or in a loop until told to stop."""
    config = process.config
    source = source_of(config)
    client = await broker.connect(running_broker(config))
    try:
        await client.topics()  # a broker that is not there is said at once
        collector = Collector(
            config.collector,
            source,
            client,
            config.message_queue.topic,
            process.telemetry,
            process.health,
        )
        await collector.start()
        try:
            log.info("playing %s", source.description)
            await _until_finished(process, collector)
        finally:
            await collector.stop()
    finally:
        await client.close()


async def _until_finished(process: Process, collector: Collector) -> None:
    loop = asyncio.get_running_loop()
    told_s = loop.time()
    while not (collector.finished or process.stopping.is_set()):
        if loop.time() - told_s >= PROGRESS_S and collector.outbox is not None:
            told_s = loop.time()
            log.info("%d rows published", collector.outbox.rows)
        try:
            await asyncio.wait_for(process.stopping.wait(), POLL_S)
        except TimeoutError:
            continue
    rows = collector.outbox.rows if collector.outbox else 0
    end = "all of it is acknowledged" if collector.finished else "stopped before its end"
    log.info("%d rows published; %s", rows, end)
