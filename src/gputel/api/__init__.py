"""REST, OpenAPI and the dashboard."""

from gputel.api.app import create_app
from gputel.api.settings import ApiSettings

__all__ = ["ApiSettings", "create_app"]
