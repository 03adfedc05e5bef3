"""REST, OpenAPI and the dashboard."""

from typing import TYPE_CHECKING

from gputel.api.settings import ApiSettings
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.api.app import create_app

__all__ = ["ApiSettings", "create_app"]

__getattr__ = lazy(__name__, {"create_app": "app"})
