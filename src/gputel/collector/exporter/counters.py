"""dcgm-exporter's counter file: which fields are shown, under which type and help.

    # a comment; blank lines mean nothing
    DCGM_FI_DEV_GPU_TEMP, gauge, GPU temperature (in C).
    DCGM_FI_DRIVER_VERSION, label, Driver Version
    DCGM_EXP_XID_ERRORS_COUNT, counter, "XIDs, by number"

Three cells a line, CSV quoting, one file instead of the default one. Every line is read on
its own, so that all that is wrong is told at once.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, cast

from gputel.catalog import Metric
from gputel.collector.exporter.dcgm_fields import data_file, fields
from gputel.collector.exporter.exposition import FamilyType
from gputel.errors import InputError

FILE_BYTES_MAX: Final = 1024 * 1024
TYPES: Final = ("gauge", "counter", "histogram", "summary", "label")
XID_ERRORS_COUNT: Final = "DCGM_EXP_XID_ERRORS_COUNT"
CLOCK_EVENTS_COUNT: Final = "DCGM_EXP_CLOCK_EVENTS_COUNT"
P2P_STATUS: Final = "DCGM_EXP_P2P_STATUS"
#: The exporter's own counters, by the number that puts them behind DCGM's fields.
EXPORTER_COUNTERS: Final = {
    XID_ERRORS_COUNT: 9001,
    CLOCK_EVENTS_COUNT: 9002,
    "DCGM_EXP_GPU_HEALTH_STATUS": 9003,
    P2P_STATUS: 9004,
}


class Counter(NamedTuple):
    """A line that yields a family. `metric` is None for the exporter's own."""

    number: int
    name: str
    type: FamilyType
    help: str
    metric: Metric | None


@dataclass(frozen=True, slots=True)
class CounterSet:
    """What a counter file asks for.

    counters    in the order of dcgm-exporter's page: by field number
    labels      label name to the attribute of `Gpu` that fills it
    warnings    lines that dcgm-exporter accepts and gputel shows nothing for
    """

    counters: tuple[Counter, ...]
    labels: dict[str, str]
    warnings: tuple[str, ...]


class CounterFileInvalid(InputError):
    """A counter file with lines that can't be used; `problems` has one text a line."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class _BadLine(Exception):
    pass


@dataclass(slots=True)
class _Reader:
    counters: dict[int, Counter] = field(default_factory=dict)
    labels: dict[int, tuple[str, str]] = field(default_factory=dict)

    def take(self, cells: list[str]) -> str | None:
        """Take a line; a warning, or None. _BadLine."""
        if len(cells) != 3:
            raise _BadLine(
                f"{len(cells)} cells, a line has 3: FIELD, type, help "
                "(put a help text with commas into double quotes)"
            )
        name, type_, help_ = cells
        number = EXPORTER_COUNTERS.get(name, fields().ids.get(name))
        if number is None:
            raise _BadLine(_unknown(name))
        if type_ not in TYPES:
            raise _BadLine(f"{type_!r} is no type; allowed: {', '.join(TYPES)}")
        if number in self.counters or number in self.labels:
            return f"{name} stands twice; the first line counts"
        if type_ == "label":
            return self._label(number, name)
        return self._counter(number, name, type_, help_)

    def _label(self, number: int, name: str) -> str | None:
        attribute = fields().labels.get(number)
        if attribute is None:
            return f"{name} is not known as a label here; rows go without it"
        self.labels[number] = (name, attribute)
        return None

    def _counter(self, number: int, name: str, type_: str, help_: str) -> str | None:
        if number in fields().labels:
            raise _BadLine(f"{name} is text, not a number; its type is label")
        metric = fields().metrics.get(number)
        if metric is None and name not in (XID_ERRORS_COUNT, CLOCK_EVENTS_COUNT, P2P_STATUS):
            return f"{name} is not measured here; it has no rows"
        warning = None
        if type_ in ("histogram", "summary"):
            # The name of the type alone makes no histogram, and parsers refuse one without
            # buckets.
            warning = f"{name} is one number, no {type_}; it is shown as untyped"
            type_ = "untyped"
        self.counters[number] = Counter(number, name, cast(FamilyType, type_), help_, metric)
        return warning


def read_counters(path: str | None) -> CounterSet:
    """The counters of a file, or dcgm-exporter's defaults. InputError, CounterFileInvalid."""
    if path is None:
        return parse_counters(data_file("default_counters.csv"), "default counters")
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: can't be read: {error.strerror}",
            hint="name a counter file in exporter.collectors (-f), or none for the defaults",
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 (byte {error.start})") from None
    if len(raw) > FILE_BYTES_MAX:
        raise InputError(f"{path}: is larger than {FILE_BYTES_MAX} bytes")
    return parse_counters(text, path)


def parse_counters(text: str, origin: str) -> CounterSet:
    """The counters that a file's text asks for. CounterFileInvalid tells all that is wrong."""
    reader = _Reader()
    warnings: list[str] = []
    problems: list[str] = []
    for where, line in _lines(text, origin):
        try:
            cells = next(csv.reader([line], strict=True, skipinitialspace=True))
            warning = reader.take([cell.strip() for cell in cells])
        except csv.Error as error:
            problems.append(f"{where}: is not CSV: {error}")
        except _BadLine as error:
            problems.append(f"{where}: {error}")
        else:
            if warning:
                warnings.append(f"{where}: {warning}")
    if problems:
        raise CounterFileInvalid(tuple(problems))
    if not reader.counters:
        raise CounterFileInvalid((f"{origin}: no line yields a family",))
    counters = tuple(reader.counters[number] for number in sorted(reader.counters))
    return CounterSet(counters, dict(reader.labels.values()), tuple(warnings))


def _lines(text: str, origin: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield f"{origin}:{number}", stripped


def _unknown(name: str) -> str:
    for metric in fields().metrics.values():
        if metric.dcgm and metric.dcgm.renamed == name:
            return f"{name} is DCGM 4.6's name of {metric.dcgm.name}; write that one"
    known = [*fields().ids, *EXPORTER_COUNTERS]
    near = difflib.get_close_matches(name.upper()[:80], known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{name[:80]!r} is no field of DCGM{hint}"
