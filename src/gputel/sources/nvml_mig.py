"""MIG: the instances of a GPU, and which GPU a MIG device is a part of.

A GPU instance has memory and multiprocessors of its own; the MIG devices in it (its compute
instances) share them. Memory is what NVML tells of a MIG device; so each GPU instance is known
by its first MIG device.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from gputel.inventory import Gpu
from gputel.limits import MIB
from gputel.sources.nvml_inventory import text

_GIB: Final = 1024 * MIB
_EIGHTHS: Final = 8  # a GPU's memory is given out in eighths
#: "... MIG 3g.40gb", "... MIG 1c.3g.40gb": a compute instance that has a part of it.
_NAMED: Final = re.compile(r" MIG (?:\d+c\.)?(\d+g\.\d+gb(?:\+\S+)?)$")


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
    return MigParent(text(uuid), instance)


def whole_of(nvml: Any, device: Any) -> Any:
    """The handle of the GPU that a MIG device is a part of, as it is now; None when the driver
    does not tell."""
    try:
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device)
    except nvml.NVMLError:
        return None


def mig_instances(nvml: Any, handle: Any, gpu: Gpu) -> Iterator[tuple[Any, Gpu]]:
    """(handle, description) of each GPU instance of `gpu`; nothing where MIG is off, or where
    the driver does not tell."""
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(handle)
        count = int(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) if current else 0
    except nvml.NVMLError:
        return
    seen: set[int] = set()
    for index in range(count):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            instance = int(nvml.nvmlDeviceGetGpuInstanceId(device))
            if instance in seen:
                continue
            found = _describe(nvml, device, gpu, instance)
        except nvml.NVMLError:
            continue  # there is no such device, or it is being made or destroyed
        seen.add(instance)
        yield device, found


def _describe(nvml: Any, device: Any, gpu: Gpu, instance: int) -> Gpu:
    uuid = text(nvml.nvmlDeviceGetUUID(device))
    attributes = nvml.nvmlDeviceGetAttributes(device)
    memory_bytes = int(attributes.memorySizeMB) * MIB
    named = _NAMED.search(text(nvml.nvmlDeviceGetName(device)))
    profile = named[1] if named else _profile(attributes, memory_bytes, gpu)
    return dataclasses.replace(
        gpu,
        uuid=uuid,
        model=f"{gpu.model} MIG {profile}",
        memory_total_bytes=memory_bytes,
        mig_parent=gpu.uuid,
        mig_profile=profile,
        mig_instance=instance,
    )


def _profile(attributes: Any, memory_bytes: int, gpu: Gpu) -> str:
    """The name of a profile, which older drivers don't tell: sevenths of the compute, and the
    memory's eighths in GB of the whole, rounded as in NVIDIA's own names."""
    whole_bytes = gpu.memory_total_bytes or memory_bytes
    eighths = math.ceil(_EIGHTHS * memory_bytes / whole_bytes)
    size_gb = round(math.ceil(whole_bytes / _GIB) * eighths / _EIGHTHS)
    return f"{attributes.gpuInstanceSliceCount}g.{size_gb}gb"
