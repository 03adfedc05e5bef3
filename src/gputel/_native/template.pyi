from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel._reference.template import Hole

class Template:
    def __init__(self, texts: Sequence[bytes], holes: Sequence[Hole]) -> None: ...
    def fill(self, cells: npt.NDArray[np.int64], tail: bytes) -> bytes: ...
