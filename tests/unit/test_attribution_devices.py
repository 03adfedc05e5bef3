"""Device ids of every plugin, and which GPU each means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gputel.collector.attribution.devices import (
    DeviceRef,
    Devices,
    parse_device_id,
    parse_dra_device,
)
from gputel.inventory import Gpu
from gputel.sources.nvml_mig import MigParent, mig_parent

# Minor numbers need not follow the indexes.
GPUS = [Gpu(f"GPU-{name}", "n", i, device=f"nvidia{3 - i}") for i, name in enumerate("abcd")]
MIG_GPU = Gpu("MIG-sampled", "n", 9)

FORMS = [
    ("GPU-a", DeviceRef(gpu_uuid="GPU-a"), "GPU-a"),
    ("GPU-8ac0-11::3", DeviceRef(gpu_uuid="GPU-8ac0-11", share="3"), None),
    ("2", DeviceRef(gpu_index=2), "GPU-c"),
    ("2::10", DeviceRef(gpu_index=2, share="10"), "GPU-c"),
    ("2:1", DeviceRef(gpu_index=2, part=True), "GPU-c"),
    ("MIG-known", DeviceRef(mig_uuid="MIG-known", part=True), "GPU-b"),
    ("MIG-known::7", DeviceRef(mig_uuid="MIG-known", share="7", part=True), "GPU-b"),
    ("MIG-unknown", DeviceRef(mig_uuid="MIG-unknown", part=True), None),
    ("MIG-sampled", DeviceRef(mig_uuid="MIG-sampled", part=True), "MIG-sampled"),
    ("MIG-GPU-a/3/0", DeviceRef(gpu_uuid="GPU-a", gpu_instance="3", part=True), "GPU-a"),
    ("MIG-GPU-a/3/0::1", DeviceRef("GPU-a", gpu_instance="3", share="1", part=True), "GPU-a"),
    ("nvidia0", DeviceRef(minor=0), "GPU-d"),
    ("nvidia3/gi2", DeviceRef(minor=3, gpu_instance="2", part=True), "GPU-a"),
    ("nvidia3/gi2/vgpu1", DeviceRef(minor=3, gpu_instance="2", share="1", part=True), "GPU-a"),
    ("nvidia1/vgpu0", DeviceRef(minor=1, share="0"), "GPU-c"),
    ("nvidia77", DeviceRef(minor=77), None),
    ("77", DeviceRef(gpu_index=77), None),
]


@pytest.mark.parametrize(("text", "expected", "uuid"), FORMS, ids=[text for text, *_ in FORMS])
def test_forms_of_device_ids(text: str, expected: DeviceRef, uuid: str | None) -> None:
    parsed = parse_device_id(text)
    assert parsed == expected
    match = Devices([*GPUS, MIG_GPU], {"MIG-known": MigParent("GPU-b", 5)}).find(parsed)
    assert (match and match[0].uuid) == uuid


@pytest.mark.parametrize(
    "text",
    ["", "::", "nvidia", "nvidia0/gi", "MIG-", "MIG-GPU-a", "MIG-GPU-a/x/0", "gpu-0", "1.5", "-1",
     "٣", "GPU-" + "x" * 200, "amd0", "nvidia0\n"],
)  # fmt: skip
def test_ids_of_no_known_form(text: str) -> None:
    assert parse_device_id(text) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu-0", DeviceRef(minor=0)),
        ("gpu-12-mig-9-4-1", DeviceRef(minor=12, part=True)),
        ("gpu-0-mig-1g10gb-19-0", DeviceRef(minor=0, part=True)),
        ("channel-0", None),
        ("gpu-", None),
        ("gpu-1x", None),
        ("gpu-0-mig-" + "1" * 200, None),
    ],
)
def test_names_of_dra_devices(name: str, expected: DeviceRef | None) -> None:
    assert parse_dra_device(name) == expected


def test_what_is_known_of_a_mig_device() -> None:
    devices = Devices([*GPUS, MIG_GPU], {"MIG-known": MigParent("GPU-b", 5)})
    _, known = devices.find(DeviceRef(mig_uuid="MIG-known", part=True)) or pytest.fail("lost")
    assert (known.gpu_instance, known.part, known.mig_uuid) == ("5", True, "MIG-known")
    _, whole = devices.find(DeviceRef(mig_uuid="MIG-sampled", part=True)) or pytest.fail("lost")
    assert not whole.part
    elsewhere = Devices(GPUS, {"MIG-known": MigParent("GPU-of-another-node", 1)})
    assert elsewhere.find(DeviceRef(mig_uuid="MIG-known", part=True)) is None


class NVMLError(Exception):
    pass


class FakeNvml:
    """One MIG device. `failing` names the function that fails."""

    NVMLError = NVMLError

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.open = 0

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            if name == self.failing:
                raise NVMLError(name)
            if name == "nvmlInit":
                self.open += 1
            if name == "nvmlShutdown":
                self.open -= 1
            if name == "nvmlDeviceGetHandleByUUID":
                return SimpleNamespace(mig=arguments[0])
            if name == "nvmlDeviceGetDeviceHandleFromMigDeviceHandle":
                return SimpleNamespace(parent=arguments[0].mig)
            if name == "nvmlDeviceGetUUID":
                return f"parent of {arguments[0].parent}".encode()
            return 7

        return call


def test_the_driver_knows_the_parent() -> None:
    nvml = FakeNvml()
    assert mig_parent("MIG-x", nvml) == MigParent("parent of MIG-x", 7)
    assert nvml.open == 0


@pytest.mark.parametrize(
    "failing",
    ["nvmlInit", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetGpuInstanceId",
     "nvmlDeviceGetDeviceHandleFromMigDeviceHandle", "nvmlDeviceGetUUID"],
)  # fmt: skip
def test_a_driver_that_does_not(failing: str) -> None:
    nvml = FakeNvml(failing)
    assert mig_parent("MIG-x", nvml) is None
    assert nvml.open == 0
