"""Programs on a simulated node at which time stands still, and what its driver said itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

TESTS = Path(__file__).parents[1]
#: When it is, in the simulation: the GPUs have been at work for a while.
AT_S = 600


class Run(Protocol):
    """Runs a Python module on a simulated node."""

    def __call__(
        self,
        module: str,
        *arguments: str,
        gpus: int = 8,
        model: str = "h100",
        faults: Sequence[str] = (),
    ) -> tuple[list[dict[str, Any]], str]:
        """(what the driver itself says of each GPU, what the module printed)."""
        ...


def frozen(truth: Path, gpus: int, model: str, faults: Sequence[str] = ()) -> list[str]:
    """A command up to the module that it runs: a simulation that stands still at `AT_S`."""
    command = ["gputel", "sim", "run", "--gpus", str(gpus), "--model", model]
    command += ["--profile", "training", *(f"--fault={fault}" for fault in faults), "--"]
    command += [sys.executable, "-m", "support.nvml_plain", "--at", str(AT_S)]
    return [*command, "--truth", str(truth), "--"]


def frozen_variables() -> dict[str, str]:
    """What `frozen` needs in the environment."""
    return {"GPUTEL_SIM": "clock=manual", "PYTHONPATH": str(TESTS)}
