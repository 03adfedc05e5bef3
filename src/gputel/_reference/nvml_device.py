"""One GPU, one metric set, through nvidia-ml-py: the readable twin of nvml_read.h and nvml_drain.h.

`Reading.read` fills the cells of one row, `Reading.drain` yields the rows of the driver's own
samples. What a GPU refuses, its counters' last values and the cursors live here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gputel.plan import (
    ALL_LINKS,
    CURSOR_AHEAD_MAX_US,
    FUNCTION_NOT_FOUND,
    GPM_INTERVAL_MIN_NS,
    INVALID_ARGUMENT,
    NOT_FOUND,
    NOT_SUPPORTED,
    SUCCESS,
    UNKNOWN,
    CallOp,
    FieldOp,
    Note,
    Outcome,
    Plan,
    SampleOp,
    Shape,
    Target,
    classify,
)

#: Functions that nvidia-ml-py has under another name, with arguments that say which.
_NAMES = {"nvmlDeviceGetMemoryInfo_v2": ("nvmlDeviceGetMemoryInfo", ("nvmlMemory_v2",))}
#: nvmlValueType_t to the member of nvmlValue_t.
_MEMBERS = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

Cells = list[int | float | None]
Noted = tuple[Note, int, int, float]  # kind, column, before, value


class Gone(Exception):
    """The GPU (LOST) or the driver (FATAL) does not answer any more."""

    def __init__(self, outcome: Outcome, code: int) -> None:
        super().__init__(f"NVML return {code}")
        self.outcome = outcome
        self.code = code


@dataclass(slots=True)
class Cost:
    """What the calls of one function have cost."""

    calls: int = 0
    ns: int = 0
    longest_ns: int = 0
    errors: list[int] = field(default_factory=lambda: [0] * len(Outcome))


@dataclass(slots=True)
class _Stream:
    cursor_us: int | None = None
    unsupported: bool = False


class Reading:
    """The state of one GPU for one plan. `timed(ns)` is called at the start of each call, and
    with 0 when the GPU is done."""

    def __init__(self, nvml: Any, plan: Plan) -> None:
        self._nvml = nvml
        self._plan = plan
        self.costs = [Cost() for _ in plan.asks]
        self.rejected = [0] * plan.columns
        self.skipped_samples = 0
        self.notes: list[Noted] = []
        self._told: set[int] = set()
        self._counters: dict[int, int] = {}
        self._streams = [_Stream() for _ in plan.samples]
        self._gpm_samples: list[Any] = []
        self.timed: Callable[[int], None] = lambda ns: None
        self.xid_last: int | None = None
        self.forget(None)

    def forget(self, handle: Any, whole: Any = None, gpu_instance: int = 0) -> None:
        """Nothing is known to be unsupported; counters, cursors and costs survive."""
        self._handle = handle
        self._whole = whole  # of a MIG instance: the GPU it is a part of
        self._gpu_instance = gpu_instance
        calls = self._plan.calls
        self._unsupported = {i for i, call in enumerate(calls) if call.address == 0}
        self._answered: set[int] = set()
        self._scopes = [field_op.scope for field_op in self._plan.fields]
        for stream in self._streams:
            stream.unsupported = False
        self._traffic: tuple[int, int] | None = None
        self._gpm_state: bool | None = None
        self._gpm_ns: int | None = None

    # ---- Cells --------------------------------------------------------------------------

    def _put(self, cells: Cells, target: Target, raw: float) -> None:
        value = raw * target.multiply
        if target.divide != 1:
            value = value / target.divide
        if target.is_float:
            value = float(value)
        elif isinstance(value, float):
            value = round(value) if math.isfinite(value) else value
        if not target.low <= value <= target.high:
            self._reject(target, value)
            return
        if target.is_counter:
            before = self._counters.get(target.column)
            if before is not None and value < before:
                self.notes.append((Note.COUNTER_RESET, target.column, before, float(value)))
            self._counters[target.column] = int(value)
        cells[target.column] = value

    def _reject(self, target: Target, value: float) -> None:
        self.rejected[target.column] += 1
        if target.column not in self._told:
            self._told.add(target.column)
            self.notes.append((Note.REJECTED, target.column, 0, float(value)))

    def _put_union(self, cells: Cells, target: Target, member: int, value: Any) -> None:
        if 0 <= member < len(_MEMBERS):
            self._put(cells, target, getattr(value, _MEMBERS[member]))
        else:
            self._reject(target, math.nan)

    # ---- Calls --------------------------------------------------------------------------

    def _ask(self, ask: int, function: Callable[[], Any]) -> tuple[int, Any]:
        """(nvmlReturn, answer) of one call, accounted."""
        cost = self.costs[ask]
        started_ns = time.monotonic_ns()
        self.timed(started_ns)
        code, answer = SUCCESS, None
        try:
            answer = function()
        except self._nvml.NVMLError as error:
            code = int(error.value)
        ended_ns = time.monotonic_ns()
        self.timed(ended_ns)
        cost.calls += 1
        cost.ns += ended_ns - started_ns
        cost.longest_ns = max(cost.longest_ns, ended_ns - started_ns)
        return code, answer

    def _judge(self, origin: int, code: int, ask: int) -> Outcome:
        """What an answer means for its origin; raises Gone."""
        outcome = classify(code)
        self._asked += 1
        if outcome is Outcome.OK:
            self._answered.add(origin)
            return outcome
        # A handle that answered and is now an invalid argument says nothing of what is
        # supported: like UNKNOWN, it is a sign that the GPU may be gone.
        if code == INVALID_ARGUMENT and origin in self._answered:
            outcome = Outcome.TRANSIENT
        if outcome is Outcome.UNSUPPORTED:
            self._unsupported.add(origin)
        elif code in (UNKNOWN, INVALID_ARGUMENT):
            self._hopeless += 1
        self._code = code
        self.costs[ask].errors[outcome] += 1
        if outcome in (Outcome.LOST, Outcome.FATAL):
            raise Gone(outcome, code)
        return outcome

    def read(self, monotonic_ns: int) -> Cells:
        """One cell a column, None for what this GPU hasn't got now. Gone."""
        cells: Cells = [None] * self._plan.columns
        self._asked = self._hopeless = 0
        self._read_fields(cells, monotonic_ns)
        for i, call in enumerate(self._plan.calls):
            if i not in self._unsupported and (call.after < 0 or call.after in self._unsupported):
                self._read_call(cells, i, call)
        self._read_gpm(cells, monotonic_ns)
        if self._asked and self._hopeless == self._asked:
            raise Gone(Outcome.LOST, self._code)
        if self._plan.xid is not None and self.xid_last is not None:
            self._put(cells, self._plan.xid, self.xid_last)
        return cells

    def _read_call(self, cells: Cells, i: int, call: CallOp) -> None:
        name, constants = _NAMES.get(call.symbol, (call.symbol, ()))
        function = getattr(self._nvml, name, None)
        if function is None:  # an older nvidia-ml-py
            self._unsupported.add(i)
            return
        arguments = (*call.arguments, *(getattr(self._nvml, constant) for constant in constants))
        code, answer = self._ask(i, lambda: function(self._handle, *arguments))
        if self._judge(i, code, i) is Outcome.OK:
            words = _words(call.shape, answer)
            for target in call.targets:
                self._put(cells, target, words[target.word])

    # ---- Fields -------------------------------------------------------------------------

    def _read_fields(self, cells: Cells, monotonic_ns: int) -> None:
        first = len(self._plan.calls)
        active = [
            (i, op) for i, op in enumerate(self._plan.fields) if first + i not in self._unsupported
        ]
        if not active:
            return
        ids = [(op.field, self._scopes[i]) for i, op in active]
        ask = len(self._plan.calls)
        code, values = self._ask(
            ask, lambda: self._nvml.nvmlDeviceGetFieldValues(self._handle, ids)
        )
        outcome = self._judge(first + len(self._plan.fields), code, ask)
        if outcome is not Outcome.OK:
            if outcome is Outcome.UNSUPPORTED:
                self._unsupported |= {first + i for i, _ in active}
            return
        self._asked -= 1  # each field counts, not the call
        traffic: list[int] = []
        for (i, op), value in zip(active, values, strict=True):
            outcome = self._judge(first + i, int(value.nvmlReturn), ask)
            if outcome is Outcome.OK:
                self._put_field(cells, op, value, traffic)
            elif outcome is Outcome.UNSUPPORTED and self._scopes[i] == ALL_LINKS:
                # Before NVLink 5 the aggregate is scope 0: ask once more, in the next sweep.
                self._scopes[i] = 0
                self._unsupported.discard(first + i)
        if self._plan.rate is not None:
            self._put_rate(cells, self._plan.rate, traffic, monotonic_ns)

    def _put_field(self, cells: Cells, op: FieldOp, value: Any, traffic: list[int]) -> None:
        if op.target is None:
            if value.value.ullVal < 2**63:  # what the native kernel can add
                traffic.append(int(value.value.ullVal))
        else:
            member = value.valueType if op.member < 0 else op.member
            self._put_union(cells, op.target, member, value.value)

    def _put_rate(
        self, cells: Cells, target: Target, traffic: list[int], monotonic_ns: int
    ) -> None:
        before = self._traffic
        self._traffic = (monotonic_ns, sum(traffic)) if len(traffic) == 2 else None
        if before is None or self._traffic is None:
            return
        elapsed_ns, moved = monotonic_ns - before[0], self._traffic[1] - before[1]
        if elapsed_ns > 0 and moved >= 0:
            self._put(cells, target, float(moved) * 1e9 / elapsed_ns / 1000.0)

    # ---- GPM ----------------------------------------------------------------------------

    def _read_gpm(self, cells: Cells, monotonic_ns: int) -> None:
        if not self._plan.gpm or self._gpm_state is False:
            return
        if self._gpm_ns is not None and monotonic_ns - self._gpm_ns < GPM_INTERVAL_MIN_NS:
            return
        ask = len(self._plan.calls) + bool(self._plan.fields)
        if self._gpm_state is None:
            code = self._gpm_prepare()
            if code != SUCCESS:
                self._gpm_refused(code)
                return
            self._gpm_state = True
        older, newer = self._gpm_samples
        code, _ = self._ask(ask, lambda: self._gpm_sample(newer))
        if code != SUCCESS:
            self._gpm_refused(code, ask)
            return
        self._asked += 1
        self._gpm_samples.reverse()  # the newer one is the older one of the next sweep
        filled, self._gpm_ns = self._gpm_ns is not None, monotonic_ns
        if not filled:
            return
        request = self._nvml.c_nvmlGpmMetricsGet_t()
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(self._plan.gpm)
        request.sample1, request.sample2 = older, newer
        for item, op in zip(request.metrics, self._plan.gpm, strict=False):
            item.metricId = op.metric
        code, _ = self._ask(ask + 1, lambda: self._nvml.nvmlGpmMetricsGet(request))
        if code != SUCCESS:
            self._gpm_refused(code, ask + 1)
            return
        for item, op in zip(request.metrics, self._plan.gpm, strict=False):
            # NaN: no cycle has elapsed between the samples
            if item.nvmlReturn == SUCCESS and not math.isnan(item.value):
                self._put(cells, op.target, item.value)

    def _gpm_sample(self, sample: Any) -> None:
        """A MIG instance's sample is its GPU's to give."""
        if self._whole is None:
            self._nvml.nvmlGpmSampleGet(self._handle, sample)
        else:
            self._nvml.nvmlGpmMigSampleGet(self._whole, self._gpu_instance, sample)

    def _gpm_prepare(self) -> int:
        nvml = self._nvml
        try:
            asked = self._handle if self._whole is None else self._whole
            if not nvml.nvmlGpmQueryDeviceSupport(asked).isSupportedDevice:
                return NOT_SUPPORTED
            while len(self._gpm_samples) < 2:
                self._gpm_samples.append(nvml.nvmlGpmSampleAlloc())
        except nvml.NVMLError as error:
            return int(error.value)
        except AttributeError:  # an older nvidia-ml-py
            return FUNCTION_NOT_FOUND
        return SUCCESS

    def _gpm_refused(self, code: int, ask: int | None = None) -> None:
        outcome = classify(code)
        self._asked += 1
        self._hopeless += code == UNKNOWN
        self._code = code
        if ask is not None:
            self.costs[ask].errors[outcome] += 1
        if outcome is Outcome.UNSUPPORTED:
            self._gpm_state = False
        if outcome in (Outcome.LOST, Outcome.FATAL):
            raise Gone(outcome, code)

    def release(self) -> None:
        """Give the GPM samples back."""
        samples, self._gpm_samples, self._gpm_ns = self._gpm_samples, [], None
        for sample in samples:
            self._nvml.nvmlGpmSampleFree(sample)

    # ---- The driver's own samples ---------------------------------------------------------

    def drain(self, time_ns: int) -> Iterator[tuple[int, Cells]]:
        """(driver's time_ns, cells) of every sample since the last call, oldest first. Gone."""
        merged: dict[int, list[tuple[SampleOp, int, Any]]] = {}
        for op, stream in zip(self._plan.samples, self._streams, strict=True):
            if not stream.unsupported:
                member, samples = self._new_samples(op, stream, time_ns)
                for sample in samples:
                    found = merged.setdefault(sample.timeStamp, [])
                    found.append((op, member, sample.sampleValue))
        for time_us in sorted(merged):
            cells: Cells = [None] * self._plan.columns
            for op, member, value in merged[time_us]:
                self._put_union(cells, op.target, member, value)
            yield time_us * 1000, cells

    def _new_samples(
        self, op: SampleOp, stream: _Stream, time_ns: int
    ) -> tuple[int, Sequence[Any]]:
        asked_us = stream.cursor_us or 0
        # A cursor far ahead: ask for everything, to learn what the driver's clock says.
        if asked_us > time_ns // 1000 + CURSOR_AHEAD_MAX_US:
            asked_us = 0
        code, answer = self._ask(
            0, lambda: self._nvml.nvmlDeviceGetSamples(self._handle, op.type, asked_us)
        )
        if code == NOT_FOUND:  # nothing newer
            code, answer = SUCCESS, (1, ())
        outcome = classify(code)
        if outcome is not Outcome.OK:
            self.costs[0].errors[outcome] += 1
            stream.unsupported = outcome is Outcome.UNSUPPORTED
            if outcome in (Outcome.LOST, Outcome.FATAL):
                raise Gone(outcome, code)
            return 0, ()
        member, samples = answer
        samples = sorted(samples, key=lambda sample: int(sample.timeStamp))
        return member, self._newer(stream, samples, asked_us)

    def _newer(self, stream: _Stream, samples: Sequence[Any], asked_us: int) -> Sequence[Any]:
        """What is newer than the cursor, each time once; the first call only sets it, so that
        a restart takes no sample twice."""
        cursor_us = stream.cursor_us
        # Was the clock stepped back? Then the cursor starts anew, at the driver's newest.
        is_first = cursor_us is None or (
            asked_us < cursor_us and bool(samples) and samples[-1].timeStamp < cursor_us
        )
        newest_us = 0 if is_first else (cursor_us or 0)
        kept = []
        for sample in samples:
            if newest_us < sample.timeStamp <= (2**63 - 1) // 1000:
                newest_us = sample.timeStamp
                kept.append(sample)
            elif sample.timeStamp <= asked_us and not is_first:
                self.skipped_samples += 1
        stream.cursor_us = newest_us
        return () if is_first else kept


def _words(shape: Shape, answer: Any) -> Sequence[float]:
    """An answer of nvidia-ml-py as the words of `shape`."""
    if shape is Shape.PAGES:
        return (len(answer),)
    if shape is Shape.LICENSE:
        if not answer.isGridLicenseSupported or answer.licensableFeaturesCount == 0:
            return (0,)
        return (int(answer.gridLicensableFeatures[0].featureState),)
    if hasattr(answer, "_fields_"):
        return [getattr(answer, name) for name, *_ in answer._fields_ if name != "version"]
    return answer if isinstance(answer, list | tuple) else (answer,)
