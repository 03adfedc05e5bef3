"""What the commands share: exit codes, the common options, the configuration they make."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gputel.errors import GputelError

if TYPE_CHECKING:
    from gputel.config import Config

OK: Final = 0
INTERNAL: Final = 1
USAGE: Final = 2
UNHEALTHY: Final = 9
FORCED: Final = 130

#: Error class name to exit code; the nearest class of an error's own line decides.
EXIT_CODES: Final = {
    "ConfigError": 3,
    "InputError": 4,
    "PortInUse": 5,
    "DataDirInUse": 5,
    "DatabaseUnavailable": 6,
    "EmbeddedPostgresError": 6,
    "BrokerUnavailable": 7,
    "SourceUnavailable": 8,
    "KernelsUnavailable": 8,
    "NatsServerError": 8,
    "ApiUnavailable": 10,
    "CommandNotExecutable": 126,
    "CommandNotFound": 127,
}


def exit_code(error: GputelError) -> int:
    """The documented exit code of an error."""
    for kind in type(error).__mro__:
        if kind.__name__ in EXIT_CODES:
            return EXIT_CODES[kind.__name__]
    return INTERNAL


def add_common(parser: argparse.ArgumentParser) -> None:
    """The options that every command with a configuration has."""
    group = parser.add_argument_group("configuration")
    group.add_argument("--config", type=Path, metavar="FILE", help="configuration file (YAML)")
    group.add_argument("--data-dir", metavar="DIR", help="where the data are kept")
    group.add_argument(
        "--insecure",
        action="store_const",
        const=True,
        help="allow listeners that other machines reach, unencrypted",
    )
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    group.add_argument("--log-format", choices=("text", "json"))


#: Attribute of the parsed arguments to the key it sets, and the flag for error messages.
_FLAGS: Final = {
    "data_dir": ("data_dir", "--data-dir"),
    "insecure": ("insecure", "--insecure"),
    "log_level": ("observe.log_level", "--log-level"),
    "log_format": ("observe.log_format", "--log-format"),
    "source": ("source.kind", "--source"),
    "gpus": ("source.gpus", "--gpus"),
    "hz": ("collector.fast_hz", "--hz"),
    "speed": ("source.speed", "--speed"),
    "once": ("source.once", "--once"),
    "http": ("api.listen", "--http"),
    "standalone": ("collector.standalone", "--standalone"),
    "collectors": ("exporter.collectors", "--collectors"),
    "address": ("collector.listen", "--address"),
    "profile": ("exporter.profile", "--profile"),
    "hostname_label": ("exporter.hostname_label", "--hostname-label"),
    "xid_count_window_size": ("exporter.xid_window_ms", "--xid-count-window-size"),
    "clock_events_count_window_size": (
        "exporter.clock_events_window_ms",
        "--clock-events-count-window-size",
    ),
    "replace_blanks_in_model_name": (
        "exporter.replace_blanks_in_model_name",
        "--replace-blanks-in-model-name",
    ),
}


def load(arguments: argparse.Namespace) -> Config:
    """The configuration of file, environment and flags. ConfigError."""
    from gputel import config

    flags = {
        path: (flag, value)
        for name, (path, flag) in _FLAGS.items()
        if (value := getattr(arguments, name, None)) is not None
    }
    return config.load(arguments.config, flags=flags)


def print_rows(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """A table, or JSON for a script."""
    if arguments.json:
        print(json.dumps({"rows": rows}))
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names] + [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in table) for column in range(len(names))]
    for line in table if rows else ():
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    if not rows:
        print("none", file=sys.stderr)
