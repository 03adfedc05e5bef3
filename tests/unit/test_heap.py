"""The allocator keeps what messages leave behind: no page faults for the next one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gputel.limits import BATCH_BYTES_MAX, KIB

PAGE_BYTES = 4 * KIB
ROUNDS = 500

SCRIPT = f"""
import json, resource, sys
from gputel.services import heap

kept = heap.keep_freed() if sys.argv[1] == "kept" else None
BLOCKS = 4
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def pass_through():
    for block in [b"x" * {BATCH_BYTES_MAX} for _ in range(BLOCKS)]:
        assert len(block) == {BATCH_BYTES_MAX}
pass_through()
before = faults()
for _ in range({ROUNDS}):
    pass_through()
print(json.dumps([kept, (faults() - before) / {ROUNDS} / BLOCKS]))
"""


def _faults_a_block(mode: str) -> tuple[bool | None, float]:
    run = [sys.executable, "-c", SCRIPT, mode]
    found = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    kept, faults = json.loads(found.stdout)
    return kept, faults


def test_a_freed_block_is_used_again_without_faults() -> None:
    kept, faults = _faults_a_block("kept")
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert faults < 2, f"{faults} page faults a block of {BATCH_BYTES_MAX // PAGE_BYTES} pages"


def test_without_it_each_block_takes_fresh_pages() -> None:
    """Else there is nothing to gain, and the module can go."""
    _, faults = _faults_a_block("given back")
    assert faults > BATCH_BYTES_MAX / PAGE_BYTES / 4
