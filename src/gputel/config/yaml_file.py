"""Read the YAML file: bounded, safe types only, no key twice, no aliases."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.constructor import ConstructorError

from gputel.errors import ConfigError

FILE_BYTES_MAX: Final = 1024 * 1024


class _Loader(yaml.SafeLoader):
    """Duplicate keys hide a setting from its reader; aliases can grow without bound."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConstructorError(None, None, "aliases are not supported", None)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in getattr(node, "value", ()):
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(file: Path) -> dict[Any, Any]:
    """The file's mapping; ConfigError when it can't be read or is no mapping."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(str(file), f"can't be read: {error.strerror}") from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(str(file), f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        return parse_yaml(raw.decode("utf-8-sig"), str(file))
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), f"is not UTF-8 (byte {error.start})") from None


def parse_yaml(text: str, origin: str) -> dict[Any, Any]:
    """The mapping that `text` holds; empty text is an empty one."""
    try:
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(origin, f"is not YAML: {_where(error)}") from None
    except (RecursionError, ValueError, OverflowError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:80]
        raise ConfigError(origin, f"can't be understood: {reason}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(origin, "holds no `section:` lines")
    return tree


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
