"""The driver's own numbers, through NVML.

A GPU that is lost is told once and left alone, with growing pauses between the attempts to
find it again by its UUID; the others go on.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S, SYSTEM_CLOCK, Clock
from gputel.errors import SourceUnavailable
from gputel.inventory import Event, EventKind, Gpu, ProcessSample
from gputel.limits import GPUS_PER_NODE_MAX
from gputel.sources.nvml_device import TIMEOUT, UNSUPPORTED, Device, GpuLost
from gputel.sources.nvml_inventory import describe, text
from gputel.sources.source import Rings

BACK_OFF_MIN_S: Final = 1
BACK_OFF_MAX_S: Final = 60
EVENTS_PER_CALL_MAX: Final = 256
_ENERGY: Final = "energy_millijoules"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    gpu: Gpu
    device: Device
    sequences: dict[Cadence, int] = field(default_factory=lambda: dict.fromkeys(Cadence, 0))
    lost: bool = False
    pause_s: int = BACK_OFF_MIN_S
    probe_at_ns: int = 0
    failed: bool = False  # an unexpected exception was logged


class Nvml:
    """All GPUs of this node. `module` is pynvml, or None to import it when it is opened."""

    name = "nvml"
    identity: str | None = None

    def __init__(
        self,
        *,
        node: str,
        periods_ns: Mapping[Cadence, int],
        module: Any = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.description = "NVML"
        self._node = node
        self._periods_ns = dict(periods_ns)
        self._nvml: Any = module
        self._clock = clock
        self._slots: list[_Slot] = []
        self._opened = False
        self._event_set: Any = None
        self._events: list[Event] = []

    def open(self) -> Sequence[Gpu]:
        """Every GPU of the node, by NVML index. SourceUnavailable: no driver, no GPU."""
        if not self._opened:
            self._initialise()
            try:
                self._discover()
            except BaseException:
                self.close()
                raise
        return tuple(slot.gpu for slot in self._slots)

    def _initialise(self) -> None:
        if self._nvml is None:
            try:
                self._nvml = importlib.import_module("pynvml")
            except ImportError as error:
                raise SourceUnavailable(
                    f"source nvml: the module pynvml can't be imported: {error}",
                    hint="install nvidia-ml-py",
                ) from error
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise SourceUnavailable(
                f"source nvml: the driver can't be reached: {error}",
                hint="install or load the NVIDIA driver, or use sim or replay:PATH",
            ) from error
        self._opened = True

    def _discover(self) -> None:
        nvml = self._nvml
        try:
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError as error:
            raise SourceUnavailable(f"source nvml: GPUs can't be counted: {error}") from error
        if count > GPUS_PER_NODE_MAX:
            _log.warning("nvml: %d GPUs, the first %d are read", count, GPUS_PER_NODE_MAX)
        for index in range(min(count, GPUS_PER_NODE_MAX)):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpu = describe(nvml, handle, self._node, index)
            except nvml.NVMLError as error:
                _log.warning("nvml: GPU %d can't be opened, it is left out: %s", index, error)
                continue
            self._slots.append(_Slot(gpu, Device(nvml, handle, gpu.uuid)))
        if not self._slots:
            raise SourceUnavailable(
                "source nvml: the driver shows no GPU that can be opened",
                hint="see nvidia-smi, or use sim or replay:PATH",
            )
        first = self._slots[0].gpu
        self.description = f"{len(self._slots)} {first.model}, driver {first.driver_version}"
        try:
            self._event_set = nvml.nvmlEventSetCreate()
        except nvml.NVMLError as error:
            _log.warning("nvml: no events, XID errors stay unseen: %s", error)
        for slot in self._slots:
            self._register(slot)

    def _register(self, slot: _Slot) -> None:
        nvml = self._nvml
        if self._event_set is None:
            return
        try:
            nvml.nvmlDeviceRegisterEvents(
                slot.device.handle, nvml.nvmlEventTypeXidCriticalError, self._event_set
            )
        except nvml.NVMLError as error:
            _log.warning("nvml: %s: XID errors stay unseen: %s", slot.gpu.uuid, error)

    def cadences(self) -> Mapping[Cadence, int]:
        """All but DRAIN, with the configured periods."""
        return {c: period for c, period in self._periods_ns.items() if c is not Cadence.DRAIN}

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        """One row of every GPU that answers."""
        metric_set = SET_BY_CADENCE[cadence]
        ring = rings[metric_set]
        for number, slot in enumerate(self._slots):
            if slot.lost and not self._found_again(slot, time_ns):
                continue
            try:
                values = slot.device.read(metric_set.metrics, self._clock.monotonic_ns())
            except GpuLost as error:
                self._lose(slot, time_ns, error.code)
                continue
            except Exception:  # a driver that answers nonsense must not stop the other GPUs
                if not slot.failed:
                    _log.exception("nvml: %s: the sweep failed", slot.gpu.uuid)
                slot.failed = True
                values = [None] * len(metric_set.metrics)
            if cadence is Cadence.FAST:
                self._check_energy(slot, time_ns, values[_ENERGY_COLUMN])
            sequence = slot.sequences[cadence]
            slot.sequences[cadence] = sequence + 1
            ring.push(time_ns, number, sequence, lateness_us, values)
        return False

    def _check_energy(self, slot: _Slot, time_ns: int, value: int | float | None) -> None:
        if value is None:
            return
        before, slot.device.energy_mj = slot.device.energy_mj, int(value)
        if before is not None and value < before:
            self._event(
                slot, time_ns, EventKind.COUNTER_RESET, 0, f"{_ENERGY} from {before} to {value}"
            )

    def _event(self, slot: _Slot, time_ns: int, kind: EventKind, code: int, message: str) -> None:
        self._events.append(Event(time_ns, kind, slot.gpu.uuid, code, message))

    def _lose(self, slot: _Slot, time_ns: int, code: int) -> None:
        slot.lost = True
        slot.pause_s = BACK_OFF_MIN_S
        self._pause(slot)
        message = f"the driver lost the GPU (NVML return {code})"
        self._event(slot, time_ns, EventKind.LOST, code, message)
        _log.error("nvml: %s: %s", slot.gpu.uuid, message)

    def _pause(self, slot: _Slot) -> None:
        slot.probe_at_ns = self._clock.monotonic_ns() + slot.pause_s * NS_PER_S
        slot.pause_s = min(2 * slot.pause_s, BACK_OFF_MAX_S)

    def _found_again(self, slot: _Slot, time_ns: int) -> bool:
        if self._clock.monotonic_ns() < slot.probe_at_ns:
            return False
        handle = self._resolve(slot.gpu.uuid)
        if handle is None:
            self._pause(slot)
            return False
        slot.device.release()
        slot.device.attach(handle)
        slot.lost = False
        self._register(slot)
        self._event(slot, time_ns, EventKind.RESTORED, 0, "the GPU answers again")
        _log.warning("nvml: %s: the GPU answers again", slot.gpu.uuid)
        return True

    def _resolve(self, uuid: str) -> Any:
        """A handle that answers, or None; a handle alone proves nothing."""
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        except nvml.NVMLError:
            return None
        try:
            nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)
        except nvml.NVMLError as error:
            if int(error.value) not in UNSUPPORTED:
                return None
        return handle

    def events(self) -> Sequence[Event]:
        """XID errors that wait in the driver, and what sweeps have noticed."""
        for _ in range(EVENTS_PER_CALL_MAX if self._event_set is not None else 0):
            try:
                data = self._nvml.nvmlEventSetWait_v2(self._event_set, 0)
            except self._nvml.NVMLError as error:
                if int(error.value) != TIMEOUT:
                    _log.debug("nvml: no event read: %s", error)
                break
            self._xid(data)
        events, self._events = self._events, []
        return events

    def _xid(self, data: Any) -> None:
        xid = int(data.eventData)
        try:
            uuid = text(self._nvml.nvmlDeviceGetUUID(data.device))
        except self._nvml.NVMLError:
            uuid = ""  # the GPU is gone already; the event is the node's
        for slot in self._slots:
            if slot.gpu.uuid == uuid:
                slot.device.xid_last = xid
        now_ns = self._clock.time_ns() // 1000 * 1000
        self._events.append(Event(now_ns, EventKind.XID, uuid, xid, f"XID {xid}"))

    def processes(self) -> Sequence[ProcessSample]:
        """None are read."""
        return ()

    @property
    def exhausted(self) -> bool:
        """A driver never ends."""
        return False

    def close(self) -> None:
        """Release the driver. A second call does nothing."""
        if not self._opened:
            return
        self._opened = False
        for slot in self._slots:
            slot.device.release()
        self._slots = []
        event_set, self._event_set = self._event_set, None
        try:
            if event_set is not None:
                self._nvml.nvmlEventSetFree(event_set)
        except self._nvml.NVMLError as error:
            _log.debug("nvml: event set not freed: %s", error)
        try:
            self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            _log.warning("nvml: shutdown failed: %s", error)


_ENERGY_COLUMN: Final = [m.name for m in SET_BY_CADENCE[Cadence.FAST].metrics].index(_ENERGY)
