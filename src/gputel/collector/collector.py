"""The collector: source, rings, batcher and publisher of one process.

    sampler thread   source -> rings
    event loop       rings -> columns -> chunks -> frames -> publisher; latest values, when they
                     are asked for (`Recent`)

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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gputel.batch import Batch
from gputel.catalog import METRIC_SETS, Cadence, MetricSet
from gputel.clock import NS_PER_MS, SYSTEM_CLOCK, Clock
from gputel.collector import rates
from gputel.collector.attribution import Attribution, AttributionSettings
from gputel.collector.batcher import Batcher, Framer
from gputel.collector.driver import describe_driver
from gputel.collector.exporter import Exporter, ExporterSettings
from gputel.collector.exporter.latest import Arrivals, all_now, lifetime_ns
from gputel.collector.rates import Rates
from gputel.collector.recent import LOOK_S, Recent
from gputel.collector.sampler import Sampler
from gputel.collector.settings import CollectorSettings
from gputel.errors import GputelError
from gputel.inventory import Event, EventKind, Gpu
from gputel.kernels import Ring, WhenFull
from gputel.observe import Health, Telemetry
from gputel.sources import Source
from gputel.sources.nvml_mig import MigParent, mig_parent
from gputel.sources.source import Hardware

if TYPE_CHECKING:  # without a broker, gRPC's 12 MB and protobuf's 4 MB stay out
    from gputel.broker import BrokerClient
    from gputel.collector.outbox import Outbox
    from gputel.collector.processes import ProcessAccounting
    from gputel.collector.spool.place import SpoolPlace

log = logging.getLogger(__name__)

THREAD_DEADLINE_S: Final = 3.0
#: Bounds nothing but memory: sweeps whose lateness is not recorded yet.
LATENESSES_MAX: Final = 16_384


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
        *,
        exporter: ExporterSettings | None = None,
        attribution: AttributionSettings | None = None,
        spool: SpoolPlace | None = None,
    ) -> None:
        self._spool = spool
        self._settings = settings
        self.source = source
        self._hardware = source if isinstance(source, Hardware) else None
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
        self._rings = tuple(self.rings.values())
        self.gpus: Sequence[Gpu] = ()
        self.exporter = Exporter(exporter or ExporterSettings(), clock, self._bring, source)
        self.rates = Rates(0)
        self._recent: Recent | None = None  # of a live source
        self.outbox: Outbox | None = None
        self._note_swept: Callable[[int], None] | None = None
        self.processes: ProcessAccounting | None = None
        self.attribution: Attribution | None = None
        self._add_label_providers(attribution, telemetry)
        self._accounting: asyncio.Task[None] | None = None
        self._sampler: Sampler | None = None
        self._pump: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wanted = asyncio.Event()  # a replay waits for us, or a ring fills up
        self._seal_wanted = False
        self._go_on = threading.Event()
        self._stopping = False
        self._rows = 0
        self._failure: GputelError | None = None
        #: PERF(collector): a record of the SDK costs the sampler's thread as much as a sweep.
        self._late_s: deque[float] = deque(maxlen=LATENESSES_MAX)
        self._observe_late_s = telemetry.histogram(
            "gputel_collector_tick_lateness_seconds", "How late a sweep began"
        )
        self._describe(telemetry, health)

    def _add_label_providers(
        self, attribution: AttributionSettings | None, telemetry: Telemetry
    ) -> None:
        if self._settings.processes:
            from gputel.collector.processes import ProcessAccounting

            self.processes = ProcessAccounting(
                self.source,
                self._clock,
                telemetry,
                period_s=1 / self._settings.slow_hz,
                publish=self._broker is not None,
            )
            self.exporter.add(self.processes)
        # A recording's GPUs are not in this machine.
        if attribution is not None and attribution.mode != "off" and not self._replay:
            mig_lookup = self._mig_parent if self.source.name == "nvml" else None
            self.attribution = Attribution(attribution, self._clock, telemetry, mig_lookup)
            self.exporter.add(self.attribution)

    def _mig_parent(self, mig_uuid: str) -> MigParent | None:
        return mig_parent(mig_uuid) if self.polling else None

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
        self.exporter.inventory(self.gpus)
        self._expect()
        self.rates = Rates(len(self.gpus))
        self._live = self.source.identity is None
        node = self.gpus[0].node if self.gpus else "unknown"
        producer = self.source.identity or f"collector:{node}"
        if self._broker is not None:
            self.outbox = await self._open_outbox(self._broker, producer)
        self._make_columns()
        self._framer = Framer(self.gpus)
        self._sampler = Sampler(
            self.source,
            self.rings,
            self._swept,
            self._late_s.append,
            self._clock,
            self._settings.cpu_budget_percent / 100,
        )
        if self.processes is not None:
            account = self.processes.run(lambda: self.gpus)
            self._accounting = asyncio.create_task(account, name="processes")
        if self.attribution is not None:
            self.attribution.start(lambda: self.gpus)
        self.poll(self._settings.polling)
        self._pump = asyncio.create_task(self._run(), name="collector-pump")
        self._sampler.start()

    def _make_columns(self) -> None:
        gpus, capacity = len(self.gpus), self._capacity()
        copy = None
        if not self._replay:
            self._recent = Recent(gpus, capacity, self._waits_ns(), self._clock, self._look)
            copy = self._recent.take
        # Where a live source is not published, nobody seals: rows go from the rings to `_recent`.
        self._batcher = Batcher(
            self.rings, self.gpus, capacity, copy, encodes=self._broker is not None
        )

    @property
    def polling(self) -> bool:
        """False while the driver is not called, on request."""
        return self._sampler is None or not self._sampler.paused

    def poll(self, wanted: bool) -> None:
        """Call the driver, or don't: the service stays up, its values turn stale."""
        if self._sampler is not None:
            (self._sampler.resume if wanted else self._sampler.pause)()

    async def _open_outbox(self, broker: BrokerClient, producer: str) -> Outbox:
        from gputel.collector import outbox

        memory_bytes = self._settings.pending_bytes
        if self._live:
            live = await outbox.open_live(
                broker, self._topic, producer, self._spool, memory_bytes, self._clock
            )
            self._note_swept = live.swept
            return live
        publisher = await broker.publisher(
            self._topic, producer, outbox.FINITE_EPOCH, pending_bytes=memory_bytes
        )
        return outbox.FiniteOutbox(publisher, producer)

    async def stop(self) -> None:
        """Stop the source, publish what it has brought, wait for the acknowledgements."""
        self._stopping = True
        self._go_on.set()
        if self._sampler is not None:
            ended = await asyncio.to_thread(self._sampler.stop, THREAD_DEADLINE_S)
            if not ended:
                log.warning("the sampler hangs in the driver; leaving it behind")
        tasks = [task for task in (self._pump, self._accounting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.attribution is not None:
            await self.attribution.stop()
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
            self._bring()
            if self._broker is not None:
                self._drain()
                await self._publish()

    def _capacity(self) -> int:
        if self._replay:
            return 64
        fastest_hz = self._settings.fast_hz
        return min(1024, max(16, math.ceil(4 * fastest_hz * self._settings.flush_ms / 1000)))

    # -- the thread's side -------------------------------------------------------------

    def _swept(self, sealed: bool) -> None:
        if self._note_swept is not None:
            self._note_swept(sum([ring.pushed_rows for ring in self._rings]))
        if not self._replay:
            if self._broker is None and self._loop is not None and self._crowded():
                self._loop.call_soon_threadsafe(self._wanted.set)
            return
        if not sealed and not any(r.pending_rows for r in self.rings.values()):
            return
        self._go_on.clear()
        if self._stopping or self._loop is None:
            return
        self._seal_wanted = sealed
        self._loop.call_soon_threadsafe(self._wanted.set)
        self._go_on.wait()

    def _crowded(self) -> bool:
        return any(ring.pending_rows > ring.free_rows for ring in self._rings)

    # -- the loop's side ---------------------------------------------------------------

    async def _run(self) -> None:
        period_s = self._settings.flush_ms / 1000
        try:
            while True:
                if self._replay:
                    await self._wanted.wait()
                    self._wanted.clear()
                    self._drain()
                    if self._seal_wanted:
                        await self._publish()
                        self._seal_wanted = False
                    self._bring()
                    self._go_on.set()
                elif self._broker is None:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_S):
                            await self._wanted.wait()
                    self._wanted.clear()
                    self._bring()
                else:
                    await self._clock.sleep(period_s)
                    self._drain()
                    await self._publish()
                    if self._due():
                        self._bring()
        except GputelError as failure:
            self._failure = failure
            log.error("publishing stopped: %s", failure)

    def _drain(self) -> None:
        if self._hardware is not None:
            gpus = self.source.open()
            if gpus != self.gpus:  # some were added: before the first rows of theirs
                self.gpus = gpus
                self._batcher.grow(len(gpus))
                if self._recent is not None:
                    self._recent.grow(len(gpus))
                self._framer.grow(gpus)
                self.exporter.inventory(gpus)
                self.rates = Rates(len(gpus))
        if self._recent is not None and self._broker is None:
            self._rows += self._recent.drain(self.rings)
        else:
            self._rows += self._batcher.drain()

    def _due(self) -> bool:
        return self._recent is not None and self._recent.due

    def _bring(self) -> None:
        """Give the exporter and the rates what they have not seen: before a page, and now and
        then. A recording's samples are given at once."""
        while self._late_s:
            self._observe_late_s(self._late_s.popleft())
        if self._recent is None:
            return
        if self._broker is None:
            self._drain()
            self._export(self._take_events(), self._clock.monotonic_ns())
        self._recent.look()

    def _look(self, slot: int, batch: Batch, arrivals: Arrivals) -> None:
        self.exporter.update(slot, batch, arrivals)
        self.rates.update(slot, batch)

    def _take_events(self) -> list[Event]:
        events = list(self.source.events())
        if self._sampler is not None:
            events += self._sampler.journal.take()
        return events

    async def _publish(self) -> None:
        sealed = self._batcher.seal()
        now_ns = self._clock.monotonic_ns()
        if self._replay:
            for part in sealed:
                self._look(part.slot, part.batch, all_now(now_ns))
        events = self._take_events()
        self._export(events, now_ns)
        if self.outbox is None:
            return
        wall_ns = self._clock.time_ns()
        events = self.outbox.owed_events(wall_ns) + events
        for draft in self._framer.frames(sealed, events, wall_ns, repeat=self._live):
            await self.outbox.send(draft, wall_ns)
        if self.processes is not None:
            for draft in self._framer.process_frames(self.processes.take()):
                await self.outbox.send(draft, wall_ns)

    def _export(self, events: Sequence[Event], now_ns: int) -> None:
        self.exporter.observe(events, now_ns)
        if any(event.kind is EventKind.DEMOTED for event in events):
            self._expect()

    def _expect(self) -> None:
        """Tell the exporter how long a value lives."""
        periods_ns = {} if self._replay else dict(self.source.cadences())
        if self._sampler is not None and not self._replay:
            periods_ns |= {c: ticks.period_ns for c, ticks in self._sampler.ticks.items()}
        waits_ns = self._waits_ns()
        self.exporter.expect(
            {
                metric_set: lifetime_ns(metric_set.cadence, periods_ns.get(metric_set.cadence))
                + waits_ns
                for metric_set in METRIC_SETS
            }
        )

    def _waits_ns(self) -> int:
        """How long a sample may be in the rings when a page is asked for."""
        at_once = self._broker is None and not self._replay
        return 0 if at_once else self._settings.flush_ms * NS_PER_MS

    # -- what it says of itself --------------------------------------------------------

    def _describe(self, telemetry: Telemetry, health: Health) -> None:
        counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
        counter("gputel_collector_rows", "Rows taken from the rings", lambda: self._rows)
        counter(
            "gputel_ring_dropped_rows",
            "Rows that found their ring full",
            lambda: [(r.dropped_rows, {"set": s.name}) for s, r in self.rings.items()],
        )
        if self._broker is not None:
            from gputel.collector import outbox_metrics

            outbox_metrics.describe(telemetry, lambda: self.outbox)
        rates.describe(telemetry, lambda: self.rates)
        gauge("gputel_collector_gpus", "GPUs of the source", lambda: len(self.gpus))
        counter(
            "gputel_exporter_refused_codes",
            "XIDs and clock events of a GPU that had too many different ones to count",
            lambda: self.exporter.xids.refused + self.exporter.clock_events.refused,
        )
        health.live("publisher", lambda: str(self._failure) if self._failure else None)
        health.ready("broker", self._broker_problem)
        self._describe_sampler(telemetry, health)

    def _describe_sampler(self, telemetry: Telemetry, health: Health) -> None:
        counter, gauge = telemetry.observe_counter, telemetry.observe_gauge
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
        gauge(
            "gputel_collector_period_seconds",
            "Sampling period now; longer than configured where that costs too much",
            lambda: self._by_cadence("period_s"),
        )
        gauge(
            "gputel_collector_paused",
            "1 while driver calls are stopped on request",
            lambda: int(not self.polling),
        )
        if self._hardware is not None:
            describe_driver(self._hardware, lambda: self._sampler, telemetry, health)
        health.ready("polling", lambda: None if self.polling else "paused on request")
        health.live("sampler", lambda: self._sampler.problem() if self._sampler else None)

    def _by_cadence(self, field: str) -> list[tuple[float, dict[str, str]]]:
        ticks: Mapping[Cadence, object] = self._sampler.ticks if self._sampler else {}
        return [(getattr(t, field), {"cadence": c.value}) for c, t in ticks.items()]

    def _broker_problem(self) -> str | None:
        if self.outbox is None or self.outbox.connected:
            return None
        return f"the broker is away; {self.outbox.pending_frames} frames wait"
