"""`gputel sim`: any program on the simulated driver."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any, Final, NoReturn

from gputel.cli.arguments import OK
from gputel.errors import CommandNotExecutable

#: Flag of `sim run` to (the key of GPUTEL_SIM, its value's name, help).
_SIMULATION: Final = {
    "--gpus": ("gpus", "N", "number of GPUs"),
    "--model": ("model", "MODEL", "what they are, e.g. h100"),
    "--seed": ("seed", "S", "of all that is random"),
    "--profile": ("profile", "NAME", "their work: idle, training, inference or mixed"),
    "--refresh-ms": ("refresh_ms", "MS", "how often the driver takes new values"),
    "--latency-us": ("latency_us", "US", "how long each call takes"),
    "--fault": ("fault", "SPEC", "what goes wrong when, e.g. lost@10+5:gpu=3; may be repeated"),
}


def add(commands: Any) -> None:
    """The command and its actions."""
    sim = commands.add_parser("sim", help="run any program on simulated GPUs")
    actions = sim.add_subparsers(metavar="ACTION", required=True)
    path = actions.add_parser(
        "path", help="print the folder of the simulated driver, for LD_LIBRARY_PATH"
    )
    path.set_defaults(run=_sim_path)
    run = actions.add_parser(
        "run",
        help="run a program on the simulated driver",
        usage="gputel sim run [flags] -- COMMAND [ARGUMENTS]",
        description="Start COMMAND where libnvidia-ml.so.1 is the simulated driver. The flags go "
        "over what the variable GPUTEL_SIM says.",
        allow_abbrev=False,
    )
    for flag, (key, metavar, help_text) in _SIMULATION.items():
        run.add_argument(
            flag, dest=key, metavar=metavar, action="append", default=[], help=help_text
        )
    run.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(run=_sim_run, refuse=run.error)


def _sim_path(arguments: argparse.Namespace) -> int:
    from gputel.services import simulate

    print(simulate.library_folder())
    return OK


def _sim_run(arguments: argparse.Namespace) -> NoReturn:
    from gputel import config
    from gputel.services import simulate

    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        arguments.refuse("what shall be run? gputel sim run -- nvitop --once")
    settings = [(key, v) for key, *_ in _SIMULATION.values() for v in getattr(arguments, key)]
    environment = simulate.environment(config.inherited_environment(), settings)
    file = simulate.executable(command[0], environment.get("PATH"))
    # Python ignores these two, and what is ignored stays so in the program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(file, command, environment)  # noqa: S606 - no shell is wanted
    except OSError as error:
        message = f"{command[0]}: it can't be executed: {error.strerror}"
        raise CommandNotExecutable(message) from None
