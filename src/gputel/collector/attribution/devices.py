"""Device ids as device plugins and DRA drivers write them, and the GPU that each means.

    GPU-8ac0...                     NVIDIA's plugin, by UUID
    0                               the same, by index
    GPU-8ac0...::3, 0::3            time-sliced or MPS: the fourth replica
    MIG-5c89...                     a MIG device
    MIG-GPU-8ac0.../3/0             the same before driver 470: GPU, instance, compute instance
    0:1                             a MIG device by index: GPU 0, its second device
    nvidia0, nvidia0/gi3, nvidia0/gi3/vgpu1, nvidia0/vgpu1
                                    GKE's plugin: minor number, instance, share
    gpu-0, gpu-0-mig-9-4-1          NVIDIA's DRA driver: minor number; profile, start, size

Sources: k8s-device-plugin (README, "Shared access"), container-engine-accelerators,
k8s-dra-driver-gpu.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from gputel.inventory import Gpu
from gputel.sources.nvml_mig import MigParent

DEVICE_ID_CHARS_MAX: Final = 128

_MIG: Final = re.compile(r"MIG-(?!GPU-)[0-9A-Za-z-]+", re.ASCII)
_OLD_MIG: Final = re.compile(r"MIG-(GPU-[0-9A-Za-z-]+)/([0-9]+)/[0-9]+", re.ASCII)
_GKE: Final = re.compile(r"nvidia([0-9]+)(?:/gi([0-9]+))?(?:/vgpu([0-9]+))?", re.ASCII)
_INDEX: Final = re.compile(r"([0-9]+)(:[0-9]+)?", re.ASCII)
_DRA: Final = re.compile(r"gpu-([0-9]+)(-mig-.+)?", re.ASCII)


class DeviceRef(NamedTuple):
    """A device id taken apart: one of the first four names the GPU.

    part: it means a MIG device, of which the id may tell no more.
    """

    gpu_uuid: str = ""
    mig_uuid: str = ""
    gpu_index: int | None = None
    minor: int | None = None
    gpu_instance: str = ""
    share: str = ""
    part: bool = False


def parse_device_id(text: str) -> DeviceRef | None:
    """What a device plugin's id means; None when it is of no known form."""
    if len(text) > DEVICE_ID_CHARS_MAX:
        return None
    base, _, share = text.partition("::")
    if matched := _GKE.fullmatch(base):
        minor, instance, gke_share = matched.groups(default="")
        return DeviceRef(
            minor=int(minor),
            gpu_instance=instance,
            share=gke_share or share,
            part=bool(instance),
        )
    if matched := _OLD_MIG.fullmatch(base):
        return DeviceRef(gpu_uuid=matched[1], gpu_instance=matched[2], share=share, part=True)
    if _MIG.fullmatch(base):
        return DeviceRef(mig_uuid=base, share=share, part=True)
    if matched := _INDEX.fullmatch(base):
        return DeviceRef(gpu_index=int(matched[1]), share=share, part=matched[2] is not None)
    if base.startswith("GPU-"):
        return DeviceRef(gpu_uuid=base, share=share)
    return None


def parse_dra_device(text: str) -> DeviceRef | None:
    """What the name of a device of NVIDIA's DRA driver means; None when it is of no known form."""
    if len(text) > DEVICE_ID_CHARS_MAX or not (matched := _DRA.fullmatch(text)):
        return None
    return DeviceRef(minor=int(matched[1]), part=matched[2] is not None)


class Devices:
    """The GPUs of this node by every name that a device id may use."""

    def __init__(self, gpus: Sequence[Gpu], parents: Mapping[str, MigParent]) -> None:
        self._by_uuid = {gpu.uuid: gpu for gpu in gpus}
        wholes = [gpu for gpu in gpus if not gpu.mig_parent]
        self._by_index = {gpu.index: gpu for gpu in wholes}
        self._by_device = {gpu.device: gpu for gpu in wholes if gpu.device}
        self._parents = parents

    def find(self, device: DeviceRef) -> tuple[Gpu, DeviceRef] | None:
        """The GPU, and the reference with what is known besides; None: not one of ours.

        A MIG device that the source samples as a GPU of its own is that GPU, whole.
        """
        if device.mig_uuid:
            if device.mig_uuid in self._by_uuid:
                return self._by_uuid[device.mig_uuid], device._replace(mig_uuid="", part=False)
            parent = self._parents.get(device.mig_uuid)
            if parent is None or parent.gpu_uuid not in self._by_uuid:
                return None
            instance = str(parent.gpu_instance)
            return self._by_uuid[parent.gpu_uuid], device._replace(gpu_instance=instance)
        gpu = None
        if device.gpu_uuid:
            gpu = self._by_uuid.get(device.gpu_uuid)
        elif device.gpu_index is not None:
            gpu = self._by_index.get(device.gpu_index)
        elif device.minor is not None:
            gpu = self._by_device.get(f"nvidia{device.minor}")
        return None if gpu is None else (gpu, device)
