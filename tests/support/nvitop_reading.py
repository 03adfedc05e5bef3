"""Prints, as JSON, nvitop's snapshot of every GPU; what it has not is its "N/A"."""

from __future__ import annotations

import json
from typing import Any

from nvitop import Device, NaType


def plain(value: Any) -> Any:
    """A value for JSON."""
    return "N/A" if isinstance(value, NaType) else value


def main() -> None:
    """All devices, then each one's processes as pid to bytes."""
    found = []
    for device in Device.all():
        snapshot = device.as_snapshot()
        fields = {key: plain(getattr(snapshot, key)) for key in device.SNAPSHOT_KEYS}
        processes = {pid: plain(one.gpu_memory()) for pid, one in device.processes().items()}
        found.append({**fields, "processes": processes})
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
