"""Which engine keeps a broker's messages: the settings say."""

from __future__ import annotations

from pathlib import Path

from gputel.broker.engine import Engine
from gputel.broker.engine.disk import Disk
from gputel.broker.settings import BrokerSettings
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import InputError


def make_engine(
    settings: BrokerSettings,
    data_dir: Path,
    *,
    clock: Clock = SYSTEM_CLOCK,
    disk: Disk | None = None,
) -> Engine:
    """The engine, not yet started. InputError when its packages are missing.

    `data_dir` and `disk` are the embedded engine's; the cluster engine keeps nothing here.
    """
    if settings.engine == "embedded":
        from gputel.broker.engine.embedded import EmbeddedEngine

        return EmbeddedEngine(settings, data_dir, clock=clock, disk=disk)
    try:
        from gputel.broker.engine.jetstream import JetStreamEngine
    except ImportError as error:
        raise InputError(
            f"broker.engine: jetstream needs the package {error.name}",
            hint="pip install 'gputel[cluster]' brings it",
        ) from None
    return JetStreamEngine(settings, clock=clock)
