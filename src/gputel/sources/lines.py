"""Reading somebody else's text file: line by line, in bounded memory, surviving damage.

A record is one line, so that a stray quote or a torn write spoils only its own line.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from gputel.errors import InputError

LINE_BYTES_MAX: Final = 64 * 1024
EXAMPLES_MAX: Final = 10
PROGRESS_BYTES: Final = 256 * 1024 * 1024
HEAD_BYTES: Final = 256 * 1024

_log = logging.getLogger(__name__)


class BadLine(Exception):
    """A line that can't be used. `reason` is one of a few fixed phrases, `detail` the culprit."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Problems:
    """What was wrong with a file: counts of everything, the first few lines in full."""

    def __init__(self) -> None:
        self.lines: Counter[str] = Counter()  # bad lines by reason
        self.unknown: Counter[str] = Counter()  # values by metric that the catalog lacks
        self.missing = 0  # values that the file itself calls missing
        self.examples: list[str] = []

    def add(self, line: int, problem: BadLine) -> None:
        """Count a bad line; the first few are kept with their line number."""
        self.lines[problem.reason] += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"line {line}: {problem}")

    @property
    def bad_lines(self) -> int:
        """Lines of which something could not be used."""
        return self.lines.total()

    def report(self, path: Path) -> None:
        """Log what was found: examples first, then the counts."""
        for example in self.examples:
            _log.warning("%s: %s", path, example)
        if self.lines:
            counts = ", ".join(f"{reason}: {n}" for reason, n in self.lines.most_common())
            _log.warning("%s: %d bad lines left out (%s)", path, self.bad_lines, counts)
        if self.unknown:
            names = ", ".join(f"{name} ({n})" for name, n in self.unknown.most_common(20))
            more = f" and {len(self.unknown) - 20} more" if len(self.unknown) > 20 else ""
            _log.warning("%s: values of unknown metrics left out: %s%s", path, names, more)
        if self.missing:
            _log.info("%s: %d values are marked as missing", path, self.missing)


class Line(NamedTuple):
    """A line without its end, or why it can't be read."""

    number: int  # from 1
    text: str
    problem: BadLine | None


def check_file(path: Path) -> int:
    """The size in bytes of a readable, regular, non-empty file; InputError otherwise."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path}: is a directory, a file is needed")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is not a regular file; a replay is read more than once")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise InputError(f"{path!r}: {error}") from None
    if status.st_size == 0:
        raise InputError(f"{path}: the file is empty")
    return status.st_size


def read_lines(
    path: Path, size_bytes: int, *, digest: hashlib._Hash | None = None
) -> Iterator[Line]:
    """The lines of the first `size_bytes` of a file; `digest` is fed what is read.

    What is appended meanwhile is not seen. Blank lines are left out. InputError when the
    file can't be read any more.
    """
    number = 0
    too_long = False
    for raw in _pieces(path, size_bytes, digest):
        ends = raw.endswith(b"\n")
        if too_long:  # the rest of a line that was given up
            too_long = not ends
            continue
        number += 1
        if len(raw) == LINE_BYTES_MAX and not ends:
            too_long = True
            yield Line(number, "", BadLine("line too long", f"over {LINE_BYTES_MAX} bytes"))
            continue
        line = decode_line(number, raw)
        if line.problem is not None or line.text:
            yield line


def _pieces(path: Path, size_bytes: int, digest: hashlib._Hash | None) -> Iterator[bytes]:
    """Lines, or pieces of LINE_BYTES_MAX of longer ones."""
    position = 0
    progress = PROGRESS_BYTES
    try:
        with path.open("rb") as file:
            while position < size_bytes:
                raw = file.readline(min(LINE_BYTES_MAX, size_bytes - position))
                if not raw:
                    raise InputError(f"{path}: became shorter while it was read")
                position += len(raw)
                if digest is not None:
                    digest.update(raw)
                if position >= progress:
                    progress += PROGRESS_BYTES
                    _log.info("%s: read %d %%", path, position * 100 // size_bytes)
                yield raw
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None


def decode_line(number: int, raw: bytes) -> Line:
    """One line as text; NUL bytes and invalid UTF-8 are problems."""
    if b"\0" in raw:
        return Line(number, "", BadLine("NUL byte"))
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as error:
        return Line(number, "", BadLine("invalid UTF-8", f"at byte {error.start + 1}"))
    return Line(number, text, None)


def split_csv(text: str) -> list[str]:
    """The fields of one CSV line, stripped of surrounding blanks; BadLine."""
    try:
        fields = next(csv.reader((text,), strict=True, skipinitialspace=True), [])
    except csv.Error as error:
        raise BadLine("malformed CSV", str(error)) from None
    return [field.strip() for field in fields]


def read_head(path: Path) -> list[Line]:
    """The complete lines at the start of a file, to tell its format; InputError if binary."""
    try:
        with path.open("rb") as file:
            raw = file.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(
            f"{path}: is UTF-16 text", hint="convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW"
        )
    if raw.startswith(b"\x1f\x8b"):
        raise InputError(f"{path}: is compressed", hint="decompress it: gunzip FILE")
    lines = raw.split(b"\n")
    if len(raw) == HEAD_BYTES and len(lines) > 1:
        lines.pop()
    decoded = [decode_line(number, line) for number, line in enumerate(lines, start=1)]
    return [line for line in decoded if line.problem is None and line.text]
