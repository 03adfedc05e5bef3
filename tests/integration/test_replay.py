"""A replayed dump is found through the API: every value exactly once, with unit and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.account import expected_values, get, stored_values, until, write_dump

pytestmark = pytest.mark.integration
REAL_DUMP = Path(__file__).parents[3] / "shared" / "data" / "dcgm-31-hosts-247-h100.csv"
DEADLINE_S = 60


def check(start_pipeline: Any, path: Path, nodes: int, gpus: int) -> None:
    running = start_pipeline("--source", f"replay:{path}", "--once", "--speed", "max")
    api = running.ready["api"]
    expected = expected_values(path)
    until(lambda: stored_values(api).total() >= expected.total(), DEADLINE_S)
    assert stored_values(api) == expected
    assert get(f"{api}/api/v1/pipeline")["nodes"] == nodes
    assert len(get(f"{api}/api/v1/gpus", limit=10_000)["gpus"]) == gpus


def test_a_generated_dump(start_pipeline: Any, tmp_path: Path) -> None:
    path = tmp_path / "dump.csv"
    write_dump(path, hosts=3, gpus=2, seconds=40, seed=11)
    check(start_pipeline, path, nodes=3, gpus=6)


@pytest.mark.skipif(not REAL_DUMP.exists(), reason="the real dump lies outside the repository")
def test_the_real_dump_of_247_gpus(start_pipeline: Any) -> None:
    assert expected_values(REAL_DUMP).total() == 2470
    check(start_pipeline, REAL_DUMP, nodes=31, gpus=247)
