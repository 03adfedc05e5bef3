"""The exporter's flags: those of dcgm-exporter keep their names."""

from __future__ import annotations

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of `gputel collector` that shape /metrics."""
    group = parser.add_argument_group("exporter", "The short flags are those of dcgm-exporter.")
    group.add_argument(
        "--standalone",
        action="store_true",
        default=None,
        help="export only: no broker is needed, and nothing is published",
    )
    group.add_argument(
        "-f", "--collectors", metavar="CSV", help="counter file of dcgm-exporter: FIELD, type, help"
    )
    group.add_argument("-a", "--address", metavar="[HOST]:PORT", help="where /metrics is served")
    group.add_argument("--profile", metavar="NAME", help="names on /metrics: dcgm or gputel")
    group.add_argument("--hostname-label", metavar="NAME", help="Hostname or hostname")
    group.add_argument(
        "-n",
        "--no-hostname",
        dest="hostname_label",
        action="store_const",
        const="null",
        help="leave that label out",
    )
    group.add_argument("-x", "--xid-count-window-size", metavar="MS", help="default 300000")
    group.add_argument("--clock-events-count-window-size", metavar="MS", help="default 300000")
    group.add_argument(
        "--replace-blanks-in-model-name",
        action="store_true",
        default=None,
        help="put dashes for the blanks in modelName",
    )
