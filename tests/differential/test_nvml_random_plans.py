"""Both kernels on random plans whose origins share columns, scale differently, stand in for each
other, and answer strangely."""

from __future__ import annotations

import ctypes
import random
from typing import Any

import pynvml
import pytest

from gputel._native.nvml import Sweeper
from gputel._reference.nvml import Sweeper as Twin
from gputel.kernels import Columns, Ring
from gputel.plan import NO_ORIGIN, CallOp, FieldOp, Note, Plan, Shape, Swept, Target

GPUS = 2
NOW_NS = 1_800_000_000_000_000_000
WORDS_OF = {Shape.U32: 2, Shape.U64: 3}
CODES = ((0, 0, 0, 0, 0, 0, 2, 3, 20, 999), (0,))
TOP = 2**63 - 1
_FUNCTIONS = {
    Shape.U32: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)),
    Shape.U64: ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_ulonglong)),
}
_FIELDS = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(pynvml.c_nvmlFieldValue_t)
)


def address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Driver:
    """pynvml, and a C library: `answers` are (code, words) by GPU and function or field."""

    NVMLError = pynvml.NVMLError

    def __init__(self, shapes: dict[str, Shape]) -> None:
        self.answers: dict[tuple[int, str | int], tuple[int, list[int]]] = {}
        self.kinds: dict[int, int] = {}
        self._held: dict[str, Any] = {"nvmlDeviceGetFieldValues": _FIELDS(self._fields)}
        for name, shape in shapes.items():
            self._held[name] = _FUNCTIONS[shape](self._caller(name))
            setattr(self, name, self._method(name))
        self.addresses = {name: address(function) for name, function in self._held.items()}

    def _caller(self, name: str) -> Any:
        def call(device: int, out: Any) -> int:
            code, words = self.answers[device, name]
            if code == 0:
                for i, word in enumerate(words):
                    out[i] = word
            return code

        return call

    def _method(self, name: str) -> Any:
        def call(handle: Any) -> list[int]:
            code, words = self.answers[handle.value, name]
            if code:
                raise pynvml.NVMLError(code)
            return words

        return call

    def _fields(self, device: int, count: int, values: Any) -> int:
        for i in range(count):
            code, words = self.answers[device, values[i].fieldId]
            values[i].nvmlReturn = code
            values[i].valueType = self.kinds[values[i].fieldId]
            if code == 0:
                values[i].value.ullVal = words[0]
        return 0

    def nvmlDeviceGetFieldValues(self, handle: Any, ids: list[tuple[int, int]]) -> Any:
        found = (pynvml.c_nvmlFieldValue_t * len(ids))()
        for item, (field, scope) in zip(found, ids, strict=True):
            item.fieldId, item.scopeId = field, scope
        self._fields(handle.value, len(ids), found)
        return found


class Pair:
    """Both kernels on two GPUs of one driver."""

    def __init__(self, driver: Driver, plan: Plan, storages: str) -> None:
        self.sweepers: list[Any] = [
            Sweeper([plan], driver.addresses, GPUS),
            Twin([plan], driver, GPUS),
        ]
        self._storages = storages
        self._rings = [Ring(storages, 64) for _ in self.sweepers]
        self._tick = 0
        for sweeper in self.sweepers:
            for slot in range(GPUS):
                sweeper.attach(slot, ctypes.c_void_p(slot + 1))

    def sweep(self) -> tuple[list[list[Any]], list[Any]]:
        """(cells of each GPU, notes), after a look that both kernels say the same."""
        self._tick += 1
        said = []
        for sweeper, ring in zip(self.sweepers, self._rings, strict=True):
            time_ns = NOW_NS + self._tick
            assert sweeper.sweep(sweeper.turn, 0, time_ns, self._tick, 0, ring) == Swept.DONE
            columns = Columns(self._storages, GPUS, 64)
            columns.drain(ring)
            rows = [
                [
                    column[0].item() if part.valid[c][0] & 1 else None
                    for c, column in enumerate(part.columns)
                ]
                for part in columns.seal()
            ]
            costs = [(cost[0], cost[3]) for cost in sweeper.costs(0)]
            notes = sweeper.notes()
            said.append((rows, notes, repr(notes), sweeper.rejected(0), costs))
        left, right = ((s[0], *s[2:]) for s in said)  # NaN is not equal to itself
        assert left == right
        return said[0][0], said[0][1]


def random_target(chance: random.Random, column: int, word: int, kind: str) -> Target:
    """`kind` is of the column's metric: a float, a counter, another integer."""
    if kind == "float":
        return Target(column, word, divide=chance.choice((1, 1000)), is_float=True, high=10**6)
    return Target(
        column, word, multiply=chance.choice((1, 1, 1, 1024)),
        is_counter=kind == "counter", high=chance.choice((100, 2**40, TOP)),
    )  # fmt: skip


def random_plan(chance: random.Random) -> tuple[dict[str, Shape], Any, str]:
    """(functions, plan by their addresses, storages): columns are shared now and then."""
    columns = chance.randrange(3, 12)
    kinds = [chance.choice(("counter", "integer", "float")) for _ in range(columns)]
    storages = "".join("d" if kind == "float" else "q" for kind in kinds)
    free = chance.sample(range(columns), columns)
    fields = [
        FieldOp(900 + i, target=random_target(chance, column, 0, kinds[column]))
        for i, column in enumerate(free[: columns // 2])
    ]
    shapes: dict[str, Shape] = {}
    calls = []
    for i in range(chance.randrange(1, 6)):
        name, shape = f"call{i}", chance.choice((Shape.U32, Shape.U64))
        shapes[name] = shape
        pool = range(columns) if chance.random() < 0.3 else free[columns // 2 :]
        taken = chance.sample(pool, min(len(pool), chance.randrange(1, WORDS_OF[shape] + 1)))
        targets = tuple(
            random_target(chance, column, word, kinds[column]) for word, column in enumerate(taken)
        )
        after = chance.choice((NO_ORIGIN, NO_ORIGIN, i - 1))
        calls.append((name, shape, targets, after))

    def plan(addresses: dict[str, int]) -> Plan:
        ops = tuple(
            CallOp(name, addresses[name], shape, (), targets, after)
            for name, shape, targets, after in calls
        )
        return Plan(columns=columns, calls=ops, fields=tuple(fields))

    return shapes, plan, storages


@pytest.mark.parametrize("seed", range(120))
def test_random_plans_and_answers(seed: int) -> None:
    chance = random.Random(seed)
    shapes, plan_of, storages = random_plan(chance)
    driver = Driver(shapes)
    plan = plan_of(driver.addresses)
    pair = Pair(driver, plan, storages)
    base = 0
    for step in range(40):
        # Long calm stretches, in which all is well and counters grow; then a strange sweep.
        strange = step % 5 == 4
        base += chance.randrange(3)
        words = (0, 7, 101, 2**32 - 1, 2**45, 2**63, 2**64 - 1) if strange else (base, base + 1)
        for field in plan.fields:
            driver.kinds[field.field] = chance.choice((1, 3, 4, 200)) if strange else 3
        for gpu in range(1, GPUS + 1):
            for name in (*shapes, *(field.field for field in plan.fields)):
                mask = 2**32 - 1 if shapes.get(str(name)) is Shape.U32 else 2**64 - 1
                count = WORDS_OF[shapes[str(name)]] if name in shapes else 1
                answer = [chance.choice(words) & mask for _ in range(count)]
                driver.answers[gpu, name] = (chance.choice(CODES[not strange]), answer)
        pair.sweep()
        if not pair.sweepers[0].is_attached(0):
            break


def plain_pair(targets: tuple[Target, ...], storages: str) -> tuple[Driver, Pair]:
    """A field for each of the first targets, a call for the last."""
    driver = Driver({"last": Shape.U64})
    fields = tuple(FieldOp(900 + i, target=target) for i, target in enumerate(targets[:-1]))
    driver.kinds = {field.field: 3 for field in fields}
    call = CallOp("last", driver.addresses["last"], Shape.U64, (), targets[-1:])
    plan = Plan(columns=len(storages), calls=(call,), fields=fields)
    return driver, Pair(driver, plan, storages)


def answer(driver: Driver, *words: int) -> None:
    for gpu in range(1, GPUS + 1):
        for i, word in enumerate(words[:-1]):
            driver.answers[gpu, 900 + i] = (0, [word])
        driver.answers[gpu, "last"] = (0, [words[-1]])


def test_one_bad_cell_leaves_the_others_as_they_are() -> None:
    driver, pair = plain_pair(
        (
            Target(0, is_counter=True, high=TOP),
            Target(1, multiply=1024, is_counter=True, high=TOP),
            Target(2, is_float=True, divide=1000, high=1000),
            Target(3, high=100),
        ),
        "qqdq",
    )
    for i in range(4):
        answer(driver, 10 + i, 20 + i, 3_000, 50)
        rows, notes = pair.sweep()
        assert rows == [[10 + i, (20 + i) * 1024, 3.0, 50]] * GPUS
        assert notes == []
    answer(driver, 14, 24, 3_000, 101)
    rows, notes = pair.sweep()
    assert rows == [[14, 24 * 1024, 3.0, None]] * GPUS
    assert [note[:4] for note in notes] == [(Note.REJECTED, slot, 0, 3) for slot in range(GPUS)]
    answer(driver, 2, 3, 2_000_000, 2**63)
    rows, notes = pair.sweep()
    assert rows == [[2, 3 * 1024, None, None]] * GPUS
    assert [(note[0], note[3], note[5]) for note in notes if note[1] == 1] == [
        (Note.COUNTER_RESET, 0, 14),
        (Note.COUNTER_RESET, 1, 24 * 1024),
        (Note.REJECTED, 2, 0),
    ]
    answer(driver, 3, 3, 2_000, 99)
    rows, notes = pair.sweep()
    assert rows == [[3, 3 * 1024, 2.0, 99]] * GPUS
    assert notes == []
