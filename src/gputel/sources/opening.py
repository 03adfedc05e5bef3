"""From the configuration to a source."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from gputel.catalog import Cadence
from gputel.clock import SYSTEM_CLOCK, Clock
from gputel.errors import SourceUnavailable
from gputel.sources.settings import SourceSettings
from gputel.sources.source import Source

REPLAY = "replay:"

_log = logging.getLogger(__name__)


def open_source(
    settings: SourceSettings, periods_ns: Mapping[Cadence, int], *, clock: Clock = SYSTEM_CLOCK
) -> Source:
    """The source that `settings` names; its `open` is called by the collector.

    `periods_ns` is the sampling period of each cadence. `auto` is NVML when a driver with
    at least one GPU is here, else the simulator. InputError, SourceUnavailable.
    """
    # Each source is imported only when it is asked for.
    node = settings.node or socket.gethostname()
    if settings.kind.startswith(REPLAY):
        from gputel.sources.replay import Replay

        spec = settings.kind.removeprefix(REPLAY)
        return Replay(spec, node=node, speed=settings.speed, once=settings.once)
    if settings.kind in ("nvml", "auto"):
        from gputel.sources.nvml import Nvml

        nvml = Nvml(node=node, periods_ns=periods_ns, clock=clock)
        try:
            gpus = nvml.open()
        except SourceUnavailable as error:
            if settings.kind == "nvml":
                raise
            _log.info("source: the simulator, for there is no NVML here: %s", error)
        else:
            _log.info("source: NVML with %d GPUs (%s)", len(gpus), nvml.description)
            return nvml
    from gputel.sources.sim import Simulator

    return Simulator(
        node=node,
        gpus=settings.gpus,
        model=settings.model,
        seed=settings.seed,
        periods_ns=periods_ns,
    )
