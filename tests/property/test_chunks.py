"""Chunks: lossless bit for bit, small, and safe against hostile bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import METRIC_SETS, SET_BY_CADENCE, Cadence
from gputel.errors import ChunkCorrupt, FrameCorrupt, FrameTooLarge
from gputel.inventory import Event, EventKind, Gpu
from gputel.kernels import decode_chunk, encode_chunk, read_chunk_header

GOLDEN = Path(__file__).parent.parent / "data" / "v1"
EXTREMES: dict[str, list[Any]] = {
    "q": [0, -1, 2**63 - 1, -(2**63)],
    "Q": [0, 1, 2**64 - 1, 2**63],
    "d": [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 5e-324, 1.7e308, 300.794, 0.1],
    "f": [0.0, -0.0, float("inf"), float("nan"), 1e-45, 3.4e38, 0.5],
}


def make_columns(storages: str, n: int, seed: int, shape: str):
    rng = np.random.default_rng(seed)
    columns = []
    for storage in storages:
        dtype: Any = DTYPES[storage]
        column: Any
        if shape == "constant":
            column = np.full(n, EXTREMES[storage][seed % 4], dtype)
        elif shape == "walk":
            walk = np.cumsum(rng.integers(-3, 4, n)) + 1000
            column = (walk / 8 if storage in "fd" else walk).astype(dtype)
        elif shape == "extreme":
            column = np.array([EXTREMES[storage][i] for i in rng.integers(0, 4, n)], dtype)
        else:
            column = rng.integers(0, 256, n * dtype.itemsize, dtype=np.uint8).view(dtype)
        columns.append(column)
    return tuple(columns)


@settings(max_examples=150, deadline=None)
@given(
    storages=st.text("fdqQ", min_size=1, max_size=8),
    n=st.one_of(st.integers(1, 12), st.integers(100, 400)),
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(["constant", "walk", "extreme", "noise"]),
    times=st.sampled_from(["regular", "jitter", "duplicate", "backward", "wild"]),
    missing=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_a_chunk_gives_back_every_bit(storages, n, seed, shape, times, missing):
    rng = np.random.default_rng(seed)
    columns = make_columns(storages, n, seed, shape)
    mask = rng.random((len(storages), n)) >= missing
    mask[0, 0] = True
    valid = np.packbits(mask, axis=1, bitorder="little")
    time_ns = 1_700_000_000_000_000_000 + np.arange(n, dtype=np.int64) * 100_000_000
    if times == "jitter":
        time_ns += rng.integers(-50, 50, n) * 1000
    elif times == "duplicate":
        time_ns[:] = time_ns[0]
    elif times == "backward":
        time_ns = time_ns[::-1].copy()
    elif times == "wild":
        time_ns = rng.integers(-(2**62), 2**62, n)
    sequence = np.arange(n, dtype=np.int64) + seed
    ids = tuple(range(3, 3 + len(storages)))
    payload = encode_chunk(1, ids, storages, time_ns, sequence, columns, valid)
    header = read_chunk_header(payload)
    assert (header.set_id, header.samples) == (1, n)
    assert (header.t0_ns, header.t1_ns) == (time_ns.min(), time_ns.max())
    assert header.first_sequence == sequence[0]
    decoded = decode_chunk(payload)
    assert decoded.time_ns.tobytes() == time_ns.tobytes()
    assert decoded.sequence.tobytes() == sequence.tobytes()
    present = [j for j in range(len(storages)) if mask[j].any()]
    assert decoded.metric_ids == tuple(ids[j] for j in present)
    for k, j in enumerate(present):
        bits = np.unpackbits(decoded.valid[k], count=n, bitorder="little").astype(bool)
        assert np.array_equal(bits, mask[j])
        assert decoded.columns[k][bits].tobytes() == columns[j][bits].tobytes()


def golden_batches() -> dict[str, Batch]:
    """The inputs of the frozen files in tests/data/v1, which the encoder of that time wrote."""
    batches = {}
    for metric_set in METRIC_SETS:
        for n in (1, 7, 64):
            columns = make_columns(metric_set.storages, n, n, "walk")
            mask = np.ones((len(columns), n), bool)
            mask[1::3, ::2] = False
            mask[2] = False
            batches[f"{metric_set.name}-{n}"] = Batch(
                metric_set,
                1_752_871_354_000_000_000 + np.arange(n, dtype=np.int64) * 1_000_000_000,
                np.arange(n, dtype=np.int64),
                columns,
                np.packbits(mask, axis=1, bitorder="little"),
            )
    return batches


@pytest.mark.parametrize("name", list(golden_batches()))
def test_frozen_chunks_decode_to_their_values(name):
    batch = golden_batches()[name]
    decoded = wire.decode_chunk((GOLDEN / f"{name}.chunk").read_bytes())
    assert decoded.metric_set is batch.metric_set
    assert decoded.time_ns.tolist() == batch.time_ns.tolist()
    for j in range(len(batch.columns)):
        mask = batch.mask(j)
        assert np.array_equal(decoded.mask(j), mask)
        assert decoded.columns[j][mask].tobytes() == batch.columns[j][mask].tobytes()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_raises_only_chunk_corrupt(garbage):
    for data in (garbage, b"GC\x01" + garbage, b"GC\x02" + garbage):
        with pytest.raises(ChunkCorrupt):
            decode_chunk(data)


def test_a_single_sample_of_all_fast_metrics_is_small():
    batch = golden_batches()["fast-1"]
    values = sum(batch.mask(j).sum() for j in range(len(batch.columns)))
    assert len(wire.encode_batch(batch)) <= 60 + 8 * values


def frame(**changes) -> wire.Frame:
    gpu = Gpu("GPU-1", "node", 0, "nvidia0", model="H100", memory_total_bytes=85_899_345_920)
    chunk = wire.encode_batch(golden_batches()["fast-1"])
    fields: dict[str, Any] = {
        "producer": "collector:node",
        "epoch": 7,
        "sequence": 1,
        "node": "node",
        "sealed_at_ns": 1_752_871_354_000_000_000,
        "gpus": (wire.GpuChunks("GPU-1", (chunk,)),),
        "inventory": (gpu,),
        "events": (Event(5, EventKind.XID, "GPU-1", 79, "fell off the bus"),),
    } | changes
    return wire.Frame(**fields)


def test_a_frame_gives_back_what_it_was_given():
    assert wire.decode_frame(wire.encode_frame(frame())) == frame()


def test_a_frame_above_the_cap_is_refused_with_both_sizes():
    big = (wire.GpuChunks("GPU-1", (bytes(200 * 1024),) * 3),)
    with pytest.raises(FrameTooLarge, match="at most 524288") as refused:
        wire.encode_frame(frame(gpus=big))
    assert refused.value.size_bytes > 600 * 1024


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_a_hostile_frame_raises_only_frame_corrupt(garbage, at):
    whole = wire.encode_frame(frame())
    damaged = whole[: at % len(whole)] + garbage
    for data in (garbage, damaged):
        try:
            wire.decode_frame(data)
        except FrameCorrupt:
            continue


def test_metrics_of_a_later_version_are_ignored():
    metric_set = SET_BY_CADENCE[Cadence.FAST]
    one = np.ones(1, np.int64)
    valid = np.ones((2, 1), np.uint8)
    ids = (metric_set.metrics[0].id, 60_000)
    payload = encode_chunk(metric_set.id, ids, "qq", one, one, (one, one), valid)
    batch = wire.decode_chunk(payload)
    assert batch.mask(0).all()
    assert not any(batch.mask(j).any() for j in range(1, len(batch.columns)))
