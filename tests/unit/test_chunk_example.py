"""The example in docs/reference/chunk-format.md is a chunk, and the values it tells are in it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from gputel.kernels import decode_chunk, encode_chunk

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "chunk-format.md"


def test_the_documented_bytes_are_the_documented_values() -> None:
    example = PAGE.read_text().partition("## Example")[2]
    payload = bytes.fromhex("".join(re.findall(r"^    ((?:[0-9a-f]{2} )+)", example, re.MULTILINE)))
    assert len(payload) == 67
    chunk = decode_chunk(payload)
    assert chunk.metric_ids == (1, 3, 5)
    assert chunk.sequence.tolist() == [7, 8, 9, 10]
    assert (chunk.time_ns - 1_752_871_354_000_000_000).tolist() == [
        0,
        10**8,
        2 * 10**8,
        301 * 10**6,
    ]
    assert chunk.columns[0].tolist() == [98] * 4
    assert chunk.columns[1].tolist() == [300.5, 301.25, 299.75, 0.0]
    assert chunk.valid.tolist() == [[15], [7], [15]]
    assert chunk.columns[2].tolist() == [5_000_000, 5_030_000, 5_060_000, 5_100_000]
    again = encode_chunk(
        1, [1, 3, 5], "qdq", chunk.time_ns, chunk.sequence, chunk.columns, np.asarray(chunk.valid)
    )
    assert again == payload
