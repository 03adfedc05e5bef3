"""The driver's events: a thread that waits for them, so that none between two sweeps is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from gputel.inventory import EventKind
from gputel.plan import TIMEOUT
from gputel.sources.nvml_library import address_of

WAIT_MS: Final = 500
ERROR_PAUSE_S: Final = 1.0

#: nvmlEventType*, from nvml.h: what it is to us, and what a person is told.
XID: Final = 0x8
TYPES: Final = {
    0x1: (EventKind.ECC, "a single-bit ECC error"),
    0x2: (EventKind.ECC, "a double-bit ECC error"),
    XID: (EventKind.XID, "XID"),
    0x100: (EventKind.MIG, "the MIG configuration changed"),
    0x200: (EventKind.ECC, "a storm of single-bit ECC errors"),
    0x400: (EventKind.ECC, "a DRAM page or row was retired"),
    0x800: (EventKind.ECC, "a DRAM page or row could not be retired"),
    0x1000: (EventKind.ECC, "a non-fatal poison error"),
    0x2000: (EventKind.ECC, "a fatal poison error"),
    0x4000: (EventKind.RECOVERY, "the GPU is unavailable"),
    0x8000: (EventKind.RECOVERY, "the recovery action changed"),
}
_WANTED: Final = sum(TYPES)

_log = logging.getLogger(__name__)


class DriverEvent(NamedTuple):
    """One event: `device` is the address of the handle."""

    device: int
    kind: EventKind
    type: int
    code: int
    message: str


class EventWatch:
    """One event set, one thread that waits on it. `tell` is called on that thread."""

    def __init__(self, nvml: Any, tell: Callable[[DriverEvent], None]) -> None:
        self._nvml = nvml
        self._tell = tell
        self._set: Any = None
        self._stop = threading.Event()
        self._awake = threading.Event()  # cleared: paused
        self._awake.set()
        self._thread = threading.Thread(target=self._run, name="nvml-events", daemon=True)
        self.errors = 0

    def open(self) -> bool:
        """Create the set; False when the driver has no events."""
        try:
            self._set = self._nvml.nvmlEventSetCreate()
        except self._nvml.NVMLError as error:
            _log.warning("nvml: no events, XID errors stay unseen: %s", error)
            return False
        return True

    def register(self, handle: Any, uuid: str) -> bool:
        """Wait for the events of this GPU too; False when its XIDs can't be seen."""
        if self._set is None:
            return False
        nvml = self._nvml
        try:
            wanted = _WANTED & nvml.nvmlDeviceGetSupportedEventTypes(handle)
        except nvml.NVMLError:
            wanted = XID
        reason: object = "not supported"
        for types in dict.fromkeys((wanted, wanted & XID)):
            if not types & XID:
                continue
            try:
                nvml.nvmlDeviceRegisterEvents(handle, types, self._set)
            except nvml.NVMLError as error:
                reason = error
            else:
                return True
        _log.warning("nvml: %s: XID errors stay unseen: %s", uuid, reason)
        return False

    def start(self) -> None:
        """Begin to wait."""
        if self._set is not None:
            self._thread.start()

    def pause(self) -> None:
        """Call the driver no more until `resume`; the call in progress ends within WAIT_MS."""
        self._awake.clear()

    def resume(self) -> None:
        """Wait for events again."""
        self._awake.set()

    def close(self, timeout_s: float) -> bool:
        """End the thread and free the set; False when the thread hangs in the driver."""
        self._stop.set()
        self._awake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        event_set, self._set = self._set, None
        try:
            if event_set is not None:
                self._nvml.nvmlEventSetFree(event_set)
        except self._nvml.NVMLError as error:
            _log.debug("nvml: event set not freed: %s", error)
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            self._awake.wait()
            if self._stop.is_set():
                return
            try:
                data = self._nvml.nvmlEventSetWait_v2(self._set, WAIT_MS)
            except self._nvml.NVMLError as error:
                if int(error.value) != TIMEOUT:
                    self._failed(error)
                continue
            self._tell(_typed(data))

    def _failed(self, error: Exception) -> None:
        # A set with a lost GPU may fail at once, every time: never spin.
        self.errors += 1
        if self.errors == 1:
            _log.warning("nvml: waiting for events failed, it is tried again: %s", error)
        self._stop.wait(ERROR_PAUSE_S)


def _typed(data: Any) -> DriverEvent:
    number, code = int(data.eventType), int(data.eventData)
    kind, words = TYPES.get(number, (EventKind.RECOVERY, f"event type {number:#x}"))
    message = f"XID {code}" if number == XID else words
    return DriverEvent(address_of(data.device), kind, number, code, message)
