"""Who uses which GPU: pods of Kubernetes, jobs of a batch system."""

from typing import TYPE_CHECKING

from gputel.collector.attribution.settings import AttributionSettings
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.collector.attribution.attribution import Attribution

__all__ = ["Attribution", "AttributionSettings"]

__getattr__ = lazy(__name__, {"Attribution": "attribution"})
