from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel.rows import WhenFull

class Ring:
    storages: str
    when_full: WhenFull
    capacity_rows: int
    row_dtype: np.dtype[np.void]
    def __init__(self, storages: str, capacity_rows: int, when_full: WhenFull = ...) -> None: ...
    @property
    def pushed_rows(self) -> int: ...
    @property
    def pending_rows(self) -> int: ...
    @property
    def free_rows(self) -> int: ...
    @property
    def dropped_rows(self) -> int: ...
    def push(
        self,
        time_ns: int,
        gpu: int,
        sequence: int,
        lateness_us: int,
        values: Sequence[int | float | None],
    ) -> bool: ...
    def push_rows(self, rows: npt.NDArray[np.void]) -> int: ...
