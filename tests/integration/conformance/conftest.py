"""Programs on the simulated driver, started as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest

from support.collecting import on_path

TESTS = Path(__file__).parents[2]
#: When it is, in the simulation: the GPUs have been at work for a while.
AT_S = 600


class Run(Protocol):
    """Runs a Python module on a simulated node."""

    def __call__(
        self, module: str, *arguments: str, gpus: int = 8, model: str = "h100", faults: Any = ()
    ) -> tuple[list[dict[str, Any]], str]:
        """(what the driver itself says of each GPU, what the module printed)."""
        ...


def frozen(truth: Path, gpus: int, model: str, faults: Any = ()) -> list[str]:
    """A command up to the module that it runs: a simulation that stands still at `AT_S`."""
    command = ["gputel", "sim", "run", "--gpus", str(gpus), "--model", model]
    command += ["--profile", "training", *(f"--fault={fault}" for fault in faults), "--"]
    command += [sys.executable, "-m", "support.nvml_plain", "--at", str(AT_S)]
    return [*command, "--truth", str(truth), "--"]


def frozen_variables() -> dict[str, str]:
    """What `frozen` needs in the environment."""
    return {"GPUTEL_SIM": "clock=manual", "PYTHONPATH": str(TESTS)}


@pytest.fixture
def run_frozen(tmp_path: Path) -> Run:
    def run(
        module: str, *arguments: str, gpus: int = 8, model: str = "h100", faults: Any = ()
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
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(truth.read_text()), done.stdout

    return run
