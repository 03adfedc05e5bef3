"""The catalog against the facts it is made of: dcgm-exporter's defaults and OpenTelemetry's names.

The tables here are written down from those sources and not derived from the catalog.
"""

from __future__ import annotations

import keyword
import re

import pytest

from gputel import limits
from gputel.catalog import (
    BY_DCGM,
    BY_ID,
    BY_NAME,
    DCGM_LABELS,
    METRIC_SETS,
    METRICS,
    SET_BY_CADENCE,
    SET_BY_ID,
    SET_OF,
    Cadence,
    Kind,
    Metric,
    Unit,
)
from gputel.inventory import Gpu

# dcgm-exporter's default counters: name, type, unit, integer, name since DCGM 4.6.
DEFAULTS = [
    ("DCGM_FI_DEV_SM_CLOCK", "gauge", "MHz", True, None),
    ("DCGM_FI_DEV_MEM_CLOCK", "gauge", "MHz", True, None),
    ("DCGM_FI_DEV_MEMORY_TEMP", "gauge", "C", True, "DCGM_FI_DEV_MEMORY_TEMP_CELSIUS"),
    ("DCGM_FI_DEV_GPU_TEMP", "gauge", "C", True, "DCGM_FI_DEV_GPU_TEMP_CELSIUS"),
    ("DCGM_FI_DEV_POWER_USAGE", "gauge", "W", False, "DCGM_FI_DEV_BOARD_POWER_WATTS"),
    ("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "counter", "mJ", True, None),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "counter", "", True, "DCGM_FI_DEV_PCIE_REPLAY_TOTAL"),
    ("DCGM_FI_DEV_GPU_UTIL", "gauge", "%", True, "DCGM_FI_DEV_GPU_UTIL_RATIO"),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "gauge", "%", True, None),
    ("DCGM_FI_DEV_ENC_UTIL", "gauge", "%", True, None),
    ("DCGM_FI_DEV_DEC_UTIL", "gauge", "%", True, None),
    ("DCGM_FI_DEV_XID_ERRORS", "gauge", "", True, "DCGM_FI_DEV_XID_ERROR"),
    ("DCGM_FI_DEV_FB_FREE", "gauge", "MiB", True, None),
    ("DCGM_FI_DEV_FB_USED", "gauge", "MiB", True, None),
    ("DCGM_FI_DEV_FB_RESERVED", "gauge", "MiB", True, None),
    (
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "counter", "MB/s", True,
        "DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL",
    ),
    ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "gauge", "", True, None),
    (
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "counter", "", True,
        "DCGM_FI_DEV_ROW_REMAP_UNCORRECTABLE_TOTAL",
    ),
    (
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "counter", "", True,
        "DCGM_FI_DEV_ROW_REMAP_CORRECTABLE_TOTAL",
    ),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "gauge", "", True, "DCGM_FI_DEV_ROW_REMAP_FAILED"),
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "gauge", "1", False, "DCGM_FI_PROF_GR_ENGINE_UTIL_RATIO"),
    ("DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "gauge", "1", False, "DCGM_FI_PROF_TENSOR_UTIL_RATIO"),
    ("DCGM_FI_PROF_DRAM_ACTIVE", "gauge", "1", False, "DCGM_FI_PROF_DRAM_UTIL_RATIO"),
    ("DCGM_FI_PROF_PCIE_TX_BYTES", "gauge", "B/s", True, None),
    ("DCGM_FI_PROF_PCIE_RX_BYTES", "gauge", "B/s", True, None),
]  # fmt: skip

OFF_BY_DEFAULT = [
    *(f"DCGM_FI_DEV_{reason}_VIOLATION" for reason in
      ("POWER", "THERMAL", "SYNC_BOOST", "BOARD_LIMIT", "LOW_UTIL", "RELIABILITY")),
    *(f"DCGM_FI_DEV_ECC_{bits}_{span}_TOTAL" for bits in ("SBE", "DBE") for span in ("VOL", "AGG")),
    *(f"DCGM_FI_DEV_RETIRED_{kind}" for kind in ("SBE", "DBE", "PENDING")),
    *(f"DCGM_FI_DEV_NVLINK_{kind}_ERROR_COUNT_TOTAL" for kind in
      ("CRC_FLIT", "CRC_DATA", "REPLAY", "RECOVERY")),
    *(f"DCGM_FI_PROF_{name}" for name in
      ("SM_ACTIVE", "SM_OCCUPANCY", "PIPE_FP64_ACTIVE", "PIPE_FP32_ACTIVE", "PIPE_FP16_ACTIVE")),
]  # fmt: skip

# OpenTelemetry's model/hardware: name to unit.
OTEL_UNITS = {
    "hw.gpu.io": "By",
    "hw.gpu.memory.limit": "By",
    "hw.gpu.memory.usage": "By",
    "hw.gpu.memory.utilization": "1",
    "hw.gpu.utilization": "1",
    "hw.energy": "J",
    "hw.power": "W",
    "hw.errors": "{error}",
    "hw.status": "1",
    "hw.temperature": "Cel",
    "hw.fan.speed_ratio": "1",
}


@pytest.mark.parametrize(("name", "kind", "unit", "integer", "renamed"), DEFAULTS)
def test_dcgm_exporters_default_counters(
    name: str, kind: str, unit: str, integer: bool, renamed: str | None
) -> None:
    dcgm = BY_DCGM[name].dcgm
    assert dcgm is not None
    assert dcgm.name == name, "found by its own name"
    assert dcgm.default
    found = (dcgm.type, dcgm.unit, dcgm.integer, dcgm.renamed)
    assert found == (kind, unit, integer, renamed)
    if renamed:
        assert BY_DCGM[renamed] is BY_DCGM[name]


def test_nothing_else_is_on_by_default() -> None:
    on = {metric.dcgm.name for metric in METRICS if metric.dcgm and metric.dcgm.default}
    assert on == {name for name, *_ in DEFAULTS}


@pytest.mark.parametrize("name", OFF_BY_DEFAULT)
def test_what_dcgm_exporter_ships_switched_off(name: str) -> None:
    dcgm = BY_DCGM[name].dcgm
    assert dcgm is not None
    assert not dcgm.default
    if name.endswith("_VIOLATION"):
        assert (dcgm.type, dcgm.unit) == ("counter", "ns")


@pytest.mark.parametrize("name", ["DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED"])
def test_memory_is_stored_in_bytes_and_shown_in_mebibytes(name: str) -> None:
    metric = BY_DCGM[name]
    assert metric.unit is Unit.BYTE
    assert metric.dcgm is not None
    assert metric.dcgm.divisor == 1024 * 1024


def test_label_rows_are_fields_of_the_inventory() -> None:
    assert "DCGM_FI_DRIVER_VERSION" in DCGM_LABELS
    for name, field in DCGM_LABELS.items():
        assert name not in BY_DCGM
        assert field in Gpu.__dataclass_fields__


def test_opentelemetry_names_and_units() -> None:
    for metric in METRICS:
        if metric.otel is None:
            continue
        assert OTEL_UNITS[metric.otel.name] == metric.otel.unit, metric.name
        attributes = dict(metric.otel.attributes)
        if metric.otel.name == "hw.gpu.utilization":
            assert attributes["hw.gpu.task"] in ("general", "encoder", "decoder")
        elif metric.otel.name == "hw.gpu.io":
            assert attributes["network.io.direction"] in ("transmit", "receive")
        elif metric.otel.name in ("hw.energy", "hw.power", "hw.errors", "hw.temperature"):
            assert attributes["hw.type"] == "gpu"


@pytest.mark.parametrize(
    ("name", "otel", "factor"),
    [
        ("energy_millijoules", "hw.energy", 0.001),
        ("power_watts", "hw.power", 1.0),
        ("gpu_utilization_percent", "hw.gpu.utilization", 0.01),
        ("gpu_temperature_celsius", "hw.temperature", 1.0),
        ("memory_used_bytes", "hw.gpu.memory.usage", 1.0),
        ("memory_total_bytes", "hw.gpu.memory.limit", 1.0),
        ("ecc_dbe_volatile", "hw.errors", 1.0),
        ("fan_speed_percent", "hw.fan.speed_ratio", 0.01),
    ],
)
def test_opentelemetry_scales(name: str, otel: str, factor: float) -> None:
    found = BY_NAME[name].otel
    assert found is not None
    assert (found.name, found.factor) == (otel, factor)


def test_two_metrics_never_become_one_outside() -> None:
    series = [(m.otel.name, m.otel.attributes) for m in METRICS if m.otel]
    assert len(set(series)) == len(series)
    names = [name for m in METRICS if m.dcgm for name in (m.dcgm.name, m.dcgm.renamed) if name]
    assert len(set(names)) == len(names) == len(BY_DCGM)
    prometheus = [metric.prometheus_name for metric in METRICS]
    assert len(set(prometheus)) == len(prometheus)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_is_fit_for_sql_prometheus_and_people(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", metric.name)
    assert len(metric.name) <= 63, "PostgreSQL's limit"
    assert not keyword.iskeyword(metric.name)
    assert metric.help
    assert not metric.help.endswith(".")
    assert metric.nvml
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", metric.prometheus_name)
    assert metric.prometheus_name.endswith("_total") == (metric.kind is Kind.COUNTER)
    endings = {
        Unit.PERCENT: "percent", Unit.WATT: "watts", Unit.MILLIJOULE: "millijoules",
        Unit.CELSIUS: "celsius", Unit.MEGAHERTZ: "mhz", Unit.RATIO: "ratio", Unit.NANOSECOND: "ns",
        Unit.BYTE: "bytes", Unit.BYTES_PER_S: "bytes_per_second",
        Unit.MEGABYTES_PER_S: "megabytes_per_second",
    }  # fmt: skip
    if metric.unit in endings:
        assert metric.name.endswith(endings[metric.unit]), "the name says the unit"


def test_sets_partition_the_metrics() -> None:
    assert [m for s in METRIC_SETS for m in s.metrics] == sorted(
        METRICS, key=lambda m: list(Cadence).index(m.cadence)
    )
    for metric_set in METRIC_SETS:
        assert SET_BY_ID[metric_set.id] is SET_BY_CADENCE[metric_set.cadence] is metric_set
        assert len(metric_set.storages) == len(metric_set.metrics) <= limits.SET_COLUMNS_MAX
        for j, metric in enumerate(metric_set.metrics):
            assert SET_OF[metric] is metric_set
            assert metric_set.column(metric) == j


def test_written_ids_keep_their_meaning() -> None:
    """These numbers are in chunks on disk: a change here loses data."""
    assert {s.id: s.name for s in METRIC_SETS} == {
        1: "fast",
        2: "medium",
        3: "slow",
        4: "drain",
    }
    frozen = {1: "gpu_utilization_percent", 3: "power_watts", 5: "energy_millijoules",
              8: "memory_used_bytes", 32: "gpu_temperature_celsius", 51:
              "nvlink_megabytes_per_second", 64: "power_limit_watts", 86: "xid_last"}  # fmt: skip
    assert {number: BY_ID[number].name for number in frozen} == frozen
