"""The allocator of a process that messages of half a MiB go through.

glibc hands a freed block of that size back to the kernel, and the next message takes fresh
pages: a fault for each 4 KiB of it, which costs more than all copying. What is kept instead was
in use before: at most as much as each thread has had at once.
"""

from __future__ import annotations

import ctypes
from typing import Final

from gputel.limits import MIB

BLOCK_BYTES_MAX: Final = 8 * MIB  # a larger block is the kernel's, as ever
#: At the end of each arena; between blocks in use there may be more.
KEPT_BYTES_MAX: Final = 16 * MIB
GROWTH_BYTES: Final = 1 * MIB

# Of malloc.h.
_TRIM_THRESHOLD: Final = -1
_TOP_PAD: Final = -2
_MMAP_THRESHOLD: Final = -3


def keep_freed() -> bool:
    """Keep freed memory for the next message; False where the C library has no `mallopt`."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(
        mallopt(parameter, size_bytes) == 1
        for parameter, size_bytes in (
            (_MMAP_THRESHOLD, BLOCK_BYTES_MAX),
            (_TRIM_THRESHOLD, KEPT_BYTES_MAX),
            (_TOP_PAD, GROWTH_BYTES),
        )
    )
