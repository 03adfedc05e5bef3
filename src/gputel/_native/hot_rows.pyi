from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel.rows import ReadRows

class HotStream:
    def __init__(self, storages: str) -> None: ...
    @property
    def rows(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    def append(
        self,
        gpu_id: int | npt.NDArray[np.int64],
        epoch: int,
        time_ns: npt.NDArray[np.int64],
        sequence: npt.NDArray[np.int64],
        columns: Sequence[npt.NDArray[np.generic]],
        valid: npt.NDArray[np.uint8],
    ) -> None: ...
    def finish(self) -> memoryview: ...

class HotRows:
    def __init__(self, storages: str, wanted: Sequence[int]) -> None: ...
    @property
    def rows(self) -> int: ...
    def feed(self, data: bytes | memoryview) -> None: ...
    def finish(self) -> ReadRows: ...
