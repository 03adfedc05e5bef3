"""What a supervised child writes on its ready pipe: JSON objects, one a line.

    {"service": "api", "pid": 12, "addresses": {"api": "http://..."}, "facts": {...}}
    {"error": {"type": "PortInUse", "message": "..."}}

The first says that the child serves; the second that it can't, and why. When the pipe
closes the child is gone. The other way, standard input carries the configuration as one
line of JSON; when it closes the supervisor is gone.
"""

from __future__ import annotations

import msgspec

from gputel import errors
from gputel.errors import GputelError

LINE_BYTES_MAX = 64 * 1024


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """A service that is ready."""

    service: str
    pid: int
    addresses: dict[str, str] = {}
    facts: dict[str, str] = {}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a service can't run. `type` names a class of `gputel.errors`."""

    type: str
    message: str


class Reported(GputelError):
    """A child's error that has no class here; the text is the child's."""


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    service: str = ""
    pid: int = 0
    addresses: dict[str, str] = {}
    facts: dict[str, str] = {}
    error: Failure | None = None


def encode_ready(announcement: Announcement) -> bytes:
    """The line that says: ready."""
    return msgspec.json.encode(announcement) + b"\n"


def encode_failure(error: GputelError) -> bytes:
    """The line that says: can't run, and why."""
    failure = Failure(type=type(error).__name__, message=str(error)[:4096])
    return msgspec.json.encode({"error": failure}) + b"\n"


def decode(line: bytes) -> Announcement | Failure:
    """What a line says; ValueError when it is none of ours."""
    decoded = msgspec.json.decode(line, type=_Line)
    if decoded.error is not None:
        return decoded.error
    if not decoded.service:
        raise ValueError("neither ready nor error")
    return Announcement(
        service=decoded.service,
        pid=decoded.pid,
        addresses=decoded.addresses,
        facts=decoded.facts,
    )


def revive(failure: Failure) -> GputelError:
    """The child's error as one that the command line maps to the same exit code."""
    kind = getattr(errors, failure.type, None)
    if not (isinstance(kind, type) and issubclass(kind, GputelError)):
        return Reported(failure.message)
    error = kind.__new__(kind)
    Exception.__init__(error, failure.message)
    error.hint = None
    return error
