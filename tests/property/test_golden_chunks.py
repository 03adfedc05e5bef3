"""Frozen chunks of both versions: a reader of today reads them for ever, damaged ones never.

`python tests/property/test_golden_chunks.py` wrote the files of version 2, once; those of
version 1 were written by the encoder of that time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gputel.errors import ChunkCorrupt
from support.codecs import NATIVE, REFERENCE, both_codecs, content

DATA = Path(__file__).parent.parent / "data"
STORAGES = "qqdQfddqQf"
SAMPLES = (1, 7, 33, 100)


def arguments_of(n: int) -> tuple[Any, ...]:
    """What the frozen chunk of n samples was made from; arithmetic alone, no generator."""
    i = np.arange(n, dtype=np.int64)
    noise = i * i * 7919 % 10_007
    used = np.where(i % 29 < 20, 40 << 30, 2 << 30) + (noise % 50 << 20)
    power = (250_000 + noise * 37) / 1000
    columns = [
        used,
        (80 << 30) - used,  # a link
        power,
        np.cumsum(noise).astype(np.uint64) + np.uint64(2**63),
        np.sqrt(noise + 1).astype(np.float32),  # bits
        np.round(power * 0.92, 3),
        np.where(i % 5 == 0, np.nan, noise / 10_007),
        np.full(n, -3),
        np.where(i < n // 2, 0, 2**64 - 1).astype(np.uint64),
        np.full(n, 0.5, np.float32),
    ]
    mask = np.ones((len(columns), n), bool)
    mask[2, 1::3] = False
    mask[7] = False
    mask[9, ::2] = n == 1
    times = 1_752_871_354_000_000_000 + i * 1_000_000_000 + noise * 1000
    valid = np.packbits(mask, axis=1, bitorder="little")
    ids = [3, 4, 5, 9, 10, 11, 2, 40, 41, 65_535]
    return 2, ids, STORAGES, times, i + 5, columns, valid


def path_of(n: int) -> Path:
    return DATA / "v2" / f"{n}.chunk"


def everything() -> list[Path]:
    return sorted(DATA.glob("v[12]/*.chunk"))


@both_codecs
@pytest.mark.parametrize("n", SAMPLES)
def test_today_s_writer_writes_the_frozen_bytes(codec: Any, n: int) -> None:
    frozen = path_of(n).read_bytes()
    assert codec.encode_chunk(*arguments_of(n)) == frozen


@both_codecs
@pytest.mark.parametrize("n", SAMPLES)
def test_a_frozen_chunk_holds_the_values_it_was_made_from(codec: Any, n: int) -> None:
    set_id, ids, storages, times, sequence, columns, valid = arguments_of(n)
    chunk = codec.decode_chunk(path_of(n).read_bytes())
    assert chunk.set_id == set_id
    assert chunk.time_ns.tolist() == times.tolist()
    assert chunk.sequence.tolist() == sequence.tolist()
    assert chunk.metric_ids == tuple(number for number in ids if number != 40)
    for metric_id, storage, column, bits in zip(
        chunk.metric_ids, chunk.storages, chunk.columns, chunk.valid, strict=True
    ):
        j = ids.index(metric_id)
        assert storage == storages[j]
        assert bits.tobytes() == valid[j].tobytes()
        mask = np.unpackbits(bits, count=n, bitorder="little").astype(bool)
        assert column[mask].tobytes() == columns[j][mask].tobytes()


@pytest.mark.parametrize("path", everything(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_both_read_the_same(path: Path) -> None:
    payload = path.read_bytes()
    assert content(NATIVE.decode_chunk(payload)) == content(REFERENCE.decode_chunk(payload))
    assert NATIVE.read_chunk_header(payload) == REFERENCE.read_chunk_header(payload)


def test_there_are_frozen_chunks_of_both_versions() -> None:
    versions = [path.read_bytes()[2] for path in everything()]
    assert versions.count(1) >= 9
    assert versions.count(2) == len(SAMPLES)


@pytest.mark.parametrize("path", everything(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_truncation_and_every_flipped_bit_is_noticed(path: Path) -> None:
    payload = path.read_bytes()
    for read in (NATIVE.decode_chunk, NATIVE.read_chunk_header):
        for end in range(len(payload)):
            with pytest.raises(ChunkCorrupt):
                read(payload[:end])
        for bit in range(len(payload) * 8):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ChunkCorrupt):
                read(bytes(flipped))


if __name__ == "__main__":
    for n in SAMPLES:
        path_of(n).parent.mkdir(exist_ok=True)
        path_of(n).write_bytes(REFERENCE.encode_chunk(*arguments_of(n)))
