"""How a benchmark tells its figures: one object a line with `--json`, else a line to read.

    {"figure": "codec.decode_samples_per_s", "value": 3.1e8, "unit": "1/s", "correct": true, ...}

The part of a figure's name before the dot is the benchmark's module. A figure whose result
was not checked does not exist: `correct` has no default.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

_as_json = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action=_Json, nargs=0, help="one JSON object a line")


class _Json(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        global _as_json
        _as_json = True


def emit(
    figure: str,
    value: float,
    unit: str,
    correct: bool,
    **extra: float | str | list[dict[str, float]],
) -> None:
    """Tell one figure. What is said of each of its rounds takes a line each to read."""
    if _as_json:
        entry = {"figure": figure, "value": value, "unit": unit, "correct": correct, **extra}
        print(json.dumps(entry), flush=True)
        return
    more: dict[str, float | str] = {}
    lines: list[str] = []
    for key, said in extra.items():
        if isinstance(said, list):
            lines += map(_in_a_line, said)
        else:
            more[key] = said
    verdict = "" if correct else "  WRONG RESULT"
    print(f"{figure:32} {value:>14,.4g} {unit:6} {_in_a_line(more)}{verdict}", flush=True)
    for line in lines:
        print(f"{'':32} {line}", flush=True)


def _in_a_line(said: Mapping[str, float] | Mapping[str, float | str]) -> str:
    return "  ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in said.items()
    )


def skip(figure: str, reason: str) -> None:
    """Say why there is no such figure."""
    if _as_json:
        print(json.dumps({"figure": figure, "skipped": reason}), flush=True)
    else:
        print(f"{figure:32} skipped: {reason}", flush=True)
