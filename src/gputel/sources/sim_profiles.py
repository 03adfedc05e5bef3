"""What a simulated GPU can do. Figures are those of the vendor's data sheets, rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gputel.limits import KIB, MIB

_GIB = KIB * MIB
_DATA_CENTRE_ONLY: Final = frozenset(
    {
        "nvlink_tx_bytes", "nvlink_rx_bytes", "nvlink_megabytes_per_second",
        "memory_temperature_celsius", "graphics_engine_active_ratio", "sm_active_ratio",
        "sm_occupancy_ratio", "tensor_active_ratio", "dram_active_ratio", "fp64_active_ratio",
        "fp32_active_ratio", "fp16_active_ratio", "pcie_tx_bytes_per_second",
        "pcie_rx_bytes_per_second", "ecc_sbe_volatile", "ecc_dbe_volatile", "ecc_sbe_aggregate",
        "ecc_dbe_aggregate", "remapped_rows_uncorrectable", "remapped_rows_correctable",
        "row_remap_failure", "retired_pages_sbe", "retired_pages_dbe", "retired_pages_pending",
        "nvlink_crc_flit_errors", "nvlink_crc_data_errors", "nvlink_replay_errors",
        "nvlink_recovery_errors", "mig_mode",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """One model. Power in W, clocks in MHz, rates in bytes a second, memory in bytes."""

    model: str
    memory_bytes: int
    power_limit_w: float
    power_idle_w: float
    sm_clock_mhz: int
    sm_idle_mhz: int
    memory_clock_mhz: int
    pcie_generation: int
    pcie_rate: float
    nvlink_rate: float
    slowdown_celsius: float = 87.0
    fan: bool = False
    unsupported: frozenset[str] = frozenset()


PROFILES: Final = (
    Profile("NVIDIA H100 80GB HBM3", 80 * _GIB, 700, 70, 1980, 345, 2619, 5, 55e9, 450e9),
    Profile("NVIDIA A100-SXM4-80GB", 80 * _GIB, 400, 55, 1410, 210, 1593, 4, 25e9, 300e9),
    Profile("NVIDIA B200", 180 * _GIB, 1000, 140, 1965, 120, 3996, 5, 55e9, 900e9),
    Profile("NVIDIA GeForce RTX 4090", 24 * _GIB, 450, 22, 2745, 210, 10501, 4, 25e9, 0,
            83.0, True, _DATA_CENTRE_ONLY),
)  # fmt: skip


def profile_of(model: str) -> Profile | None:
    """The profile whose name contains `model`, or whose family does; None when unknown."""
    wanted = model.casefold()
    for profile in PROFILES:
        if wanted == profile.model.casefold():
            return profile
    families = (("h100", 0), ("a100", 1), ("b200", 2), ("4090", 3), ("geforce", 3), ("consumer", 3))
    return next((PROFILES[number] for family, number in families if family in wanted), None)
