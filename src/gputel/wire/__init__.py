"""What travels: chunks of samples (docs/reference/chunk-format.md) in frames (frame.md)."""

from gputel.kernels import ChunkHeader, read_chunk_header
from gputel.wire.chunk import chunk_rows, decode_chunk, encode_batch
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
