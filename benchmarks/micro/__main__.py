"""Run the micro-benchmarks and say what got slower than the stored baseline.

    python -m benchmarks.micro [--json] [--save] [--fail-above RATIO] [-k EXPRESSION]

Machines differ, so a time is first divided by that of a calibration measured in the same
run: a copy of 8 MiB for benchmarks that move arrays, a plain loop for those that interpret.
The best round counts: noise only ever adds. The exit code is 0, or 1 when a benchmark's
result is wrong or `--fail-above` is exceeded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from benchmarks import report

HERE = Path(__file__).parent
BASELINE = HERE / "baseline.json"
# Below this a difference is noise on a shared machine.
SLOWER_RATIO = 1.25


class Measured(NamedTuple):
    """One benchmark: the best round in seconds, and in units of its calibration."""

    best_s: float
    relative: float
    work: int
    unit: str


def run(expression: str) -> dict[str, Measured]:
    """Run the benchmarks whose names match; SystemExit when one fails."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider"]
        command += ["-o", "addopts=--import-mode=importlib", "-o", "python_files=bench_*.py"]
        command += ["--benchmark-json", str(output), "--benchmark-quiet"]
        command += ["--benchmark-max-time=0.5", "--benchmark-disable-gc"]
        command += ["-k", f"calibrate or ({expression})"] if expression else []
        finished = subprocess.run(
            command, cwd=HERE.parent.parent, capture_output=True, text=True, timeout=600
        )
        if finished.returncode:
            sys.stderr.write(finished.stdout + finished.stderr)
            raise SystemExit(1)
        return _read(json.loads(output.read_text()))


def _read(results: dict[str, list[dict[str, dict[str, float]]]]) -> dict[str, Measured]:
    best = {str(entry["name"]): entry["stats"]["min"] for entry in results["benchmarks"]}
    measured = {}
    for entry in results["benchmarks"]:
        name, extra = str(entry["name"]), entry["extra_info"]
        if "calibration" in extra:
            calibration = f"test_calibrate_{extra['calibration']}"
            unit_s = min(best[f"{calibration}_first"], best[f"{calibration}_last"])
            relative = best[name] / unit_s
            measured[name.removeprefix("test_")] = Measured(
                best[name], relative, int(extra["work"]), str(extra["unit"])
            )
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_arguments(parser)
    parser.add_argument("--save", action="store_true", help="make this run the baseline")
    parser.add_argument("--fail-above", type=float, metavar="RATIO", help="exit 1 above this")
    parser.add_argument("-k", dest="expression", default="", help="only these, as in pytest")
    arguments = parser.parse_args()
    if arguments.save and arguments.expression:
        parser.error("--save stores all benchmarks; leave out -k")
    measured = run(arguments.expression)
    if arguments.save:
        stored = {name: round(one.relative, 6) for name, one in sorted(measured.items())}
        BASELINE.write_text(json.dumps(stored, indent=2) + "\n")
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    ratios = {}
    for name, one in measured.items():
        extra: dict[str, float | str] = {"best_us": round(one.best_s * 1e6, 2)}
        if name in baseline:
            ratios[name] = one.relative / baseline[name]
            extra["vs_baseline"] = round(ratios[name], 3)
        report.emit(f"micro.{name}", one.work / one.best_s, f"{one.unit}/s", True, **extra)
    return _judge(ratios, arguments.fail_above)


def _judge(ratios: dict[str, float], fail_above: float | None) -> int:
    """Say what got slower; the exit code."""
    slower = {name: ratio for name, ratio in ratios.items() if ratio > SLOWER_RATIO}
    for name, ratio in sorted(slower.items(), key=lambda item: -item[1]):
        print(f"slower than the baseline: {name}, {ratio:.2f} times its time", file=sys.stderr)
    if not slower:
        print(f"nothing is slower than {SLOWER_RATIO} times the baseline", file=sys.stderr)
    return int(fail_above is not None and any(ratio > fail_above for ratio in ratios.values()))


if __name__ == "__main__":
    sys.exit(main())
