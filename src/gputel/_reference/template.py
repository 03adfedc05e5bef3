"""A template: text with holes that the numbers of cells go into.

    texts   | HELP, TYPE, name{labels} |      | \\nname{labels} |      | ... | \\n |
    page    | HELP, TYPE, name{labels} | 1410 | \\nname{labels} | 1395 | ... | \\n | tail |

There is one text more than holes. A hole names the cell, [row, column], how it is stored and
written, and what it is divided by:

    q   i64, divided towards minus infinity
    Q   u64
    f   f64 with six decimals, as `%f`
    r   f64 with the fewest digits that read back as the same number

A float that is not finite is NaN, +Inf or -Inf, as Prometheus writes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

NumberForm = Literal["q", "Q", "f", "r"]
DIVISOR_MAX: Final = 2**63 - 1


class Hole(NamedTuple):
    """Where a number goes, and which."""

    row: int
    column: int
    form: NumberForm
    divisor: int = 1


class Template:
    """ValueError: a hole that can't be filled, or a text too few or too many."""

    def __init__(self, texts: Sequence[bytes], holes: Sequence[Hole]) -> None:
        if len(texts) != len(holes) + 1:
            raise ValueError(f"{len(texts)} texts around {len(holes)} holes; there is one more")
        for hole in holes:
            if (
                min(hole.row, hole.column) < 0
                or hole.form not in _NUMBERS
                or not 1 <= hole.divisor <= DIVISOR_MAX
            ):
                raise ValueError(f"{hole} can't be filled")
        self._texts = list(texts)
        self._holes = list(holes)
        self._page = b""

    def fill(self, cells: npt.NDArray[np.int64], tail: bytes) -> bytes:
        """The page with the numbers that `cells` (int64[rows, columns], contiguous: 8 bytes of
        any type each) hold now, and `tail` behind it; the same object when it is the same page as
        last time. IndexError: a hole lies outside.
        """
        rows, columns = cells.shape
        parts = [self._texts[0]]
        for hole, text in zip(self._holes, self._texts[1:], strict=True):
            if hole.row >= rows or hole.column >= columns:
                raise IndexError(f"{hole} is outside of {rows} x {columns} cells")
            number = _NUMBERS[hole.form]
            parts += number(cells[hole.row, hole.column].tobytes(), hole.divisor).encode(), text
        page = b"".join([*parts, tail])
        if page != self._page:
            self._page = page
        return self._page


def _signed(cell: bytes, divisor: int) -> str:
    return str(int.from_bytes(cell, "little", signed=True) // divisor)


def _unsigned(cell: bytes, divisor: int) -> str:
    return str(int.from_bytes(cell, "little") // divisor)


def _fixed(cell: bytes, divisor: int) -> str:
    value = float(np.frombuffer(cell, "<f8")[0]) / divisor
    return f"{value:f}" if math.isfinite(value) else _not_finite(value)


def _shortest(cell: bytes, divisor: int) -> str:
    value = float(np.frombuffer(cell, "<f8")[0]) / divisor
    return repr(value) if math.isfinite(value) else _not_finite(value)


def _not_finite(value: float) -> str:
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


_NUMBERS: Final[Mapping[NumberForm, Callable[[bytes, int], str]]] = {
    "q": _signed,
    "Q": _unsigned,
    "f": _fixed,
    "r": _shortest,
}
