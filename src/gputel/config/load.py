"""Merge the file, the environment and the flags into one `Config`, or say what is wrong.

Precedence, weakest first: defaults, file, `GPUTEL_SECTION__KEY`, flags. Every value is
checked on its own, so that an error names where it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from gputel.collector.attribution.settings import compile_patterns
from gputel.config.listen import is_loopback, parse_address, parse_addresses
from gputel.config.settings import SECTIONS, SUBSECTIONS, Config
from gputel.config.values import KEYS, SEVERAL, Given, convert, dotted, nearest, unknown_key
from gputel.config.values import Path as KeyPath
from gputel.errors import ConfigError

PREFIX: Final = "GPUTEL_"
#: Variables with that prefix that are read elsewhere: by the kernels' door, the build and
#: the simulated driver.
RESERVED: Final = frozenset({"GPUTEL_KERNELS", "GPUTEL_NATIVE_DIR", "GPUTEL_DEBUG", "GPUTEL_SIM"})
LISTENERS: Final = (
    ("broker", "listen"),
    ("broker", "metrics_listen"),
    ("sink", "listen"),
    ("stream", "listen"),
    ("api", "listen"),
    ("collector", "listen"),
)
QUEUE: Final = ("message_queue", "address")
MASK: Final = "********"
_USERINFO: Final = re.compile("//[^/]*@")
#: dcgm-exporter's variables that mean something here, so that its manifests can be kept.
DCGM_EXPORTER: Final[Mapping[str, KeyPath]] = {
    "DCGM_EXPORTER_LISTEN": ("collector", "listen"),
    "DCGM_EXPORTER_COLLECTORS": ("exporter", "collectors"),
    "DCGM_EXPORTER_NO_HOSTNAME": ("exporter", "hostname_label"),
    "DCGM_EXPORTER_REPLACE_BLANKS_IN_MODEL_NAME": ("exporter", "replace_blanks_in_model_name"),
    "DCGM_EXPORTER_XID_COUNT_WINDOW_SIZE": ("exporter", "xid_window_ms"),
    "DCGM_EXPORTER_CLOCK_EVENTS_COUNT_WINDOW_SIZE": ("exporter", "clock_events_window_ms"),
    "DCGM_EXPORTER_KUBERNETES": ("attribution", "mode"),
    "DCGM_EXPORTER_KUBERNETES_ENABLE_POD_UID": ("attribution", "pod_uid"),
    "DCGM_EXPORTER_KUBERNETES_POD_LABEL_ALLOWLIST_REGEX": ("attribution", "pod_labels"),
    "DCGM_POD_RESOURCES_KUBELET_SOCKET": ("attribution", "pod_resources_socket"),
    "DCGM_HPC_JOB_MAPPING_DIR": ("attribution", "hpc_job_mapping_dir"),
    # Kubernetes' downward API; in a pod the host's name is the pod's.
    "NODE_NAME": ("source", "node"),
}
#: Switches there, here the value that a key gets when they are on.
SWITCHES: Final[Mapping[str, str]] = {
    "DCGM_EXPORTER_NO_HOSTNAME": "null",
    "DCGM_EXPORTER_KUBERNETES": "labels",
}

Values = dict[KeyPath, Given]


def read_environment() -> dict[str, str]:
    """The process's `GPUTEL_*` variables, and dcgm-exporter's as far as they are known here."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PREFIX) or name in DCGM_EXPORTER
    }


def inherited_environment() -> dict[str, str]:
    """All of the process's variables, for a program that takes its place."""
    return dict(os.environ)


def default_data_dir() -> Path:
    """/var/lib/gputel for root, gputel in the user's data directory (XDG) otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/gputel")
    base = os.environ.get("XDG_DATA_HOME", "")
    if not base.startswith("/"):  # the XDG specification: a relative path is ignored
        base = str(Path.home() / ".local" / "share")
    return Path(base) / "gputel"


def load(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Config:
    """The effective configuration; ConfigError for the first thing that is wrong.

    environment    `GPUTEL_*` and dcgm-exporter's variables; the process's own when None
    flags          dotted path -> (flag as the user typed it, value)
    """
    tree: dict[Any, Any] = {}
    if file:
        from gputel.config.yaml_file import read_yaml  # a collector without a file does without

        tree = read_yaml(file)
    origin = str(file) if file else "defaults"
    config, errors = effective(
        tree, origin, read_environment() if environment is None else environment, flags or {}
    )
    if config is None:
        raise errors[0]
    return config


def problems(text: str, origin: str, environment: Mapping[str, str]) -> list[ConfigError]:
    """Everything that is wrong with a file's text under `environment`."""
    from gputel.config.yaml_file import parse_yaml

    try:
        tree = parse_yaml(text, origin)
    except ConfigError as error:
        return [error]
    return effective(tree, origin, environment, {})[1]


def effective(
    tree: Mapping[Any, Any],
    origin: str,
    environment: Mapping[str, str],
    flags: Mapping[str, tuple[str, Any]],
) -> tuple[Config | None, list[ConfigError]]:
    """(configuration or None, everything that is wrong)."""
    errors: list[ConfigError] = []
    values, present = _from_tree(tree, origin, errors)
    _from_environment(environment, values, errors)
    for path, (flag, value) in flags.items():
        values[tuple(path.split("."))] = Given(value, flag, isinstance(value, str))
    converted: dict[KeyPath, Any] = {}
    for key, given in values.items():
        try:
            converted[key] = convert(key, given)
        except ConfigError as error:
            errors.append(error)
    if errors:
        return None, errors
    config = _build(converted, present)
    errors = _check_addresses(config, values) + _check_patterns(config, values)
    return (None if errors else config), errors


def masked(config: Config) -> dict[str, Any]:
    """The configuration as plain data, in which no secret can be read."""
    tree: dict[str, Any] = msgspec.to_builtins(config)
    if tree["database"] is not None and tree["database"]["password"]:
        tree["database"]["password"] = MASK
    jetstream = tree["broker"]["jetstream"]
    jetstream["servers"] = [_USERINFO.sub(f"//{MASK}@", url) for url in jetstream["servers"]]
    return tree


def _from_tree(
    tree: Mapping[Any, Any], origin: str, errors: list[ConfigError]
) -> tuple[Values, set[str]]:
    """The file's values, and the sections that it has (an empty one counts)."""
    values: Values = {}
    present: set[KeyPath] = set()
    for name, content in tree.items():
        if name not in Config.__struct_fields__:
            errors.append(unknown_key((str(name)[:80],), origin))
        elif name not in SECTIONS:
            values[(name,)] = Given(content, origin, text=False)
        else:
            _from_section((name,), content, origin, values, present, errors)
    return values, {path[0] for path in present}


def _from_section(
    path: KeyPath,
    content: Any,
    origin: str,
    values: Values,
    present: set[KeyPath],
    errors: list[ConfigError],
) -> None:
    if isinstance(content, Mapping):
        present.add(path)
        for key, value in content.items():
            if (*path, key) in KEYS:
                values[(*path, key)] = Given(value, origin, text=False)
            elif (*path, key) in SUBSECTIONS:
                _from_section((*path, key), value, origin, values, present, errors)
            else:
                errors.append(unknown_key((*path, str(key)[:80]), origin))
    elif content is not None:
        message = "a section holds `key: value` lines"
        errors.append(ConfigError(dotted(path), message, origin=origin))


def _from_environment(
    environment: Mapping[str, str], values: Values, errors: list[ConfigError]
) -> None:
    for variable, path in DCGM_EXPORTER.items():
        value = environment.get(variable, "")
        if variable in SWITCHES:
            value = SWITCHES[variable] if value.lower() in ("1", "t", "true") else ""
        if value:
            values[path] = Given(value, variable, text=True)
    names = {PREFIX + "__".join(path).upper(): path for path in KEYS}
    for variable, value in sorted(environment.items()):
        if variable in RESERVED or not variable.startswith(PREFIX):
            continue
        if variable in names:
            values[names[variable]] = Given(value, variable, text=True)
        else:
            message = f"there is no such variable{nearest(variable, names)}"
            errors.append(ConfigError(variable, message, origin="environment"))


def _build(converted: Mapping[KeyPath, Any], present: set[str]) -> Config:
    sections: dict[str, Any] = {}
    for path, value in converted.items():
        if len(path) == 1:
            sections[path[0]] = value
    for name, struct in SECTIONS.items():
        keys = _keys_of((name,), converted)
        for path, inner in SUBSECTIONS.items():
            within = _keys_of(path, converted)
            if path[0] == name and within:
                keys[path[1]] = inner(**within)
        if keys or name in present:
            sections[name] = struct(**keys)
    return Config(**sections)


def _keys_of(section: KeyPath, converted: Mapping[KeyPath, Any]) -> dict[str, Any]:
    return {path[-1]: value for path, value in converted.items() if path[:-1] == section}


def _check_addresses(config: Config, values: Values) -> list[ConfigError]:
    errors = []
    for path in (*LISTENERS, QUEUE):
        text = getattr(getattr(config, path[0]), path[1])
        origin = values[path].origin if path in values else "defaults"
        try:
            address, *_ = parse_addresses(text) if path == QUEUE else (parse_address(text),)
        except ValueError as error:
            allowed = ["HOST:PORT", "[IPV6]:PORT"]
            if path == QUEUE:
                allowed.append(SEVERAL)
            errors.append(ConfigError(dotted(path), str(error), origin=origin, allowed=allowed))
            continue
        if path in LISTENERS and not is_loopback(address.host) and not config.insecure:
            message = (
                f"{text} can be reached from other machines, without encryption or password; "
                "listen on 127.0.0.1, or say so with --insecure or `insecure: true`"
            )
            errors.append(ConfigError(dotted(path), message, origin=origin))
    return errors


def _check_patterns(config: Config, values: Values) -> list[ConfigError]:
    path = ("attribution", "pod_labels")
    try:
        compile_patterns(config.attribution.pod_labels)
    except ValueError as error:
        origin = values[path].origin if path in values else "defaults"
        return [ConfigError(dotted(path), str(error), origin=origin)]
    return []


def dump(config: Config) -> str:
    """The configuration as YAML, secrets masked."""
    import yaml

    text: str = yaml.safe_dump(masked(config), sort_keys=False, allow_unicode=True)
    return text
