"""One value of the configuration: read it in its type, or say what is allowed."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect

from gputel.config.settings import SECRETS, SECTIONS, SUBSECTIONS, Config
from gputel.errors import ConfigError

Path = tuple[str, ...]

SEVERAL: Final = "several of them, as a list or separated by commas"
#: What a pattern means, for people.
_ALLOWED: dict[Path, tuple[str, ...]] = {
    ("source", "kind"): ("auto", "nvml", "sim", "replay:PATH"),
    ("observe", "otlp_endpoint"): ("http://HOST:PORT", "https://HOST:PORT", "null"),
    ("message_queue", "address"): ("HOST:PORT", SEVERAL),
    ("broker", "jetstream", "servers"): ("a list of nats://HOST:PORT or tls://HOST:PORT",),
    ("broker", "jetstream", "namespace"): ("1 to 32 letters, digits, '_' and '-'",),
    ("message_queue", "topic"): ("letters, digits, '.', '_' and '-'",),
}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Given(NamedTuple):
    """A value as somebody gave it. `text`: from a variable or a flag, where all is text."""

    value: Any
    origin: str
    text: bool


def types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The type of each key of a section, with its bounds."""
    return get_type_hints(struct, include_extras=True)


KEYS: dict[Path, Any] = {
    **{(name,): hint for name, hint in types(Config).items() if name not in SECTIONS},
    **{
        (section, name): hint
        for section, struct in SECTIONS.items()
        for name, hint in types(struct).items()
        if (section, name) not in SUBSECTIONS
    },
    **{
        (*section, name): hint
        for section, struct in SUBSECTIONS.items()
        for name, hint in types(struct).items()
    },
}


def dotted(path: Path) -> str:
    """The path as people write it."""
    return ".".join(path)


def nearest(wrong: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing when no name is near."""
    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_key(path: Path, origin: str) -> ConfigError:
    """The error for a key that does not exist; it names the nearest ones and all of them."""
    parent = path[:-1]
    if parent:
        known = [key[-1] for key in KEYS if key[:-1] == parent]
        known += [key[-1] for key in SUBSECTIONS if key[:-1] == parent]
    else:
        known = list(Config.__struct_fields__)
    message = f"there is no such key{nearest(path[-1], known)}"
    return ConfigError(dotted(path), message, origin=origin, allowed=known)


def convert(path: Path, given: Given) -> Any:
    """The value in its key's type; ConfigError tells what is allowed."""
    value = given.value
    if path == ("source", "speed") and value == "max":
        value = 0
    if path == ("collector", "listen") and isinstance(value, str) and value.startswith(":"):
        # dcgm-exporter's way to say: on all addresses. `insecure` has still to be said.
        value = f"0.0.0.0{value}"  # noqa: S104
    if path == ("message_queue", "address") and isinstance(value, list):
        value = ",".join(value) if all(isinstance(one, str) for one in value) else value
    if given.text and _is_list(path):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if given.text and value in ("", "null") and _optional(path):
        return None
    try:
        converted = msgspec.convert(value, KEYS[path], strict=not given.text)
    except (msgspec.ValidationError, RecursionError, OverflowError):
        pass
    else:
        if not (isinstance(converted, float) and not math.isfinite(converted)):
            return converted
    got = "a value" if path in SECRETS else _SHORT.repr(given.value)
    message = f"{got} can't be used"
    raise ConfigError(dotted(path), message, origin=given.origin, allowed=(allowed_text(path),))


def allowed_text(path: Path) -> str:
    """What a key allows, in words."""
    if path in _ALLOWED:
        return ", ".join(_ALLOWED[path])
    return describe(KEYS[path]) + (" or max" if path == ("source", "speed") else "")


def _is_list(path: Path) -> bool:
    return isinstance(inspect.type_info(KEYS[path]), inspect.VarTupleType)


def _optional(path: Path) -> bool:
    info = inspect.type_info(KEYS[path])
    return isinstance(info, inspect.UnionType) and info.includes_none


def describe(hint: Any) -> str:
    """What a type allows, in words."""
    return _describe(inspect.type_info(hint))


def _describe(info: inspect.Type) -> str:
    match info:
        case inspect.LiteralType():
            return ", ".join(str(value) for value in info.values)
        case inspect.IntType() | inspect.FloatType():
            word = "a whole number" if isinstance(info, inspect.IntType) else "a number"
            low, high = info.ge, info.le
            if low is not None and high is not None:
                return f"{word} from {low:g} to {high:g}" if high < 1e6 else _range(word, low, high)
            bounds = []
            if info.gt is not None:
                bounds.append(f"above {info.gt:g}")
            if low is not None:
                bounds.append(f"at least {low}")
            if high is not None:
                bounds.append(f"at most {high:g}")
            return f"{word} {' and '.join(bounds)}".strip()
        case inspect.BoolType():
            return "true, false"
        case inspect.UnionType():
            return ", ".join(_describe(member) for member in info.types)
        case inspect.NoneType():
            return "null"
        case inspect.VarTupleType():
            return "a list of texts"
        case _:
            return "text (quote it when it looks like a number)"


def _range(word: str, low: float, high: float) -> str:
    return f"{word} from {low} to {high}"
