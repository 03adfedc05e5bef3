from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel.rows import MinuteStatistics

def minute_statistics(
    time_ns: npt.NDArray[np.int64],
    columns: Sequence[npt.NDArray[np.generic]],
    valid: npt.NDArray[np.uint8],
) -> MinuteStatistics: ...
