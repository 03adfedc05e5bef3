"""Where spools are, and how large one may become."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class SpoolPlace(NamedTuple):
    """A directory for the spools of this node's producers, and the most bytes of each."""

    directory: Path
    bytes_max: int
