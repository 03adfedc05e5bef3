"""Messages of a producer `p`, published and taken through the client."""

from __future__ import annotations

from gputel.broker import BrokerClient
from support.wire import DEADLINE_S


async def publish(client: BrokerClient, count: int, *, topic: str = "t", first: int = 1) -> None:
    """Publish `m<sequence>` with sequences from `first` on, over four keys."""
    publisher = await client.publisher(topic, "p", epoch=1)
    for sequence in range(first, first + count):
        await publisher.publish(sequence, f"k{sequence % 4}", f"m{sequence}".encode())
    assert await publisher.flush(DEADLINE_S)
    await publisher.close()


async def take(client: BrokerClient, group: str, count: int, topic: str = "t") -> list[bytes]:
    """The payloads of the next `count` messages, as a member that acknowledges them."""
    async with client.consumer(topic, group=group) as consumer:
        taken = []
        async for delivery in consumer:
            taken.append(delivery.payload)
            await consumer.ack(delivery.partition, [delivery.offset])
            if len(taken) == count:
                return taken
    raise AssertionError("the consumer ended")
