"""`gputel export`: a recorded file as a table for analysis, one line a GPU, metric set and time.

    time, node, uuid, gpu, model, set, then one column a metric of the catalog

The columns are those of every export; what a line's set does not have, or what was not
measured, is empty.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from gputel.catalog import METRIC_SETS, METRICS, MetricSet, Storage
from gputel.clock import NS_PER_US, rfc3339
from gputel.errors import InputError
from gputel.inventory import Gpu
from gputel.sources.replay_file import Recording, open_recording
from gputel.sources.steps import Row, steps

FACTS: Final = ("time", "node", "uuid", "gpu", "model", "set")
LINES_AT_ONCE: Final = 16_384
FORMATS: Final = ("csv", "parquet")

Told = Callable[[int], None]


def export(spec: str, output: Path, format: str, *, force: bool, told: Told) -> int:
    """Write the table; how many lines it has. `told` hears the running number.

    InputError: the recording can't be read, the output exists or can't be written, pyarrow
    is missing.
    """
    write = {"csv": _write_csv, "parquet": _write_parquet}[format]
    recording = open_recording(spec, node="unknown")
    recording.scan()
    # What was cut off halfway is not left behind as if it were whole.
    part = output.with_name(output.name + ".part")
    try:
        if output.exists() and not force:
            raise InputError(f"{output}: exists already", hint="--force overwrites it")
        try:
            lines = write(recording, part, told)
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{output}: {error.strerror or error}") from None
    return lines


def _rows(recording: Recording) -> Iterator[Row]:
    return itertools.chain.from_iterable(steps(recording.records()))


def _write_csv(recording: Recording, path: Path, told: Told) -> int:
    gpus = recording.gpus()
    places = {metric_set: _places(metric_set) for metric_set in METRIC_SETS}
    lines = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*FACTS, *(metric.name for metric in METRICS)))
        for rows in _batched(_rows(recording)):
            for row in rows:
                line: list[Any] = [None] * len(METRICS)
                for place, value in zip(places[row.metric_set], row.values, strict=True):
                    line[place] = value
                writer.writerow((rfc3339(row.time_ns), *_facts(gpus[row.slot], row), *line))
            lines += len(rows)
            told(lines)
        file.flush()
        os.fsync(file.fileno())
    return lines


def _places(metric_set: MetricSet) -> list[int]:
    return [METRICS.index(metric) for metric in metric_set.metrics]


def _write_parquet(recording: Recording, path: Path, told: Told) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            "--format parquet needs pyarrow", hint="pip install 'gputel[arrow]', or --format csv"
        ) from None
    types = {Storage.F32: pa.float32(), Storage.F64: pa.float64(), Storage.I64: pa.int64()}
    types[Storage.U64] = pa.uint64()
    text = pa.dictionary(pa.int32(), pa.string())
    facts = [pa.timestamp("us", tz="UTC"), text, text, pa.int32(), text, text]
    fields = list(zip(FACTS, facts, strict=True))
    fields += [(metric.name, types[metric.storage]) for metric in METRICS]
    schema = pa.schema(fields)
    lines = 0
    with contextlib.closing(pq.ParquetWriter(path, schema, compression="zstd")) as writer:
        for rows in _batched(_rows(recording)):
            columns = _columns(rows, recording.gpus())
            arrays = [pa.array(columns[field.name], field.type) for field in schema]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            lines += len(rows)
            told(lines)
    return lines


def _columns(rows: list[Row], gpus: tuple[Gpu, ...]) -> Mapping[str, list[Any]]:
    facts = zip(*(_facts(gpus[row.slot], row) for row in rows), strict=True)
    columns: dict[str, list[Any]] = dict(zip(FACTS[1:], map(list, facts), strict=True))
    columns["time"] = [row.time_ns // NS_PER_US for row in rows]
    for metric in METRICS:
        columns[metric.name] = [None] * len(rows)
    for number, row in enumerate(rows):
        for metric, value in zip(row.metric_set.metrics, row.values, strict=True):
            columns[metric.name][number] = value
    return columns


def _facts(gpu: Gpu, row: Row) -> tuple[str, str, int, str, str]:
    return gpu.node, gpu.uuid, gpu.index, gpu.model, row.metric_set.name


def _batched(rows: Iterable[Row]) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, LINES_AT_ONCE)):
        yield batch
