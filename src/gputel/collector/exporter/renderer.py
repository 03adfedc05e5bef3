"""The node exporter's text: the latest values under dcgm-exporter's default names.

Names, types, units and number formats are those of dcgm-exporter 4.8: integers as %d,
doubles as %f, a missing value has no row.
"""

from __future__ import annotations

from gputel.catalog import METRICS, Dcgm
from gputel.collector.exporter.latest import Latest
from gputel.inventory import Gpu

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def render(latest: Latest, now_ns: int) -> bytes:
    """Prometheus text format, one family a metric that has values."""
    labels = {id(gpu): _labels(gpu) for gpu in latest.gpus}
    lines: list[str] = []
    for metric in METRICS:
        dcgm = metric.dcgm
        if dcgm is None or not dcgm.default:
            continue
        rows = [
            f"{dcgm.name}{{{labels[id(gpu)]}}} {_number(value, dcgm)}"
            for gpu, value in latest.rows(metric, now_ns)
        ]
        if rows:
            unit = f" (in {dcgm.unit})" if dcgm.unit else ""
            lines.append(f"# HELP {dcgm.name} {metric.help}{unit}.")
            lines.append(f"# TYPE {dcgm.name} {dcgm.type}")
            lines += rows
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _number(value: float, dcgm: Dcgm) -> str:
    if dcgm.integer:
        return f"{int(value) // dcgm.divisor:d}"
    return f"{value / dcgm.divisor:f}"


def _labels(gpu: Gpu) -> str:
    labels = {
        "gpu": str(gpu.index),
        "UUID": gpu.uuid,
        "pci_bus_id": gpu.pci_bus_id,
        "device": gpu.device or f"nvidia{gpu.index}",
        "modelName": gpu.model,
        "Hostname": gpu.node,
        "DCGM_FI_DRIVER_VERSION": gpu.driver_version,
    }
    return ",".join(f'{name}="{text.translate(_ESCAPES)}"' for name, text in labels.items())
