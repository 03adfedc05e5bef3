"""Ring and columns: values a second through both on one core, and against plain memcpy.

    python -m benchmarks.ring [--json]

Rows are pushed in bulk, drained into columns and sealed; what comes out is compared with
what went in. memcpy of the same rows, in and out once each, is the limit.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from benchmarks import report
from gputel import kernels
from gputel.kernels import Columns, Ring, WhenFull

STORAGES = "qqddqqqqqqqqqqqqqqqq"  # as the fast metric set: 20 columns
GPUS = 8
ROWS = 8_000
ROUNDS = 200


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_arguments(parser)
    parser.parse_args()
    rng = np.random.default_rng(1)
    rows = np.zeros(ROWS, kernels.row_dtype(STORAGES))
    rows["gpu"] = np.arange(ROWS) % GPUS
    rows["sequence"] = np.arange(ROWS) // GPUS
    rows["valid"] = (1 << len(STORAGES)) - 1
    for name in (n for n in rows.dtype.names or () if n.startswith("c")):
        rows[name] = rng.integers(0, 1000, ROWS)
    ring = Ring(STORAGES, ROWS, WhenFull.BLOCK)
    columns = Columns(STORAGES, GPUS, ROWS // GPUS)

    best_s = float("inf")
    sealed = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ring.push_rows(rows)
        columns.drain(ring)
        sealed = columns.seal()
        best_s = min(best_s, time.perf_counter() - started)
    correct = len(sealed) == GPUS and all(
        np.array_equal(
            part.columns[j].view(np.int64), rows[f"c{j}"][part.gpu :: GPUS].view(np.int64)
        )
        for part in sealed
        for j in range(len(STORAGES))
    )

    source, target = rows.view(np.uint8).copy(), np.empty(rows.nbytes, np.uint8)
    copy_s = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        target[:] = source
        source[:] = target
        copy_s = min(copy_s, time.perf_counter() - started)

    values = ROWS * len(STORAGES)
    report.emit(
        "ring.values_per_s",
        values / best_s,
        "1/s",
        correct,
        vs_memcpy=round(copy_s / best_s, 3),
        target=100e6,
    )


if __name__ == "__main__":
    main()
