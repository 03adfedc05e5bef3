"""What the machine did to a measurement."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_STEAL: Final = 8  # of the line's fields: cpu user nice system idle iowait irq softirq steal


def stolen_s() -> float:
    """For how long the hypervisor has kept processors that had work, seconds of all of them.

    See proc(5), /proc/stat.
    """
    fields = Path("/proc/stat").read_text().partition("\n")[0].split()
    return int(fields[_STEAL]) / os.sysconf("SC_CLK_TCK")
