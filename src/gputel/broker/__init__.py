"""The message queue: a durable, partitioned log with consumer groups, and its client."""

from typing import TYPE_CHECKING

from gputel.broker import sockets  # noqa: F401  before gRPC
from gputel.broker.settings import BrokerSettings
from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.broker.client import BrokerClient, connect
    from gputel.broker.consumer import Consumer, Delivery, StartAt
    from gputel.broker.publisher import Publisher

__all__ = [
    "BrokerClient",
    "BrokerSettings",
    "Consumer",
    "Delivery",
    "Publisher",
    "StartAt",
    "connect",
]

__getattr__ = lazy(
    __name__,
    {
        "BrokerClient": "client",
        "connect": "client",
        "Consumer": "consumer",
        "Delivery": "consumer",
        "StartAt": "consumer",
        "Publisher": "publisher",
    },
)
