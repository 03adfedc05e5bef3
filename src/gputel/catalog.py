"""The one list of metrics: everything that names a metric derives from this file.

SQL columns, Prometheus names, the OpenAPI enum, the docs table, the sampler's call table
and the dashboard's units come from here. A metric's `id` is written into chunks, so it is
never reused and never changes its meaning. Values are stored in the unit of the driver
where that is lossless (millijoules, MHz, bytes); `dcgm` and `otel` say how to scale them
on the way out.

Sources of the facts: dcgm-exporter's default counters and DCGM's field list, `nvml.h`
(driver 550), OpenTelemetry semantic conventions (`model/hardware`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from gputel import limits


class Kind(Enum):
    """What differences of a metric mean."""

    GAUGE = "gauge"
    COUNTER = "counter"  # monotonic until a reset
    STATE = "state"  # a code or bit mask; averages make no sense


class Storage(Enum):
    """How a value is held in a row, a column and PostgreSQL. The value is its struct code."""

    F32 = "f"
    F64 = "d"
    I64 = "q"
    U64 = "Q"


class Cadence(Enum):
    """How often a metric is asked for; each cadence has one metric set."""

    FAST = "fast"
    MEDIUM = "medium"
    SLOW = "slow"
    DRAIN = "drain"  # the driver's own buffer of samples, each at the driver's time


class Unit(Enum):
    """Units as stored; the value is the UCUM code."""

    PERCENT = "%"
    RATIO = "1"
    WATT = "W"
    MILLIJOULE = "mJ"
    CELSIUS = "Cel"
    MEGAHERTZ = "MHz"
    BYTE = "By"
    BYTES_PER_S = "By/s"
    MEGABYTES_PER_S = "MBy/s"
    NANOSECOND = "ns"
    COUNT = "{count}"
    CODE = "{code}"


@dataclass(frozen=True, slots=True)
class Dcgm:
    """How dcgm-exporter shows a metric: `shown = stored / divisor` (floored when integer)."""

    name: str
    unit: str
    type: str  # Prometheus type, as dcgm-exporter declares it
    integer: bool  # printed as %d, else as %f
    default: bool  # in dcgm-exporter's default list
    divisor: int = 1
    renamed: str | None = None  # the name since DCGM 4.6


@dataclass(frozen=True, slots=True)
class Otel:
    """The OpenTelemetry convention: `value = stored * factor`."""

    name: str
    unit: str
    attributes: tuple[tuple[str, str], ...] = ()
    factor: float = 1.0


# PERF(catalog): there is one object a metric, so identity is equality; comparing and hashing
# all the fields was a third of the time to decode a chunk.
@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. `name` is also its column in gpu_latest, its API name and its Prometheus stem."""

    id: int
    name: str
    unit: Unit
    kind: Kind
    storage: Storage
    cadence: Cadence
    nvml: str  # the NVML call or field that yields it
    help: str
    dcgm: Dcgm | None = None
    otel: Otel | None = None

    @property
    def prometheus_name(self) -> str:
        """The name in the native `gputel` profile, e.g. `gputel_gpu_power_watts`."""
        suffix = "_total" if self.kind is Kind.COUNTER else ""
        return f"gputel_gpu_{self.name}{suffix}"


@dataclass(frozen=True, slots=True, eq=False)
class MetricSet:
    """The metrics of one cadence, in column order. `id` is written into chunks."""

    id: int
    name: str
    cadence: Cadence
    metrics: tuple[Metric, ...]

    @property
    def storages(self) -> str:
        """One struct code a column, e.g. `"dqq"`."""
        return "".join(metric.storage.value for metric in self.metrics)

    def column(self, metric: Metric) -> int:
        """The index of `metric` in this set; ValueError if it belongs to another."""
        return self.metrics.index(metric)


_G, _C, _S = Kind.GAUGE, Kind.COUNTER, Kind.STATE
_F64, _I64 = Storage.F64, Storage.I64
_FAST, _MEDIUM, _SLOW = Cadence.FAST, Cadence.MEDIUM, Cadence.SLOW
_DRAIN = Cadence.DRAIN
_GPU = (("hw.type", "gpu"),)


def _gauge(
    name: str,
    unit: str,
    *,
    default: bool = True,
    divisor: int = 1,
    renamed: str | None = None,
    integer: bool = True,
    type: str = "gauge",
) -> Dcgm:
    now = f"DCGM_FI_{renamed}" if renamed else None
    return Dcgm(f"DCGM_FI_{name}", unit, type, integer, default, divisor, now)


def _counter(
    name: str, unit: str = "", *, default: bool = False, renamed: str | None = None
) -> Dcgm:
    return _gauge(name, unit, default=default, renamed=renamed, type="counter")


def _errors(kind: str) -> Otel:
    return Otel("hw.errors", "{error}", (("error.type", kind), *_GPU))


def _sample(number: int, name: str, unit: Unit, storage: Storage, kind: str, what: str) -> Metric:
    nvml, text = f"nvmlDeviceGetSamples({kind})", f"{what}, every sample of the driver"
    return Metric(number, name, unit, _G, storage, _DRAIN, nvml, text)


def _task(task: str) -> Otel:
    return Otel("hw.gpu.utilization", "1", (("hw.gpu.task", task),), 0.01)


# fmt: off
METRICS: Final[tuple[Metric, ...]] = (
    # fast
    Metric(1, "gpu_utilization_percent", Unit.PERCENT, _G, _I64, _FAST,
           "nvmlDeviceGetUtilizationRates.gpu",
           "Share of time in which at least one kernel ran",
           _gauge("DEV_GPU_UTIL", "%", renamed="DEV_GPU_UTIL_RATIO"), _task("general")),
    Metric(2, "memory_utilization_percent", Unit.PERCENT, _G, _I64, _FAST,
           "nvmlDeviceGetUtilizationRates.memory",
           "Share of time in which device memory was read or written",
           _gauge("DEV_MEM_COPY_UTIL", "%")),
    Metric(3, "power_watts", Unit.WATT, _G, _F64, _FAST,
           "nvmlDeviceGetPowerUsage",
           "Board power draw; a one-second average on most parts since Ampere",
           _gauge("DEV_POWER_USAGE", "W", integer=False, renamed="DEV_BOARD_POWER_WATTS"),
           Otel("hw.power", "W", _GPU)),
    Metric(4, "power_instant_watts", Unit.WATT, _G, _F64, _FAST,
           "field 186 NVML_FI_DEV_POWER_INSTANT",
           "Instantaneous board power draw",
           _gauge("DEV_POWER_USAGE_INSTANT", "W", integer=False, default=False)),
    Metric(5, "energy_millijoules", Unit.MILLIJOULE, _C, _I64, _FAST,
           "field 83 NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
           "Energy consumed since the driver was loaded",
           _counter("DEV_TOTAL_ENERGY_CONSUMPTION", "mJ", default=True),
           Otel("hw.energy", "J", _GPU, 0.001)),
    Metric(6, "sm_clock_mhz", Unit.MEGAHERTZ, _G, _I64, _FAST,
           "nvmlDeviceGetClockInfo(SM)", "Streaming multiprocessor clock",
           _gauge("DEV_SM_CLOCK", "MHz")),
    Metric(7, "clock_event_reasons", Unit.CODE, _S, _I64, _FAST,
           "nvmlDeviceGetCurrentClocksEventReasons",
           "Bit mask of the reasons that hold clocks down (nvmlClocksEventReason*)",
           _gauge("DEV_CLOCK_THROTTLE_REASONS", "", default=False)),
    Metric(8, "memory_used_bytes", Unit.BYTE, _G, _I64, _FAST,
           "nvmlDeviceGetMemoryInfo_v2.used", "Framebuffer memory in use",
           _gauge("DEV_FB_USED", "MiB", divisor=limits.MIB),
           Otel("hw.gpu.memory.usage", "By")),
    Metric(9, "memory_free_bytes", Unit.BYTE, _G, _I64, _FAST,
           "nvmlDeviceGetMemoryInfo_v2.free", "Framebuffer memory free",
           _gauge("DEV_FB_FREE", "MiB", divisor=limits.MIB)),
    Metric(10, "memory_reserved_bytes", Unit.BYTE, _G, _I64, _FAST,
           "nvmlDeviceGetMemoryInfo_v2.reserved",
           "Framebuffer memory reserved by driver and firmware",
           _gauge("DEV_FB_RESERVED", "MiB", divisor=limits.MIB)),
    Metric(11, "pcie_tx_bytes", Unit.BYTE, _C, _I64, _FAST,
           "field 197 NVML_FI_DEV_PCIE_COUNT_TX_BYTES", "Bytes sent over PCIe",
           None, Otel("hw.gpu.io", "By", (("network.io.direction", "transmit"),))),
    Metric(12, "pcie_rx_bytes", Unit.BYTE, _C, _I64, _FAST,
           "field 198 NVML_FI_DEV_PCIE_COUNT_RX_BYTES", "Bytes received over PCIe",
           None, Otel("hw.gpu.io", "By", (("network.io.direction", "receive"),))),
    Metric(13, "nvlink_tx_bytes", Unit.BYTE, _C, _I64, _FAST,
           "field 138 NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX",
           "Data bytes sent over all NVLinks"),
    Metric(14, "nvlink_rx_bytes", Unit.BYTE, _C, _I64, _FAST,
           "field 139 NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX",
           "Data bytes received over all NVLinks"),
    Metric(15, "power_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(POWER)", "Time throttled by the power cap",
           _counter("DEV_POWER_VIOLATION", "ns")),
    Metric(16, "thermal_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(THERMAL)", "Time throttled by temperature",
           _counter("DEV_THERMAL_VIOLATION", "ns")),
    Metric(17, "sync_boost_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(SYNC_BOOST)", "Time throttled by sync boost",
           _counter("DEV_SYNC_BOOST_VIOLATION", "ns")),
    Metric(18, "board_limit_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(BOARD_LIMIT)", "Time throttled by the board limit",
           _counter("DEV_BOARD_LIMIT_VIOLATION", "ns")),
    Metric(19, "low_utilization_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(LOW_UTILIZATION)",
           "Time below full clocks for low utilisation",
           _counter("DEV_LOW_UTIL_VIOLATION", "ns")),
    Metric(20, "reliability_violation_ns", Unit.NANOSECOND, _C, _I64, _FAST,
           "nvmlDeviceGetViolationStatus(RELIABILITY)",
           "Time throttled by the reliability limit",
           _counter("DEV_RELIABILITY_VIOLATION", "ns")),
    # medium
    Metric(32, "gpu_temperature_celsius", Unit.CELSIUS, _G, _I64, _MEDIUM,
           "nvmlDeviceGetTemperature(GPU)", "GPU core temperature",
           _gauge("DEV_GPU_TEMP", "C", renamed="DEV_GPU_TEMP_CELSIUS"),
           Otel("hw.temperature", "Cel", (("hw.sensor_location", "gpu"), *_GPU))),
    Metric(33, "memory_temperature_celsius", Unit.CELSIUS, _G, _I64, _MEDIUM,
           "field 82 NVML_FI_DEV_MEMORY_TEMP", "Device memory temperature",
           _gauge("DEV_MEMORY_TEMP", "C", renamed="DEV_MEMORY_TEMP_CELSIUS"),
           Otel("hw.temperature", "Cel", (("hw.sensor_location", "memory"), *_GPU))),
    Metric(34, "memory_clock_mhz", Unit.MEGAHERTZ, _G, _I64, _MEDIUM,
           "nvmlDeviceGetClockInfo(MEM)", "Memory clock",
           _gauge("DEV_MEM_CLOCK", "MHz")),
    Metric(35, "video_clock_mhz", Unit.MEGAHERTZ, _G, _I64, _MEDIUM,
           "nvmlDeviceGetClockInfo(VIDEO)", "Video encoder and decoder clock",
           _gauge("DEV_VIDEO_CLOCK", "MHz", default=False)),
    Metric(36, "performance_state", Unit.CODE, _S, _I64, _MEDIUM,
           "nvmlDeviceGetPerformanceState", "P-state, 0 (fastest) to 15",
           _gauge("DEV_PSTATE", "", default=False)),
    Metric(37, "encoder_utilization_percent", Unit.PERCENT, _G, _I64, _MEDIUM,
           "nvmlDeviceGetEncoderUtilization", "Video encoder utilisation",
           _gauge("DEV_ENC_UTIL", "%"), _task("encoder")),
    Metric(38, "decoder_utilization_percent", Unit.PERCENT, _G, _I64, _MEDIUM,
           "nvmlDeviceGetDecoderUtilization", "Video decoder utilisation",
           _gauge("DEV_DEC_UTIL", "%"), _task("decoder")),
    Metric(39, "jpeg_utilization_percent", Unit.PERCENT, _G, _I64, _MEDIUM,
           "nvmlDeviceGetJpgUtilization", "JPEG engine utilisation"),
    Metric(40, "ofa_utilization_percent", Unit.PERCENT, _G, _I64, _MEDIUM,
           "nvmlDeviceGetOfaUtilization", "Optical flow engine utilisation"),
    Metric(41, "graphics_engine_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM GRAPHICS_UTIL", "Share of time in which the graphics or compute engine was busy",
           _gauge("PROF_GR_ENGINE_ACTIVE", "1", integer=False,
                  renamed="PROF_GR_ENGINE_UTIL_RATIO")),
    Metric(42, "sm_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM SM_UTIL", "Share of cycles with at least one warp on an SM, mean of all SMs",
           _gauge("PROF_SM_ACTIVE", "1", integer=False, default=False)),
    Metric(43, "sm_occupancy_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM SM_OCCUPANCY", "Resident warps against the most an SM can hold",
           _gauge("PROF_SM_OCCUPANCY", "1", integer=False, default=False)),
    Metric(44, "tensor_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM ANY_TENSOR_UTIL", "Share of cycles in which the tensor pipes were busy",
           _gauge("PROF_PIPE_TENSOR_ACTIVE", "1", integer=False,
                  renamed="PROF_TENSOR_UTIL_RATIO")),
    Metric(45, "dram_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM DRAM_BW_UTIL", "Share of the peak memory bandwidth in use",
           _gauge("PROF_DRAM_ACTIVE", "1", integer=False, renamed="PROF_DRAM_UTIL_RATIO")),
    Metric(46, "fp64_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM FP64_UTIL", "Share of cycles in which the FP64 pipe was busy",
           _gauge("PROF_PIPE_FP64_ACTIVE", "1", integer=False, default=False)),
    Metric(47, "fp32_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM FP32_UTIL", "Share of cycles in which the FP32 pipe was busy",
           _gauge("PROF_PIPE_FP32_ACTIVE", "1", integer=False, default=False)),
    Metric(48, "fp16_active_ratio", Unit.RATIO, _G, _F64, _MEDIUM,
           "GPM FP16_UTIL", "Share of cycles in which the FP16 pipe was busy",
           _gauge("PROF_PIPE_FP16_ACTIVE", "1", integer=False, default=False)),
    Metric(49, "pcie_tx_bytes_per_second", Unit.BYTES_PER_S, _G, _I64, _MEDIUM,
           "GPM PCIE_TX_PER_SEC", "PCIe bytes sent a second, headers included",
           _gauge("PROF_PCIE_TX_BYTES", "B/s")),
    Metric(50, "pcie_rx_bytes_per_second", Unit.BYTES_PER_S, _G, _I64, _MEDIUM,
           "GPM PCIE_RX_PER_SEC", "PCIe bytes received a second, headers included",
           _gauge("PROF_PCIE_RX_BYTES", "B/s")),
    Metric(51, "nvlink_megabytes_per_second", Unit.MEGABYTES_PER_S, _G, _I64, _MEDIUM,
           "rate of fields 138 + 139",
           "NVLink data rate, both directions; d(RX+TX KiB)/dt/1000, as DCGM computes it",
           Dcgm("DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL", "MB/s", "counter", True, True, 1,
                "DCGM_FI_DEV_NVLINK_THROUGHPUT_TOTAL")),
    # slow
    Metric(64, "power_limit_watts", Unit.WATT, _G, _F64, _SLOW,
           "nvmlDeviceGetEnforcedPowerLimit", "Enforced power limit",
           _gauge("DEV_ENFORCED_POWER_LIMIT", "W", integer=False, default=False)),
    Metric(65, "memory_total_bytes", Unit.BYTE, _G, _I64, _SLOW,
           "nvmlDeviceGetMemoryInfo_v2.total", "Framebuffer memory in all",
           _gauge("DEV_FB_TOTAL", "MiB", divisor=limits.MIB, default=False),
           Otel("hw.gpu.memory.limit", "By")),
    Metric(66, "bar1_used_bytes", Unit.BYTE, _G, _I64, _SLOW,
           "nvmlDeviceGetBAR1MemoryInfo.bar1Used", "BAR1 memory in use",
           _gauge("DEV_BAR1_USED", "MiB", divisor=limits.MIB, default=False)),
    Metric(67, "fan_speed_percent", Unit.PERCENT, _G, _I64, _SLOW,
           "nvmlDeviceGetFanSpeed", "Intended fan speed",
           _gauge("DEV_FAN_SPEED", "%", default=False),
           Otel("hw.fan.speed_ratio", "1", (), 0.01)),
    Metric(68, "ecc_sbe_volatile", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetTotalEccErrors(CORRECTED, VOLATILE)",
           "Corrected ECC errors since the driver was loaded",
           _counter("DEV_ECC_SBE_VOL_TOTAL"), _errors("corrected")),
    Metric(69, "ecc_dbe_volatile", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetTotalEccErrors(UNCORRECTED, VOLATILE)",
           "Uncorrected ECC errors since the driver was loaded",
           _counter("DEV_ECC_DBE_VOL_TOTAL"), _errors("uncorrected")),
    Metric(70, "ecc_sbe_aggregate", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetTotalEccErrors(CORRECTED, AGGREGATE)",
           "Corrected ECC errors in the life of the board",
           _counter("DEV_ECC_SBE_AGG_TOTAL")),
    Metric(71, "ecc_dbe_aggregate", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetTotalEccErrors(UNCORRECTED, AGGREGATE)",
           "Uncorrected ECC errors in the life of the board",
           _counter("DEV_ECC_DBE_AGG_TOTAL")),
    Metric(72, "remapped_rows_uncorrectable", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetRemappedRows.uncRows", "Rows remapped for uncorrectable errors",
           _counter("DEV_UNCORRECTABLE_REMAPPED_ROWS", default=True,
                    renamed="DEV_ROW_REMAP_UNCORRECTABLE_TOTAL")),
    Metric(73, "remapped_rows_correctable", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetRemappedRows.corrRows", "Rows remapped for correctable errors",
           _counter("DEV_CORRECTABLE_REMAPPED_ROWS", default=True,
                    renamed="DEV_ROW_REMAP_CORRECTABLE_TOTAL")),
    Metric(74, "row_remap_failure", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetRemappedRows.failureOccurred", "1 when a row remapping failed",
           _gauge("DEV_ROW_REMAP_FAILURE", "", renamed="DEV_ROW_REMAP_FAILED")),
    Metric(75, "retired_pages_sbe", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetRetiredPages(MULTIPLE_SINGLE_BIT_ECC_ERRORS)",
           "Pages retired for single-bit errors", _counter("DEV_RETIRED_SBE")),
    Metric(76, "retired_pages_dbe", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetRetiredPages(DOUBLE_BIT_ECC_ERROR)",
           "Pages retired for double-bit errors", _counter("DEV_RETIRED_DBE")),
    Metric(77, "retired_pages_pending", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetRetiredPagesPendingStatus",
           "1 when pages wait for a reboot to be retired", _counter("DEV_RETIRED_PENDING")),
    Metric(78, "nvlink_crc_flit_errors", Unit.COUNT, _C, _I64, _SLOW,
           "NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLink flit CRC errors",
           _counter("DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL")),
    Metric(79, "nvlink_crc_data_errors", Unit.COUNT, _C, _I64, _SLOW,
           "NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "NVLink data CRC errors",
           _counter("DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL")),
    Metric(80, "nvlink_replay_errors", Unit.COUNT, _C, _I64, _SLOW,
           "NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLink replays",
           _counter("DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL")),
    Metric(81, "nvlink_recovery_errors", Unit.COUNT, _C, _I64, _SLOW,
           "NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLink recoveries",
           _counter("DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL")),
    Metric(82, "pcie_replays", Unit.COUNT, _C, _I64, _SLOW,
           "nvmlDeviceGetPcieReplayCounter", "PCIe replays",
           _counter("DEV_PCIE_REPLAY_COUNTER", default=True, renamed="DEV_PCIE_REPLAY_TOTAL")),
    Metric(83, "pcie_link_generation", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetCurrPcieLinkGeneration", "PCIe generation of the link now",
           _gauge("DEV_PCIE_LINK_GEN", "", default=False)),
    Metric(84, "pcie_link_width", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetCurrPcieLinkWidth", "PCIe lanes of the link now",
           _gauge("DEV_PCIE_LINK_WIDTH", "", default=False)),
    Metric(85, "mig_mode", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetMigMode.currentMode", "1 when MIG is enabled",
           _gauge("DEV_MIG_MODE", "", default=False)),
    Metric(86, "xid_last", Unit.CODE, _S, _I64, _SLOW,
           "nvmlEventSetWait_v2(XidCriticalError)", "The last XID error, 0 when none",
           _gauge("DEV_XID_ERRORS", "", renamed="DEV_XID_ERROR")),
    Metric(87, "vgpu_license_status", Unit.CODE, _S, _I64, _SLOW,
           "nvmlDeviceGetGridLicensableFeatures_v4", "vGPU licence status",
           _gauge("DEV_VGPU_LICENSE_STATUS", "")),
    # drain: a row a driver sample; a metric whose buffer has no sample at that time is missing
    _sample(96, "power_sample_watts", Unit.WATT, _F64, "TOTAL_POWER", "Board power draw"),
    _sample(97, "gpu_utilization_sample_percent", Unit.PERCENT, _I64, "GPU_UTILIZATION",
            "Share of time in which at least one kernel ran"),
    _sample(98, "memory_utilization_sample_percent", Unit.PERCENT, _I64, "MEMORY_UTILIZATION",
            "Share of time in which device memory was read or written"),
    _sample(99, "encoder_utilization_sample_percent", Unit.PERCENT, _I64, "ENC_UTILIZATION",
            "Video encoder utilisation"),
    _sample(100, "decoder_utilization_sample_percent", Unit.PERCENT, _I64, "DEC_UTILIZATION",
            "Video decoder utilisation"),
    _sample(101, "sm_clock_sample_mhz", Unit.MEGAHERTZ, _I64, "PROCESSOR_CLK",
            "Streaming multiprocessor clock"),
    _sample(102, "memory_clock_sample_mhz", Unit.MEGAHERTZ, _I64, "MEMORY_CLK", "Memory clock"),
)
# fmt: on

# Facts that are labels, not samples: dcgm-exporter's label rows and where a `Gpu` holds them.
DCGM_LABELS: Final = MappingProxyType(
    {
        "DCGM_FI_DRIVER_VERSION": "driver_version",
        "DCGM_FI_NVML_VERSION": "nvml_version",
        "DCGM_FI_DEV_BRAND": "brand",
        "DCGM_FI_DEV_SERIAL": "serial",
        "DCGM_FI_DEV_VBIOS_VERSION": "vbios_version",
    }
)

METRIC_SETS: Final[tuple[MetricSet, ...]] = tuple(
    MetricSet(number, cadence.value, cadence, tuple(m for m in METRICS if m.cadence is cadence))
    for number, cadence in enumerate(Cadence, start=1)
)

BY_ID: Final = MappingProxyType({metric.id: metric for metric in METRICS})
BY_NAME: Final = MappingProxyType({metric.name: metric for metric in METRICS})
BY_DCGM: Final = MappingProxyType(
    {
        name: metric
        for metric in METRICS
        if metric.dcgm
        for name in (metric.dcgm.name, metric.dcgm.renamed)
        if name
    }
)
SET_BY_ID: Final = MappingProxyType({metric_set.id: metric_set for metric_set in METRIC_SETS})
SET_BY_CADENCE: Final = MappingProxyType({s.cadence: s for s in METRIC_SETS})
SET_OF: Final = MappingProxyType({metric: s for s in METRIC_SETS for metric in s.metrics})

assert len(BY_ID) == len(BY_NAME) == len(METRICS), "metric ids and names are unique"
assert all(0 < metric.id < 2**16 for metric in METRICS)
assert all(len(s.metrics) <= limits.SET_COLUMNS_MAX for s in METRIC_SETS)
