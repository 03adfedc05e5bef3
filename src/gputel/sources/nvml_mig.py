"""Which GPU a MIG device is a part of: NVML knows, its UUID does not tell."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple


class MigParent(NamedTuple):
    """The GPU, and the number of the GPU instance in it."""

    gpu_uuid: str
    gpu_instance: int


def mig_parent(mig_uuid: str, module: Any = None) -> MigParent | None:
    """The parent of a MIG device; None when the driver knows none. It asks the driver: call it
    where a call may hang, and once for a device. `module` is pynvml, but in tests."""
    nvml = module or importlib.import_module("pynvml")
    try:
        # Counted by NVML: the source's own initialisation is not undone by our shutdown.
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        device = nvml.nvmlDeviceGetHandleByUUID(mig_uuid)
        instance = nvml.nvmlDeviceGetGpuInstanceId(device)
        uuid = nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device))
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    return MigParent(uuid.decode() if isinstance(uuid, bytes) else uuid, instance)
