"""Which NVML call yields which metric: data, no control flow.

A call is made at most once a sweep and GPU, whatever number of metrics picks from its answer.
A metric may have several readings: a later one is used only on GPUs that refuse the earlier.
Constants are named as in nvml.h; their values are nvidia-ml-py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gputel.limits import KIB, MIB
from gputel.plan import ALL_LINKS, Member, Shape


@dataclass(frozen=True, slots=True)
class Call:
    """One function of a device; `arguments` are names of constants."""

    symbol: str
    shape: Shape
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Word:
    """A reading: one word of a call's answer; stored value = word / divide."""

    call: Call
    word: int = 0
    divide: int = 1


@dataclass(frozen=True, slots=True)
class Field:
    """A reading of nvmlDeviceGetFieldValues: stored value = raw * multiply / divide."""

    constant: str
    multiply: int = 1
    divide: int = 1
    scope: int = 0
    #: The union member to trust whatever valueType says; None: valueType decides.
    member: Member | None = None


@dataclass(frozen=True, slots=True)
class Gpm:
    """A reading of two GPM samples: stored value = raw * multiply / divide."""

    constant: str
    multiply: int = 1
    divide: int = 1


@dataclass(frozen=True, slots=True)
class Samples:
    """A reading of the driver's buffer: stored value = raw / divide."""

    constant: str
    divide: int = 1


Reading = Word | Field | Gpm | Samples


def _u32(symbol: str, word: int = 0, divide: int = 1) -> tuple[Word]:
    return (Word(Call(symbol, Shape.U32), word, divide),)


def _of_two(symbol: str) -> tuple[Word]:
    return (Word(Call(symbol, Shape.U32_U32)),)


def _clock(domain: str) -> tuple[Word]:
    return (Word(Call("nvmlDeviceGetClockInfo", Shape.INT_U32, (f"NVML_CLOCK_{domain}",))),)


def _rows(word: int) -> tuple[Word]:
    return (Word(Call("nvmlDeviceGetRemappedRows", Shape.U32_X4), word),)


def _pages(cause: str) -> tuple[Word]:
    constant = f"NVML_PAGE_RETIREMENT_CAUSE_{cause}"
    return (Word(Call("nvmlDeviceGetRetiredPages", Shape.PAGES, (constant,))),)


def _violation(policy: str) -> tuple[Field, Word]:
    # Nanoseconds both: nvml.h calls 74 to 79 also CLOCKS_EVENT_REASON_*, "in ns".
    call = Call("nvmlDeviceGetViolationStatus", Shape.INT_U64, (f"NVML_PERF_POLICY_{policy}",))
    return Field(f"NVML_FI_DEV_PERF_POLICY_{policy}"), Word(call, 1)


def _ecc(kind: str, counter: str) -> tuple[Word]:
    constants = f"NVML_MEMORY_ERROR_TYPE_{kind}", f"NVML_{counter}_ECC"
    return (Word(Call("nvmlDeviceGetTotalEccErrors", Shape.INT_INT_U64, constants)),)


_MEMORY: Final = Call("nvmlDeviceGetMemoryInfo_v2", Shape.MEMORY_V2)
_MEMORY_V1: Final = Call("nvmlDeviceGetMemoryInfo", Shape.U64)
_REASONS: Final = "nvmlDeviceGetCurrentClocksEventReasons"
_REASONS_OLD: Final = "nvmlDeviceGetCurrentClocksThrottleReasons"
_TEMPERATURE: Final = Call("nvmlDeviceGetTemperature", Shape.INT_U32, ("NVML_TEMPERATURE_GPU",))
_ENERGY: Final = "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
_TX, _RX = "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"

READINGS: Final[MappingProxyType[str, tuple[Reading, ...]]] = MappingProxyType({
    # fast
    "gpu_utilization_percent": _u32("nvmlDeviceGetUtilizationRates", 0),
    "memory_utilization_percent": _u32("nvmlDeviceGetUtilizationRates", 1),
    "power_watts": _u32("nvmlDeviceGetPowerUsage", divide=1000),
    "power_instant_watts": (Field("NVML_FI_DEV_POWER_INSTANT", divide=1000),),
    "energy_millijoules": (
        Field(_ENERGY), Word(Call("nvmlDeviceGetTotalEnergyConsumption", Shape.U64)),
    ),
    "sm_clock_mhz": _clock("SM"),
    "clock_event_reasons": (
        Word(Call(_REASONS, Shape.U64)), Word(Call(_REASONS_OLD, Shape.U64)),
    ),
    "memory_used_bytes": (Word(_MEMORY, 3), Word(_MEMORY_V1, 2)),
    "memory_free_bytes": (Word(_MEMORY, 2), Word(_MEMORY_V1, 1)),
    "memory_reserved_bytes": (Word(_MEMORY, 1),),
    "pcie_tx_bytes": (Field("NVML_FI_DEV_PCIE_COUNT_TX_BYTES"),),
    "pcie_rx_bytes": (Field("NVML_FI_DEV_PCIE_COUNT_RX_BYTES"),),
    "nvlink_tx_bytes": (Field(_TX, multiply=KIB, scope=ALL_LINKS),),
    "nvlink_rx_bytes": (Field(_RX, multiply=KIB, scope=ALL_LINKS),),
    "power_violation_ns": _violation("POWER"),
    "thermal_violation_ns": _violation("THERMAL"),
    "sync_boost_violation_ns": _violation("SYNC_BOOST"),
    "board_limit_violation_ns": _violation("BOARD_LIMIT"),
    "low_utilization_violation_ns": _violation("LOW_UTILIZATION"),
    "reliability_violation_ns": _violation("RELIABILITY"),
    # medium
    "gpu_temperature_celsius": (Word(_TEMPERATURE),),
    # Some drivers (r545) announce a wrong type for it; nvml.h says unsigned int.
    "memory_temperature_celsius": (
        Field("NVML_FI_DEV_MEMORY_TEMP", member=Member.UNSIGNED_INT),
    ),
    "memory_clock_mhz": _clock("MEM"),
    "video_clock_mhz": _clock("VIDEO"),
    "performance_state": _u32("nvmlDeviceGetPerformanceState"),
    "encoder_utilization_percent": _of_two("nvmlDeviceGetEncoderUtilization"),
    "decoder_utilization_percent": _of_two("nvmlDeviceGetDecoderUtilization"),
    "jpeg_utilization_percent": _of_two("nvmlDeviceGetJpgUtilization"),
    "ofa_utilization_percent": _of_two("nvmlDeviceGetOfaUtilization"),
    "graphics_engine_active_ratio": (Gpm("NVML_GPM_METRIC_GRAPHICS_UTIL", divide=100),),
    "sm_active_ratio": (Gpm("NVML_GPM_METRIC_SM_UTIL", divide=100),),
    "sm_occupancy_ratio": (Gpm("NVML_GPM_METRIC_SM_OCCUPANCY", divide=100),),
    "tensor_active_ratio": (Gpm("NVML_GPM_METRIC_ANY_TENSOR_UTIL", divide=100),),
    "dram_active_ratio": (Gpm("NVML_GPM_METRIC_DRAM_BW_UTIL", divide=100),),
    "fp64_active_ratio": (Gpm("NVML_GPM_METRIC_FP64_UTIL", divide=100),),
    "fp32_active_ratio": (Gpm("NVML_GPM_METRIC_FP32_UTIL", divide=100),),
    "fp16_active_ratio": (Gpm("NVML_GPM_METRIC_FP16_UTIL", divide=100),),
    "pcie_tx_bytes_per_second": (Gpm("NVML_GPM_METRIC_PCIE_TX_PER_SEC", multiply=MIB),),
    "pcie_rx_bytes_per_second": (Gpm("NVML_GPM_METRIC_PCIE_RX_PER_SEC", multiply=MIB),),
    # slow
    "power_limit_watts": _u32("nvmlDeviceGetEnforcedPowerLimit", divide=1000),
    "memory_total_bytes": (Word(_MEMORY, 0), Word(_MEMORY_V1, 0)),
    "bar1_used_bytes": (Word(Call("nvmlDeviceGetBAR1MemoryInfo", Shape.U64), 2),),
    "fan_speed_percent": _u32("nvmlDeviceGetFanSpeed"),
    "ecc_sbe_volatile": _ecc("CORRECTED", "VOLATILE"),
    "ecc_dbe_volatile": _ecc("UNCORRECTED", "VOLATILE"),
    "ecc_sbe_aggregate": _ecc("CORRECTED", "AGGREGATE"),
    "ecc_dbe_aggregate": _ecc("UNCORRECTED", "AGGREGATE"),
    "remapped_rows_correctable": _rows(0),
    "remapped_rows_uncorrectable": _rows(1),
    "row_remap_failure": _rows(3),
    "retired_pages_sbe": _pages("MULTIPLE_SINGLE_BIT_ECC_ERRORS"),
    "retired_pages_dbe": _pages("DOUBLE_BIT_ECC_ERROR"),
    "retired_pages_pending": _u32("nvmlDeviceGetRetiredPagesPendingStatus"),
    "nvlink_crc_flit_errors": (Field("NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL"),),
    "nvlink_crc_data_errors": (Field("NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL"),),
    "nvlink_replay_errors": (Field("NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL"),),
    "nvlink_recovery_errors": (Field("NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL"),),
    "pcie_replays": _u32("nvmlDeviceGetPcieReplayCounter"),
    "pcie_link_generation": _u32("nvmlDeviceGetCurrPcieLinkGeneration"),
    "pcie_link_width": _u32("nvmlDeviceGetCurrPcieLinkWidth"),
    "mig_mode": _of_two("nvmlDeviceGetMigMode"),
    "vgpu_license_status": (
        Word(Call("nvmlDeviceGetGridLicensableFeatures_v4", Shape.LICENSE)),
    ),
    # drain
    "power_sample_watts": (Samples("NVML_TOTAL_POWER_SAMPLES", divide=1000),),
    "gpu_utilization_sample_percent": (Samples("NVML_GPU_UTILIZATION_SAMPLES"),),
    "memory_utilization_sample_percent": (Samples("NVML_MEMORY_UTILIZATION_SAMPLES"),),
    "encoder_utilization_sample_percent": (Samples("NVML_ENC_UTILIZATION_SAMPLES"),),
    "decoder_utilization_sample_percent": (Samples("NVML_DEC_UTILIZATION_SAMPLES"),),
    "sm_clock_sample_mhz": (Samples("NVML_PROCESSOR_CLK_SAMPLES"),),
    "memory_clock_sample_mhz": (Samples("NVML_MEMORY_CLK_SAMPLES"),),
})  # fmt: skip

#: Fields whose sum, in KiB, is the traffic that `NVLINK_RATE` is the rate of.
NVLINK_RATE: Final = "nvlink_megabytes_per_second"
RATE_FIELDS: Final = (Field(_TX, scope=ALL_LINKS), Field(_RX, scope=ALL_LINKS))

#: Set by the event set, not read.
XID_LAST: Final = "xid_last"
