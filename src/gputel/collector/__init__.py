"""The collector: samples a source, publishes frames, and shows the latest values."""

from typing import TYPE_CHECKING

from gputel.collector.settings import CollectorSettings
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.collector.collector import Collector

__all__ = ["Collector", "CollectorSettings"]

__getattr__ = lazy(__name__, {"Collector": "collector"})
