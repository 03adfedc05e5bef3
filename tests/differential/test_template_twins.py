"""Templates: both kernels fill holes alike, and as Python writes the same numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gputel._native.template import Template as Native
from gputel._reference.template import DIVISOR_MAX, Hole, NumberForm
from gputel._reference.template import Template as Twin

TEMPLATES: tuple[Any, ...] = (Native, Twin)
FORMS: tuple[NumberForm, ...] = ("q", "Q", "f", "r")
FIXED_LIMIT = 2.0**43


@pytest.fixture(params=TEMPLATES, ids=["native", "reference"])
def template(request: pytest.FixtureRequest) -> Any:
    return request.param


def bits(*values: float) -> Any:
    """Cells of one row that hold these floats."""
    return np.array([values], np.float64).view(np.int64)


def fixed(values: list[float]) -> list[bytes]:
    """What the native kernel makes of floats with six decimals."""
    holes = [Hole(0, number, "f") for number in range(len(values))]
    texts = [b"", *([b" "] * len(values))]
    return Native(texts, holes).fill(bits(*values), b"").split()


def random_cells(random: np.random.Generator, rows: int, columns: int) -> Any:
    """Integers of all sizes, bits of any float, and floats as they are measured."""
    cells = np.frombuffer(random.bytes(rows * columns * 8), np.int64).reshape(rows, columns)
    small = cells >> random.integers(0, 64, (rows, columns))
    measured = np.where(random.integers(0, 2, (rows, columns)), 1e3, 1.0)
    measured = (random.random((rows, columns)).astype(np.float32) * measured).view(np.int64)
    return np.choose(random.integers(0, 3, (rows, columns)), [cells, small, measured])


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("seed", range(60))
def test_random_templates(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, columns = (int(n) for n in random.integers(1, 12, 2))
    holes = [
        Hole(
            int(random.integers(rows)),
            int(random.integers(columns)),
            FORMS[random.integers(4)],
            int(random.choice([1, 1000, 1024 * 1024, 7, DIVISOR_MAX])),
        )
        for _ in range(int(random.integers(0, 60)))
    ]
    texts = [random.bytes(int(n)) for n in random.integers(0, 40, len(holes) + 1)]
    native, twin = (kind(texts, holes) for kind in TEMPLATES)
    cells = random_cells(random, rows, columns)
    for _ in range(8):
        tail = random.bytes(int(random.integers(0, 3)))
        assert native.fill(cells, tail) == twin.fill(cells, tail)
        fresh = random_cells(random, rows, columns)
        cells = np.where(random.random((rows, columns)) < 0.3, fresh, cells)


@pytest.mark.parametrize("seed", range(10))
def test_six_decimals_of_random_floats(seed: int) -> None:
    random = np.random.default_rng(seed)
    any_bits = np.frombuffer(random.bytes(8 * 2000), np.float64)
    # Of sizes that are measured, and with few binary places, among which there are ties.
    scaled = random.normal(size=2000) * 10.0 ** random.integers(-9, 13, 2000)
    ties = random.integers(-(2**40), 2**40, 2000) / 2.0 ** random.integers(1, 40, 2000)
    values = [*any_bits[np.isfinite(any_bits)].tolist(), *scaled.tolist(), *ties.tolist()]
    assert fixed(values) == [f"{value:f}".encode() for value in values]


def test_six_decimals_where_rounding_is_hard() -> None:
    edges = [0.0, 5e-7, 1.5e-6, 2.5e-6, 0.5, 0.9999995, 0.9999994999999999, 999999.9999995]
    # 7 binary places are 7 decimal ones that end in 5: exactly half a millionth.
    edges += [n / 128 for n in range(256)]
    edges += [math.ulp(0.0), 2.0**-1022, 2.0**-74, 2.0**-21, 2.0**-20]
    edges += [math.nextafter(FIXED_LIMIT, 0), FIXED_LIMIT, math.nextafter(FIXED_LIMIT, math.inf)]
    edges += [2.0**53, 1e22, 1.7976931348623157e308]
    values = [*edges, *(-edge for edge in edges)]
    assert fixed(values) == [f"{value:f}".encode() for value in values]


def test_what_is_written(template: Any) -> None:
    whole = np.array([[-7, -1, 0, 0], [2**63 - 1, -(2**63), 0, 0]], np.int64)
    whole[0, 2:] = bits(124.629, -0.0)[0]
    whole[1, 2:] = bits(math.inf, math.nan)[0]
    holes = [
        Hole(0, 0, "q", 2), Hole(0, 1, "Q", 1000), Hole(0, 2, "f"), Hole(0, 2, "r"),
        Hole(0, 3, "f"), Hole(0, 3, "r"), Hole(1, 0, "q"), Hole(1, 1, "q"), Hole(1, 1, "Q"),
        Hole(1, 2, "f"), Hole(1, 3, "r"),
    ]  # fmt: skip
    page = template([b"<", *([b" "] * 10), b">"], holes).fill(whole, b".")
    assert page == (
        b"<-4 18446744073709551 124.629000 124.629 -0.000000 -0.0 9223372036854775807 "
        b"-9223372036854775808 9223372036854775808 +Inf NaN>."
    )


def test_a_number_of_any_length_goes_and_comes(template: Any) -> None:
    filled = template([b"", b""], [Hole(0, 0, "f")])
    for value in (1e300, 1.5, -1e300, 1e300, math.nan, 0.25):
        text = "NaN" if math.isnan(value) else f"{value:f}"
        assert filled.fill(bits(value), b"!") == f"{text}!".encode()


def test_what_has_not_changed_is_the_same_page(template: Any) -> None:
    filled = template([b"a", b"b"], [Hole(0, 1, "q")])
    first = filled.fill(np.array([[1, 2]]), b"tail")
    assert filled.fill(np.array([[9, 2]]), bytes(bytearray(b"tail"))) is first
    assert filled.fill(np.array([[9, 3]]), b"tail") == b"a3btail"
    assert filled.fill(np.array([[9, 3]]), b"") == b"a3b"
    assert first == b"a2btail", "a page that was given away never changes"


def test_nothing_to_fill(template: Any) -> None:
    assert template([b"text"], []).fill(np.zeros((0, 5), np.int64), b" tail") == b"text tail"


@pytest.mark.parametrize(
    ("texts", "holes"),
    [
        ([], []),
        ([b"one"], [Hole(0, 0, "q")]),
        ([b"", b""], [Hole(-1, 0, "q")]),
        ([b"", b""], [Hole(0, -1, "q")]),
        ([b"", b""], [Hole(0, 0, "x")]),  # type: ignore[arg-type]
        ([b"", b""], [Hole(0, 0, "qQ")]),  # type: ignore[arg-type]
        ([b"", b""], [Hole(0, 0, "q", 0)]),
        ([b"", b""], [Hole(0, 0, "q", -1)]),
        ([b"", b""], [Hole(0, 0, "Q", 2**63)]),
    ],
)
def test_templates_that_can_not_be(template: Any, texts: list[bytes], holes: list[Hole]) -> None:
    with pytest.raises(ValueError, match=r"holes|can't be filled"):
        template(texts, holes)


@pytest.mark.parametrize("hole", [Hole(2, 0, "q"), Hole(0, 3, "q"), Hole(2**60, 0, "q")])
def test_a_hole_outside(template: Any, hole: Hole) -> None:
    filled = template([b"", b""], [hole])
    with pytest.raises(IndexError, match="2 x 3 cells"):
        filled.fill(np.zeros((2, 3), np.int64), b"")


def test_after_a_failure_the_page_is_whole(template: Any) -> None:
    filled = template([b"", b"", b""], [Hole(0, 0, "q"), Hole(1, 0, "q")])
    assert filled.fill(np.array([[1], [2]]), b"") == b"12"
    with pytest.raises(IndexError):
        filled.fill(np.array([[3]]), b"")
    assert filled.fill(np.array([[1], [2]]), b"") == b"12"
    with pytest.raises(TypeError):
        filled.fill(np.array([[5], [2]]), "text")
    assert filled.fill(np.array([[5], [2]]), b"") == b"52"
