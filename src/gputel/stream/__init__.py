"""The live stream: latest values of every GPU over WebSocket."""

from gputel.stream.app import create_app, server_options
from gputel.stream.hub import Hub
from gputel.stream.settings import StreamSettings

__all__ = ["Hub", "StreamSettings", "create_app", "server_options"]
