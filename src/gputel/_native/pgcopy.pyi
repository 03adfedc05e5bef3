from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel._reference.pgcopy import FieldType, Values

class CopyStream:
    def __init__(self, types: Sequence[FieldType]) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def append(
        self, rows: int, values: Sequence[Values], valid: npt.NDArray[np.uint8] | None = None
    ) -> None: ...
    def finish(self) -> memoryview: ...
