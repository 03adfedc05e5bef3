"""From the table of calls to the plan of each metric set, with addresses and numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gputel.catalog import Kind, Metric, MetricSet, Storage
from gputel.plan import (
    BY_VALUE_TYPE,
    NO_ORIGIN,
    CallOp,
    FieldOp,
    GpmOp,
    Plan,
    SampleOp,
    Target,
)
from gputel.sources.nvml_calls import (
    NVLINK_RATE,
    RATE_FIELDS,
    READINGS,
    XID_LAST,
    Call,
    Field,
    Gpm,
    Samples,
    Word,
)
from gputel.sources.values import limits_of

Address = Callable[[str], int]


def make_plan(metric_set: MetricSet, constants: Any, address: Address) -> Plan:
    """What to ask for `metric_set`.

    `constants` has nvml.h's constants as attributes (pynvml does); `address` gives that of a
    function, 0 when the library has none.
    """
    return _Compiler(metric_set, constants, address).plan()


class _Compiler:
    def __init__(self, metric_set: MetricSet, constants: Any, address: Address) -> None:
        self._set = metric_set
        self._constants = constants
        self._address = address
        #: Every call once, with the metrics that pick from it.
        self._calls: dict[Call, list[Target]] = {}
        self._fields: list[tuple[Field, Target | None]] = []
        self._gpm: list[GpmOp] = []
        self._samples: list[SampleOp] = []
        #: Which reading is asked after which.
        self._after: dict[Call, Call | Field] = {}

    def plan(self) -> Plan:
        rate = xid = None
        for column, metric in enumerate(self._set.metrics):
            if metric.name == NVLINK_RATE:
                rate = _target(metric, column)
                self._fields += [(field, None) for field in RATE_FIELDS]
            elif metric.name == XID_LAST:
                xid = _target(metric, column)
            else:
                self._add(metric, column)
        return Plan(
            columns=len(self._set.metrics),
            calls=tuple(self._call(call, targets) for call, targets in self._calls.items()),
            fields=tuple(self._field(field, target) for field, target in self._fields),
            gpm=tuple(self._gpm),
            samples=tuple(self._samples),
            rate=rate,
            xid=xid,
        )

    def _add(self, metric: Metric, column: int) -> None:
        before: Call | Field | None = None
        for reading in READINGS[metric.name]:
            target = _target(metric, column, reading)
            match reading:
                case Word(call=call):
                    self._calls.setdefault(call, []).append(target)
                    if before is not None:
                        self._after[call] = before
                    before = call
                case Field():
                    assert before is None, "a field is a metric's first reading"
                    self._fields.append((reading, target))
                    before = reading
                case Gpm():
                    self._gpm.append(GpmOp(self._number(reading.constant), target))
                case Samples():
                    self._samples.append(SampleOp(self._number(reading.constant), target))

    def _number(self, constant: str) -> int:
        return int(getattr(self._constants, constant))

    def _call(self, call: Call, targets: list[Target]) -> CallOp:
        arguments = tuple(self._number(name) for name in call.arguments)
        after = self._origin(self._after.get(call))
        address = self._address(call.symbol)
        return CallOp(call.symbol, address, call.shape, arguments, tuple(targets), after)

    def _origin(self, reading: Call | Field | None) -> int:
        if reading is None:
            return NO_ORIGIN
        if isinstance(reading, Call):
            return list(self._calls).index(reading)
        return len(self._calls) + [field for field, _ in self._fields].index(reading)

    def _field(self, field: Field, target: Target | None) -> FieldOp:
        member = BY_VALUE_TYPE if field.member is None else int(field.member)
        number = self._number(field.constant)
        return FieldOp(number, field.scope, member, target, in_rate=target is None)


def _target(metric: Metric, column: int, reading: object = None) -> Target:
    low, high = limits_of(metric)
    assert metric.storage in (Storage.F64, Storage.I64), "what the kernels can write"
    return Target(
        column,
        word=getattr(reading, "word", 0),
        multiply=getattr(reading, "multiply", 1),
        divide=getattr(reading, "divide", 1),
        is_float=metric.storage is Storage.F64,
        is_counter=metric.kind is Kind.COUNTER,
        low=low,
        high=high,
    )
