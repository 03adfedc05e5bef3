"""The node exporter: the latest values of every GPU as Prometheus text, dcgm-exporter's way."""

from typing import TYPE_CHECKING

from gputel.collector.exporter.settings import ExporterSettings
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.collector.exporter.exporter import Exporter
    from gputel.collector.exporter.exposition import Family, Format, LabelProvider, Row
    from gputel.collector.exporter.routes import OWN_METRICS_PATH, exporter_app, pages_at_once

__all__ = [
    "OWN_METRICS_PATH",
    "Exporter",
    "ExporterSettings",
    "Family",
    "Format",
    "LabelProvider",
    "Row",
    "exporter_app",
    "pages_at_once",
]

__getattr__ = lazy(
    __name__,
    {
        "Exporter": "exporter",
        "Family": "exposition",
        "Format": "exposition",
        "LabelProvider": "exposition",
        "OWN_METRICS_PATH": "routes",
        "Row": "exposition",
        "exporter_app": "routes",
        "pages_at_once": "routes",
    },
)
