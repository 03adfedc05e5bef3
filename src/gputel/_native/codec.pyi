from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gputel.chunks import Array, Bits, ChunkHeader, DecodedChunk

def encode_chunk(
    set_id: int,
    metric_ids: Sequence[int],
    storages: str,
    time_ns: npt.NDArray[np.int64],
    sequence: npt.NDArray[np.int64],
    columns: Sequence[Array],
    valid: Bits,
) -> bytes: ...
def read_chunk_header(payload: bytes | memoryview) -> ChunkHeader: ...
def decode_chunk(payload: bytes | memoryview) -> DecodedChunk: ...
def crc32c(data: bytes | memoryview, *, portable: bool = False) -> int: ...
