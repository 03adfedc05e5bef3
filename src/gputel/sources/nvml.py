"""The driver's own numbers, through NVML.

    sampler's thread   sweeps, by the native kernel; looks for lost and new GPUs
    watch              sees calls that do not return (`watch`, called by the sampler)
    nvml-events        waits for XID, ECC and other events

A GPU that is lost or stuck is told once and left alone, with growing pauses between the
attempts to find it again by its UUID; the others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from gputel import kernels
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import SourceUnavailable
from gputel.inventory import Event, EventKind, Gpu, ProcessSample
from gputel.kernels import Sweeper
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.plan import FUNCTIONS, STALLED_NS, Note, Outcome, Plan, Swept, classify
from gputel.sources import nvml_library
from gputel.sources.journal import Journal
from gputel.sources.nvml_costs import call_costs
from gputel.sources.nvml_events import XID, DriverEvent, EventWatch
from gputel.sources.nvml_peers import DriverGone, peer_statuses
from gputel.sources.nvml_plan import make_plan
from gputel.sources.nvml_processes import CallRefused, ProcessReader
from gputel.sources.nvml_roster import BACK_OFF_MAX_S, NODE, Busy, Roster
from gputel.sources.source import Abandoned, CallCost, PeerStatuses, Preempted, Rings

#: After these the driver must not be called for that GPU: fallen off the bus, GSP timeout,
#: GSP error (NVIDIA's XID catalogue).
FATAL_XIDS: Final = frozenset({79, 119, 120})
CLOSE_TIMEOUT_S: Final = 1.5
RESETS_TOLD_PERIOD_S: Final = 60
PROCESSES_HELD_MAX: Final = 65_536  # one sweep of a full node

MakeSweeper = Callable[[Sequence[Plan], Any, Mapping[str, int], int], Sweeper]

_log = logging.getLogger(__name__)


class DriverWithoutGpu(SourceUnavailable):
    """There is a driver, and it shows no GPU that can be opened: no reason to simulate any."""


class Nvml:
    """All GPUs of this node. `module` is pynvml, or None to load it with `library`."""

    name = "nvml"
    identity: str | None = None

    def __init__(
        self,
        *,
        node: str,
        periods_ns: Mapping[Cadence, int],
        library: str = "",
        processes: bool = False,
        module: Any = None,
        make_sweeper: MakeSweeper = kernels.nvml_sweeper,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.description = "NVML"
        self._node = node
        self._periods_ns = dict(periods_ns)
        self._library = library
        self._wants_processes = processes
        self._nvml: Any = module
        self._make_sweeper = make_sweeper
        self._clock = clock
        self._journal = Journal(clock)
        self._opened = False
        self._problem: str | None = None
        self._discovered_ns = 0
        self._give_way_at_ns: int | None = None
        self._resets_told: dict[tuple[int, int, int], int] = {}
        self._readers: dict[int, ProcessReader] = {}
        self._processes_ns: dict[int, int] = {}
        #: Of the last sweeps; the oldest go when nobody takes them.
        self._processes: deque[ProcessSample] = deque(maxlen=PROCESSES_HELD_MAX)
        self._wants_peers = False
        #: Of each GPU, by its peers' uuids, and when it was asked.
        self._peers_of: dict[int, tuple[int, dict[str, int]]] = {}
        self._peers: PeerStatuses = {}

    # ---- Opening and closing ------------------------------------------------------------------

    def open(self) -> Sequence[Gpu]:
        """Every GPU of the node, by slot. SourceUnavailable: no driver, no GPU."""
        if not self._opened:
            self._initialise()
            try:
                self._discover()
            except BaseException:
                self.close()
                raise
        return self._roster.gpus

    def _initialise(self) -> None:
        if self._nvml is None:
            self._nvml = nvml_library.load(self._library)
        else:
            self._nvml.nvmlInit()
        self._opened = True
        nvml = self._nvml

        def address(symbol: str) -> int:
            return nvml_library.address(nvml, symbol)

        plans = [make_plan(metric_set, nvml, address) for metric_set in METRIC_SETS]
        functions = {symbol: address(symbol) for symbol in FUNCTIONS}
        self._sweeper = self._make_sweeper(plans, nvml, functions, GPUS_PER_NODE_MAX)
        self._event_watch = EventWatch(nvml, self._driver_event)
        self._roster = Roster(
            nvml, self._node, self._sweeper, self._event_watch, self._journal, self._clock
        )

    def _discover(self) -> None:
        nvml = self._nvml
        self._event_watch.open()
        try:
            count = self._roster.discover(self._sweeper.turn, first=True)
        except nvml.NVMLError as error:
            raise SourceUnavailable(f"source nvml: GPUs can't be counted: {error}") from error
        if not self._roster.slots:
            raise (DriverWithoutGpu if count else SourceUnavailable)(
                f"source nvml: the driver counts {count} GPUs and shows none that can be opened",
                hint="see nvidia-smi, or use sim or replay:PATH",
            )
        first = self._roster.gpus[0]
        gpus = sum(not gpu.mig_parent for gpu in self._roster.gpus)
        self.description = f"{gpus} {first.model}, driver {first.driver_version}"
        self._event_watch.start()

    def close(self) -> None:
        """Release the driver, unless a thread hangs in it. A second call does nothing."""
        if not self._opened:
            return
        self._opened = False
        self._sweeper.close()
        ended = self._event_watch.close(CLOSE_TIMEOUT_S)
        if not ended or any(self._sweeper.is_busy(slot) for slot in range(NODE + 1)):
            _log.warning("nvml: a call hangs in the driver, which is left open")
            return
        self._sweeper.release()
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            _log.warning("nvml: shutdown failed: %s", error)

    # ---- Sweeping -----------------------------------------------------------------------------

    def cadences(self) -> Mapping[Cadence, int]:
        """All, with the configured periods."""
        return dict(self._periods_ns)

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        """One row of every GPU that answers; every new sample of the driver. Abandoned."""
        turn = self._sweeper.turn
        if self._problem is not None:
            return False
        self._roster.probe(turn)
        if cadence is Cadence.SLOW:
            self._look_around(turn, time_ns)
        metric_set = SET_BY_CADENCE[cadence]
        swept = self._sweeper.sweep(
            turn,
            METRIC_SETS.index(metric_set),
            time_ns,
            self._clock.monotonic_ns(),
            lateness_us,
            rings[metric_set],
            *self._time_left(),
        )
        self._heed_notes()
        if swept == Swept.ABANDONED:
            raise Abandoned
        if swept == Swept.PREEMPTED:
            raise Preempted
        if cadence is Cadence.SLOW and self._wants_processes:
            self._read_processes(turn, time_ns)
        if cadence is Cadence.SLOW and self._wants_peers:
            self._read_peers(turn, time_ns)
        return False

    def _time_left(self) -> tuple[int, ...]:
        if self._give_way_at_ns is None:
            return ()
        return (max(0, self._give_way_at_ns - self._clock.monotonic_ns()),)

    def _look_around(self, turn: int, time_ns: int) -> None:
        """Once a tick, even when it is taken over."""
        if self._discovered_ns == time_ns:
            return
        self._discovered_ns = time_ns
        try:
            self._roster.discover(turn)
        except Busy:
            pass
        except self._nvml.NVMLError as error:
            self._fail_if_fatal(int(error.value))

    def _read_processes(self, turn: int, time_ns: int) -> None:
        for number, slot in enumerate(self._roster.slots):
            # A GPU's list has those of its MIG instances.
            done = self._processes_ns.get(number) == time_ns
            if done or not slot.active or slot.gpu.mig_parent:
                continue
            if self._time_left() == (0,):
                raise Preempted
            self._processes_ns[number] = time_ns
            reader = self._readers.setdefault(number, ProcessReader(self._nvml.nvmlLib))
            try:
                with self._roster.claimed(turn, number):
                    self._processes.extend(reader.read(slot.handle, slot.gpu.uuid, time_ns))
            except Busy:
                continue
            except CallRefused as refused:
                if not self._fail_if_fatal(refused.code):
                    self._lost(number, refused.code)

    def _read_peers(self, turn: int, time_ns: int) -> None:
        """A new table, whole: another thread reads the last one."""
        slots = self._roster.slots
        whole = [n for n, slot in enumerate(slots) if slot.active and not slot.gpu.mig_parent]
        for number in whole:
            asked_ns, _ = self._peers_of.get(number, (None, {}))
            if asked_ns == time_ns:
                continue
            if self._time_left() == (0,):
                raise Preempted
            # A peer in whose call a thread is stuck would hold this one, too.
            peers = [
                (slots[n].gpu.uuid, slots[n].handle)
                for n in whole
                if n != number and not self._sweeper.is_busy(n)
            ]
            self._peers_of[number] = time_ns, {}
            try:
                with self._roster.claimed(turn, number):
                    statuses = peer_statuses(self._nvml, slots[number].handle, peers)
            except Busy:
                continue
            except DriverGone as gone:
                self._fail_if_fatal(gone.code)
                return
            self._peers_of[number] = time_ns, statuses
        self._peers = {
            (slots[number].gpu.uuid, peer): status
            for number in whole
            for peer, status in self._peers_of[number][1].items()
        }

    def _heed_notes(self) -> None:
        for kind, slot, plan, column, time_ns, before, value in self._sweeper.notes():
            if kind is Note.LOST:
                self._lost(slot, int(value))
            elif kind is Note.FATAL:
                self._fail_if_fatal(int(value))
            elif kind is Note.COUNTER_RESET:
                self._counter_reset(slot, plan, column, time_ns, before, int(value))
            elif kind is Note.REJECTED:
                name = METRIC_SETS[plan].metrics[column].name
                uuid = self._roster.slots[slot].gpu.uuid
                _log.warning("nvml: %s: %s is %r, left out", uuid, name, value)
            else:
                _log.warning("nvml: %d remarks of the sweep found no room", value)

    def _lost(self, slot: int, code: int) -> None:
        message = f"the driver lost the GPU (NVML return {code})"
        self._roster.lose(slot, EventKind.LOST, code, message)

    def _counter_reset(
        self, slot: int, plan: int, column: int, time_ns: int, before: int, value: int
    ) -> None:
        """Told once a minute at most: a counter that jitters must not drown the others."""
        key = (slot, plan, column)
        now_ns = self._clock.monotonic_ns()
        told_ns = self._resets_told.get(key)
        if told_ns is not None and now_ns - told_ns < RESETS_TOLD_PERIOD_S * NS_PER_S:
            return
        self._resets_told[key] = now_ns
        name = METRIC_SETS[plan].metrics[column].name
        uuid = self._roster.slots[slot].gpu.uuid
        message = f"{name} from {before} to {value}"
        self._journal.tell(EventKind.COUNTER_RESET, uuid, 0, message, time_ns)

    def _fail_if_fatal(self, code: int) -> bool:
        if classify(code) is not Outcome.FATAL:
            return False
        if self._problem is None:
            self._problem = (
                f"the driver was replaced or unloaded under this process (NVML return {code}): "
                "restart the collector"
            )
            _log.critical("nvml: %s", self._problem)
        for number in range(len(self._roster.slots)):
            self._roster.lose(number, EventKind.LOST, code, self._problem)
        return True

    # ---- gputel.sources.source.Hardware -------------------------------------------------------

    def give_way_at(self, monotonic_ns: int | None) -> None:
        """When the next sweep shall begin no further GPU."""
        self._give_way_at_ns = monotonic_ns

    def watch(self, limit_ns: int) -> bool:
        """Wait until a call of the sweeping thread lasts for `limit_ns`; GPUs that are stuck
        are given up here."""
        while (slot := self._sweeper.watch(limit_ns)) >= 0:
            stuck_ns = self._sweeper.stuck_ns(slot)
            if stuck_ns >= STALLED_NS and self._sweeper.is_attached(slot):
                message = f"a driver call has not returned for {stuck_ns / NS_PER_S:.1f} s"
                self._roster.lose(slot, EventKind.STALLED, 0, message)
            if stuck_ns >= limit_ns:
                return True
        return False

    def abandon(self, limit_ns: int) -> bool:
        """Take the work from the sweeping thread; False when its call has ended meanwhile."""
        return self._sweeper.abandon(limit_ns)

    def unwatch(self) -> None:
        """Let `watch` return."""
        self._sweeper.close()

    def pause(self) -> None:
        """No more calls of the events' thread."""
        self._event_watch.pause()

    def resume(self) -> None:
        """Go on."""
        self._event_watch.resume()

    def problem(self) -> str | None:
        """Why the driver can't be used any more, None when it can."""
        return self._problem

    def call_costs(self) -> Sequence[CallCost]:
        """By function, over all plans."""
        return call_costs(self._sweeper) if self._opened else []

    def counts(self) -> Mapping[str, int]:
        """Values left out, by reason."""
        if not self._opened:
            return {}
        rejected = sum(sum(self._sweeper.rejected(i)) for i in range(len(self._sweeper.plans)))
        return {
            "out_of_range": rejected,
            "sample_time": self._sweeper.skipped_samples,
            "process_bound": sum(reader.left_out for reader in self._readers.values()),
            "event_bound": self._journal.dropped_events,
        }

    # ---- Events and processes -----------------------------------------------------------------

    def _driver_event(self, event: DriverEvent) -> None:
        """On the events' thread."""
        slot = self._roster.slot_of(event.device)
        uuid = "" if slot is None else self._roster.slots[slot].gpu.uuid
        self._journal.tell(event.kind, uuid, event.code, event.message)
        if event.type != XID or slot is None:
            return
        self._sweeper.set_xid(slot, event.code)
        if event.code in FATAL_XIDS:
            message = f"XID {event.code}: the driver must not be called for this GPU"
            self._roster.lose(slot, EventKind.LOST, event.code, message, BACK_OFF_MAX_S)

    def events(self) -> Sequence[Event]:
        """What the driver told, and what sweeps have noticed."""
        return self._journal.take()

    def processes(self) -> Sequence[ProcessSample]:
        """The processes seen by the slow sweeps since the last call."""
        # Another thread appends: what is taken is counted first.
        return [self._processes.popleft() for _ in range(len(self._processes))]

    def want_peers(self) -> None:
        """Look at each slow sweep which GPUs reach each other."""
        self._wants_peers = True

    def peers(self) -> PeerStatuses:
        """As of the last slow sweep."""
        return self._peers

    @property
    def exhausted(self) -> bool:
        """A driver never ends."""
        return False
