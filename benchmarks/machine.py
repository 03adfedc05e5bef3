"""What the machine did beside a measurement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

# Of the first line's fields: cpu user nice system idle iowait irq softirq steal; see proc(5).
_BUSY: Final = (1, 2, 3, 6, 7)
_STOLEN: Final = 8


def busy_s() -> float:
    """For how long processors have worked, for anybody: seconds of all of them."""
    return sum(_ticks(field) for field in _BUSY) / os.sysconf("SC_CLK_TCK")


def stolen_s() -> float:
    """For how long the hypervisor has kept processors that had work: seconds of all of them."""
    return _ticks(_STOLEN) / os.sysconf("SC_CLK_TCK")


def _ticks(field: int) -> int:
    return int(Path("/proc/stat").read_text().partition("\n")[0].split()[field])
