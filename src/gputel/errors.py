"""Every error gputel raises on purpose.

An error is for the person who reads it: what was wrong, where, what is allowed, what to
do next. Fields are kept beside the text, so that a caller never parses a message. Only
`gputel.cli` turns an error into an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence


class GputelError(Exception):
    """Base of all errors that the world causes (a bug of ours is an AssertionError).

    `hint` is one sentence that says what to do next; `str(error)` contains it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.hint = hint


class ConfigError(GputelError):
    """A configuration value that can't be used. `path` is dotted, as in the YAML file."""

    def __init__(
        self, path: str, message: str, *, origin: str = "", allowed: Sequence[str] = ()
    ) -> None:
        where = f"{origin}: {path}" if origin else path
        tail = f"; allowed: {', '.join(allowed)}" if allowed else ""
        super().__init__(f"{where}: {message}{tail}")
        self.path = path
        self.origin = origin
        self.allowed = tuple(allowed)


class InputError(GputelError):
    """A file or argument given by the user that can't be read or makes no sense."""


class SourceUnavailable(GputelError):
    """A source that can't be opened: no driver, no GPU, no such library."""


class CommandNotFound(GputelError):
    """A program that `gputel sim run` shall start and that isn't there."""


class CommandNotExecutable(GputelError):
    """A program that `gputel sim run` shall start and that the system refuses to execute."""


class PortInUse(GputelError):
    """An address that another process listens on already."""

    def __init__(self, service: str, address: str) -> None:
        super().__init__(
            f"{service}: {address} is in use by another process",
            hint="stop that process, or choose another port",
        )
        self.service = service
        self.address = address


class DatabaseUnavailable(GputelError):
    """PostgreSQL can't be reached, refuses us, or lacks what gputel needs."""


class EmbeddedPostgresError(GputelError):
    """The embedded PostgreSQL can't be prepared or started."""


class NatsServerError(GputelError):
    """A nats-server can't be found, prepared or started."""


class BrokerUnavailable(GputelError):
    """The broker can't be reached or closed the stream."""


class ProducerFenced(GputelError):
    """A newer epoch of the same producer has published: this one must stop."""

    def __init__(self, producer: str, epoch: int, newer_epoch: int) -> None:
        super().__init__(f"producer {producer!r}: epoch {epoch} is fenced by {newer_epoch}")
        self.producer = producer
        self.epoch = epoch
        self.newer_epoch = newer_epoch


class FrameTooLarge(GputelError):
    """A frame above the hard cap; nothing of it was stored."""

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"frame of {size_bytes} bytes, at most {limit_bytes} are allowed")
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes


class LogCorrupt(GputelError):
    """A record in the middle of a partition's log that fails its checksum."""


class ChunkCorrupt(GputelError):
    """Bytes that are no valid chunk: bad magic, checksum, length or value range."""


class RowCorrupt(GputelError):
    """A stored row whose cells are none of its metric set."""


class FrameCorrupt(GputelError):
    """Bytes that are no valid frame envelope."""


class CaptureCorrupt(GputelError):
    """A file that is no capture, or one that can't be read beyond `position`."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"byte {position}: {message}")
        self.position = position


class QueryInvalid(GputelError):
    """A query that can't be understood. `parameter` names the culprit."""

    def __init__(self, parameter: str, message: str, *, allowed: Sequence[str] = ()) -> None:
        tail = f"; allowed: {', '.join(allowed)}" if allowed else ""
        super().__init__(f"{parameter}: {message}{tail}")
        self.parameter = parameter
        self.allowed = tuple(allowed)


class NotFound(GputelError):
    """A resource (GPU, node, topic, metric) that does not exist."""
