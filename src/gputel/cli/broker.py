"""`gputel broker ACTION`: looking at a running broker, and after its log."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from gputel.cli.arguments import OK, UNHEALTHY, add_common, load, print_rows

if TYPE_CHECKING:
    from gputel.config import Config

#: (services.broker_admin, configuration, arguments) -> the rows to print.
Answer = Callable[[Any, "Config", argparse.Namespace], Coroutine[Any, Any, list[dict[str, Any]]]]


class _ActionParser(argparse.ArgumentParser):
    """Options may stand before the action too: what it is not given it does not reset."""

    def __init__(self, **options: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, **options)


def add(service: argparse.ArgumentParser) -> None:
    """The actions beside running a broker."""
    title = "look at the broker that runs (without an action: run one)"
    actions = service.add_subparsers(metavar="ACTION", title=title, parser_class=_ActionParser)
    _action(actions, "topics", "topics and their partitions", lambda admin, at, _: admin.topics(at))
    _action(actions, "groups", "consumer groups", lambda admin, at, _: admin.groups(at))
    lag = _action(
        actions,
        "lag",
        "how far groups are behind, by partition",
        lambda admin, at, given: admin.lag(at, given.group),
    )
    lag.add_argument("group", nargs="?", default=None, metavar="GROUP")
    seek = _action(
        actions,
        "seek",
        "move a consumer group that has no members",
        lambda admin, at, given: admin.seek(
            at, given.topic, given.group, given.to, given.partition
        ),
    )
    seek.add_argument("topic", metavar="TOPIC")
    seek.add_argument("group", metavar="GROUP")
    seek.add_argument(
        "--to",
        required=True,
        metavar="WHERE",
        help="earliest, latest, an offset, a time, or 15m for ago",
    )
    seek.add_argument(
        "--partition", type=_natural, action="append", default=[], metavar="N", help="only this one"
    )
    _add_dead_letters(actions)
    verify = _action(actions, "verify", "read the whole log on disk and check it", None)
    verify.set_defaults(run=_verify)


def _add_dead_letters(actions: Any) -> None:
    help_text = "dead letters: messages that their consumers gave up"
    letters = actions.add_parser("dlq", help=help_text, description=f"{help_text}.").add_subparsers(
        metavar="ACTION", required=True
    )
    listed = _action(
        letters,
        "list",
        "what could not be processed, and why",
        lambda admin, at, given: admin.dead_letters(
            at, given.topic, limit=given.limit, all=given.all
        ),
    )
    listed.add_argument("--limit", type=_natural, default=100, metavar="N", help="default 100")
    listed.add_argument(
        "--all", action="store_true", default=False, help="also those that were replayed"
    )
    replay = _action(
        letters,
        "replay",
        "publish dead letters again, to all consumers of their topic",
        lambda admin, at, given: admin.replay_dead_letters(at, given.topic, given.limit, _told),
    )
    replay.add_argument("--limit", type=_natural, default=None, metavar="N", help="default: all")
    for parser in (listed, replay):
        parser.add_argument("topic", metavar="TOPIC", help="the topic that they come from")


def _action(parent: Any, name: str, help_text: str, answer: Answer | None) -> Any:
    def run(arguments: argparse.Namespace) -> int:
        from gputel.services import broker_admin

        assert answer is not None
        print_rows(asyncio.run(answer(broker_admin, load(arguments), arguments)), arguments)
        return OK

    parser = parent.add_parser(name, help=help_text, description=f"{help_text}.")
    add_common(parser)
    parser.add_argument("--json", action="store_true", default=False, help="one JSON object")
    parser.set_defaults(run=run)
    return parser


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _told(published: int) -> None:
    print(f"{published} published", file=sys.stderr)


def _verify(arguments: argparse.Namespace) -> int:
    from gputel.services import broker_admin

    rows = []
    for row in broker_admin.verify_log(load(arguments)):
        print(f"{row['topic']}/{row['partition']} read", file=sys.stderr)
        rows.append(row)
    print_rows(rows, arguments)
    return OK if all(row["sound"] for row in rows) else UNHEALTHY
