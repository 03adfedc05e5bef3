"""Configuration of the source (section `source`)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from gputel import limits


class SourceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where samples come from."""

    #: auto (nvml when there is a driver, else sim), nvml, sim, or replay:PATH.
    kind: Annotated[str, msgspec.Meta(pattern=r"^(auto|nvml|sim|replay:.+)$")] = "auto"
    #: Node name; the host's name when empty. A replay file that names its hosts wins.
    node: str = ""
    #: nvml: the driver's library; empty: libnvidia-ml.so.1, as the system's loader finds it.
    library: str = ""
    #: sim: how many GPUs, which model, and the seed of its random numbers.
    gpus: Annotated[int, msgspec.Meta(ge=1, le=limits.GPUS_PER_NODE_MAX)] = 8
    model: str = "NVIDIA H100 80GB HBM3"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1
    #: replay: 1 is the recorded pace, 10 ten times as fast, 0 as fast as possible (`max`).
    speed: Annotated[float, msgspec.Meta(ge=0)] = 1
    #: replay: stop at the end of the file, with its own timestamps; otherwise it is looped,
    #: with time shifted to now.
    once: bool = False
