"""Batches as chunks and back: the catalog's meaning on the kernels' codec."""

from __future__ import annotations

import numpy as np

from gputel import catalog, kernels, limits
from gputel.batch import DTYPES, Batch
from gputel.errors import ChunkCorrupt, FrameTooLarge


def encode_batch(batch: Batch) -> bytes:
    """`batch` as a chunk; metrics without a value are left out. FrameTooLarge: seal fewer rows."""
    metric_set = batch.metric_set
    payload = kernels.encode_chunk(
        metric_set.id,
        [metric.id for metric in metric_set.metrics],
        metric_set.storages,
        batch.time_ns,
        batch.sequence,
        batch.columns,
        batch.valid,
    )
    if len(payload) > limits.CHUNK_BYTES_MAX:
        raise FrameTooLarge(len(payload), limits.CHUNK_BYTES_MAX)
    return payload


def decode_chunk(payload: bytes | memoryview) -> Batch:
    """The batch of a chunk.

    Metrics of the set that the chunk lacks come back without a valid value; ids that this
    catalog does not know (a newer producer's) are ignored. ChunkCorrupt: bytes that are no
    chunk, a set that the catalog does not have, a metric of another storage or set.
    """
    if len(payload) > limits.CHUNK_BYTES_MAX:
        raise ChunkCorrupt(f"{len(payload)} bytes, at most {limits.CHUNK_BYTES_MAX} are allowed")
    chunk = kernels.decode_chunk(payload)
    metric_set = catalog.SET_BY_ID.get(chunk.set_id)
    if metric_set is None:
        raise ChunkCorrupt(f"metric set {chunk.set_id} is unknown")
    n = len(chunk.time_ns)
    columns = [np.zeros(n, DTYPES[storage]) for storage in metric_set.storages]
    valid = np.zeros((len(columns), (n + 7) // 8), np.uint8)
    for i, (metric_id, storage) in enumerate(zip(chunk.metric_ids, chunk.storages, strict=True)):
        metric = catalog.BY_ID.get(metric_id)
        if metric is None:
            continue
        if catalog.SET_OF[metric] is not metric_set:
            raise ChunkCorrupt(f"metric {metric.name} is not of the set {metric_set.name}")
        if metric.storage.value != storage:
            raise ChunkCorrupt(f"metric {metric.name} has storage {storage!r}")
        j = metric_set.column(metric)
        columns[j] = chunk.columns[i]
        valid[j] = chunk.valid[i]
    return Batch(metric_set, chunk.time_ns, chunk.sequence, tuple(columns), valid)
