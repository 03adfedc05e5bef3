"""The only door to the kernels.

    ring, columns, codec, batches, records, chunk_rows, hot_rows, minutes, pgcopy, nvml, template
        native (gputel._native), or the readable twins (gputel._reference) where
        GPUTEL_KERNELS=reference asks for them

A native module that is missing is an ImportError, never a silent slow path. The variable is
read here and not in `gputel.config`, because it decides what this module consists of.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gputel._reference.batches import DeliveryFields, MessageFields
from gputel._reference.hot_rows import places as hot_places
from gputel._reference.pgcopy import FieldType
from gputel._reference.records import MAGIC as RECORD_MAGIC
from gputel._reference.template import Hole, NumberForm
from gputel.chunks import ChunkHeader, DecodedChunk, RowBlock
from gputel.plan import Plan
from gputel.rows import MinuteStatistics, Sealed, WhenFull, row_dtype

NATIVE = os.environ.get("GPUTEL_KERNELS") != "reference"

if TYPE_CHECKING:
    from gputel._native.batches import (
        decode_deliveries,
        decode_messages,
        encode_deliveries,
        encode_messages,
    )
    from gputel._native.chunk_rows import ChunkRows
    from gputel._native.codec import decode_chunk, encode_chunk, read_chunk_header
    from gputel._native.columns import Columns
    from gputel._native.hot_rows import HotRows, HotStream
    from gputel._native.minutes import minute_statistics
    from gputel._native.nvml import Sweeper
    from gputel._native.pgcopy import CopyStream
    from gputel._native.records import decode_records, encode_records
    from gputel._native.ring import Ring
    from gputel._native.template import Template
elif NATIVE:
    try:
        from gputel._native.batches import (
            decode_deliveries,
            decode_messages,
            encode_deliveries,
            encode_messages,
        )
        from gputel._native.chunk_rows import ChunkRows
        from gputel._native.codec import decode_chunk, encode_chunk, read_chunk_header
        from gputel._native.columns import Columns
        from gputel._native.hot_rows import HotRows, HotStream
        from gputel._native.minutes import minute_statistics
        from gputel._native.nvml import Sweeper
        from gputel._native.pgcopy import CopyStream
        from gputel._native.records import decode_records, encode_records
        from gputel._native.ring import Ring
        from gputel._native.template import Template
    except ImportError as error:
        raise ImportError(
            f"gputel's native kernels can't be loaded ({error}); build them with "
            "`python setup.py build_ext --inplace` (or `make build`), or set "
            "GPUTEL_KERNELS=reference to run on the slow readable ones"
        ) from error
else:
    from gputel._reference.batches import (
        decode_deliveries,
        decode_messages,
        encode_deliveries,
        encode_messages,
    )
    from gputel._reference.chunk_rows import ChunkRows
    from gputel._reference.codec import decode_chunk, encode_chunk, read_chunk_header
    from gputel._reference.columns import Columns
    from gputel._reference.hot_rows import HotRows, HotStream
    from gputel._reference.minutes import minute_statistics
    from gputel._reference.nvml import Sweeper
    from gputel._reference.pgcopy import CopyStream
    from gputel._reference.records import decode_records, encode_records
    from gputel._reference.ring import Ring
    from gputel._reference.template import Template


def nvml_sweeper(
    plans: Sequence[Plan], nvml: Any, functions: Mapping[str, int], devices: int
) -> Sweeper:
    """The sweep of up to `devices` GPUs. The native one calls `functions` (addresses by name),
    the twin the same functions through `nvml` (pynvml, or what behaves like it)."""
    return Sweeper(plans, functions if NATIVE else nvml, devices)


__all__ = [
    "NATIVE",
    "RECORD_MAGIC",
    "ChunkHeader",
    "ChunkRows",
    "Columns",
    "CopyStream",
    "DecodedChunk",
    "DeliveryFields",
    "FieldType",
    "Hole",
    "HotRows",
    "HotStream",
    "MessageFields",
    "MinuteStatistics",
    "NumberForm",
    "Ring",
    "RowBlock",
    "Sealed",
    "Sweeper",
    "Template",
    "WhenFull",
    "decode_chunk",
    "decode_deliveries",
    "decode_messages",
    "decode_records",
    "encode_chunk",
    "encode_deliveries",
    "encode_messages",
    "encode_records",
    "hot_places",
    "minute_statistics",
    "nvml_sweeper",
    "read_chunk_header",
    "row_dtype",
]
