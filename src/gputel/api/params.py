"""Query parameters: declared once, parsed and documented from the same declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal
from urllib.parse import parse_qsl

from gputel.api.times import ALLOWED as TIMES_ALLOWED
from gputel.api.times import parse_step, parse_time
from gputel.catalog import BY_DCGM, BY_NAME, METRICS, Metric
from gputel.errors import QueryInvalid

QUERY_FIELDS_MAX: Final = 64
TEXT_CHARS_MAX: Final = 256
CURSOR_CHARS_MAX: Final = 512
SHOWN_CHARS_MAX: Final = 80  # of what the user sent, in an error

Parse = Callable[[str, int], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `parse(text, now_ns)` raises QueryInvalid and nothing else.

    `default` is text as a client would send it; None means that an absent parameter is None.
    """

    name: str
    description: str
    schema: Mapping[str, object]
    parse: Parse
    default: str | None = None
    where: Literal["query", "path"] = "query"


def _shown(value: str) -> str:
    return repr(value if len(value) <= SHOWN_CHARS_MAX else value[:SHOWN_CHARS_MAX] + "...")


def text(
    name: str,
    description: str,
    *,
    chars_max: int = TEXT_CHARS_MAX,
    where: Literal["query", "path"] = "query",
) -> Parameter:
    """Printable text, compared as it is."""

    def parse(value: str, now_ns: int) -> str:
        if not 0 < len(value) <= chars_max:
            raise QueryInvalid(name, f"must have 1 to {chars_max} characters, not {len(value)}")
        if not value.isprintable():
            raise QueryInvalid(name, f"{_shown(value)} has characters that can't be printed")
        return value

    schema = {"type": "string", "minLength": 1, "maxLength": chars_max}
    return Parameter(name, description, schema, parse, None, where)


def integer(name: str, description: str, *, low: int, high: int, default: int) -> Parameter:
    """A whole number from `low` to `high`."""

    def parse(value: str, now_ns: int) -> int:
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise QueryInvalid(
                name, f"{_shown(value)} is not a whole number", allowed=(f"{low} to {high}",)
            )
        if not low <= int(value) <= high:
            raise QueryInvalid(name, f"{value} is out of range", allowed=(f"{low} to {high}",))
        return int(value)

    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return Parameter(name, description, schema, parse, str(default))


def choices(name: str, description: str, allowed: Sequence[str]) -> Parameter:
    """Comma-separated words out of `allowed`; a tuple, or None when absent."""

    def parse(value: str, now_ns: int) -> tuple[str, ...]:
        words = [word.strip() for word in value.split(",", len(allowed))]
        for word in words:
            if word not in allowed:
                raise QueryInvalid(name, f"{_shown(word)} is not known", allowed=tuple(allowed))
        return tuple(dict.fromkeys(words))

    schema = {
        "type": "array",
        "items": {"type": "string", "enum": list(allowed)},
        "minItems": 1,
        "maxItems": len(allowed),
    }
    return Parameter(name, description, schema, parse)


def flag(name: str, description: str) -> Parameter:
    """`true` or `false`; absent is false."""

    def parse(value: str, now_ns: int) -> bool:
        if value not in ("true", "false"):
            raise QueryInvalid(name, f"{_shown(value)} is neither", allowed=("true", "false"))
        return value == "true"

    return Parameter(name, description, {"type": "boolean", "default": False}, parse, "false")


def time(name: str, description: str, *, default: str) -> Parameter:
    """A time as ns since the epoch; see `gputel.api.times`."""
    schema = {
        "type": "string",
        "default": default,
        "examples": ["2026-01-02T03:04:05Z", "1767323045", "-15m", "now"],
    }
    return Parameter(
        name,
        f"{description} {'; '.join(TIMES_ALLOWED)}.",
        schema,
        lambda value, now_ns: parse_time(name, value, now_ns),
        default,
    )


def step(name: str, description: str) -> Parameter:
    """A length of time in ns."""
    schema = {"type": "string", "examples": ["30s", "1m", "1h", "1d"]}
    return Parameter(name, description, schema, lambda value, now_ns: parse_step(name, value))


def choice(name: str, description: str, kind: type[Enum]) -> Parameter:
    """A member of `kind`, by its value."""
    values = tuple(str(member.value) for member in kind)

    def parse(value: str, now_ns: int) -> Enum:
        if value not in values:
            raise QueryInvalid(name, f"{_shown(value)} is none of them", allowed=values)
        return kind(value)

    return Parameter(name, description, {"type": "string", "enum": list(values)}, parse)


def metrics(name: str, description: str, *, default: Sequence[str] = ()) -> Parameter:
    """Comma-separated metric names of the catalog, or DCGM's; a tuple of `Metric`."""

    def parse(value: str, now_ns: int) -> tuple[Metric, ...]:
        if len(value) > 64 * len(METRICS):
            raise QueryInvalid(name, f"a list of {len(value)} characters is too long")
        found: dict[Metric, None] = {}
        for item in value.split(","):
            metric = BY_NAME.get(item.strip()) or BY_DCGM.get(item.strip())
            if metric is None:
                raise QueryInvalid(name, f"{_shown(item)} is not a metric", allowed=tuple(BY_NAME))
            found[metric] = None
        return tuple(found)

    schema: dict[str, object] = {
        "type": "array",
        "items": {"type": "string", "enum": [*BY_NAME, *BY_DCGM]},
    }
    if default:
        schema["default"] = list(default)
    return Parameter(
        name, description, schema, parse, ",".join(default or (m.name for m in METRICS))
    )


def cursor() -> Parameter:
    """The `next_cursor` of the page before."""

    def parse(value: str, now_ns: int) -> str:
        if not (0 < len(value) <= CURSOR_CHARS_MAX and value.isascii() and value.isprintable()):
            raise QueryInvalid("cursor", "is not the next_cursor of an answer")
        return value

    schema = {"type": "string", "maxLength": CURSOR_CHARS_MAX}
    return Parameter("cursor", "The `next_cursor` of the page before.", schema, parse)


def parse_arguments(
    parameters: Sequence[Parameter], query: str, path: Mapping[str, str], now_ns: int
) -> dict[str, Any]:
    """The value of each parameter from the raw query string and the path's fields.

    QueryInvalid for a parameter that is unknown, given twice or not understood.
    """
    try:
        given = parse_qsl(query, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
    except ValueError:
        raise QueryInvalid("query", f"more than {QUERY_FIELDS_MAX} parameters") from None
    known = tuple(p.name for p in parameters if p.where == "query")
    values: dict[str, str] = dict(path)
    for name, value in given:
        if name not in known:
            raise QueryInvalid(
                name[:SHOWN_CHARS_MAX], "is not a parameter of this resource", allowed=known
            )
        if name in values:
            raise QueryInvalid(name, "is given more than once")
        values[name] = value
    arguments: dict[str, Any] = {}
    for parameter in parameters:
        shown = values.get(parameter.name, parameter.default)
        arguments[parameter.name] = None if shown is None else parameter.parse(shown, now_ns)
    return arguments
