"""docs/reference/metrics.md is generated from the catalog; run this file to write it."""

from __future__ import annotations

from pathlib import Path

from gputel.catalog import METRICS, Metric

PAGE = Path(__file__).parents[2] / "docs/reference/metrics.md"
COLUMNS = ("name", "unit", "kind", "cadence", "DCGM", "OpenTelemetry", "NVML", "what it is")


def row(metric: Metric) -> str:
    dcgm, otel = metric.dcgm, metric.otel
    dcgm_names = " / ".join(f"`{n}`" for n in (dcgm.name, dcgm.renamed) if n) if dcgm else ""
    attributes = ", ".join(f"{key}={value}" for key, value in otel.attributes) if otel else ""
    cells = (
        f"`{metric.name}`",
        metric.unit.value,
        metric.kind.value,
        metric.cadence.value,
        dcgm_names,
        f"`{otel.name}` {f'({attributes})' if attributes else ''}".strip() if otel else "",
        metric.nvml,
        metric.help,
    )
    return f"| {' | '.join(cells)} |"


def page() -> str:
    lines = (
        "# Metrics",
        "",
        "Generated from `gputel.catalog` by `python tests/unit/test_metrics_page.py`. Units are",
        "UCUM codes of the stored values; a second DCGM name is the one since DCGM 4.6.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(row(metric) for metric in METRICS),
    )
    return "\n".join(lines) + "\n"


def test_the_page_is_what_the_catalog_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
