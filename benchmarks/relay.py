"""The least that a broker does: what gRPC, one checksum and one sync take, and nothing else.

    python -m benchmarks.relay DIRECTORY

It speaks gputel.mq.v1 well enough for one producer and one observer of a topic. What comes in is
written, synced, acknowledged and delivered; nothing is remembered, deduplicated, found again or
given back, and there is one partition, one file and no credit. So it is the floor below a broker's
latency and CPU time on a machine, not a broker. It serves until stdin ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import grpc
import grpc.aio

from benchmarks.brokers import run
from gputel import kernels
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker import transport
from gputel.broker.engine.disk import BLOCK_BYTES, direct_memory, open_direct
from gputel.broker.engine.log_file import STAGE_BYTES
from gputel.broker.engine.record import Record
from gputel.broker.server import OPTIONS, SERVICE

BATCH_FRAMES: Final = 16
COMMIT_FRAMES: Final = 64

Context = grpc.aio.ServicerContext[Any, Any]


class Topic:
    """A file, and the thread that appends to it until its producer has gone."""

    def __init__(self, path: Path) -> None:
        self.durable: asyncio.Queue[list[Record]] = asyncio.Queue()
        self.acked: asyncio.Queue[int] = asyncio.Queue()
        self.offset = 0
        self._loop = asyncio.get_running_loop()
        self._taken: SimpleQueue[list[Record]] = SimpleQueue()
        self._fd = open_direct(path, os.O_RDWR | os.O_CREAT)
        threading.Thread(target=self._commit).start()

    def take(self, producer: str, messages: transport.Published) -> None:
        """Hand messages on to the thread."""
        assert isinstance(messages, list)
        now_ns = time.time_ns()
        records = [
            Record(self.offset + number, now_ns, producer, 1, sequence, b"", payload)
            for number, (sequence, _, payload) in enumerate(messages)
        ]
        self.offset += len(records)
        self._taken.put(records)

    def end(self) -> None:
        """Nothing more comes."""
        self._taken.put([])

    def _commit(self) -> None:
        stage = direct_memory(STAGE_BYTES)
        position = 0
        while records := self._taken.get():
            while not self._taken.empty() and len(records) <= COMMIT_FRAMES - BATCH_FRAMES:
                more = self._taken.get()
                if not more:
                    self._taken.put(more)
                    break
                records = records + more
            filled, _ = kernels.encode_records(records, 0, records[0].offset, stage, 0)
            end = filled + -filled % BLOCK_BYTES
            os.pwrite(self._fd, stage[:end], position)
            os.fdatasync(self._fd)
            position += end
            self._loop.call_soon_threadsafe(self._committed, records)
        os.close(self._fd)

    def _committed(self, records: list[Record]) -> None:
        self.durable.put_nowait(records)
        self.acked.put_nowait(records[-1].sequence)


class Relay:
    """The two calls of a broker that carry messages."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._topics: dict[str, Topic] = {}

    def _topic(self, name: str) -> Topic:
        if name not in self._topics:
            self._topics[name] = Topic(self._directory / name)
        return self._topics[name]

    async def publish(self, _: object, context: Context) -> None:
        """Serve a producer."""
        opened = (await context.read()).open
        topic = self._topic(opened.topic)
        await context.write(mq.PublishResponse(opened=mq.PublishOpened(partitions=1)))

        async def acknowledge() -> None:
            while True:
                ack = mq.PublishAck(sequence=await topic.acked.get())
                await context.write(mq.PublishResponse(ack=ack))

        acknowledging = asyncio.create_task(acknowledge())
        while (request := await context.read()) is not grpc.aio.EOF:
            topic.take(opened.producer, request)
        topic.end()
        acknowledging.cancel()

    async def consume(self, _: object, context: Context) -> None:
        """Serve an observer."""
        topic = self._topic((await context.read()).open.topic)
        await context.write(mq.ConsumeResponse(opened=mq.ConsumeOpened(partitions=1, member="m")))
        assignment = mq.Assignment(partitions=[0], generation=1)
        await context.write(mq.ConsumeResponse(assignment=assignment))

        async def deliver() -> None:
            while True:
                records = await topic.durable.get()
                for first in range(0, len(records), BATCH_FRAMES):
                    batch = [(record, 1) for record in records[first : first + BATCH_FRAMES]]
                    await context.write(kernels.encode_deliveries(0, batch))

        delivering = asyncio.create_task(deliver())
        while await context.read() is not grpc.aio.EOF:
            pass
        delivering.cancel()


async def serve(directory: Path) -> None:
    """Run a relay on a free port, which is printed, until stdin ends."""
    relay = Relay(directory)
    server = grpc.aio.server(options=OPTIONS)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Publish": grpc.stream_stream_rpc_method_handler(
            relay.publish, transport.read_published, mq.PublishResponse.SerializeToString
        ),
        "Consume": grpc.stream_stream_rpc_method_handler(
            relay.consume, mq.ConsumeRequest.FromString, transport.write_consumed
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        pass
    await server.stop(0.5)


if __name__ == "__main__":
    run(serve(Path(sys.argv[1])))
