"""The collector process: from a source to the broker, and the node exporter."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

from gputel import broker
from gputel.catalog import Cadence
from gputel.clock import NS_PER_S
from gputel.collector.collector import Collector
from gputel.collector.exporter import OWN_METRICS_PATH, exporter_app, pages_at_once
from gputel.collector.spool.place import SpoolPlace
from gputel.config import Config
from gputel.errors import GputelError
from gputel.services.opening import opened
from gputel.services.process import Process
from gputel.services.simulate import is_simulated
from gputel.sources import Source
from gputel.sources.opening import open_source

log = logging.getLogger(__name__)


async def serve(process: Process) -> None:
    """Sample, publish and export until told to stop; a finite source leaves us running."""
    config = process.config
    source = await opened(
        process,
        lambda: source_of(config),
        listen=config.collector.listen,
        metrics_path=OWN_METRICS_PATH,
    )
    if source is None:
        return
    client = None
    if not config.collector.standalone:
        client = await broker.connect(config.message_queue.address)
    try:
        collector = Collector(
            config.collector,
            source,
            client,
            config.message_queue.topic,
            process.telemetry,
            process.health,
            exporter=config.exporter,
            attribution=config.attribution,
            spool=spool_place(process),
        )
        own = process.telemetry if config.exporter.own_metrics else None
        profile = config.exporter.profile
        async with process.status_port(
            config.collector.listen,
            exporter_app(collector.exporter, profile, own),
            metrics_path=OWN_METRICS_PATH,
            at_once=None if own else pages_at_once(collector.exporter, profile),
        ) as status:
            await collector.start()
            try:
                facts = {
                    "source": source.name,
                    "description": source.description,
                    "reason": reason(config.source.kind, source),
                }
                process.ready(collector=status.url, facts=facts)
                process.on_signal(signal.SIGUSR1, lambda: collector.poll(not collector.polling))
                process.on_signal(signal.SIGHUP, lambda: _reload(process, collector))
                await process.until_stopped()
            finally:
                await collector.stop()
    finally:
        if client is not None:
            await client.close()


def _reload(process: Process, collector: Collector) -> None:
    """Read the configuration again; what may change while we run is `collector.polling`."""
    try:
        collector.poll(process.reload().collector.polling)
    except GputelError as error:
        log.error("the configuration was not read again: %s", error)


def spool_place(process: Process) -> SpoolPlace | None:
    """Where frames wait for the broker; None: in memory only."""
    settings = process.config.collector
    if not settings.spool_bytes:
        return None
    directory = Path(settings.spool_dir) if settings.spool_dir else process.data_dir / "spool"
    return SpoolPlace(directory, settings.spool_bytes)


def source_of(config: Config) -> Source:
    """The configured source. SourceUnavailable, InputError."""
    rates_hz = {
        Cadence.FAST: config.collector.fast_hz,
        Cadence.MEDIUM: config.collector.medium_hz,
        Cadence.SLOW: config.collector.slow_hz,
        Cadence.DRAIN: config.collector.drain_hz,
    }
    periods_ns = {cadence: round(NS_PER_S / hz) for cadence, hz in rates_hz.items()}
    return open_source(config.source, periods_ns, processes=config.collector.processes)


def reason(kind: str, source: Source) -> str:
    """Why this source, for people."""
    if kind != "auto":
        return f"chosen by source.kind {kind}"
    if source.name == "nvml":
        return f"{'the simulated' if is_simulated() else 'an'} NVIDIA driver is here"
    return "no NVIDIA driver here, so the GPUs are simulated"
