"""From the configuration to a source."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

from gputel.catalog import Cadence
from gputel.errors import SourceUnavailable
from gputel.sources.nvml import DriverWithoutGpu, Nvml
from gputel.sources.replay import Replay
from gputel.sources.settings import SourceSettings
from gputel.sources.sim import Simulator
from gputel.sources.source import Source

REPLAY = "replay:"

_log = logging.getLogger(__name__)


def open_source(
    settings: SourceSettings, periods_ns: Mapping[Cadence, int], *, processes: bool = False
) -> Source:
    """The source that `settings` names; its `open` is called by the collector.

    `periods_ns` is the sampling period of each cadence; `processes` asks for process accounting.
    `auto` is the driver when there is one with GPUs, else the simulator. SourceUnavailable:
    `nvml` without a driver or a GPU, or a driver whose GPUs can't be opened. InputError: a bad
    file or model.
    """
    node = settings.node or socket.gethostname()
    if settings.kind.startswith(REPLAY):
        spec = settings.kind.removeprefix(REPLAY)
        return Replay(spec, node=node, speed=settings.speed, once=settings.once)
    if settings.kind in ("nvml", "auto"):
        nvml = Nvml(node=node, periods_ns=periods_ns, library=settings.library, processes=processes)
        try:
            nvml.open()
        except DriverWithoutGpu:
            raise  # simulated GPUs in place of broken ones would be a lie
        except SourceUnavailable as error:
            if settings.kind == "nvml":
                raise
            _log.info("source: the simulator, for NVML is not available: %s", error)
        else:
            _log.info("source: nvml, %s", nvml.description)
            return nvml
    return Simulator(
        node=node,
        gpus=settings.gpus,
        model=settings.model,
        seed=settings.seed,
        periods_ns=periods_ns,
        processes=processes,
    )
