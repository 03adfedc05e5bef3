"""The message queue: a durable, partitioned log with consumer groups, and its client."""

from gputel.broker.client import BrokerClient, connect
from gputel.broker.consumer import Consumer, Delivery, StartAt
from gputel.broker.publisher import Publisher
from gputel.broker.settings import BrokerSettings

__all__ = [
    "BrokerClient",
    "BrokerSettings",
    "Consumer",
    "Delivery",
    "Publisher",
    "StartAt",
    "connect",
]
