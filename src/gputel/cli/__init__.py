"""The `gputel` command: arguments in, exit codes out. Only this package ends the process.

Data go to stdout, messages to stderr. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from gputel import __version__, errors
from gputel.cli import broker, exporter, query, recordings, sim
from gputel.cli.arguments import (
    EXIT_CODES,
    FORCED,
    INTERNAL,
    OK,
    UNHEALTHY,
    add_common,
    exit_code,
    load,
)
from gputel.errors import GputelError

SERVICES: Final = {
    "collector": "sample the GPUs of this node, publish and export them",
    "broker": "the durable message queue",
    "sink": "store what the queue holds in PostgreSQL",
    "api": "REST queries, OpenAPI and the dashboard",
    "streamer": "live values over WebSocket",
}

EPILOG: Final = """\
examples:
  gputel up                                        everything on this machine
  gputel up --source sim --gpus 16 --hz 20         16 simulated GPUs at 20 Hz
  gputel up --source replay:dump.csv --once --speed max
  gputel up --cluster --ephemeral                  a cluster of brokers, to try out
  gputel doctor                                    what is wrong, and what to do
  gputel config check gputel.yaml                  the effective configuration
  gputel sim run --gpus 16 -- nvitop --once        any program on simulated GPUs

exit codes:
  0 done   1 internal error   2 usage   3 configuration   4 input file or directory
  5 port or data directory in use   6 database unavailable   7 broker unavailable
  8 this machine lacks something   9 doctor found problems   10 API unavailable
  130 forced by a second Ctrl-C
  sim run: the program's own; 126 it can't be executed, 127 there is none
"""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a command and exit with its code."""
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
    except GputelError as error:
        code = _report(error, arguments)
    except KeyboardInterrupt:
        code = FORCED
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = OK
    except Exception as error:
        import traceback

        traceback.print_exc()
        print(
            f"gputel: error: internal error: {error!r}; please report it with the lines above",
            file=sys.stderr,
        )
        code = INTERNAL
    sys.exit(code)


def _report(error: GputelError, arguments: argparse.Namespace) -> int:
    if getattr(arguments, "ready_fd", None) is None:  # else the supervisor tells
        if getattr(arguments, "log_level", None) == "debug":
            import traceback

            traceback.print_exc()
        for problem in getattr(error, "problems", (str(error),)):
            line = " ".join(problem.split())
            print(f"gputel: error: {line}", file=sys.stderr)
    return exit_code(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gputel",
        description="GPU telemetry: sample, carry, store and serve, without losing a sample.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gputel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_up(commands)
    for name, help_text in SERVICES.items():
        service = commands.add_parser(name, help=help_text, description=f"{help_text}.")
        add_common(service)
        service.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
        service.add_argument("--log-name", help=argparse.SUPPRESS)
        service.set_defaults(run=_service, service=name)
        if name == "collector":
            _add_source(service)
            exporter.add(service)
        if name == "api":
            _add_http(service)
        if name == "broker":
            broker.add(service)
    recordings.add(commands)
    query.add(commands)
    _add_doctor(commands)
    migrate = commands.add_parser("migrate", help="bring the database's schema up to date")
    add_common(migrate)
    migrate.set_defaults(run=_migrate)
    _add_config(commands)
    sim.add(commands)
    version = commands.add_parser("version", help="print the version")
    version.add_argument("--json", action="store_true", help="one line of JSON")
    version.set_defaults(run=_version)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source")
    group.add_argument(
        "--source", metavar="KIND", help="auto, nvml, sim or replay:PATH (default auto)"
    )
    group.add_argument("--gpus", metavar="N", help="sim: number of GPUs")
    group.add_argument("--hz", metavar="HZ", help="rate of the fast metrics")
    group.add_argument("--speed", metavar="X", help="replay: pace, 1 as recorded, or max")
    group.add_argument(
        "--once",
        action="store_true",
        default=None,
        help="replay: end with the file (the pipeline stays up); otherwise it is looped",
    )


def _add_http(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", metavar="HOST:PORT", help="where the API and dashboard listen")


def _add_up(commands: Any) -> None:
    parser = commands.add_parser(
        "up",
        help="run the whole pipeline on this machine",
        description="Run all services as supervised processes, with an embedded PostgreSQL unless "
        "`database:` is configured. Ctrl-C drains and stops; a second one ends at once.",
    )
    add_common(parser)
    _add_source(parser)
    _add_http(parser)
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="3 nats-servers, 2 brokers over them and 2 sinks, to try out a cluster",
    )
    parser.add_argument(
        "--ephemeral",
        action="store_true",
        help="free ports everywhere, and a temporary data directory that is removed at the end "
        "(unless --data-dir or data_dir names one)",
    )
    parser.add_argument(
        "--json", action="store_true", help="when ready, print exactly one line of JSON"
    )
    parser.set_defaults(run=_up)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this machine and the running pipeline",
        description="Check this machine and the pipeline that runs on the data directory; say what "
        "to do. Exits with 9 when a check fails.",
    )
    add_common(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=_doctor)


def _add_config(commands: Any) -> None:
    config = commands.add_parser("config", help="look at the configuration")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="print the effective configuration, or everything that is wrong with it",
        description="Merge the file and the GPUTEL_* variables, and print the result. Secrets are "
        "masked.",
    )
    check.add_argument("file", type=Path, nargs="?", metavar="FILE")
    check.set_defaults(run=_config_check)


def _service(arguments: argparse.Namespace) -> int:
    from gputel.services.process import run

    supervised = arguments.ready_fd is not None
    config = None if supervised else load(arguments)
    module = importlib.import_module(f"gputel.services.{arguments.service}")
    reload = None if supervised else partial(load, arguments)
    run(
        arguments.service,
        module.serve,
        config,
        arguments.ready_fd,
        reload,
        log_name=arguments.log_name,
    )
    return OK


def _up(arguments: argparse.Namespace) -> int:
    config = load(arguments)
    from gputel.observe.logs import configure_logging
    from gputel.services.up import Forced, up

    configure_logging("up", level=config.observe.log_level, style=config.observe.log_format)

    def emit(ready: dict[str, Any]) -> None:
        # A reader that has closed the pipe does not end a pipeline.
        try:
            print(json.dumps(ready) if arguments.json else _welcome(ready), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    try:
        asyncio.run(up(config, cluster=arguments.cluster, ephemeral=arguments.ephemeral, emit=emit))
    except Forced:
        return FORCED
    return OK


def _welcome(ready: dict[str, Any]) -> str:
    source = ready["source"]
    if ready["source_description"]:
        source += f", {ready['source_description']}"
    return "\n".join(
        (
            "gputel is ready",
            f"  dashboard   {ready['api']}/",
            f"  API         {ready['api']}/docs",
            f"  live stream {ready['stream']}",
            f"  exporter    {ready['collector']}/metrics",
            f"  broker      {ready['broker'].replace(',', ', ')}",
            *((f"  nats        {', '.join(ready['nats'])}",) if ready["nats"] else ()),
            f"  sink        {', '.join(f'{url}/metrics' for url in ready['sinks'])}",
            f"  database    {ready['database']}",
            f"  data        {ready['data_dir']}",
            f"  source      {source} ({ready['source_reason']})",
            "Ctrl-C drains and stops it.",
        )
    )


def _doctor(arguments: argparse.Namespace) -> int:
    config = load(arguments)
    from gputel.services import doctor

    found = asyncio.run(doctor.examine(config))
    if arguments.json:
        print(json.dumps(found.as_dict()))
    else:
        for line in found.lines():
            print(line)
    return OK if found.well else UNHEALTHY


def _migrate(arguments: argparse.Namespace) -> int:
    config = load(arguments)
    settings = config.database
    if settings is None:
        raise errors.ConfigError(
            "database",
            "`gputel migrate` needs a configured server; the embedded database is migrated by "
            "`gputel up`",
        )
    from gputel import store

    async def migrate() -> None:
        database = await store.connect(settings)
        try:
            await database.migrate(config.store)
        finally:
            await database.close()

    asyncio.run(migrate())
    print(f"the schema in {settings!r} is up to date")
    return OK


def _config_check(arguments: argparse.Namespace) -> int:
    from gputel import config

    tree = config.read_yaml(arguments.file) if arguments.file else {}
    origin = str(arguments.file or "defaults")
    effective, problems = config.effective(tree, origin, config.read_environment(), {})
    if effective is None:
        for problem in problems:
            print(f"gputel: error: {problem}", file=sys.stderr)
        return EXIT_CODES["ConfigError"]
    print(config.dump(effective), end="")
    return OK


def _version(arguments: argparse.Namespace) -> int:
    if arguments.json:
        python = ".".join(str(part) for part in sys.version_info[:3])
        print(json.dumps({"version": __version__, "python": python}))
    else:
        print(f"gputel {__version__}")
    return OK
