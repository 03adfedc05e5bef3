"""The cluster engine: topics in NATS JetStream. Needs the extra `cluster`."""

from typing import TYPE_CHECKING

from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.broker.engine.jetstream.engine import JetStreamEngine

__all__ = ["JetStreamEngine"]

__getattr__ = lazy(__name__, {"JetStreamEngine": "engine"})
