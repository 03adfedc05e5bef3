"""The exposition format, and the seam for whoever adds labels or families to the exporter.

    # HELP name help
    # TYPE name type
    name{label="value",...} number

The text format (version 0.0.4) and OpenMetrics (1.0.0) share these lines and differ in the
details that `encode` knows. Sources: the format pages of Prometheus' documentation and the
OpenMetrics specification (RFC draft, section "Text format").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Final, Literal, NamedTuple, Protocol

from gputel.inventory import Gpu

Number = int | float

#: What providers call the label with a GPU's UUID.
UUID_LABEL: Final = "UUID"
FamilyType = Literal["gauge", "counter", "info", "untyped"]


class Format(Enum):
    """The value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class Row(NamedTuple):
    """One series of a family and its value now."""

    labels: Mapping[str, str]  # written in this order
    value: Number


class Family(NamedTuple):
    """One metric family, complete with its rows; one without rows is not shown.

    name    as it stands in a row: a counter's with `_total` and an info's with `_info` where
            the native names have them
    """

    name: str
    type: FamilyType
    help: str
    rows: Sequence[Row]


class LabelProvider(Protocol):
    """Knows who uses a GPU. Asked on the event loop, so it answers at once from memory."""

    @property
    def generation(self) -> int:
        """Another number whenever `attributes` or `families` would answer otherwise than before.

        What is rendered of the answers is kept until then.
        """
        ...

    def attributes(self, gpu: Gpu) -> Mapping[str, str]:
        """Labels for every row of this GPU: container, pod, hpc_job, ...; {} for none.

        They stand behind the GPU's own labels, sorted by name. A name is a valid label name
        and none of the GPU's own.
        """
        ...

    def families(self) -> Sequence[Family]:
        """Families of its own, shown behind those of the GPUs. A GPU is named by UUID_LABEL,
        which a profile may call otherwise."""
        ...


_LABEL_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n"})


def label_text(labels: Iterable[tuple[str, str]]) -> str:
    """`name="value",...`, values escaped."""
    return ",".join(f'{name}="{value.translate(_LABEL_ESCAPES)}"' for name, value in labels)


def number_text(value: Number) -> str:
    """The shortest text that reads back as `value`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(value)


def head(name: str, type_: FamilyType, help_: str, form: Format) -> str:
    """The HELP and TYPE lines of a family whose rows are called `name`.

    OpenMetrics demands that a counter's rows end in `_total` and an info's in `_info`, and
    names the family without the suffix. DCGM's counters have no such suffix. Renaming them
    would break every dashboard, and gauge would be a lie (a gauge has no resets), so they are
    `unknown` there: every parser accepts that, and `rate()` does not look at the type.
    """
    if form is Format.TEXT:
        shown: str = "gauge" if type_ == "info" else type_
        return f"# HELP {name} {help_.translate(_HELP_ESCAPES)}\n# TYPE {name} {shown}\n"
    suffix = {"counter": "_total", "info": "_info"}.get(type_, "")
    shown = "unknown" if type_ == "untyped" or not name.endswith(suffix) else type_
    family = name.removesuffix(suffix) if shown == type_ else name
    # OpenMetrics escapes a quote in HELP, the text format does not.
    return f"# HELP {family} {help_.translate(_LABEL_ESCAPES)}\n# TYPE {family} {shown}\n"


def encode(families: Iterable[Family], form: Format) -> str:
    """The families as text, without OpenMetrics' `# EOF`."""
    parts: list[str] = []
    for family in families:
        if family.rows:
            parts.append(head(family.name, family.type, family.help, form))
            parts += [
                f"{family.name}{{{label_text(row.labels.items())}}} {number_text(row.value)}\n"
                for row in family.rows
            ]
    return "".join(parts)
