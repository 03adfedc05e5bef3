"""The collector: source, rings, batcher and publisher of one process.

    sampler thread   source -> rings
    event loop       rings -> columns -> chunks -> frames -> publisher; latest values

A replay advances hand in hand with the loop: after each sweep the thread waits until the
rings are drained, and when the source says "seal", until the frames have found room. So a
finite source's frames depend on its input alone, and a broker that is away holds it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from gputel.broker import BrokerClient
from gputel.catalog import METRIC_SETS, Cadence, MetricSet
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.collector import exporter, outbox, outbox_metrics, rates
from gputel.collector.batcher import Batcher, Framer
from gputel.collector.latest import Latest
from gputel.collector.outbox import FiniteOutbox, LiveOutbox, Outbox, SpoolPlace
from gputel.collector.rates import Rates
from gputel.collector.sampler import Sampler
from gputel.collector.settings import CollectorSettings
from gputel.errors import GputelError
from gputel.inventory import Gpu
from gputel.kernels import Ring, WhenFull
from gputel.observe import Health, Telemetry
from gputel.sources import Source

log = logging.getLogger(__name__)

THREAD_DEADLINE_S: Final = 3.0


class Collector:
    """`start`, then `stop`; a broker of None means: exporter only."""

    def __init__(
        self,
        settings: CollectorSettings,
        source: Source,
        broker: BrokerClient | None,
        topic: str,
        telemetry: Telemetry,
        health: Health,
        clock: Clock = SYSTEM_CLOCK,
        spool: SpoolPlace | None = None,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self.source = source
        self._broker = broker
        self._topic = topic
        self._clock = clock
        self._live = True  # until the source is open and says who it is
        self._replay = source.name == "replay"
        self.rings: Mapping[MetricSet, Ring] = {
            metric_set: Ring(
                metric_set.storages,
                settings.ring_rows,
                WhenFull.BLOCK if self._replay else WhenFull.DROP_NEWEST,
            )
            for metric_set in METRIC_SETS
        }
        self.gpus: Sequence[Gpu] = ()
        self.latest = Latest(())
        self.rates = Rates(0)
        self.outbox: Outbox | None = None
        self._sampler: Sampler | None = None
        self._pump: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted = asyncio.Event()  # a replay waits for us
        self._seal_wanted = False
        self._go_on = threading.Event()
        self._stopping = False
        self._rows = 0
        self._failure: GputelError | None = None
        self._observe_late_s = telemetry.histogram(
            "gputel_collector_tick_lateness_seconds", "How late a sweep began"
        )
        self._describe(telemetry, health)

    @property
    def finished(self) -> bool:
        """A finite source has been published to its end, and all of it is acknowledged."""
        return (
            not self._live
            and self.source.exhausted
            and not any(ring.pending_rows for ring in self.rings.values())
            and not self._seal_wanted
            and (self.outbox is None or self.outbox.pending_frames == 0)
        )

    async def start(self) -> None:
        """Open the source and begin. SourceUnavailable, InputError."""
        self._loop = asyncio.get_running_loop()
        self.gpus = await asyncio.to_thread(self.source.open)
        self.latest = Latest(self.gpus)
        self.rates = Rates(len(self.gpus))
        self._live = self.source.identity is None
        node = self.gpus[0].node if self.gpus else "unknown"
        producer = self.source.identity or f"collector:{node}"
        if self._broker is not None:
            self.outbox = await self._open_outbox(self._broker, producer)
        self._batcher = Batcher(self.rings, self.gpus, self._capacity())
        self._framer = Framer(self.gpus)
        self._sampler = Sampler(
            self.source, self.rings, self._swept, self._observe_late_s, self._clock
        )
        self._pump = asyncio.create_task(self._run(), name="collector-pump")
        self._sampler.start()

    async def _open_outbox(self, broker: BrokerClient, producer: str) -> Outbox:
        memory_bytes = self._settings.pending_bytes
        if self._live:
            return await outbox.open_live(
                broker, self._topic, producer, self._spool, memory_bytes, self._clock
            )
        publisher = await broker.publisher(
            self._topic, producer, outbox.FINITE_EPOCH, pending_bytes=memory_bytes
        )
        return FiniteOutbox(publisher, producer)

    async def stop(self) -> None:
        """Stop the source, publish what it has brought, wait for the acknowledgements."""
        self._stopping = True
        self._go_on.set()
        if self._sampler is not None:
            ended = await asyncio.to_thread(self._sampler.stop, THREAD_DEADLINE_S)
            if not ended:
                log.warning("the sampler hangs in the driver; leaving it behind")
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._sampler is not None:
            with contextlib.suppress(GputelError):
                await self._last_words()
        if self.outbox is not None:
            await self.outbox.close()
        self.source.close()

    async def _last_words(self) -> None:
        # The unsealed part of a finite step is not published: its frame would carry a
        # sequence that the whole step will carry after a restart.
        if self._live:
            self._batcher.drain()
            await self._publish()

    def _capacity(self) -> int:
        if self._replay:
            return 64
        fastest_hz = self._settings.fast_hz
        return min(1024, max(16, math.ceil(4 * fastest_hz * self._settings.flush_ms / 1000)))

    # -- the thread's side -------------------------------------------------------------

    def _swept(self, sealed: bool) -> None:
        if isinstance(self.outbox, LiveOutbox):
            self.outbox.swept(sum(ring.pushed_rows for ring in self.rings.values()))
        if not self._replay or (
            not sealed and not any(r.pending_rows for r in self.rings.values())
        ):
            return
        self._go_on.clear()
        if self._stopping or self._loop is None:
            return
        self._seal_wanted = sealed
        self._loop.call_soon_threadsafe(self._wanted.set)
        self._go_on.wait()

    # -- the loop's side ---------------------------------------------------------------

    async def _run(self) -> None:
        period_s = self._settings.flush_ms / 1000
        try:
            while True:
                if self._replay:
                    await self._wanted.wait()
                    self._wanted.clear()
                    self._rows += self._batcher.drain()
                    if self._seal_wanted:
                        await self._publish()
                        self._seal_wanted = False
                    self._go_on.set()
                else:
                    await self._clock.sleep(period_s)
                    self._rows += self._batcher.drain()
                    await self._publish()
        except GputelError as failure:
            self._failure = failure
            log.error("publishing stopped: %s", failure)

    async def _publish(self) -> None:
        sealed = self._batcher.seal()
        now_ns = self._clock.monotonic_ns()
        for part in sealed:
            self.latest.update(part.slot, part.batch, now_ns)
            self.rates.update(part.slot, part.batch)
        events = list(self.source.events())
        if self.outbox is None:
            return
        wall_ns = self._clock.time_ns()
        events = self.outbox.owed_events(wall_ns) + events
        for draft in self._framer.frames(sealed, events, wall_ns, repeat=self._live):
            await self.outbox.send(draft, wall_ns)

    # -- what it says of itself --------------------------------------------------------

    def exposition(self) -> bytes:
        """The latest values in Prometheus text format."""
        return exporter.render(self.latest, self._clock.monotonic_ns())

    def _describe(self, telemetry: Telemetry, health: Health) -> None:
        counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
        counter("gputel_collector_rows", "Rows taken from the rings", lambda: self._rows)
        counter(
            "gputel_ring_dropped_rows",
            "Rows that found their ring full",
            lambda: [(r.dropped_rows, {"set": s.name}) for s, r in self.rings.items()],
        )
        outbox_metrics.describe(telemetry, lambda: self.outbox)
        rates.describe(telemetry, lambda: self.rates)
        gauge("gputel_collector_gpus", "GPUs of the source", lambda: len(self.gpus))
        for name, help_, field in (
            ("gputel_collector_sweeps", "Sweeps done", "swept"),
            ("gputel_collector_missed_ticks", "Ticks that were overdue by a period", "missed"),
            ("gputel_collector_sweep_errors", "Sweeps that failed", "errors"),
        ):
            counter(name, help_, lambda field=field: self._by_cadence(field))  # type: ignore[misc]
        gauge(
            "gputel_collector_effective_hz",
            "Measured rate of sweeps",
            lambda: self._by_cadence("effective_hz"),
        )
        health.live("sampler", lambda: self._sampler.problem() if self._sampler else None)
        health.live("publisher", lambda: str(self._failure) if self._failure else None)
        health.ready("broker", self._broker_problem)

    def _by_cadence(self, field: str) -> list[tuple[float, dict[str, str]]]:
        ticks: Mapping[Cadence, object] = self._sampler.ticks if self._sampler else {}
        return [(getattr(t, field), {"cadence": c.value}) for c, t in ticks.items()]

    def _broker_problem(self) -> str | None:
        if self.outbox is None or self.outbox.connected:
            return None
        return f"the broker is away; {self.outbox.pending_frames} frames wait"
