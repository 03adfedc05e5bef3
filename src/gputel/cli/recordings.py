"""`gputel capture`, `replay` and `export`: recorded samples as files."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gputel.cli.arguments import OK, add_common, load, print_rows
from gputel.errors import InputError

if TYPE_CHECKING:
    from gputel.services.capture import Progress


def add(commands: Any) -> None:
    """The three commands."""
    _add_capture(commands)
    _add_replay(commands)
    _add_export(commands)


def _add_capture(commands: Any) -> None:
    parser = commands.add_parser(
        "capture",
        help="record what a running pipeline carries into a file",
        description="Record the frames of the pipeline that runs on the data directory (else of "
        "the configured broker) into a file, until Ctrl-C or for a time. Nothing notices it.",
    )
    add_common(parser)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--since", default="0s", metavar="WHEN", help="begin in the past: a time, or 15m for ago"
    )
    parser.add_argument("--for", dest="span", metavar="TIME", help="end after 90s, 15m, 2h, ...")
    parser.add_argument(
        "--node", action="append", default=[], metavar="NAME", help="only of this node"
    )
    parser.add_argument("--force", action="store_true", help="overwrite FILE")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.set_defaults(run=_capture)


def _capture(arguments: argparse.Namespace) -> int:
    from gputel.services.capture import Wanted, capture
    from gputel.services.when import parse_duration, parse_time

    since = parse_time("--since", arguments.since, datetime.now(UTC))
    until = None
    if arguments.span is not None:
        span = parse_duration(arguments.span)
        if span is None:
            raise InputError(f"--for {arguments.span!r}: a duration such as 90s, 15m, 2h or 1d")
        until = since + span
    wanted = Wanted(since, until, frozenset(arguments.node))

    def told(progress: Progress) -> None:
        print(f"{progress.frames} frames, {progress.size_bytes} bytes", file=sys.stderr)

    async def run() -> Progress:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await capture(
            load(arguments), arguments.output, wanted, stop, force=arguments.force, told=told
        )

    done = asyncio.run(run())
    row = {
        "file": str(arguments.output),
        "frames": done.frames,
        "size_bytes": done.size_bytes,
        "skipped_frames": done.skipped_frames,
        "missing_frames": done.missing_frames,
    }
    print_rows([row], arguments)
    return OK


def _add_replay(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="play a recorded file into a running pipeline",
        description="Publish a capture, a DCGM CSV dump or an nvidia-smi log to the pipeline that "
        "runs on the data directory (else to the configured broker), and end with the file. The "
        "same file played twice is stored once; with --loop its time is shifted to now.",
    )
    add_common(parser)
    parser.add_argument("file", metavar="FILE[?OPTIONS]")
    parser.add_argument("--speed", metavar="X", help="pace, 1 as recorded (default), or max")
    parser.add_argument(
        "--loop", action="store_true", help="again and again until Ctrl-C, with times of now"
    )
    parser.set_defaults(run=_replay)


def _replay(arguments: argparse.Namespace) -> int:
    from gputel.services import replay
    from gputel.services.process import run

    arguments.source = f"replay:{arguments.file}"
    arguments.once = not arguments.loop
    run("replay", replay.serve, load(arguments))
    return OK


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="write a recorded file as a table",
        description="Write a capture, a DCGM CSV dump or an nvidia-smi log as a table: "
        "one line a GPU, metric set and time, one column a metric.",
    )
    parser.add_argument("file", metavar="FILE[?OPTIONS]")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="TABLE")
    parser.add_argument(
        "--format", choices=("csv", "parquet"), help="default: by the name of TABLE"
    )
    parser.add_argument("--force", action="store_true", help="overwrite TABLE")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from gputel.services.export import FORMATS, export

    format = arguments.format or arguments.output.suffix.removeprefix(".")
    if format not in FORMATS:
        raise InputError(f"{arguments.output}: --format is needed", hint=", ".join(FORMATS))

    def told(lines: int) -> None:
        print(f"{lines} lines", file=sys.stderr)

    export(arguments.file, arguments.output, format, force=arguments.force, told=told)
    return OK
