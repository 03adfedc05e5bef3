"""From the configuration to a source."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from gputel.catalog import Cadence
from gputel.errors import SourceUnavailable
from gputel.sources.replay import Replay
from gputel.sources.settings import SourceSettings
from gputel.sources.sim import Simulator
from gputel.sources.source import Source

REPLAY = "replay:"

_log = logging.getLogger(__name__)


def open_source(settings: SourceSettings, periods_ns: Mapping[Cadence, int]) -> Source:
    """The source that `settings` names; its `open` is called by the collector.

    `periods_ns` is the sampling period of each cadence. This build has no NVML source: `nvml`
    raises SourceUnavailable, and `auto` is the simulator. InputError: a bad file or model.
    """
    node = settings.node or socket.gethostname()
    if settings.kind.startswith(REPLAY):
        spec = settings.kind.removeprefix(REPLAY)
        return Replay(spec, node=node, speed=settings.speed, once=settings.once)
    if settings.kind == "nvml":
        raise SourceUnavailable(
            "source nvml: this build can't read the driver", hint="use sim or replay:PATH"
        )
    if settings.kind == "auto":
        _log.info("source: the simulator, for this build can't read the driver")
    return Simulator(
        node=node,
        gpus=settings.gpus,
        model=settings.model,
        seed=settings.seed,
        periods_ns=periods_ns,
    )
