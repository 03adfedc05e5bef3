"""Batches as chunks and back: the catalog's meaning on the kernels' codec."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gputel import catalog, kernels, limits
from gputel.batch import DTYPES, Batch
from gputel.catalog import MetricSet
from gputel.errors import ChunkCorrupt, FrameTooLarge


class _Layout(NamedTuple):
    """What the codec needs of a metric set, made once."""

    metric_set: MetricSet
    ids: tuple[int, ...]
    storages: str
    columns: dict[int, int]  # by metric id


_LAYOUTS = {
    metric_set.id: _Layout(
        metric_set,
        tuple(metric.id for metric in metric_set.metrics),
        metric_set.storages,
        {metric.id: j for j, metric in enumerate(metric_set.metrics)},
    )
    for metric_set in catalog.METRIC_SETS
}


def encode_batch(batch: Batch) -> bytes:
    """`batch` as a chunk; metrics without a value are left out. FrameTooLarge: seal fewer rows."""
    # PERF(chunk): a chunk of one row takes the kernel 0.6 us; listing the ids each time took 2.
    layout = _LAYOUTS[batch.metric_set.id]
    payload = kernels.encode_chunk(
        layout.metric_set.id,
        layout.ids,
        layout.storages,
        batch.time_ns,
        batch.sequence,
        batch.columns,
        batch.valid,
    )
    if len(payload) > limits.CHUNK_BYTES_MAX:
        raise FrameTooLarge(len(payload), limits.CHUNK_BYTES_MAX)
    return payload


def chunk_rows(metric_set: MetricSet) -> kernels.ChunkRows:
    """An empty block for the rows of small chunks of `metric_set`."""
    layout = _LAYOUTS[metric_set.id]
    return kernels.ChunkRows(metric_set.id, layout.ids, layout.storages)


def decode_chunk(payload: bytes | memoryview) -> Batch:
    """The batch of a chunk.

    Metrics of the set that the chunk lacks come back without a valid value; ids that this
    catalog does not know (a newer producer's) are ignored. ChunkCorrupt: bytes that are no
    chunk, a set that the catalog does not have, a metric of another storage or set.
    """
    if len(payload) > limits.CHUNK_BYTES_MAX:
        raise ChunkCorrupt(f"{len(payload)} bytes, at most {limits.CHUNK_BYTES_MAX} are allowed")
    chunk = kernels.decode_chunk(payload)
    layout = _LAYOUTS.get(chunk.set_id)
    if layout is None:
        raise ChunkCorrupt(f"metric set {chunk.set_id} is unknown")
    if chunk.metric_ids == layout.ids and chunk.storages == layout.storages:
        return Batch(layout.metric_set, chunk.time_ns, chunk.sequence, chunk.columns, chunk.valid)
    return _complete(chunk, layout)


def _complete(chunk: kernels.DecodedChunk, layout: _Layout) -> Batch:
    """All columns of the set, where the chunk lacks some or has others."""
    n = len(chunk.time_ns)
    # Columns are never written to, so those without a value can be one.
    nothing = {storage: np.zeros(n, DTYPES[storage]) for storage in set(layout.storages)}
    columns = [nothing[storage] for storage in layout.storages]
    valid = np.zeros((len(columns), (n + 7) // 8), np.uint8)
    for i, (metric_id, storage) in enumerate(zip(chunk.metric_ids, chunk.storages, strict=True)):
        j = layout.columns.get(metric_id)
        if j is None:
            if metric_id in catalog.BY_ID:
                raise ChunkCorrupt(f"metric {metric_id} is not of the set {layout.metric_set.name}")
            continue
        if layout.storages[j] != storage:
            raise ChunkCorrupt(f"metric {metric_id} has storage {storage!r}")
        columns[j] = chunk.columns[i]
        valid[j] = chunk.valid[i]
    return Batch(layout.metric_set, chunk.time_ns, chunk.sequence, tuple(columns), valid)
