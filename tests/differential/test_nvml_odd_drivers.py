"""Both kernels on drivers that answer strangely: the same rows, the same counts.

The native kernel calls Python functions through ctypes here, the twin the same functions.
"""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable
from typing import Any

import pynvml
import pytest

from gputel._native.nvml import Sweeper
from gputel._reference.nvml import Sweeper as Twin
from gputel.kernels import Columns, Ring
from gputel.plan import (
    NOT_FOUND,
    CallOp,
    FieldOp,
    Plan,
    SampleOp,
    Shape,
    Swept,
    Target,
)

Samples = list[tuple[int, Any]]
NOW_NS = 1_800_000_000_000_000_000
NOW_US = NOW_NS // 1000
_POINTER = ctypes.c_void_p
_SAMPLES = ctypes.CFUNCTYPE(
    ctypes.c_int, _POINTER, ctypes.c_uint, ctypes.c_ulonglong,
    ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(pynvml.c_nvmlSample_t),
)  # fmt: skip
_FIELDS = ctypes.CFUNCTYPE(
    ctypes.c_int, _POINTER, ctypes.c_int, ctypes.POINTER(pynvml.c_nvmlFieldValue_t)
)
_U32 = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.POINTER(ctypes.c_uint))
DOUBLES = (0.0, 1.5, 2.5, -1.0, 1e19, 1e300, math.nan, math.inf)
WORDS = (0, 1, 55, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1)
GAUGE = Target(0, is_float=True, divide=1000, low=0, high=1000)


def address(function: Any) -> int:
    return ctypes.cast(function, _POINTER).value or 0


class Driver:
    """pynvml, and a C library, with the answers that a test sets."""

    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        self.samples: Callable[[int], tuple[int, Samples]] = lambda last_us: (1, [])
        self.fields: Callable[[int, int], tuple[int, int, Any]] = lambda field, scope: (0, 1, 0)
        self.power = (0, 0)
        self._held = (_SAMPLES(self._samples), _FIELDS(self._fields), _U32(self._power))
        self.addresses = {
            "nvmlDeviceGetSamples": address(self._held[0]),
            "nvmlDeviceGetFieldValues": address(self._held[1]),
        }
        self.power_address = address(self._held[2])

    # ---- the C library -------------------------------------------------------------------

    def _samples(self, device: int, kind: int, last_us: int, of: Any, count: Any, out: Any) -> int:
        of[0], samples = self.samples(last_us)
        if not samples:
            return NOT_FOUND
        count[0] = min(count[0], len(samples))
        for i, (time_us, value) in enumerate(samples[: count[0]]):
            out[i].timeStamp = time_us
            out[i].sampleValue = value
        return 0

    def _fields(self, device: int, count: int, values: Any) -> int:
        for i in range(count):
            code, kind, value = self.fields(values[i].fieldId, values[i].scopeId)
            values[i].nvmlReturn = code
            values[i].valueType = kind
            if code == 0:
                values[i].value = value
        return 0

    def _power(self, device: int, out: Any) -> int:
        out[0] = self.power[1]
        return self.power[0]

    # ---- nvidia-ml-py --------------------------------------------------------------------

    def nvmlDeviceGetSamples(self, handle: Any, kind: int, last_us: int) -> Any:
        of, samples = self.samples(last_us)
        if not samples:
            raise pynvml.NVMLError(NOT_FOUND)
        return of, [pynvml.c_nvmlSample_t(timeStamp=t, sampleValue=v) for t, v in samples[:1024]]

    def nvmlDeviceGetFieldValues(self, handle: Any, ids: list[tuple[int, int]]) -> Any:
        found = (pynvml.c_nvmlFieldValue_t * len(ids))()
        for item, (field, scope) in zip(found, ids, strict=True):
            item.fieldId, item.scopeId = field, scope
        self._fields(0, len(ids), found)
        return found

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        if self.power[0]:
            raise pynvml.NVMLError(self.power[0])
        return self.power[1]


class Pair:
    """Both kernels on one driver, one GPU, one plan."""

    def __init__(self, driver: Driver, plan: Plan, storages: str) -> None:
        self.sweepers: list[Any] = [
            Sweeper([plan], driver.addresses, 1),
            Twin([plan], driver, 1),
        ]
        self.rings = [Ring(storages, 65_536) for _ in self.sweepers]
        self._storages = storages
        for sweeper in self.sweepers:
            sweeper.attach(0, ctypes.c_void_p(1))

    def sweep(self, time_ns: int, monotonic_ns: int = 0) -> list[Any]:
        """The rows of both kernels, after a look that they are equal: (time_ns, values)."""
        found = []
        for sweeper, ring in zip(self.sweepers, self.rings, strict=True):
            assert sweeper.sweep(sweeper.turn, 0, time_ns, monotonic_ns, 7, ring) == Swept.DONE
            columns = Columns(self._storages, 1, 65_536)
            columns.drain(ring)
            rows = []
            for part in columns.seal():
                for i, row_ns in enumerate(part.time_ns.tolist()):
                    values = [
                        column[i].item() if part.valid[c][i // 8] >> (i % 8) & 1 else None
                        for c, column in enumerate(part.columns)
                    ]
                    rows.append((row_ns, *values))
            found.append(rows)
        assert found[0] == found[1]
        native, twin = self.sweepers
        assert native.rejected(0) == twin.rejected(0)
        assert native.skipped_samples == twin.skipped_samples
        assert repr(native.notes()) == repr(twin.notes())  # NaN is not equal to itself
        assert native.is_attached(0) == twin.is_attached(0)
        return found[0]


def watt(milliwatts: int) -> Any:
    return pynvml.c_nvmlValue_t(uiVal=milliwatts)


def drain_plan(samples: int = 1) -> Plan:
    ops = tuple(
        SampleOp(i, Target(i, is_float=True, divide=1000, high=1000)) for i in range(samples)
    )
    return Plan(columns=samples, samples=ops)


def test_samples_in_any_order_and_with_strange_times() -> None:
    driver = Driver()
    pair = Pair(driver, drain_plan(), "d")
    driver.samples = lambda last: (1, [(NOW_US - 5, watt(1)), (0, watt(2))])
    assert pair.sweep(NOW_NS) == []
    driver.samples = lambda last: (
        1,
        [(NOW_US + 3, watt(3)), (0, watt(4)), (NOW_US + 1, watt(5)), (NOW_US - 5, watt(6)),
         (NOW_US + 1, watt(7)), (2**64 - 1, watt(8)), (NOW_US + 2, watt(10**7))],
    )  # fmt: skip
    rows = pair.sweep(NOW_NS + 1)
    assert [row[0] // 1000 - NOW_US for row in rows] == [1, 2, 3]
    assert rows[1][1] is None, "10 kW is out of range"
    assert pair.sweepers[0].skipped_samples == 2, "without a time, and one of before"
    assert pair.sweepers[0].rejected(0) == [1]


def test_a_driver_whose_clock_is_ahead_and_one_that_steps_back() -> None:
    hour_us = 3_600_000_000
    driver = Driver()
    pair = Pair(driver, drain_plan(), "d")
    newest = [NOW_US + hour_us]
    history: Samples = [(NOW_US + hour_us, watt(1))]
    driver.samples = lambda last: (1, [s for s in history if s[0] > last])
    seen = pair.sweep(NOW_NS)
    for step in range(1, 6):
        newest.append(NOW_US + hour_us + step)
        history.append((newest[-1], watt(step)))
        seen += pair.sweep(NOW_NS + step)
    assert [row[0] // 1000 for row in seen] == newest[1:]
    history[:] = [(NOW_US - hour_us, watt(9))]  # the clock was wrong, and is set
    assert pair.sweep(NOW_NS + 6) == []
    history.append((NOW_US - hour_us + 1, watt(9)))
    assert [row[0] // 1000 for row in pair.sweep(NOW_NS + 7)] == [NOW_US - hour_us + 1]
    assert pair.sweepers[0].skipped_samples == 0


@pytest.mark.parametrize("seed", range(30))
def test_random_samples(seed: int) -> None:
    chance = random.Random(seed)
    driver = Driver()
    pair = Pair(driver, drain_plan(4), "dddd")
    for step in range(30):
        now_us = NOW_US + step * 100 + chance.choice((0, 0, 0, -(10**10), 10**10))
        answers = [
            (
                chance.choice((0, 1, 3, 4, 9)),
                [
                    (now_us + chance.randrange(-100, 100), pynvml.c_nvmlValue_t(ullVal=value))
                    for value in chance.choices((0, 5, 2**31, 2**63, 2**64 - 1), k=12)
                ],
            )
            for _ in range(4)
        ]
        turn = [0]

        def give(last: int, answers: Any = answers, turn: Any = turn) -> Any:
            turn[0] += 1
            return answers[(turn[0] - 1) % 4]

        driver.samples = give
        pair.sweep(NOW_NS + step)


def fields_plan() -> Plan:
    targets = (
        Target(0, multiply=1024, is_counter=True, low=0, high=2**63 - 1),
        Target(1, is_float=True, divide=1000, low=0, high=100_000),
        Target(2, low=-100, high=200),
    )
    fields = [FieldOp(i, target=target) for i, target in enumerate(targets)]
    rate = Target(3, low=0, high=2**63 - 1)
    traffic = [FieldOp(138, scope=2**32 - 1, in_rate=True), FieldOp(139, in_rate=True)]
    return Plan(columns=4, fields=(*fields, *traffic), rate=rate)


@pytest.mark.parametrize("seed", range(60))
def test_random_fields(seed: int) -> None:
    chance = random.Random(seed)
    driver = Driver()
    pair = Pair(driver, fields_plan(), "qdqq")
    for step in range(40):
        answers: dict[tuple[int, int], tuple[int, int, Any]] = {}

        def give(field: int, scope: int, answers: Any = answers) -> Any:
            if (field, scope) not in answers:
                code = chance.choices((0, 2, 3, 20, 999), (40, 1, 1, 1, 2))[0]
                kind = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 200))
                value = pynvml.c_nvmlValue_t()
                if kind == 0:
                    value.dVal = chance.choice(
                        (0.0, 1.5, 2.5, -1.0, 1e19, 1e300, math.nan, math.inf)
                    )
                else:
                    value.ullVal = chance.choice(
                        (0, 1, 55, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1)
                    )
                answers[field, scope] = (code, kind, value)
            return answers[field, scope]

        driver.fields = give
        pair.sweep(NOW_NS + step, step * 10**8)


@pytest.mark.parametrize("code", [*range(30), 999, 12345])
def test_every_return_means_the_same_to_both(code: int) -> None:
    driver = Driver()
    call = CallOp("nvmlDeviceGetPowerUsage", driver.power_address, Shape.U32, (), (GAUGE,))
    pair = Pair(driver, Plan(columns=1, calls=(call,)), "d")
    driver.power = (0, 400_000)
    assert pair.sweep(NOW_NS) == [(NOW_NS, 400.0)]
    driver.power = (code, 400_000)
    pair.sweep(NOW_NS + 1)
    driver.power = (0, 400_000)
    pair.sweep(NOW_NS + 2)
    native, twin = (sweeper.costs(0)[0] for sweeper in pair.sweepers)
    assert (native[0], native[3]) == (twin[0], twin[3])
