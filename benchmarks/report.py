"""How a benchmark tells its figures: one object a line with `--json`, else a line to read.

    {"figure": "codec.decode_samples_per_s", "value": 3.1e8, "unit": "1/s", "correct": true, ...}

The part of a figure's name before the dot is the benchmark's module. A figure whose result
was not checked does not exist: `correct` has no default.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

_as_json = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action=_Json, nargs=0, help="one JSON object a line")


class _Json(argparse.Action):
    def __call__(self, *_: Any, **__: Any) -> None:
        global _as_json
        _as_json = True


def emit(figure: str, value: float, unit: str, correct: bool, **extra: float | str) -> None:
    """Tell one figure."""
    if _as_json:
        entry = {"figure": figure, "value": value, "unit": unit, "correct": correct, **extra}
        print(json.dumps(entry), flush=True)
        return
    more = "  ".join(
        f"{key}={number:g}" if isinstance(number, float) else f"{key}={number}"
        for key, number in extra.items()
    )
    verdict = "" if correct else "  WRONG RESULT"
    print(f"{figure:32} {value:>14,.4g} {unit:6} {more}{verdict}", flush=True)


def skip(figure: str, reason: str) -> None:
    """Say why there is no such figure."""
    if _as_json:
        print(json.dumps({"figure": figure, "skipped": reason}), flush=True)
    else:
        print(f"{figure:32} skipped: {reason}", flush=True)
