"""The node's GPUs: which there are, which answer, and when to ask again those that don't.

    found --> active --> lost, stalled (told once)
                 ^             | after 1, 2, 4, ... 60 s, by UUID
                 +-------------+ restored

A slot is a GPU's number in the rings and never changes hands. A MIG instance has one too, behind
those of the GPUs that were there before it. Three threads come here: the
sampler's (sweeps, probes, discovery), the watch's (stalls) and the events' (fatal XIDs). The
lock guards the states, and is never held during a driver call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from gputel.clock import NS_PER_S, Clock
from gputel.inventory import EventKind, Gpu
from gputel.kernels import Sweeper
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.plan import GPU_NOT_FOUND, NOT_FOUND, Outcome, classify
from gputel.sources.journal import Journal
from gputel.sources.nvml_events import EventWatch
from gputel.sources.nvml_inventory import describe, text
from gputel.sources.nvml_library import address_of
from gputel.sources.nvml_mig import mig_instances, whole_of
from gputel.sources.source import Abandoned

BACK_OFF_MIN_S: Final = 1
BACK_OFF_MAX_S: Final = 60
NODE: Final = GPUS_PER_NODE_MAX  # the sweeper's slot for calls that belong to no GPU

_log = logging.getLogger(__name__)


class Busy(Exception):
    """Another thread is stuck in a call on this GPU: leave it alone."""


@dataclass(slots=True)
class Slot:
    """One GPU."""

    gpu: Gpu
    handle: Any = None
    active: bool = False
    pause_s: int = BACK_OFF_MIN_S
    probe_at_ns: int = 0
    active_since_ns: int = 0
    removed: bool = False  # a REMOVED event was told


class Roster:
    """All GPUs that were ever seen since `discover` was first called."""

    def __init__(
        self,
        nvml: Any,
        node: str,
        sweeper: Sweeper,
        events: EventWatch,
        journal: Journal,
        clock: Clock,
    ) -> None:
        self._nvml = nvml
        self._node = node
        self._sweeper = sweeper
        self._events = events
        self._journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        self.slots: list[Slot] = []
        self._left_out: set[str] = set()  # GPUs and instances for which there was no slot
        self.unopened = 0  # GPUs that the driver counts, and that can't be opened

    @property
    def gpus(self) -> Sequence[Gpu]:
        """By slot."""
        return tuple(slot.gpu for slot in self.slots)

    def slot_of(self, device: int) -> int | None:
        """Whose handle has this address?"""
        for number, slot in enumerate(self.slots):
            if slot.handle is not None and address_of(slot.handle) == device:
                return number
        return None

    # ---- Driver calls, one GPU at a time ----------------------------------------------------

    @contextmanager
    def claimed(self, turn: int, number: int) -> Iterator[None]:
        """Calls on a GPU (or NODE) under watch. Busy; Abandoned when they took too long."""
        if not self._sweeper.claim(turn, number):
            raise Busy
        try:
            yield
        finally:
            mine = self._sweeper.finish(turn, number)
        if not mine:
            raise Abandoned

    # ---- Finding ----------------------------------------------------------------------------

    def discover(self, turn: int, *, first: bool = False) -> int:
        """Open GPUs that are new; how many the driver counts. NVMLError, Busy, Abandoned."""
        nvml = self._nvml
        with self.claimed(turn, NODE):
            count = int(nvml.nvmlDeviceGetCount())
            active = sum(slot.active and not slot.gpu.mig_parent for slot in self.slots)
            if count != active or self.unopened or first:
                self._open_new(count, told=not first)
            self._compare_instances(told=not first)
        return count

    def _open_new(self, count: int, *, told: bool) -> None:
        nvml = self._nvml
        unopened = 0
        known = {slot.gpu.uuid: slot for slot in self.slots}
        for index in range(min(count, GPUS_PER_NODE_MAX)):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid = text(nvml.nvmlDeviceGetUUID(handle))
                if uuid in known:
                    known[uuid].probe_at_ns = 0  # it answers: don't wait for the back-off's end
                    continue
                gpu = describe(nvml, handle, self._node, index)
            except nvml.NVMLError as error:
                unopened += 1
                if unopened > self.unopened:
                    _log.warning("nvml: GPU %d can't be opened; tried again: %s", index, error)
                continue
            self._add(gpu, handle, told=told)
        self.unopened = unopened
        if count > GPUS_PER_NODE_MAX:
            _log.warning("nvml: %d GPUs, the first %d are read", count, GPUS_PER_NODE_MAX)

    def _compare_instances(self, *, told: bool) -> None:
        """Take MIG instances that are new, and give up those that are there no more."""
        known = {slot.gpu.uuid: number for number, slot in enumerate(self.slots)}
        listed: set[str] = set()
        wholes = [slot for slot in self.slots if slot.active and not slot.gpu.mig_parent]
        for whole in wholes:
            for handle, gpu in mig_instances(self._nvml, whole.handle, whole.gpu):
                listed.add(gpu.uuid)
                if gpu.uuid not in known:
                    self._add(gpu, handle, told=told)
                elif not self.slots[known[gpu.uuid]].active:
                    self.slots[known[gpu.uuid]].probe_at_ns = 0
        answering = {whole.gpu.uuid for whole in wholes}
        for number, slot in enumerate(self.slots):
            gone = slot.active and slot.gpu.mig_parent in answering
            if gone and slot.gpu.uuid not in listed:
                slot.removed = True
                self.lose(number, EventKind.REMOVED, 0, "the MIG instance was destroyed")

    def _add(self, gpu: Gpu, handle: Any, *, told: bool) -> None:
        if len(self.slots) == GPUS_PER_NODE_MAX:
            if gpu.uuid not in self._left_out:
                self._left_out.add(gpu.uuid)
                _log.error("nvml: %s is left out: %d GPUs were seen", gpu.uuid, GPUS_PER_NODE_MAX)
            return
        # The slot is known before its first row can be.
        self.slots.append(Slot(gpu))
        self._activate(len(self.slots) - 1, handle)
        if told:
            self._journal.tell(EventKind.ADDED, gpu.uuid, 0, f"{gpu.model} was added")
            _log.warning("nvml: %s: %s was added", gpu.uuid, gpu.model)

    def _activate(self, number: int, handle: Any) -> None:
        slot = self.slots[number]
        # An instance has no events of its own: XIDs are its GPU's. Its GPU is looked up anew: it
        # may have come back with another handle.
        whole = whole_of(self._nvml, handle) if slot.gpu.mig_parent else None
        sees_xids = not slot.gpu.mig_parent and self._events.register(handle, slot.gpu.uuid)
        with self._lock:
            slot.handle = handle
            slot.active = True
            slot.removed = False
            slot.active_since_ns = self._clock.monotonic_ns()
            self._sweeper.set_xid(number, 0 if sees_xids else None)
            self._sweeper.attach(number, handle, whole, slot.gpu.mig_instance or 0)

    # ---- Losing, and finding again ----------------------------------------------------------

    def lose(
        self, number: int, kind: EventKind, code: int, message: str, pause_s: int | None = None
    ) -> None:
        """This GPU is not asked any more, until a probe finds it; told once. `pause_s` is that
        before the first probe, also when the GPU is lost already."""
        slot = self.slots[number]
        with self._lock:
            self._sweeper.detach(number)
            now_ns = self._clock.monotonic_ns()
            # One that was back for a moment only is probed ever more seldom.
            if slot.active and now_ns - slot.active_since_ns >= BACK_OFF_MAX_S * NS_PER_S:
                slot.pause_s = BACK_OFF_MIN_S
            if pause_s is not None:
                slot.pause_s = pause_s
            if slot.active or pause_s is not None:
                self._pause(slot)
            if not slot.active:
                return
            slot.active = False
        self._journal.tell(kind, slot.gpu.uuid, code, message)
        _log.error("nvml: %s: %s", slot.gpu.uuid, message)

    def _pause(self, slot: Slot) -> None:
        slot.probe_at_ns = self._clock.monotonic_ns() + slot.pause_s * NS_PER_S
        slot.pause_s = min(2 * slot.pause_s, BACK_OFF_MAX_S)

    def probe(self, turn: int) -> None:
        """Look for lost GPUs whose pause is over. Abandoned."""
        for number, slot in enumerate(self.slots):
            if slot.active or self._sweeper.is_busy(number):
                continue
            if self._clock.monotonic_ns() >= slot.probe_at_ns:
                self._pause(slot)  # first: the next thread must not follow into a call that hangs
                try:
                    with self.claimed(turn, number):
                        self._probe(number, slot)
                except Busy:
                    continue

    def _probe(self, number: int, slot: Slot) -> None:
        """A handle alone proves nothing: it must answer a question, too."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(slot.gpu.uuid)
        except nvml.NVMLError as error:
            if int(error.value) in (NOT_FOUND, GPU_NOT_FOUND) and not slot.removed:
                slot.removed = True
                self._journal.tell(EventKind.REMOVED, slot.gpu.uuid, 0, "the GPU was removed")
            return
        try:
            nvml.nvmlDeviceGetMemoryInfo(handle)
        except nvml.NVMLError as error:
            if classify(int(error.value)) is not Outcome.UNSUPPORTED:
                return
        if not slot.gpu.model:  # it was lost when it was found first, and told its UUID only
            slot.gpu = describe(nvml, handle, self._node, slot.gpu.index)
        self._activate(number, handle)
        self._journal.tell(EventKind.RESTORED, slot.gpu.uuid, 0, "the GPU answers again")
        _log.warning("nvml: %s: the GPU answers again", slot.gpu.uuid)
