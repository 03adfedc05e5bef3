"""The live stream: latest values of every GPU over WebSocket."""

from typing import TYPE_CHECKING

from gputel.lazy import lazy
from gputel.stream.settings import StreamSettings

if TYPE_CHECKING:
    from gputel.stream.app import create_app, server_options
    from gputel.stream.hub import Hub

__all__ = ["Hub", "StreamSettings", "create_app", "server_options"]

__getattr__ = lazy(__name__, {"create_app": "app", "server_options": "app", "Hub": "hub"})
