"""`gputel query`: stored values and aggregates of a GPU, as a table, CSV, JSON or Arrow."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from gputel.cli.arguments import OK, add_common, load
from gputel.errors import InputError

if TYPE_CHECKING:
    from gputel.services.query import Line, Question

AGGREGATES: Final = ("avg", "min", "max", "sum", "count")
TIME_WIDTH: Final = 27
VALUE_WIDTH: Final = 12
BATCH_LINES: Final = 16_384  # of one Arrow record batch

Lines = Iterable["Line"]


def add(commands: Any) -> None:
    """The command."""
    parser = commands.add_parser(
        "query",
        help="print what is stored of a GPU",
        description="Ask the pipeline that runs on the data directory (else the API at "
        "api.listen) for the samples of a GPU, or for aggregates of them. One line a time.",
    )
    add_common(parser)
    parser.add_argument("--gpu", required=True, metavar="UUID|NUMBER")
    parser.add_argument(
        "--metric",
        required=True,
        nargs="+",
        action="extend",
        metavar="NAME",
        help="of the catalog, or DCGM's; several are several columns",
    )
    parser.add_argument(
        "--since", default="1h", metavar="WHEN", help="a time, or 15m for ago (default 1h)"
    )
    parser.add_argument("--until", metavar="WHEN", help="likewise (default now)")
    parser.add_argument("--step", metavar="TIME", help="aggregate by 30s, 1m, 1h, 1d, ...")
    parser.add_argument("--agg", choices=AGGREGATES, help="how (default avg)")
    parser.add_argument("--format", choices=tuple(_WRITERS), default="table")
    parser.add_argument("--limit", type=_count, metavar="N", help="at most so many lines")
    parser.set_defaults(run=_query)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1")
    return int(text)


def _query(arguments: argparse.Namespace) -> int:
    from gputel.services.query import Answer
    from gputel.services.state import running_api

    question = _question(arguments)
    write = _WRITERS[arguments.format](question)
    answer = Answer(running_api(load(arguments)), question)
    write(answer.names, islice(answer, arguments.limit))
    return OK


def _question(arguments: argparse.Namespace) -> Question:
    from gputel.services.query import Question
    from gputel.services.when import parse_time

    now = datetime.now(UTC)
    since = parse_time("--since", arguments.since, now)
    until = now if arguments.until is None else parse_time("--until", arguments.until, now)
    if since >= until:
        raise InputError(f"--since {arguments.since} is not before --until")
    if arguments.agg and not arguments.step:
        raise InputError(f"--agg {arguments.agg} needs a --step such as 1m")
    return Question(
        arguments.gpu, tuple(arguments.metric), since, until, arguments.step, arguments.agg
    )


Write = Callable[[tuple[str, ...], Lines], None]


def _table(question: Question) -> Write:
    def write(names: tuple[str, ...], lines: Lines) -> None:
        widths = [max(len(name), VALUE_WIDTH) for name in names]
        cells = [name.rjust(width) for name, width in zip(names, widths, strict=True)]
        print("time".ljust(TIME_WIDTH), *cells)
        empty = True
        for line in lines:
            empty = False
            cells = [
                ("" if value is None else f"{value:.10g}").rjust(width)
                for value, width in zip(line.values, widths, strict=True)
            ]
            print(_time(line).ljust(TIME_WIDTH), *cells)
        if empty:
            print("none", file=sys.stderr)

    return write


def _csv(question: Question) -> Write:
    def write(names: tuple[str, ...], lines: Lines) -> None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("time", *names))
        writer.writerows((_time(line), *line.values) for line in lines)

    return write


def _json(question: Question) -> Write:
    def write(names: tuple[str, ...], lines: Lines) -> None:
        for line in lines:
            values = {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in zip(names, line.values, strict=True)
                if value is not None
            }
            print(json.dumps({"time": _time(line), **values}))

    return write


def _arrow(question: Question) -> Write:
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(
            "--format arrow needs pyarrow", hint="pip install 'gputel[arrow]', or --format csv"
        ) from None
    if sys.stdout.isatty():
        raise InputError("--format arrow is binary", hint="send it to a file or a program")
    from gputel.catalog import BY_NAME, Storage

    stored = {Storage.F32: pa.float32(), Storage.I64: pa.int64(), Storage.U64: pa.uint64()}

    def type_of(name: str) -> Any:
        if question.step is None:
            return stored.get(BY_NAME[name].storage, pa.float64())
        return pa.int64() if question.agg == "count" else pa.float64()

    def write(names: tuple[str, ...], lines: Lines) -> None:
        fields = [("time", pa.timestamp("us", tz="UTC")), *((n, type_of(n)) for n in names)]
        schema = pa.schema(fields)
        with pa.ipc.new_stream(sys.stdout.buffer, schema) as stream:
            for batch in _batches(lines):
                times = [line.time for line in batch]
                columns = zip(*(line.values for line in batch), strict=True)
                arrays = [
                    pa.array(values, field.type)
                    for values, field in zip((times, *columns), schema, strict=True)
                ]
                stream.write_batch(pa.record_batch(arrays, schema=schema))
        sys.stdout.buffer.flush()

    return write


def _batches(lines: Lines) -> Iterator[list[Line]]:
    iterator = iter(lines)
    while batch := list(islice(iterator, BATCH_LINES)):
        yield batch


def _time(line: Line) -> str:
    return line.time.isoformat().replace("+00:00", "Z")


_WRITERS: Final[dict[str, Callable[[Question], Write]]] = {
    "table": _table,
    "csv": _csv,
    "json": _json,
    "arrow": _arrow,
}
