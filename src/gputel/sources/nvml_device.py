"""One GPU as NVML shows it: what it answers, what it doesn't support, what it said before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from gputel.catalog import Metric
from gputel.clock import NS_PER_S
from gputel.sources.nvml_calls import (
    FIELDS,
    GPM,
    NVLINK_RATE,
    RATE_FIELDS,
    READERS,
    XID_LAST,
    Call,
    Field,
)
from gputel.sources.values import Number, in_range

# nvmlReturn_t, from nvml.h; pynvml has the same numbers under NVML_ERROR_*.
INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, TIMEOUT = 2, 3, 4, 10
FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED = 13, 15, 16
VGPU_ECC_NOT_SUPPORTED, VERSION_MISMATCH, DEPRECATED, UNKNOWN = 22, 25, 26, 999
UNSUPPORTED: Final = frozenset(
    {
        INVALID_ARGUMENT,
        NOT_SUPPORTED,
        NO_PERMISSION,
        FUNCTION_NOT_FOUND,
        VGPU_ECC_NOT_SUPPORTED,
        VERSION_MISMATCH,
        DEPRECATED,
    }
)
LOST: Final = frozenset({GPU_IS_LOST, RESET_REQUIRED})

#: nvmlValueType_t, from nvml.h, to the member of nvmlValue_t.
_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
_GPM_KEY: Final = "gpm"

_log = logging.getLogger(__name__)


class GpuLost(Exception):
    """The GPU answers nothing any more; `code` is the nvmlReturn that said so."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML return {code}")
        self.code = code


class Device:
    """Reads of one handle. Not thread-safe: the sampler's thread alone calls it."""

    def __init__(self, nvml: Any, handle: Any, uuid: str) -> None:
        self._nvml = nvml
        self.uuid = uuid
        self.xid_last = 0
        self.energy_mj: int | None = None  # survives `attach`: a reset is seen across a loss
        self.attach(handle)

    def attach(self, handle: Any) -> None:
        """Start anew with `handle`: nothing is known to be unsupported."""
        self.handle = handle
        self._unsupported: set[object] = set()
        self._warned: set[str] = set()
        self._asked = self._unknown = 0
        self._traffic: tuple[int, Number] | None = None
        self._gpm_samples: list[Any] = []
        self._gpm_filled = False

    def read(self, metrics: Sequence[Metric], monotonic_ns: int) -> list[Number | None]:
        """One value a metric, None for what this GPU hasn't got now. GpuLost."""
        self._asked = self._unknown = 0
        answers: dict[Call, Any] = {}
        fields = self._read_fields(metrics)
        gpm = self._read_gpm(metrics)
        row = [self._value(m, answers, fields, gpm, monotonic_ns) for m in metrics]
        if self._asked and self._unknown == self._asked:
            raise GpuLost(UNKNOWN)
        return row

    def _value(
        self,
        metric: Metric,
        answers: dict[Call, Any],
        fields: dict[Field, Number],
        gpm: dict[str, Number],
        monotonic_ns: int,
    ) -> Number | None:
        name = metric.name
        value: Number | None
        if reader := READERS.get(name):
            if reader.call not in answers:
                answers[reader.call] = self._call(reader.call)
            answer = answers[reader.call]
            value = None if answer is None else reader.pick(answer)
        elif field := FIELDS.get(name):
            raw = fields.get(field)
            value = None if raw is None else field.scaled(raw)
        elif name == NVLINK_RATE:
            value = self._nvlink_rate(fields, monotonic_ns)
        elif name == XID_LAST:
            value = self.xid_last
        else:
            value = gpm.get(name)
        if value is None or in_range(metric, value):
            return value
        if name not in self._warned:
            self._warned.add(name)
            _log.warning("nvml: %s: %s is %r, left out", self.uuid, name, value)
        return None

    def _guarded(self, key: object, ask: Callable[[], Any]) -> Any:
        """What `ask` returns; None when it fails. An unsupported `key` isn't asked again."""
        if key in self._unsupported:
            return None
        self._asked += 1
        try:
            return ask()
        except self._nvml.NVMLError as error:
            self._failed(key, int(error.value))
        return None

    def _failed(self, key: object, code: int) -> None:
        if code in LOST:
            raise GpuLost(code)
        if code in UNSUPPORTED:
            self._unsupported.add(key)
        elif code == UNKNOWN:
            self._unknown += 1

    def _call(self, call: Call) -> Any:
        function = getattr(self._nvml, call.function, None)
        if function is None:  # an older nvidia-ml-py
            self._unsupported.add(call)
            return None
        arguments = [getattr(self._nvml, name) for name in call.arguments]
        return self._guarded(call, lambda: function(self.handle, *arguments))

    def _read_fields(self, metrics: Sequence[Metric]) -> dict[Field, Number]:
        wanted = [FIELDS[m.name] for m in metrics if m.name in FIELDS]
        if any(m.name == NVLINK_RATE for m in metrics):
            wanted += RATE_FIELDS
        wanted = [field for field in wanted if field not in self._unsupported]
        if not wanted:
            return {}
        ids = [(getattr(self._nvml, field.constant), field.scope) for field in wanted]
        answer = self._guarded(
            tuple(wanted), lambda: self._nvml.nvmlDeviceGetFieldValues(self.handle, ids)
        )
        found: dict[Field, Number] = {}
        for field, item in zip(wanted, answer or (), strict=False):
            if item.nvmlReturn:
                self._failed_field(field, int(item.nvmlReturn))
            elif field.member or 0 <= item.valueType < len(_MEMBERS):
                found[field] = getattr(item.value, field.member or _MEMBERS[item.valueType])
        return found

    def _failed_field(self, field: Field, code: int) -> None:
        self._asked += 1
        self._failed(field, code)

    def _nvlink_rate(self, fields: dict[Field, Number], monotonic_ns: int) -> Number | None:
        if any(field not in fields for field in RATE_FIELDS):
            self._traffic = None
            return None
        total = sum(fields[field] for field in RATE_FIELDS)
        before, self._traffic = self._traffic, (monotonic_ns, total)
        if before is None or monotonic_ns <= before[0] or total < before[1]:
            return None
        return round((total - before[1]) * NS_PER_S / (monotonic_ns - before[0]) / 1000)

    def _read_gpm(self, metrics: Sequence[Metric]) -> dict[str, Number]:
        wanted = [m.name for m in metrics if m.name in GPM]
        if not wanted or _GPM_KEY in self._unsupported:
            return {}
        return self._guarded(_GPM_KEY, lambda: self._gpm(wanted)) or {}

    def _gpm(self, wanted: Sequence[str]) -> dict[str, Number]:
        nvml = self._nvml
        if not self._gpm_samples:
            if not nvml.nvmlGpmQueryDeviceSupport(self.handle).isSupportedDevice:
                self._unsupported.add(_GPM_KEY)
                return {}
            while len(self._gpm_samples) < 2:
                self._gpm_samples.append(nvml.nvmlGpmSampleAlloc())
        older, newer = self._gpm_samples
        nvml.nvmlGpmSampleGet(self.handle, newer)
        self._gpm_samples.reverse()  # the newer one is the older one of the next sweep
        if not self._gpm_filled:
            self._gpm_filled = True
            return {}
        request = nvml.c_nvmlGpmMetricsGet_t()
        request.version = nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(wanted)
        request.sample1, request.sample2 = older, newer
        for slot, name in enumerate(wanted):
            request.metrics[slot].metricId = getattr(nvml, GPM[name].constant)
        nvml.nvmlGpmMetricsGet(request)
        return {
            name: GPM[name].scaled(item.value)
            for name, item in zip(wanted, request.metrics, strict=False)
            if item.nvmlReturn == 0 and item.value == item.value  # NaN: no cycles elapsed
        }

    def release(self) -> None:
        """Give the GPM samples back."""
        samples, self._gpm_samples, self._gpm_filled = self._gpm_samples, [], False
        for sample in samples:
            try:
                self._nvml.nvmlGpmSampleFree(sample)
            except self._nvml.NVMLError as error:
                _log.debug("nvml: %s: GPM sample not freed: %s", self.uuid, error)
