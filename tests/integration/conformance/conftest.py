"""Programs on the simulated driver, started as a user starts them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.collecting import brokering, on_path
from support.frozen import Run, frozen, frozen_variables


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that takes what collectors publish."""
    with brokering(tmp_path_factory.mktemp("broker")) as address:
        yield address


@pytest.fixture
def run_frozen(tmp_path: Path) -> Run:
    def run(
        module: str, *arguments: str, gpus: int = 8, model: str = "h100", faults: Sequence[str] = ()
    ) -> tuple[list[dict[str, Any]], str]:
        truth = tmp_path / "truth.json"
        done = subprocess.run(
            [*frozen(truth, gpus, model, faults), module, *arguments],
            env={**on_path(), **frozen_variables(), "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        # nvitop tells so of a function that it looks up in vain.
        assert not re.search("Traceback|FunctionNotFound", done.stderr), done.stderr
        return json.loads(truth.read_text()), done.stdout

    return run
