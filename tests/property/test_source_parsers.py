"""Garbage raises nothing but InputError; what a writer writes is read back exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gputel.catalog import BY_NAME
from gputel.errors import InputError
from gputel.sources.replay_file import ReplayFile
from gputel.sources.values import exact

DCGM = b"timestamp,metric_name,gpu_id,value\n"
SMI = b"timestamp, index, power.draw [W], clocks.sm [MHz]\n"
PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"2025-07-18T20:42:34Z,DCGM_FI_DEV_GPU_UTIL,0,5\n", b"\n", b",", b'"',
                     b"2025/07/18 20:42:34.123, 0, 70 W, 345 MHz\n", DCGM, SMI]),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", DCGM, SMI]), st.lists(PIECES, max_size=12))
def test_garbage_raises_only_input_error(head: bytes, pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.csv"
        path.write_bytes(head + b"".join(pieces))
        try:
            file = ReplayFile(str(path), node="n")
            file.scan()
        except InputError:
            return
        assert sum(len(record.cells) for record in file.records()) == file.values > 0


@given(st.integers(0, 2**40))
def test_mebibytes_become_exact_bytes(mebibytes: int) -> None:
    assert exact(BY_NAME["memory_used_bytes"], str(mebibytes), 2**20) == mebibytes * 2**20


@given(st.floats(0, 100_000))
def test_watts_are_the_float_of_the_text(watts: float) -> None:
    assert exact(BY_NAME["power_watts"], repr(watts)) == watts
