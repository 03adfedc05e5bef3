"""Which NVML call yields which metric: data, no control flow.

A call is made at most once a sweep and GPU, whatever number of metrics picks from its answer.
Facts are from nvml.h, as nvidia-ml-py repeats them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from gputel.limits import KIB, MIB
from gputel.sources.values import Number

ALL_LINKS: Final = 0xFFFF_FFFF  # scopeId UINT_MAX: the sum over all NVLinks


@dataclass(frozen=True, slots=True)
class Call:
    """One function of a device; `arguments` are names of constants of the module."""

    function: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reader:
    """A metric: a call and what to take from its answer."""

    call: Call
    pick: Callable[[Any], Number]


@dataclass(frozen=True, slots=True)
class Field:
    """A metric of nvmlDeviceGetFieldValues: stored value = raw * multiply / divide."""

    constant: str
    multiply: int = 1
    divide: int = 1
    scope: int = 0
    #: The union member to trust whatever valueType says; empty: valueType decides.
    member: str = ""

    def scaled(self, raw: Number) -> Number:
        """`raw` in the catalog's unit."""
        value = raw * self.multiply
        return value if self.divide == 1 else value / self.divide


@dataclass(frozen=True, slots=True)
class Gpm:
    """A metric of two GPM samples: stored value = raw * multiply / divide."""

    constant: str
    multiply: int = 1
    divide: int = 1
    integer: bool = False

    def scaled(self, raw: float) -> Number:
        """`raw` in the catalog's unit."""
        value = raw * self.multiply / self.divide
        return round(value) if self.integer else value


def _plain(function: str, *arguments: str) -> Reader:
    return Reader(Call(function, arguments), int)


def _milliwatts(function: str) -> Reader:
    return Reader(Call(function), lambda raw: raw / 1000)


def _part(attribute: str, function: str, *arguments: str) -> Reader:
    return Reader(Call(function, arguments), lambda raw: int(getattr(raw, attribute)))


def _item(index: int, function: str) -> Reader:
    return Reader(Call(function), lambda raw: int(raw[index]))


def _pages(cause: str) -> Reader:
    return Reader(Call("nvmlDeviceGetRetiredPages", (f"NVML_PAGE_RETIREMENT_CAUSE_{cause}",)), len)


def _violation(policy: str) -> Reader:
    constant = f"NVML_PERF_POLICY_{policy}"
    return _part("violationTime", "nvmlDeviceGetViolationStatus", constant)


def _ecc(kind: str, counter: str) -> Reader:
    return _plain(
        "nvmlDeviceGetTotalEccErrors",
        f"NVML_MEMORY_ERROR_TYPE_{kind}",
        f"NVML_{counter}_ECC",
    )


def _memory(attribute: str) -> Reader:
    return _part(attribute, "nvmlDeviceGetMemoryInfo", "nvmlMemory_v2")


def _license(raw: Any) -> int:
    if not raw.isGridLicenseSupported or raw.licensableFeaturesCount == 0:
        return 0
    return int(raw.gridLicensableFeatures[0].featureState)


READERS: Final = MappingProxyType({
    "gpu_utilization_percent": _part("gpu", "nvmlDeviceGetUtilizationRates"),
    "memory_utilization_percent": _part("memory", "nvmlDeviceGetUtilizationRates"),
    "power_watts": _milliwatts("nvmlDeviceGetPowerUsage"),
    "sm_clock_mhz": _plain("nvmlDeviceGetClockInfo", "NVML_CLOCK_SM"),
    "clock_event_reasons": _plain("nvmlDeviceGetCurrentClocksEventReasons"),
    "memory_used_bytes": _memory("used"),
    "memory_free_bytes": _memory("free"),
    "memory_reserved_bytes": _memory("reserved"),
    "power_violation_ns": _violation("POWER"),
    "thermal_violation_ns": _violation("THERMAL"),
    "sync_boost_violation_ns": _violation("SYNC_BOOST"),
    "board_limit_violation_ns": _violation("BOARD_LIMIT"),
    "low_utilization_violation_ns": _violation("LOW_UTILIZATION"),
    "reliability_violation_ns": _violation("RELIABILITY"),
    "gpu_temperature_celsius": _plain("nvmlDeviceGetTemperature", "NVML_TEMPERATURE_GPU"),
    "memory_clock_mhz": _plain("nvmlDeviceGetClockInfo", "NVML_CLOCK_MEM"),
    "video_clock_mhz": _plain("nvmlDeviceGetClockInfo", "NVML_CLOCK_VIDEO"),
    "performance_state": _plain("nvmlDeviceGetPerformanceState"),
    "encoder_utilization_percent": _item(0, "nvmlDeviceGetEncoderUtilization"),
    "decoder_utilization_percent": _item(0, "nvmlDeviceGetDecoderUtilization"),
    "jpeg_utilization_percent": _item(0, "nvmlDeviceGetJpgUtilization"),
    "ofa_utilization_percent": _item(0, "nvmlDeviceGetOfaUtilization"),
    "power_limit_watts": _milliwatts("nvmlDeviceGetEnforcedPowerLimit"),
    "memory_total_bytes": _memory("total"),
    "bar1_used_bytes": _part("bar1Used", "nvmlDeviceGetBAR1MemoryInfo"),
    "fan_speed_percent": _plain("nvmlDeviceGetFanSpeed"),
    "ecc_sbe_volatile": _ecc("CORRECTED", "VOLATILE"),
    "ecc_dbe_volatile": _ecc("UNCORRECTED", "VOLATILE"),
    "ecc_sbe_aggregate": _ecc("CORRECTED", "AGGREGATE"),
    "ecc_dbe_aggregate": _ecc("UNCORRECTED", "AGGREGATE"),
    "remapped_rows_correctable": _item(0, "nvmlDeviceGetRemappedRows"),
    "remapped_rows_uncorrectable": _item(1, "nvmlDeviceGetRemappedRows"),
    "row_remap_failure": _item(3, "nvmlDeviceGetRemappedRows"),
    "retired_pages_sbe": _pages("MULTIPLE_SINGLE_BIT_ECC_ERRORS"),
    "retired_pages_dbe": _pages("DOUBLE_BIT_ECC_ERROR"),
    "retired_pages_pending": _plain("nvmlDeviceGetRetiredPagesPendingStatus"),
    "pcie_replays": _plain("nvmlDeviceGetPcieReplayCounter"),
    "pcie_link_generation": _plain("nvmlDeviceGetCurrPcieLinkGeneration"),
    "pcie_link_width": _plain("nvmlDeviceGetCurrPcieLinkWidth"),
    "mig_mode": _item(0, "nvmlDeviceGetMigMode"),
    "vgpu_license_status": Reader(Call("nvmlDeviceGetGridLicensableFeatures_v4"), _license),
})  # fmt: skip

_TX, _RX = "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"

FIELDS: Final = MappingProxyType({
    "power_instant_watts": Field("NVML_FI_DEV_POWER_INSTANT", divide=1000),
    "energy_millijoules": Field("NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION"),
    "pcie_tx_bytes": Field("NVML_FI_DEV_PCIE_COUNT_TX_BYTES"),
    "pcie_rx_bytes": Field("NVML_FI_DEV_PCIE_COUNT_RX_BYTES"),
    "nvlink_tx_bytes": Field(_TX, multiply=KIB, scope=ALL_LINKS),
    "nvlink_rx_bytes": Field(_RX, multiply=KIB, scope=ALL_LINKS),
    # Some drivers (r545) announce a wrong type for it; nvml.h says unsigned int.
    "memory_temperature_celsius": Field("NVML_FI_DEV_MEMORY_TEMP", member="uiVal"),
    "nvlink_crc_flit_errors": Field("NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL"),
    "nvlink_crc_data_errors": Field("NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL"),
    "nvlink_replay_errors": Field("NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL"),
    "nvlink_recovery_errors": Field("NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL"),
})  # fmt: skip

#: Fields whose sum, in KiB, is the traffic that `NVLINK_RATE` is the rate of.
NVLINK_RATE: Final = "nvlink_megabytes_per_second"
RATE_FIELDS: Final = (Field(_TX, scope=ALL_LINKS), Field(_RX, scope=ALL_LINKS))

#: Set by the event set, not read.
XID_LAST: Final = "xid_last"

GPM: Final = MappingProxyType({
    "graphics_engine_active_ratio": Gpm("NVML_GPM_METRIC_GRAPHICS_UTIL", divide=100),
    "sm_active_ratio": Gpm("NVML_GPM_METRIC_SM_UTIL", divide=100),
    "sm_occupancy_ratio": Gpm("NVML_GPM_METRIC_SM_OCCUPANCY", divide=100),
    "tensor_active_ratio": Gpm("NVML_GPM_METRIC_ANY_TENSOR_UTIL", divide=100),
    "dram_active_ratio": Gpm("NVML_GPM_METRIC_DRAM_BW_UTIL", divide=100),
    "fp64_active_ratio": Gpm("NVML_GPM_METRIC_FP64_UTIL", divide=100),
    "fp32_active_ratio": Gpm("NVML_GPM_METRIC_FP32_UTIL", divide=100),
    "fp16_active_ratio": Gpm("NVML_GPM_METRIC_FP16_UTIL", divide=100),
    "pcie_tx_bytes_per_second": Gpm("NVML_GPM_METRIC_PCIE_TX_PER_SEC", MIB, integer=True),
    "pcie_rx_bytes_per_second": Gpm("NVML_GPM_METRIC_PCIE_RX_PER_SEC", MIB, integer=True),
})  # fmt: skip
