"""What the broker's errors are on the wire: a status, a sentence, and sometimes a fact."""

from __future__ import annotations

from typing import Any, Final

import grpc
import grpc.aio

from gputel.broker.engine import NoRoom, PartitionFailed
from gputel.errors import (
    BrokerUnavailable,
    FrameTooLarge,
    GputelError,
    InputError,
    NotFound,
    ProducerFenced,
)

Context = grpc.aio.ServicerContext[Any, Any]


class LeaseLost(GputelError):
    """A member of a group that was silent for longer than its lease."""


class GroupInUse(GputelError):
    """A group that can't be moved now, because it is at work."""


_CODES: Final = (
    ((InputError, FrameTooLarge), grpc.StatusCode.INVALID_ARGUMENT),
    ((ProducerFenced, GroupInUse), grpc.StatusCode.FAILED_PRECONDITION),
    ((NotFound,), grpc.StatusCode.NOT_FOUND),
    ((NoRoom,), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ((LeaseLost,), grpc.StatusCode.ABORTED),
    ((PartitionFailed, BrokerUnavailable, OSError), grpc.StatusCode.UNAVAILABLE),
)


async def refuse(context: Context, error: GputelError | OSError) -> None:
    """End the call with the status of `error`."""
    code = next(
        (code for kinds, code in _CODES if isinstance(error, kinds)), grpc.StatusCode.INTERNAL
    )
    facts: tuple[tuple[str, str], ...] = ()
    if isinstance(error, ProducerFenced):
        facts = (("newer-epoch", str(error.newer_epoch)),)
    await context.abort(code, str(error), facts)
