"""Where samples come from. The collector knows only the seam `Source`.

    source                      what it reads
    ------                      -------------
    nvml                        the driver, through NVML
    sim                         a model of a node
    replay                      a DCGM CSV dump or an nvidia-smi log

A source never blocks on what comes after it: it writes rows into rings and returns.
"""

from typing import TYPE_CHECKING

from gputel.lazy import lazy
from gputel.sources.settings import SourceSettings

if TYPE_CHECKING:
    from gputel.sources.opening import open_source
    from gputel.sources.source import Rings, Source

__all__ = ["Rings", "Source", "SourceSettings", "open_source"]

__getattr__ = lazy(__name__, {"open_source": "opening", "Rings": "source", "Source": "source"})
