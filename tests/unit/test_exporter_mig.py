"""What a page shows of MIG instances, as dcgm-exporter 4.8 does."""

from __future__ import annotations

import re
from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from gputel.collector.attribution.devices import Devices, parse_device_id, parse_dra_device
from gputel.collector.exporter import ExporterSettings, Format
from gputel.collector.exporter.exporter import ProfileName
from gputel.inventory import Event, EventKind
from support.exporting import exporting, feed, gpu

WHOLE = gpu(0)
HALF = gpu(
    0,
    uuid="MIG-1",
    model=f"{WHOLE.model} MIG 3g.40gb",
    mig_parent=WHOLE.uuid,
    mig_profile="3g.40gb",
    mig_instance=2,
)
OTHER = gpu(1)
OF_WHOLE = {
    "sm_clock_mhz": 1410,
    "power_watts": 250.5,
    "gpu_utilization_percent": 50,
    "memory_used_bytes": 30 << 30,
    "graphics_engine_active_ratio": 0.5,
    "xid_last": 0,
}


def lines(page: bytes, family: str) -> list[str]:
    return [line for line in page.decode().splitlines() if line.startswith(family + "{")]


def test_an_instance_stands_in_place_of_its_gpu() -> None:
    exporter, clock = exporting([WHOLE, OTHER, HALF], ExporterSettings(hostname_label="Hostname"))
    feed(exporter, clock, 0, OF_WHOLE)
    feed(exporter, clock, 1, OF_WHOLE)
    feed(exporter, clock, 2, {"memory_used_bytes": 7 << 30})
    page = exporter.page("dcgm", Format.TEXT)
    labels = (
        f'gpu="0",UUID="{WHOLE.uuid}",pci_bus_id="{WHOLE.pci_bus_id}",device="nvidia0",'
        'modelName="NVIDIA H100 80GB HBM3",GPU_I_PROFILE="3g.40gb",GPU_I_ID="2",'
        'Hostname="node-1",DCGM_FI_DRIVER_VERSION="550.54.15"'
    )
    for family, own, repeated in (
        ("DCGM_FI_DEV_FB_USED", "7168", None),
        ("DCGM_FI_DEV_SM_CLOCK", None, "1410"),
        ("DCGM_FI_DEV_POWER_USAGE", None, "250.500000"),
        ("DCGM_FI_DEV_GPU_UTIL", None, None),
        ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", None, None),
    ):
        shown = [line for line in lines(page, family) if 'gpu="0"' in line]
        value = own or repeated
        assert shown == ([f"{family}{{{labels}}} {value}"] if value else []), family
        assert len([line for line in lines(page, family) if 'gpu="1"' in line]) == 1, family


def test_gpm_of_an_instance_is_shown_as_its_own() -> None:
    exporter, clock = exporting([WHOLE, HALF])
    feed(exporter, clock, 0, OF_WHOLE)
    feed(exporter, clock, 1, {"graphics_engine_active_ratio": 0.25, "dram_active_ratio": 0.125})
    page = exporter.page("dcgm", Format.TEXT)
    for family, value in (
        ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "0.250000"),
        ("DCGM_FI_PROF_DRAM_ACTIVE", "0.125000"),
    ):
        (row,) = lines(page, family)
        assert 'GPU_I_PROFILE="3g.40gb",GPU_I_ID="2"' in row
        assert row.endswith(f" {value}")


def test_the_last_xid_of_the_gpu_is_told_of_each_instance() -> None:
    exporter, clock = exporting([WHOLE, HALF])
    feed(exporter, clock, 0, OF_WHOLE)
    feed(exporter, clock, 1, {"memory_used_bytes": 1})
    told = Event(clock.time_ns(), EventKind.XID, WHOLE.uuid, 31, "")
    exporter.observe([told], clock.monotonic_ns())
    (row,) = lines(exporter.page("dcgm", Format.TEXT), "DCGM_FI_DEV_XID_ERRORS")
    assert 'GPU_I_ID="2"' in row
    assert 'err_code="31"' in row
    assert row.endswith(" 31")


def test_an_instance_that_comes_later_takes_over() -> None:
    exporter, clock = exporting([WHOLE])
    feed(exporter, clock, 0, OF_WHOLE)
    (row,) = lines(exporter.page("dcgm", Format.TEXT), "DCGM_FI_DEV_SM_CLOCK")
    assert "GPU_I_ID" not in row
    exporter.inventory([WHOLE, HALF])
    (row,) = lines(exporter.page("dcgm", Format.TEXT), "DCGM_FI_DEV_SM_CLOCK")
    assert "GPU_I_ID" in row


def test_the_own_profile_shows_both() -> None:
    exporter, clock = exporting([WHOLE, HALF])
    feed(exporter, clock, 0, OF_WHOLE)
    feed(exporter, clock, 1, {"memory_used_bytes": 7})
    page = exporter.page("gputel", Format.TEXT)
    assert len(lines(page, "gputel_gpu_memory_used_bytes")) == 2
    assert len(lines(page, "gputel_gpu_power_watts")) == 1
    facts = f'mig_parent="{WHOLE.uuid}",mig_profile="3g.40gb",mig_instance="2"'
    assert [facts in line for line in lines(page, "gputel_gpu_info")] == [False, True]


def test_sums_can_leave_the_instances_out() -> None:
    """What the queries of docs/reference/exporter.md rely on: `uuid!~"MIG-.*"` in the own
    profile, `max by (UUID)` in DCGM's."""
    second = replace(HALF, uuid="MIG-2", mig_instance=3)
    exporter, clock = exporting([WHOLE, OTHER, HALF, second])
    for slot in (0, 1):
        feed(exporter, clock, slot, OF_WHOLE)
    for slot in (2, 3):
        feed(exporter, clock, slot, {"memory_used_bytes": 7 << 30})

    def rows(profile: ProfileName, family: str) -> list[tuple[dict[str, str], float]]:
        page = exporter.page(profile, Format.TEXT).decode()
        (found,) = [f for f in text_string_to_metric_families(page) if f.name == family]
        return [(sample.labels, sample.value) for sample in found.samples]

    used = rows("gputel", "gputel_gpu_memory_used_bytes")
    assert sum(value for _, value in used) == 74 << 30
    assert sum(v for labels, v in used if not re.match("MIG-", labels["uuid"])) == 60 << 30
    power: dict[str, set[float]] = {}
    for labels, value in rows("dcgm", "DCGM_FI_DEV_POWER_USAGE"):
        power.setdefault(labels["UUID"], set()).add(value)
    assert power == {WHOLE.uuid: {250.5}, OTHER.uuid: {250.5}}
    assert sum(v for _, v in rows("dcgm", "DCGM_FI_DEV_FB_USED")) == (7 + 7 + 30) * 1024


def test_numbers_of_gpus_mean_the_gpus() -> None:
    devices = Devices([WHOLE, OTHER, HALF], {})
    for reference, meant in (
        (parse_device_id("0"), WHOLE),
        (parse_dra_device("gpu-0"), WHOLE),
        (parse_device_id("MIG-1"), HALF),
        (parse_device_id(WHOLE.uuid), WHOLE),
    ):
        assert reference is not None
        found = devices.find(reference)
        assert found is not None
        assert found[0] is meant
