"""The chunk codec on the simulator's day: speed on one core, and bytes per sample.

    python -m benchmarks.codec [--json] [--hours 24]

A sample is one value of one metric. Speeds are the best of several rounds, in CPU time, over
all sealed chunks of the day; every value is compared with what went in, bit for bit. Beside
them: memcpy of the same values as 8-byte words is the limit (`vs_memcpy`), the readable twin
the floor (`vs_twin`). The same series in VictoriaMetrics are weighed after a forced merge,
where its program is installed (Debian: apt install victoria-metrics).
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import day_trace, report, victoriametrics
from benchmarks.day_trace import Trace
from gputel import wire
from gputel._native import codec as native
from gputel._reference import codec as twin
from gputel.batch import Batch

ROUNDS = 7
ONE_ROUNDS = 2000
LIVE_ROWS = 2000  # of the day, cut into chunks of 1 and 10 samples
ENCODE_TARGET, DECODE_TARGET, BYTES_TARGET = 100e6, 300e6, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.codec",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_arguments(parser)
    parser.add_argument("--hours", type=int, default=24, help="of the day, 1 to 24")
    arguments = parser.parse_args()
    if not 1 <= arguments.hours <= 24:
        parser.error("--hours is 1 to 24")
    print("simulating ...", file=sys.stderr)
    traces = day_trace.day(seconds=3600 * arguments.hours)
    sealed = [batch for trace in traces for batch in trace.sealed()]
    payloads = [wire.encode_batch(part) for part in sealed]
    correct = all(map(is_same, sealed, payloads))
    speed(sealed, payloads, correct)
    one(next(traces[0].chunks(1)))
    size(traces, sealed, payloads, correct)
    peer(traces)


def encode_arguments(batch: Batch) -> tuple[Any, ...]:
    """What `encode_chunk` takes."""
    metric_set = batch.metric_set
    return (
        metric_set.id,
        [metric.id for metric in metric_set.metrics],
        metric_set.storages,
        batch.time_ns,
        batch.sequence,
        batch.columns,
        batch.valid,
    )


def best_s(work: Callable[[Any], object], items: Sequence[Any], rounds: int = ROUNDS) -> float:
    """CPU seconds for all items, each at its best round."""
    best = [float("inf")] * len(items)
    for _ in range(rounds):
        for i, item in enumerate(items):
            started = time.process_time_ns()
            work(item)
            best[i] = min(best[i], time.process_time_ns() - started)
    return sum(best) / 1e9


def is_same(batch: Batch, payload: bytes) -> bool:
    """Does the chunk give back every bit of the batch, read by either codec?"""
    given = (batch.time_ns, batch.sequence, batch.valid, *batch.columns)
    decoded = wire.decode_chunk(payload)
    found = (decoded.time_ns, decoded.sequence, decoded.valid, *decoded.columns)
    native_chunk, twin_chunk = native.decode_chunk(payload), twin.decode_chunk(payload)
    return all(map(_equal, given, found)) and all(
        map(
            _equal,
            (native_chunk.time_ns, native_chunk.valid, *native_chunk.columns),
            (twin_chunk.time_ns, twin_chunk.valid, *twin_chunk.columns),
        )
    )


def _equal(a: Any, b: Any) -> bool:
    return bool(np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes())


def speed(sealed: Sequence[Batch], payloads: Sequence[bytes], correct: bool) -> None:
    """Encode and decode, memcpy, the twin."""
    samples = sum(map(day_trace.samples, sealed))
    arguments = [encode_arguments(batch) for batch in sealed]
    words = [np.zeros(day_trace.samples(batch), np.int64) for batch in sealed]
    copy_s = best_s(np.copy, words)
    encode_s = best_s(lambda given: native.encode_chunk(*given), arguments)
    decode_s = best_s(native.decode_chunk, payloads)
    # One chunk of each set is enough for the twin.
    some = [i for i in range(len(sealed)) if i % (len(sealed) // 3) == 0][:3]
    few, few_payloads = [arguments[i] for i in some], [payloads[i] for i in some]
    correct = correct and [twin.encode_chunk(*given) for given in few] == few_payloads
    twin_encode = best_s(lambda given: twin.encode_chunk(*given), few, 2)
    twin_decode = best_s(twin.decode_chunk, few_payloads, 2)
    encode_some = best_s(lambda given: native.encode_chunk(*given), few)
    decode_some = best_s(native.decode_chunk, few_payloads)
    for name, seconds, versus, target in (
        ("encode", encode_s, twin_encode / encode_some, ENCODE_TARGET),
        ("decode", decode_s, twin_decode / decode_some, DECODE_TARGET),
    ):
        report.emit(
            f"codec.{name}_samples_per_s",
            samples / seconds,
            "1/s",
            correct,
            vs_memcpy=round(copy_s / seconds, 3),
            vs_twin=round(versus, 1),
            target=target,
        )


def one(batch: Batch) -> None:
    """A chunk of a single sample of all fast metrics: what a live collector makes."""
    given, payload = encode_arguments(batch), wire.encode_batch(batch)
    correct = is_same(batch, payload)
    for name, work, target in (
        ("encode", lambda: native.encode_chunk(*given), 3.0),
        ("decode", lambda: native.decode_chunk(payload), 5.0),
    ):
        best = float("inf")
        for _ in range(ROUNDS):
            started = time.process_time_ns()
            for _ in range(ONE_ROUNDS):
                work()
            best = min(best, (time.process_time_ns() - started) / ONE_ROUNDS)
        report.emit(f"codec.{name}_one_us", best / 1000, "us", correct, target=target)


def size(
    traces: Sequence[Trace], sealed: Sequence[Batch], payloads: Sequence[bytes], correct: bool
) -> None:
    """Bytes per sample, everything counted; by metric set, and of live chunks."""
    extra: dict[str, float | str] = {}
    for trace in traces:
        own = [i for i, batch in enumerate(sealed) if batch.metric_set is trace.metric_set]
        values = sum(day_trace.samples(sealed[i]) for i in own)
        extra[trace.metric_set.name] = round(sum(len(payloads[i]) for i in own) / values, 4)
    for rows in (1, 10):
        live = [
            batch
            for trace in traces[:2]
            for batch in itertools.islice(trace.chunks(rows), LIVE_ROWS // rows)
        ]
        total = sum(len(wire.encode_batch(batch)) for batch in live)
        extra[f"live_{rows}"] = round(total / sum(map(day_trace.samples, live)), 3)
    samples = sum(map(day_trace.samples, sealed))
    value = sum(map(len, payloads)) / samples
    report.emit(
        "codec.bytes_per_sample", value, "B", correct, samples=samples, **extra, target=BYTES_TARGET
    )


def peer(traces: Sequence[Trace]) -> None:
    """The same series in VictoriaMetrics."""
    program = victoriametrics.installed()
    if program is None:
        print(
            f"codec.victoriametrics_bytes_per_sample is left out: no {victoriametrics.BINARY} "
            f"on the PATH (apt install {victoriametrics.BINARY})",
            file=sys.stderr,
        )
        return
    series = [one for trace in traces for one in trace.series()]
    with victoriametrics.running(program) as server:
        for name, times_ns, values in series:
            server.import_series(name, times_ns, values)
        size_bytes = server.merged_bytes()
        # It has floats, of which integers beyond 2**53 lose their last digits.
        correct = all(
            np.allclose(server.exported(name), values, rtol=1e-14, atol=0)
            for name, _, values in series
        )
    samples = sum(len(values) for _, _, values in series)
    report.emit(
        "codec.victoriametrics_bytes_per_sample",
        size_bytes / samples,
        "B",
        correct,
        samples=samples,
    )


if __name__ == "__main__":
    main()
