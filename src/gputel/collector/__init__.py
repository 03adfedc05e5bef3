"""The collector: samples a source, publishes frames, and shows the latest values."""

from gputel.collector.collector import Collector
from gputel.collector.settings import CollectorSettings

__all__ = ["Collector", "CollectorSettings"]
