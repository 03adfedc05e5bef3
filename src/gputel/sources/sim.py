"""A model of a node: jobs come and go, power follows work, temperature lags behind power.

Deterministic: the state of a GPU after n refreshes depends on node, seed and index alone.
Values change only at a refresh (every 100 ms), as a real driver's do.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_MS, NS_PER_S
from gputel.errors import InputError
from gputel.inventory import Event, EventKind, Gpu, ProcessSample, synthetic_uuid
from gputel.limits import KIB, MIB
from gputel.sources.sim_processes import processes_of
from gputel.sources.sim_profiles import PROFILES, Profile, profile_of
from gputel.sources.source import Rings
from gputel.sources.values import Number

REFRESH_NS: Final = 100 * NS_PER_MS
REFRESHES_MAX: Final = 600  # a gap longer than this many refreshes is not computed
PROCESSES_PENDING_MAX: Final = 4096  # not taken yet; the oldest go first
_DT_S = REFRESH_NS / NS_PER_S
_AMBIENT_CELSIUS = 27.0
_POWER_LAG_S = 0.8
_TEMPERATURE_LAG_S = 18.0
_IDLE_REASON, _POWER_CAP_REASON, _THERMAL_REASON = 0x1, 0x4, 0x20  # nvmlClocksEventReason*
_SBE_PER_REFRESH = 2e-6
_DRIVER = "570.124.06"


class SimulatedGpu:
    """The state of one GPU; `refresh` moves it on by 100 ms."""

    def __init__(self, profile: Profile, seed_text: str) -> None:
        self.profile = profile
        self._random = random.Random(seed_text)
        self._job_left_s = self._random.uniform(0.0, 20.0)
        self._busy = self._random.random() < 0.7
        self._jobs = 1
        self._job_load = self._random.uniform(0.5, 1.0)
        self._job_memory = self._random.uniform(0.2, 0.9)
        self._phase = self._random.uniform(0.0, 2 * math.pi)
        self.util = 0.0
        self.memory = 0.01
        self.power_w = self.average_w = profile.power_idle_w
        self.celsius = _AMBIENT_CELSIUS + 8
        self.sm_mhz = float(profile.sm_idle_mhz)
        self.reasons = _IDLE_REASON
        self.pcie_tx_rate = self.pcie_rx_rate = self.nvlink_rate = 0.0
        self.energy_mj = self.pcie_tx = self.pcie_rx = self.nvlink_tx = self.nvlink_rx = 0.0
        self.power_violation_ns = self.thermal_violation_ns = self.idle_ns = 0
        self.sbe = self.sbe_life = 0

    def refresh(self) -> int:
        """One step of 100 ms; the number of new corrected ECC errors."""
        draw = [self._random.random() for _ in range(6)]  # a fixed number keeps streams aligned
        self._job(draw)
        profile = self.profile
        wave = 0.12 * math.sin(self._phase) + 0.1 * (draw[0] - 0.5)
        target = min(max(self._job_load + wave, 0.05), 1.0) if self._busy else 0.0
        self._phase += 0.25
        self.util += (target - self.util) * 0.6
        wanted = self._job_memory if self._busy else 0.005
        self.memory += (wanted - self.memory) * 0.15
        self._clocks(draw[1])
        self._rates(draw[2])
        self.energy_mj += self.power_w * _DT_S * 1000
        errors = int("ecc_sbe_volatile" not in profile.unsupported and draw[5] < _SBE_PER_REFRESH)
        self.sbe += errors
        self.sbe_life += errors
        return errors

    def _job(self, draw: list[float]) -> None:
        self._job_left_s -= _DT_S
        if self._job_left_s <= 0:
            self._busy = not self._busy
            self._jobs += self._busy
            self._job_left_s = 20 + 180 * draw[3] if self._busy else 5 + 40 * draw[3]
            self._job_load = 0.45 + 0.55 * draw[4]
            self._job_memory = 0.15 + 0.8 * draw[2]

    def _clocks(self, noise: float) -> None:
        profile = self.profile
        span_w = profile.power_limit_w - profile.power_idle_w
        demand_w = profile.power_idle_w + span_w * (1.06 * self.util + 0.03 * (noise - 0.5))
        step_ns = REFRESH_NS
        self.reasons = 0
        clock = float(profile.sm_clock_mhz)
        if self.util < 0.02:
            self.reasons, clock = _IDLE_REASON, float(profile.sm_idle_mhz)
            self.idle_ns += step_ns
        if demand_w > profile.power_limit_w:
            self.reasons |= _POWER_CAP_REASON
            self.power_violation_ns += step_ns
            clock *= profile.power_limit_w / demand_w
            demand_w = profile.power_limit_w
        if self.celsius > profile.slowdown_celsius:
            self.reasons |= _THERMAL_REASON
            self.thermal_violation_ns += step_ns
            clock *= 0.8
            demand_w *= 0.85
        self.sm_mhz = clock // 15 * 15
        self.power_w += (max(demand_w, profile.power_idle_w * 0.9) - self.power_w) * 0.5
        self.average_w += (self.power_w - self.average_w) * (_DT_S / _POWER_LAG_S)
        warm = _AMBIENT_CELSIUS + 48 * self.power_w / profile.power_limit_w
        self.celsius += (warm - self.celsius) * (_DT_S / _TEMPERATURE_LAG_S)

    def _rates(self, noise: float) -> None:
        profile = self.profile
        self.pcie_tx_rate = profile.pcie_rate * 0.1 * self.util * noise
        self.pcie_rx_rate = profile.pcie_rate * 0.2 * self.util * noise
        self.nvlink_rate = profile.nvlink_rate * 0.4 * self.util
        self.pcie_tx += self.pcie_tx_rate * _DT_S
        self.pcie_rx += self.pcie_rx_rate * _DT_S
        self.nvlink_tx += self.nvlink_rate * _DT_S
        self.nvlink_rx += self.nvlink_rate * _DT_S

    @property
    def job(self) -> int | None:
        """The number of the job that runs, None between two."""
        return self._jobs if self._busy else None

    @property
    def memory_used(self) -> int:
        """Bytes in use, whole MiB."""
        return int(self.memory * (self.profile.memory_bytes - self.memory_reserved)) // MIB * MIB

    @property
    def memory_reserved(self) -> int:
        """Bytes that driver and firmware keep for themselves."""
        return 512 * MIB


_Read = Callable[[SimulatedGpu], Number]
_ZERO: _Read = lambda gpu: 0  # noqa: E731

_VALUES: Final[Mapping[str, _Read]] = MappingProxyType({
    "gpu_utilization_percent": lambda g: round(100 * g.util),
    "memory_utilization_percent": lambda g: round(60 * g.util),
    "power_watts": lambda g: round(g.average_w, 3),
    "power_instant_watts": lambda g: round(g.power_w, 3),
    "energy_millijoules": lambda g: int(g.energy_mj),
    "sm_clock_mhz": lambda g: int(g.sm_mhz),
    "clock_event_reasons": lambda g: g.reasons,
    "memory_used_bytes": lambda g: g.memory_used,
    "memory_free_bytes": lambda g: g.profile.memory_bytes - g.memory_used - g.memory_reserved,
    "memory_reserved_bytes": lambda g: g.memory_reserved,
    "pcie_tx_bytes": lambda g: int(g.pcie_tx),
    "pcie_rx_bytes": lambda g: int(g.pcie_rx),
    "nvlink_tx_bytes": lambda g: int(g.nvlink_tx) // KIB * KIB,
    "nvlink_rx_bytes": lambda g: int(g.nvlink_rx) // KIB * KIB,
    "power_violation_ns": lambda g: g.power_violation_ns,
    "thermal_violation_ns": lambda g: g.thermal_violation_ns,
    "low_utilization_violation_ns": lambda g: g.idle_ns,
    "gpu_temperature_celsius": lambda g: round(g.celsius),
    "memory_temperature_celsius": lambda g: round(g.celsius + 6 + 8 * g.util),
    "memory_clock_mhz": lambda g: g.profile.memory_clock_mhz,
    "video_clock_mhz": lambda g: int(g.sm_mhz * 0.9),
    "performance_state": lambda g: 0 if g.util > 0.02 or not g.profile.fan else 8,
    "graphics_engine_active_ratio": lambda g: round(g.util, 6),
    "sm_active_ratio": lambda g: round(0.92 * g.util, 6),
    "sm_occupancy_ratio": lambda g: round(0.45 * g.util, 6),
    "tensor_active_ratio": lambda g: round(0.55 * g.util, 6),
    "dram_active_ratio": lambda g: round(0.5 * g.util, 6),
    "fp64_active_ratio": lambda g: round(0.01 * g.util, 6),
    "fp32_active_ratio": lambda g: round(0.12 * g.util, 6),
    "fp16_active_ratio": lambda g: round(0.08 * g.util, 6),
    "pcie_tx_bytes_per_second": lambda g: int(g.pcie_tx_rate),
    "pcie_rx_bytes_per_second": lambda g: int(g.pcie_rx_rate),
    "nvlink_megabytes_per_second": lambda g: int(2 * g.nvlink_rate / KIB / 1000),
    "power_limit_watts": lambda g: float(g.profile.power_limit_w),
    "memory_total_bytes": lambda g: g.profile.memory_bytes,
    "bar1_used_bytes": lambda g: 8 * MIB,
    "fan_speed_percent": lambda g: round(min(max(30, 2 * (g.celsius - 25)), 100)),
    "ecc_sbe_volatile": lambda g: g.sbe,
    "ecc_sbe_aggregate": lambda g: g.sbe_life,
    "pcie_link_generation": lambda g: g.profile.pcie_generation,
    "pcie_link_width": lambda g: 16,
})  # fmt: skip


class Simulator:
    """A node of `gpus` GPUs of one model. InputError: a model that has no profile."""

    name = "sim"
    identity: str | None = None

    def __init__(
        self,
        *,
        node: str,
        gpus: int,
        model: str,
        seed: int,
        periods_ns: Mapping[Cadence, int],
        processes: bool = False,
    ) -> None:
        profile = profile_of(model)
        if profile is None:
            raise InputError(
                f"sim: no profile for the model {model!r}",
                hint=f"one of {', '.join(p.model for p in PROFILES)}",
            )
        self.description = f"{gpus} simulated {profile.model}, seed {seed}"
        self._profile = profile
        self._periods_ns = dict(periods_ns)
        self._gpus = [self._describe(node, seed, index) for index in range(gpus)]
        self._states = [SimulatedGpu(profile, f"{node}/{seed}/{i}") for i in range(gpus)]
        self._refreshes = 0
        self._opened_ns: int | None = None
        self._sequences = dict.fromkeys(Cadence, 0)
        self._reads = {cadence: self._table(cadence) for cadence in Cadence}
        self._events: list[Event] = []
        self._with_processes = processes
        self._processes: deque[ProcessSample] = deque(maxlen=PROCESSES_PENDING_MAX)

    def _describe(self, node: str, seed: int, index: int) -> Gpu:
        blank = Gpu(uuid=synthetic_uuid(node, f"sim/{seed}/{index}"), node=node, index=index)
        return replace(
            blank,
            device=f"nvidia{index}",
            pci_bus_id=f"00000000:{0x0A + 0x10 * (index % 15):02X}:{index // 15:02X}.0",
            model=self._profile.model,
            serial=f"{1_650_000_000_000 + seed % 1000 * 1000 + index}",
            brand="NVIDIA" if not self._profile.fan else "GeForce",
            vbios_version="96.00.89.00.01",
            driver_version=_DRIVER,
            nvml_version=f"12.{_DRIVER}",
            memory_total_bytes=self._profile.memory_bytes,
        )

    def _table(self, cadence: Cadence) -> tuple[_Read | None, ...]:
        unsupported = self._profile.unsupported | (
            set() if self._profile.fan else {"fan_speed_percent"}
        )
        return tuple(
            None if metric.name in unsupported else _VALUES.get(metric.name, _ZERO)
            for metric in SET_BY_CADENCE[cadence].metrics
        )

    def open(self) -> Sequence[Gpu]:
        """The simulated GPUs."""
        return tuple(self._gpus)

    def cadences(self) -> Mapping[Cadence, int]:
        """All but DRAIN: the model has no buffer of samples."""
        return {c: period for c, period in self._periods_ns.items() if c is not Cadence.DRAIN}

    def sweep(self, cadence: Cadence, time_ns: int, rings: Rings, lateness_us: int = 0) -> bool:
        """One row a GPU, of the state at the last refresh before `time_ns`."""
        self._advance(time_ns)
        metric_set = SET_BY_CADENCE[cadence]
        ring = rings[metric_set]
        sequence = self._sequences[cadence]
        self._sequences[cadence] = sequence + 1
        reads = self._reads[cadence]
        for slot, state in enumerate(self._states):
            values = [None if read is None else read(state) for read in reads]
            ring.push(time_ns, slot, sequence, lateness_us, values)
        if self._with_processes and cadence is Cadence.SLOW:
            self._look_at_processes(time_ns)
        return False

    def _look_at_processes(self, time_ns: int) -> None:
        for gpu, state in zip(self._gpus, self._states, strict=True):
            if state.job is not None:
                self._processes += processes_of(
                    gpu,
                    time_ns,
                    job=state.job,
                    memory_bytes=state.memory_used,
                    utilization=state.util,
                )

    def _advance(self, time_ns: int) -> None:
        if self._opened_ns is None:
            self._opened_ns = time_ns
        due = (time_ns - self._opened_ns) // REFRESH_NS + 1
        skipped = max(due - self._refreshes - REFRESHES_MAX, 0)
        self._refreshes += skipped
        while self._refreshes < due:
            self._refreshes += 1
            for gpu, state in zip(self._gpus, self._states, strict=True):
                if state.refresh():
                    self._events.append(
                        Event(time_ns, EventKind.ECC, gpu.uuid, 1, "corrected ECC error")
                    )

    def events(self) -> Sequence[Event]:
        """ECC errors since the last call."""
        events, self._events = self._events, []
        return events

    def processes(self) -> Sequence[ProcessSample]:
        """Those of the jobs that ran at the last slow sweeps."""
        return [self._processes.popleft() for _ in range(len(self._processes))]

    @property
    def exhausted(self) -> bool:
        """A simulation never ends."""
        return False

    def close(self) -> None:
        """Nothing is held."""
