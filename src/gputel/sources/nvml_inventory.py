"""What NVML says about a GPU besides its samples."""

from __future__ import annotations

from typing import Any, Final

from gputel.inventory import Gpu

_BRANDS: Final = (
    "UNKNOWN", "QUADRO", "TESLA", "NVS", "GRID", "GEFORCE", "TITAN", "NVIDIA_VAPPS",
    "NVIDIA_VPC", "NVIDIA_VCS", "NVIDIA_VWS", "NVIDIA_CLOUD_GAMING", "QUADRO_RTX",
    "NVIDIA_RTX", "NVIDIA", "GEFORCE_RTX", "TITAN_RTX",
)  # fmt: skip


def text(value: str | bytes) -> str:
    """Text from either of the types that versions of nvidia-ml-py return."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def describe(nvml: Any, handle: Any, node: str, index: int) -> Gpu:
    """The GPU of `handle`; its UUID must be readable (NVMLError), all else may be missing."""

    def optional(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(*arguments)
        except nvml.NVMLError:
            return None

    def words(function: str, *arguments: Any) -> str:
        found = optional(function, *arguments)
        return "" if found is None else text(found)

    uuid = text(nvml.nvmlDeviceGetUUID(handle))
    minor = optional("nvmlDeviceGetMinorNumber", handle)
    pci = optional("nvmlDeviceGetPciInfo", handle)
    brand = optional("nvmlDeviceGetBrand", handle)
    memory = optional("nvmlDeviceGetMemoryInfo", handle, nvml.nvmlMemory_v2)
    return Gpu(
        uuid=uuid,
        node=node,
        index=index,
        device=f"nvidia{index if minor is None else minor}",
        pci_bus_id="" if pci is None else text(pci.busId),
        model=words("nvmlDeviceGetName", handle),
        serial=words("nvmlDeviceGetSerial", handle),
        brand=_BRANDS[brand] if brand is not None and 0 < brand < len(_BRANDS) else "",
        vbios_version=words("nvmlDeviceGetVbiosVersion", handle),
        driver_version=words("nvmlSystemGetDriverVersion"),
        nvml_version=words("nvmlSystemGetNVMLVersion"),
        memory_total_bytes=None if memory is None else int(memory.total),
    )
