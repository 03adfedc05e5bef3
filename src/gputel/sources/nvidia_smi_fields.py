"""The columns of `nvidia-smi --query-gpu=...`, as `nvidia-smi --help-query-gpu` names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from gputel.catalog import BY_NAME, Metric
from gputel.errors import InputError
from gputel.sources.values import UNITS

#: Query field: (the catalog's metric, the unit of its bare number).
_METRICS: Final = MappingProxyType(
    {
        "utilization.gpu": ("gpu_utilization_percent", "%"),
        "utilization.memory": ("memory_utilization_percent", "%"),
        "power.draw": ("power_watts", "W"),
        "power.draw.average": ("power_watts", "W"),
        "power.draw.instant": ("power_instant_watts", "W"),
        "clocks.sm": ("sm_clock_mhz", "MHz"),
        "clocks_event_reasons.active": ("clock_event_reasons", ""),
        "memory.used": ("memory_used_bytes", "MiB"),
        "memory.free": ("memory_free_bytes", "MiB"),
        "memory.reserved": ("memory_reserved_bytes", "MiB"),
        "temperature.gpu": ("gpu_temperature_celsius", "C"),
        "temperature.memory": ("memory_temperature_celsius", "C"),
        "clocks.mem": ("memory_clock_mhz", "MHz"),
        "clocks.video": ("video_clock_mhz", "MHz"),
        "pstate": ("performance_state", ""),
        "utilization.encoder": ("encoder_utilization_percent", "%"),
        "utilization.decoder": ("decoder_utilization_percent", "%"),
        "utilization.jpeg": ("jpeg_utilization_percent", "%"),
        "utilization.ofa": ("ofa_utilization_percent", "%"),
        "enforced.power.limit": ("power_limit_watts", "W"),
        "power.limit": ("power_limit_watts", "W"),
        "memory.total": ("memory_total_bytes", "MiB"),
        "fan.speed": ("fan_speed_percent", "%"),
        "ecc.errors.corrected.volatile.total": ("ecc_sbe_volatile", ""),
        "ecc.errors.uncorrected.volatile.total": ("ecc_dbe_volatile", ""),
        "ecc.errors.corrected.aggregate.total": ("ecc_sbe_aggregate", ""),
        "ecc.errors.uncorrected.aggregate.total": ("ecc_dbe_aggregate", ""),
        "remapped_rows.uncorrectable": ("remapped_rows_uncorrectable", ""),
        "remapped_rows.correctable": ("remapped_rows_correctable", ""),
        "remapped_rows.failure": ("row_remap_failure", ""),
        "retired_pages.sbe": ("retired_pages_sbe", ""),
        "retired_pages.dbe": ("retired_pages_dbe", ""),
        "retired_pages.pending": ("retired_pages_pending", ""),
        "pcie.link.gen.current": ("pcie_link_generation", ""),
        "pcie.link.width.current": ("pcie_link_width", ""),
        "mig.mode.current": ("mig_mode", ""),
    }
)
#: Of two columns for one metric the first named here gives way to the second.
_SECOND_CHOICE: Final = frozenset({"power.draw.average", "power.limit"})
_ALIASES: Final = MappingProxyType(
    {
        "gpu_uuid": "uuid",
        "gpu_name": "name",
        "gpu_serial": "serial",
        "gpu_bus_id": "pci.bus_id",
        "clocks.current.sm": "clocks.sm",
        "clocks.current.memory": "clocks.mem",
        "clocks.current.video": "clocks.video",
        "clocks_throttle_reasons.active": "clocks_event_reasons.active",
        "retired_pages.single_bit_ecc.count": "retired_pages.sbe",
        "retired_pages.double_bit.count": "retired_pages.dbe",
        "pcie.link.gen.gpucurrent": "pcie.link.gen.current",
    }
)
#: Query field: the field of `Gpu` that holds it.
FACTS: Final = MappingProxyType(
    {
        "uuid": "uuid",
        "name": "model",
        "serial": "serial",
        "pci.bus_id": "pci_bus_id",
        "driver_version": "driver_version",
        "vbios_version": "vbios_version",
        "index": "index",
    }
)
KNOWN: Final = frozenset({*_METRICS, *FACTS, "timestamp"})
_HEADER_FIELD = re.compile(r"([a-z][a-z0-9_.]*?)(?:\s*\[([^\]]*)\])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a metric with the unit of its numbers, a fact, or (both None) unused."""

    name: str
    metric: Metric | None = None
    unit: str = ""


def field_name(text: str) -> tuple[str, str] | None:
    """`power.draw [W]` as ("power.draw", "W"); None when this is no name of a query field."""
    match = _HEADER_FIELD.fullmatch(text)
    if match is None:
        return None
    name, unit = match.groups()
    return _ALIASES.get(name, name), unit or ""


def columns_of(fields: list[str]) -> tuple[Column, ...] | None:
    """The columns that a header names; None when the line is no header."""
    names = [field_name(field) for field in fields]
    if not any(name is not None and name[0] in KNOWN for name in names) or None in names:
        return None
    pairs = [pair for pair in names if pair is not None]
    present = {name for name, _ in pairs}
    columns: list[Column] = []
    taken: set[str] = set()
    for name, unit in pairs:
        known = _METRICS.get(name)
        gives_way = name in _SECOND_CHOICE and any(
            other != name and other in present and _METRICS[other][0] == _METRICS[name][0]
            for other in _METRICS
        )
        if known is None or gives_way or name in taken:
            columns.append(Column(name))
            continue
        taken.add(name)
        columns.append(Column(name, BY_NAME[known[0]], _unit(name, unit, known[1])))
    return tuple(columns)


def _unit(name: str, written: str, usual: str) -> str:
    """The unit of a column's bare numbers: the header's when it fits, else the usual one."""
    if not written or written == usual:
        return usual
    if not usual or written not in UNITS or UNITS[written][0] is not UNITS[usual][0]:
        raise InputError(f"nvidia-smi log: column {name} in {written!r} instead of {usual!r}")
    return written


def factor(metric: Metric, unit: str) -> tuple[int, int] | None:
    """Numerator and denominator from `unit` to the metric's stored unit; None: does not fit."""
    if not unit:
        return (1, 1)
    known = UNITS.get(unit)
    if known is None or known[0] is not metric.unit:
        return None
    return known[1], known[2]


assert all(UNITS[usual][0] is BY_NAME[metric].unit for metric, usual in _METRICS.values() if usual)
