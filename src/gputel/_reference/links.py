"""Links: a column's integers predicted from those of an earlier column of the same chunk.

Metrics of one GPU move together: free memory is what used memory leaves, bytes received over
a link are those sent, ratios share their activity. A link says

    v[i] = r[i] + ((factor * (u[i] - u[0])) >> shift)

where u are the integers of an earlier column (of a decimal column: before the division), v those
of the column it belongs to and r the series that is stored. Product and sum are i64, modulo
2**64, and the shift is arithmetic: whatever the factor is, both sides compute the same.

    back    varint   how many columns before: 1 is the last one. It has as many values as v
    factor  zvarint
    shift   byte     0 to 63
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gputel._reference.bits import Cursor, signed, varint, zigzag
from gputel.errors import ChunkCorrupt

LINK_SAMPLES_MIN = 32
SHIFT_MAX = 63
# The search for a column to predict from looks at 64 to 127 steps of each, not at all.
PROBES_MIN = 64
# Below this squared correlation of the steps a link saves less than half a bit a value.
CORRELATION_MIN = 0.5
# A slope this near to an integer is that integer: copies and sums are common.
WHOLE_TOLERANCE = 2.0**-10
FACTOR_SHIFT_MAX = 30
PRODUCT_MAX = 2.0**62


class Link(NamedTuple):
    """What predicts a series; `back` counts columns."""

    back: int
    factor: int
    shift: int

    def encode(self) -> bytes:
        """Its bytes."""
        return varint(self.back) + varint(zigzag(self.factor)) + bytes((self.shift,))

    def residuals(self, values: Sequence[int], base: Sequence[int]) -> list[int]:
        """What the prediction from `base` misses of `values`."""
        predicted = self._predict(base)
        return [signed(value - guess) for value, guess in zip(values, predicted, strict=True)]

    def restore(self, residuals: Sequence[int], base: Sequence[int]) -> list[int]:
        """The inverse of `residuals`."""
        predicted = self._predict(base)
        return [signed(rest + guess) for rest, guess in zip(residuals, predicted, strict=True)]

    def _predict(self, base: Sequence[int]) -> list[int]:
        first = base[0]
        return [signed(self.factor * signed(number - first)) >> self.shift for number in base]


def decode(cursor: Cursor) -> Link:
    """The next link. ChunkCorrupt."""
    back, factor, shift = cursor.varint(), cursor.zigzag(), cursor.byte()
    if shift > SHIFT_MAX:
        raise ChunkCorrupt(f"link before byte {cursor.position}: shift {shift}")
    return Link(back, factor, shift)


def find(values: Sequence[int], earlier: Sequence[Sequence[int] | None]) -> Link | None:
    """The link of `values` to the one of `earlier` whose steps correlate best with its own.

    None: no column (of as many integers) does. Sums of floats are taken in order: the native
    encoder must come to the same last bit.
    """
    steps = _probe(values)
    energy = _product(steps, steps)
    best, found = CORRELATION_MIN, None
    for index, base in enumerate(earlier):
        if base is None or len(base) != len(values):
            continue
        base_steps = _probe(base)
        base_energy = _product(base_steps, base_steps)
        if not energy or not base_energy:
            continue
        mixed = _product(steps, base_steps)
        correlation = (mixed * mixed) / (energy * base_energy)
        if correlation > best:
            best, found = correlation, (len(earlier) - index, mixed / base_energy, base)
    if found is None:
        return None
    back, slope, base = found
    return _link(back, slope, float(max(base) - min(base)))


def _probe(values: Sequence[int]) -> list[float]:
    """Some of the steps from one value to the next, evenly spaced."""
    stride = max((len(values) - 1) // PROBES_MIN, 1)
    return [float(signed(values[i + 1] - values[i])) for i in range(0, len(values) - 1, stride)]


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    total = 0.0
    for a, b in zip(one, other, strict=True):
        total += a * b
    return total


def _link(back: int, slope: float, span: float) -> Link | None:
    """`slope` as a fraction that is as fine as the span of the base needs; None: it is too small
    or too large for one."""
    if not abs(slope) * span < PRODUCT_MAX:
        return None
    whole = round(slope)
    if whole and abs(slope - whole) <= WHOLE_TOLERANCE:
        return Link(back, whole, 0)
    for shift in range(FACTOR_SHIFT_MAX, 0, -1):
        factor = round(slope * 2.0**shift)
        if span * 4 >= 2.0**shift and abs(float(factor)) * span < PRODUCT_MAX:
            return Link(back, factor, shift) if factor else None
    return None
