"""What gputel says of itself: metrics, health, logs, and the HTTP port that serves them."""

from gputel.observe.health import Health
from gputel.observe.http import HttpServer, bind, status_app
from gputel.observe.logs import configure_logging
from gputel.observe.telemetry import Measurement, Telemetry

__all__ = [
    "Health",
    "HttpServer",
    "Measurement",
    "Telemetry",
    "bind",
    "configure_logging",
    "status_app",
]
