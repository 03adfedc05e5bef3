"""Who uses a GPU: the processes that the driver knows, with memory and utilisation.

The driver's functions are called through ctypes, and not by nvidia-ml-py's wrappers: those ask
twice, allocate what the driver says, and don't know the oldest form of the structs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from gputel.inventory import ProcessKind, ProcessSample
from gputel.plan import NOT_FOUND, SUCCESS, Outcome, classify

PROCESSES_PER_GPU_MAX: Final = 1024
_NOT_AVAILABLE: Final = 2**64 - 1
_PERCENT_MAX: Final = 100

_KINDS: Final = (
    (ProcessKind.COMPUTE, "nvmlDeviceGetComputeRunningProcesses"),
    (ProcessKind.GRAPHICS, "nvmlDeviceGetGraphicsRunningProcesses"),
    (ProcessKind.MPS, "nvmlDeviceGetMPSComputeRunningProcesses"),
)


class _InfoV1(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("used_bytes", ctypes.c_ulonglong))


class _InfoV2(ctypes.Structure):
    # _v3 of the functions returns it too.
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _Utilization(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("time_us", ctypes.c_ulonglong),
        ("sm", ctypes.c_uint),
        ("memory", ctypes.c_uint),
        ("encoder", ctypes.c_uint),
        ("decoder", ctypes.c_uint),
    )


_FORMS: Final[tuple[tuple[str, type[ctypes.Structure]], ...]] = (
    ("_v3", _InfoV2),
    ("_v2", _InfoV2),
    ("", _InfoV1),
)


class CallRefused(Exception):
    """A process call says that the GPU or the driver is gone; `code` is the nvmlReturn."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML return {code}")
        self.code = code


class ProcessReader:
    """Reads one GPU. Its buffers are its own: a thread may be stuck in a call with them."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._forms: dict[str, tuple[str, type[ctypes.Structure]] | None] = {}
        self._cursor_us = 0
        self.left_out = 0  # processes beyond the bound

    def read(self, handle: Any, gpu_uuid: str, time_ns: int) -> list[ProcessSample]:
        """The processes on the GPU, by kind and pid. CallRefused: the GPU is gone."""
        utilizations = self._utilizations(handle)
        found: dict[tuple[ProcessKind, int], ProcessSample] = {}
        for kind, name in _KINDS:
            for info in self._running(handle, name):
                use = utilizations.get(info.pid)
                used_bytes = None if info.used_bytes == _NOT_AVAILABLE else info.used_bytes
                known = found.get((kind, info.pid))
                # Under MIG a process is listed once an instance.
                if known is not None and known.memory_used_bytes and used_bytes:
                    used_bytes += known.memory_used_bytes
                if known is None and len(found) == PROCESSES_PER_GPU_MAX:
                    self.left_out += 1
                    continue
                found[kind, info.pid] = ProcessSample(
                    time_ns=time_ns,
                    gpu_uuid=gpu_uuid,
                    pid=info.pid,
                    kind=kind,
                    memory_used_bytes=used_bytes,
                    sm_utilization_percent=_percent(use and use.sm),
                    memory_utilization_percent=_percent(use and use.memory),
                    encoder_utilization_percent=_percent(use and use.encoder),
                    decoder_utilization_percent=_percent(use and use.decoder),
                )
        return [found[key] for key in sorted(found, key=lambda key: (key[0].value, key[1]))]

    def _running(self, handle: Any, name: str) -> list[Any]:
        if name in self._forms:
            form = self._forms[name]
            return self._list(handle, name, [form]) if form else []
        forms = [(name + suffix, info) for suffix, info in _FORMS]
        return self._list(handle, name, forms)

    def _list(
        self, handle: Any, name: str, forms: Sequence[tuple[str, type[ctypes.Structure]]]
    ) -> list[Any]:
        """Processes, by the first of `forms` that this GPU supports."""
        for symbol, info in forms:
            function = getattr(self._library, symbol, None)
            if function is None:
                continue
            buffer = (info * PROCESSES_PER_GPU_MAX)()
            count = ctypes.c_uint(PROCESSES_PER_GPU_MAX)
            outcome = _outcome(function(handle, ctypes.byref(count), buffer))
            if outcome is not Outcome.UNSUPPORTED:
                self._forms[name] = (symbol, info)
                fits = min(count.value, PROCESSES_PER_GPU_MAX)
                return buffer[:fits] if outcome is Outcome.OK else []
        self._forms[name] = None
        return []

    def _utilizations(self, handle: Any) -> dict[int, Any]:
        """The newest utilisation of each process since the last call."""
        function = getattr(self._library, "nvmlDeviceGetProcessUtilization", None)
        if function is None:
            return {}
        buffer = (_Utilization * PROCESSES_PER_GPU_MAX)()
        count = ctypes.c_uint(PROCESSES_PER_GPU_MAX)
        cursor = ctypes.c_ulonglong(self._cursor_us)
        code = function(handle, buffer, ctypes.byref(count), cursor)
        if code == NOT_FOUND or _outcome(code) is not Outcome.OK:
            return {}
        newest: dict[int, Any] = {}
        for use in buffer[: min(count.value, PROCESSES_PER_GPU_MAX)]:
            if use.time_us and (use.pid not in newest or newest[use.pid].time_us < use.time_us):
                newest[use.pid] = use
            self._cursor_us = max(self._cursor_us, use.time_us)
        return newest


def _outcome(code: int) -> Outcome:
    outcome = classify(code) if code != SUCCESS else Outcome.OK
    if outcome in (Outcome.LOST, Outcome.FATAL):
        raise CallRefused(code)
    return outcome


def _percent(value: int | None) -> int | None:
    return value if value is not None and value <= _PERCENT_MAX else None
