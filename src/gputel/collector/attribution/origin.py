"""Where assignments come from, and what one of them says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from gputel.inventory import Gpu

TEXT_CHARS_MAX: Final = 256

#: Why an origin could not be read; the `reason` of gputel_attribution_errors_total.
Reason = Literal["absent", "denied", "timeout", "unavailable", "invalid"]


class ReadFailed(Exception):
    """An origin gave no answer; the message is for the log."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True, slots=True, order=True)
class Assignment:
    """A GPU, or a part of it, in use by somebody. What does not apply is empty.

    share          number of a time-sliced or otherwise shared device
    part           only a MIG device of the GPU is used, of which the rest tells what is known:
                   its instance in the GPU, its profile such as 1g.10gb, its UUID
    """

    gpu_uuid: str
    namespace: str = ""
    pod: str = ""
    container: str = ""
    hpc_job: str = ""
    share: str = ""
    part: bool = False
    gpu_instance: str = ""
    mig_profile: str = ""
    mig_uuid: str = ""


class Origin(Protocol):
    """One source of assignments, read again and again by one task."""

    name: str

    async def read(self, gpus: Sequence[Gpu]) -> list[Assignment]:
        """All assignments now. It returns or raises within its own deadline. ReadFailed."""
        ...

    @property
    def skipped(self) -> int:
        """Entries of the last reading that were absurd or over a bound."""
        ...

    async def close(self) -> None:
        """Release what is held."""
        ...


def bounded(text: str) -> str:
    """`text`, cut: a label value is no place for a novel."""
    return text[:TEXT_CHARS_MAX]
