"""Logs of `nvidia-smi --query-gpu=... --format=csv[,noheader,nounits] -l N` (or `-lms N`).

One line holds all values of one GPU at one moment. The header names the columns; without
one they must be given, except where every column can be told by the shape of its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, tzinfo
from typing import Any, Final

from gputel.catalog import Metric
from gputel.errors import InputError
from gputel.inventory import Gpu, synthetic_uuid
from gputel.sources.lines import BadLine, Line, Problems, split_csv
from gputel.sources.nvidia_smi_fields import FACTS, KNOWN, Column, columns_of, factor
from gputel.sources.records import Gpus, Record
from gputel.sources.values import Number, exact, in_range, parse_time_ns

_MISSING: Final = frozenset(
    {"", "n/a", "not supported", "unknown error", "err!", "unknown", "insufficient permissions",
     "gpu is lost", "gpu requires reset", "not active", "deprecated",
     "requested functionality has been deprecated"}
)  # fmt: skip
_SWITCHES: Final = {"enabled": 1, "disabled": 0, "yes": 1, "no": 0}
_VALUE = re.compile(r"([-+0-9.eE]+)\s*([A-Za-z%]+)?", re.ASCII)
_HEX = re.compile(r"0x[0-9a-fA-F]{1,16}", re.ASCII)
_SHAPES: Final = (
    ("timestamp", re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)?", re.ASCII)),
    ("uuid", re.compile(r"(GPU|MIG)-[0-9a-fA-F-]{32,36}(/\d+/\d+)?", re.ASCII)),
    ("pci.bus_id", re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.\d", re.ASCII)),
    ("clocks_event_reasons.active", re.compile(r"0x[0-9a-fA-F]{16}", re.ASCII)),
    ("pstate", re.compile(r"P\d{1,2}", re.ASCII)),
    ("vbios_version", re.compile(r"[0-9A-Fa-f]{2}(\.[0-9A-Fa-f]{2}){4}", re.ASCII)),
    ("driver_version", re.compile(r"\d{3}\.\d{2,3}(\.\d{2})?", re.ASCII)),
    ("name", re.compile(r"(NVIDIA|Tesla|GeForce|Quadro|TITAN|GRID)\b.*", re.ASCII)),
)
_GIVE_COLUMNS = (
    "give the fields as they were queried: replay:PATH?columns=timestamp,index,power.draw,..."
)


def looks_like_log(fields: Sequence[str]) -> bool:
    """Is this line a header or a line of a log without one?"""
    if columns_of(list(fields)) is not None:
        return True
    return any(_SHAPES[0][1].fullmatch(field) for field in fields)


def given_columns(text: str) -> tuple[Column, ...]:
    """The columns of `?columns=`; InputError for names that nvidia-smi does not have."""
    fields = [field.strip() for field in text.split(",")]
    columns = columns_of(fields)
    if columns is None:
        raise InputError(f"columns={text}: no query field of nvidia-smi", hint=_GIVE_COLUMNS)
    return columns


def _missing(text: str) -> bool:
    return text.strip("[]").strip().lower() in _MISSING


class NvidiaSmiCsv:
    """Parser of one log. `zone` is the time zone of the machine that wrote it."""

    format = "nvidia-smi"

    def __init__(self, *, node: str, columns: tuple[Column, ...] = (), zone: tzinfo = UTC) -> None:
        self.gpus = Gpus()
        self._node = node
        self._zone = zone
        self._given = columns
        self._columns: tuple[Column, ...] = ()
        if columns:
            self._use(columns)

    def _use(self, columns: tuple[Column, ...]) -> None:
        if not any(column.name == "timestamp" for column in columns):
            raise InputError(
                "nvidia-smi log without a timestamp column: its values can't be placed in time",
                hint="record it again with --query-gpu=timestamp,...",
            )
        self._columns = columns
        self._at = {column.name: position for position, column in reversed([*enumerate(columns)])}

    def records(self, lines: Iterable[Line], problems: Problems) -> Iterator[Record]:
        """One record a line, in the order of the file. InputError: columns unknown."""
        self._columns = ()
        if self._given:
            self._use(self._given)
        for line in lines:
            try:
                if line.problem is not None:
                    raise line.problem
                fields = split_csv(line.text)
                if self._header(fields):
                    continue
                if not self._columns:
                    self._use(infer_columns(fields))
                record = self._record(line.number, fields, problems)
            except BadLine as problem:
                problems.add(line.number, problem)
                continue
            if record is not None:
                yield record

    def _header(self, fields: list[str]) -> bool:
        """Take a header line; a repeated one may not lose the timestamp (a torn line would)."""
        columns = columns_of(fields)
        if columns is None:
            return False
        if self._columns and columns != self._columns:
            torn = not all(column.name in KNOWN for column in columns) and len(columns) != len(
                self._columns
            )
            if torn or not any(column.name == "timestamp" for column in columns):
                raise BadLine("torn header")
        self._use(columns)
        return True

    def _record(self, number: int, fields: list[str], problems: Problems) -> Record | None:
        columns = self._columns
        if len(fields) != len(columns):
            raise BadLine("wrong number of columns", f"{len(fields)} instead of {len(columns)}")
        time_ns = parse_time_ns(fields[self._at["timestamp"]], self._zone)
        slot = self._slot(fields)
        cells: list[tuple[Metric, Number]] = []
        for column, text in zip(columns, fields, strict=True):
            metric = column.metric
            if metric is None:
                if column.name not in KNOWN:
                    problems.unknown[column.name] += 1
            elif _missing(text):
                problems.missing += 1
            else:
                try:
                    cells.append((metric, _value(metric, column, text)))
                except BadLine as problem:  # the other values of the line are used
                    problems.add(number, problem)
        for metric, value in cells:
            if metric.name == "memory_total_bytes":
                self.gpus.learn(slot, memory_total_bytes=value)
        return Record(time_ns, slot, tuple(cells)) if cells else None

    def _slot(self, fields: list[str]) -> int:
        facts: dict[str, Any] = {
            FACTS[column.name]: text
            for column, text in zip(self._columns, fields, strict=True)
            if column.name in FACTS and not _missing(text)
        }
        names = ("uuid", "pci_bus_id", "serial", "index")
        key: tuple[str, str] = next(
            ((name, facts[name]) for name in names if name in facts), ("lone", "0")
        )
        index = facts.pop("index", "")
        if index and not (index.isascii() and index.isdigit() and len(index) < 6):
            raise BadLine("bad GPU index", repr(index[:40]))

        def describe() -> Gpu:
            uuid = facts.get("uuid") or synthetic_uuid(self._node, key[1])
            number = int(index) if index else self.gpus.next_index(self._node)
            rest = {name: fact for name, fact in facts.items() if name != "uuid"}
            return Gpu(uuid=uuid, node=self._node, index=number, device=f"nvidia{number}", **rest)

        return self.gpus.slot(key, describe)


def _value(metric: Metric, column: Column, text: str) -> Number:
    """The value of one field, with or without its unit; BadLine."""
    lowered = text.lower()
    if lowered in _SWITCHES and metric.unit.value in ("{code}", "{count}"):
        return _SWITCHES[lowered]
    if metric.name == "performance_state" and lowered.startswith("p"):
        text = text[1:]
    elif _HEX.fullmatch(text) and metric.name == "clock_event_reasons":
        mask = int(text, 16)
        if not in_range(metric, mask):
            raise BadLine("value out of range", f"{column.name} is {text}")
        return mask
    match = _VALUE.fullmatch(text)
    if match is None:
        raise BadLine("not a number", f"{column.name} is {text[:40]!r}")
    scale = factor(metric, match[2] or column.unit)
    if scale is None:
        raise BadLine("wrong unit", f"{column.name} is {text[:40]!r}")
    return exact(metric, match[1], *scale)


def infer_columns(fields: list[str]) -> tuple[Column, ...]:
    """The columns of a log without header, by the shape of the first line's values.

    Only shapes that mean one thing are taken; InputError names the others.
    """
    names: list[str] = []
    for position, text in enumerate(fields, start=1):
        name = next((name for name, shape in _SHAPES if shape.fullmatch(text)), None)
        if name is None or name in names:
            raise InputError(
                f"nvidia-smi log without a header: column {position} ({text[:40]!r}) "
                "may mean several things",
                hint=_GIVE_COLUMNS,
            )
        names.append(name)
    columns = columns_of(names)
    assert columns is not None, "shapes have names of query fields"
    return columns
