"""Which file a replay reads and how: its options, its format, what is in it.

PATH[?format=dcgm|nvidia-smi][&node=NAME][&columns=a,b,c][&tz=Area/City]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gputel.catalog import METRICS
from gputel.errors import InputError
from gputel.inventory import Event, Gpu
from gputel.sources import dcgm_csv, nvidia_smi_csv
from gputel.sources.capture_file import CaptureFile, is_capture
from gputel.sources.lines import BadLine, Problems, check_file, read_head, read_lines, split_csv
from gputel.sources.records import Parser, Record

FORMATS: Final = ("dcgm", "nvidia-smi")
_OPTIONS: Final = ("columns", "format", "node", "tz")
_OPTIONS_TAIL = re.compile(r"\?(?=[a-z_]+=)")
HEAD_LINES_MAX: Final = 32  # a header that comes later is not found


@dataclass(frozen=True, slots=True)
class Options:
    """What stands behind the `?`."""

    path: Path
    format: str = ""
    node: str = ""
    columns: str = ""
    tz: str = ""

    def zone(self) -> tzinfo:
        """The time zone of a log that names none; InputError."""
        if not self.tz:
            return UTC
        try:
            return ZoneInfo(self.tz)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(
                f"replay: unknown time zone tz={self.tz}", hint="such as tz=Europe/Berlin"
            ) from None


def parse_spec(spec: str) -> Options:
    """`PATH?key=value&...` in parts; InputError names what is allowed."""
    path, *tail = _OPTIONS_TAIL.split(spec, maxsplit=1)
    options: dict[str, str] = {}
    for pair in tail[0].split("&") if tail else []:
        key, _, value = pair.partition("=")
        if key not in _OPTIONS or not value:
            raise InputError(
                f"replay:{spec}: can't understand {pair!r}",
                hint=f"options are {', '.join(f'{name}=...' for name in _OPTIONS)}",
            )
        options[key] = unquote(value)
    if options.get("format", "dcgm") not in FORMATS:
        raise InputError(
            f"replay: unknown format={options['format']}", hint=f"one of {', '.join(FORMATS)}"
        )
    return Options(Path(path).expanduser(), **options)


def detect_format(options: Options) -> str:
    """The format that the file says it has, or that was given; InputError when unknown."""
    lines = read_head(options.path)
    if options.format:
        return options.format
    if options.columns:
        return "dcgm" if "metric_name" in options.columns else "nvidia-smi"
    for line in lines[:HEAD_LINES_MAX]:
        try:
            fields = split_csv(line.text)
        except BadLine:
            continue
        if dcgm_csv.is_header(fields):
            return "dcgm"
        if nvidia_smi_csv.looks_like_log(fields):
            return "nvidia-smi"
    raise InputError(
        f"{options.path}: neither a capture, a DCGM CSV dump nor an nvidia-smi CSV log",
        hint="a dump begins with a header that has the column metric_name, a log comes from "
        "nvidia-smi --query-gpu=timestamp,... --format=csv",
    )


class Recording(Protocol):
    """A recorded file of any format. What it tells is known after `scan`."""

    path: Path
    format: str
    values: int
    first_ns: int
    last_ns: int
    #: The same for the same rows: it names their producer when they are published.
    identity: str
    #: By time.
    events: tuple[Event, ...]

    def gpus(self) -> tuple[Gpu, ...]: ...
    @property
    def left_out(self) -> str: ...
    def scan(self) -> None:
        """Read all of it once. InputError: nothing usable in it."""
        ...

    def records(self) -> Iterator[Record]:
        """All records, from the beginning. InputError: it was changed meanwhile."""
        ...


def open_recording(spec: str, *, node: str) -> Recording:
    """The recorded file that `spec` names. InputError: it can't be read or understood."""
    options = parse_spec(spec)
    if is_capture(options.path):
        if options != Options(options.path):
            raise InputError(f"replay:{spec}: a capture takes no options")
        return CaptureFile(options.path)
    return ReplayFile(spec, node=node)


class ReplayFile:
    """A text file, which can be read. See `Recording`."""

    def __init__(self, spec: str, *, node: str) -> None:
        self.options = parse_spec(spec)
        self.path = self.options.path
        self._size_bytes = check_file(self.path)
        self.format = detect_format(self.options)
        self._node = self.options.node or node
        self.problems = Problems()
        self.values = 0
        self.first_ns = self.last_ns = 0
        self.identity = ""
        self.events: tuple[Event, ...] = ()  # text formats have none
        self.parser = self._make_parser()

    def _make_parser(self) -> Parser:
        columns = self.options.columns
        if self.format == "dcgm":
            names = [name.strip() for name in columns.split(",")] if columns else []
            return dcgm_csv.DcgmCsv(node=self._node, columns=names)
        return nvidia_smi_csv.NvidiaSmiCsv(
            node=self._node,
            columns=nvidia_smi_csv.given_columns(columns) if columns else (),
            zone=self.options.zone(),
        )

    def gpus(self) -> tuple[Gpu, ...]:
        """Every GPU, in slot order; known after `scan`."""
        return self.parser.gpus.all()

    @property
    def left_out(self) -> str:
        """What could not be used, in words."""
        return f"{self.problems.bad_lines} bad lines left out"

    def scan(self) -> None:
        """Read the file once: learn its GPUs, its span of time, its hash and its faults.

        The faults are logged. InputError: no usable value in it.
        """
        digest = hashlib.sha256()
        first: int | None = None
        last = 0
        lines = read_lines(self.path, self._size_bytes, digest=digest)
        for record in self.parser.records(lines, self.problems):
            self.values += len(record.cells)
            first = record.time_ns if first is None else min(first, record.time_ns)
            last = max(last, record.time_ns)
        self.problems.report(self.path)
        if first is None:
            example = f"; {self.problems.examples[0]}" if self.problems.examples else ""
            raise InputError(f"{self.path}: no usable value in it{example}")
        self.first_ns, self.last_ns = first, last
        self.identity = self._identify(digest.hexdigest())

    def _identify(self, content: str) -> str:
        """The same for the same rows: content, how it is read, and what the catalog makes of it."""
        catalog = [(m.id, m.unit.value, m.storage.value, m.cadence.value, m.dcgm) for m in METRICS]
        reading = (self.format, self._node, self.options.columns, self.options.tz)
        text = f"{content}\n{reading}\n{catalog}"
        return f"replay:{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def records(self) -> Iterator[Record]:
        """All records again; InputError when the file was changed meanwhile."""
        known = len(self.parser.gpus.all())
        for record in self.parser.records(read_lines(self.path, self._size_bytes), Problems()):
            if record.slot >= known:
                raise InputError(f"{self.path}: was changed while it was read")
            yield record
