"""The examples in docs/reference/chunk-format.md are chunks that hold what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from support.codecs import both_codecs

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "chunk-format.md"
T0 = 1_752_871_354_000_000_000
MIB = 2**20


def documented(title: str) -> bytes:
    """The bytes of an example."""
    example = PAGE.read_text().partition(f"### {title}\n")[2].partition("###")[0]
    return bytes.fromhex("".join(re.findall(r"^    ((?:[0-9a-f]{2} )+)", example, re.MULTILINE)))


@both_codecs
def test_the_short_chunk(codec: Any) -> None:
    payload = documented("A short chunk")
    assert len(payload) == 67
    chunk = codec.decode_chunk(payload)
    assert chunk.metric_ids == (1, 3, 5)
    assert chunk.sequence.tolist() == [7, 8, 9, 10]
    assert (chunk.time_ns - T0).tolist() == [0, 10**8, 2 * 10**8, 301 * 10**6]
    assert chunk.columns[0].tolist() == [98] * 4
    assert chunk.columns[1].tolist() == [300.5, 301.25, 299.75, 0.0]
    assert chunk.valid.tolist() == [[15], [7], [15]]
    assert chunk.columns[2].tolist() == [5_000_000, 5_030_000, 5_060_000, 5_100_000]
    again = codec.encode_chunk(
        1, [1, 3, 5], "qdq", chunk.time_ns, chunk.sequence, chunk.columns, np.asarray(chunk.valid)
    )
    assert again == payload


@both_codecs
def test_blocks_and_a_link(codec: Any) -> None:
    payload = documented("Blocks and a link")
    assert len(payload) == 79
    chunk = codec.decode_chunk(payload)
    assert (chunk.set_id, chunk.metric_ids, chunk.storages) == (1, (8, 9), "qq")
    assert (chunk.time_ns - T0).tolist() == [i * 10**9 for i in range(34)]
    used = [number // MIB - 40 * 1024 for number in chunk.columns[0].tolist()]
    assert used[:18] == [0, 1, 2] * 5 + [0, 1, 55]
    assert set(map(sum, zip(*(column.tolist() for column in chunk.columns), strict=True))) == {
        80 * 1024 * MIB
    }
    again = codec.encode_chunk(
        1, [8, 9], "qq", chunk.time_ns, chunk.sequence, chunk.columns, np.asarray(chunk.valid)
    )
    assert again == payload
