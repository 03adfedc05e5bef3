"""What travels: chunks of samples (docs/reference/chunk-format.md) in frames (frame.md)."""

from typing import TYPE_CHECKING

from gputel.kernels import ChunkHeader, read_chunk_header
from gputel.lazy import lazy
from gputel.wire.chunk import chunk_rows, decode_chunk, encode_batch

if TYPE_CHECKING:
    from gputel.wire.frame import (
        I64_MAX,
        PERCENT_MAX,
        PROCESSES_MAX,
        Frame,
        GpuChunks,
        decode_frame,
        encode_frame,
    )

__all__ = [
    "I64_MAX",
    "PERCENT_MAX",
    "PROCESSES_MAX",
    "ChunkHeader",
    "Frame",
    "GpuChunks",
    "chunk_rows",
    "decode_chunk",
    "decode_frame",
    "encode_batch",
    "encode_frame",
    "read_chunk_header",
]

# A collector that publishes nothing does without protobuf.
__getattr__ = lazy(
    __name__,
    dict.fromkeys(
        (
            "I64_MAX",
            "PERCENT_MAX",
            "PROCESSES_MAX",
            "Frame",
            "GpuChunks",
            "decode_frame",
            "encode_frame",
        ),
        "frame",
    ),
)
