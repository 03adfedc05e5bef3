"""Configuration of the streamer (section `stream`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gputel import limits


class StreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The WebSocket stream."""

    listen: str = "127.0.0.1:8081"
    clients_max: Annotated[int, msgspec.Meta(ge=1, le=limits.WS_CLIENTS_MAX)] = 1000
    #: Origins of pages that may connect, besides the dashboard's own.
    origins: tuple[str, ...] = ()
    heartbeat_seconds: Annotated[float, msgspec.Meta(gt=0)] = 15
