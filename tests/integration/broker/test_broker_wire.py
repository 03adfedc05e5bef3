"""The bytes and the example that the documentation shows are what the broker speaks."""

from __future__ import annotations

import ast
import asyncio
import re
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gputel import broker
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from gputel.broker.engines import make_engine
from gputel.broker.server import BrokerServer
from gputel.broker.settings import BrokerSettings
from gputel.clock import SystemClock
from gputel.observe import Health, Telemetry

DOCS = Path(__file__).parents[3] / "docs"
REFERENCE = DOCS / "reference" / "broker.md"
EXAMPLE = DOCS / "how-to" / "broker-from-another-language.md"
T0 = 1_752_871_354_000_000_000
PREFIX_BYTES = 5  # "not compressed", and the length


class StandingClock(SystemClock):
    """It is always the same time of the same day."""

    def time_ns(self) -> int:
        return T0


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[tuple[BrokerServer, grpc.aio.Channel]]:
    telemetry = Telemetry("broker")
    settings = BrokerSettings(listen="127.0.0.1:0", partitions=4, disk_reserve_bytes=0)
    clock = StandingClock()
    engine = make_engine(settings, path, clock=clock)
    server = BrokerServer(settings, engine, telemetry, Health("broker"), clock)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield server, channel
    finally:
        await server.stop()
        telemetry.close()


def documented() -> list[list[tuple[str, str, bytes]]]:
    """The exchanges of the page: (direction, word, message) in order."""
    section = REFERENCE.read_text().partition("## On the wire\n")[2].partition("\n## ")[0]
    exchanges = []
    for block in re.findall(r"(?:^    .*\n)+", section, re.MULTILINE):
        steps = []
        for step in re.split(r"\n    (?=[<>])", textwrap.dedent(block).replace("\n", "\n    ")):
            direction, word, digits = step.split(maxsplit=2)
            framed = bytes.fromhex("".join(digits.split()))
            assert framed[0] == 0
            assert int.from_bytes(framed[1:PREFIX_BYTES], "big") == len(framed) - PREFIX_BYTES
            steps.append((direction, word, framed[PREFIX_BYTES:]))
        exchanges.append(steps)
    return exchanges


async def replay(call: Any, steps: list[tuple[str, str, bytes]], response: Any) -> None:
    """Say what the page says, and hear what it says."""
    for direction, word, message in steps:
        if direction == ">":
            await call.write(message)
            continue
        answer = await call.read()
        while word != "opened" and response.FromString(answer).WhichOneof("response") == "opened":
            answer = await call.read()
        assert answer == message, (word, response.FromString(answer))


async def test_the_documented_bytes_are_what_goes_over_the_wire(tmp_path: Path) -> None:
    publish, consume = documented()
    assert [word for _, word, _ in publish] == ["open", "opened", "batch", "ack"]
    words = ["open", "assignment", "position", "credit", "batch", "ack"]
    assert [word for _, word, _ in consume] == words
    async with asyncio.timeout(20), serving(tmp_path) as (server, channel):
        for method, steps, response in (
            ("Publish", publish, mq.PublishResponse),
            ("Consume", consume, mq.ConsumeResponse),
        ):
            call: Any = channel.stream_stream(f"/gputel.mq.v1.Broker/{method}")()
            await replay(call, steps, response)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        client = await broker.connect(server.address)
        [group] = await client.groups()
        assert [(at.partition, at.next_offset) for at in group.positions if at.next_offset] == [
            (2, 2)
        ]
        await client.close()


def test_the_documented_bytes_are_what_the_page_says_of_them() -> None:
    publish, consume = ({word: data for _, word, data in steps} for steps in documented())
    assert mq.PublishRequest.FromString(publish["open"]).open == mq.PublishOpen(
        topic="t", producer="example:1", epoch=1
    )
    assert mq.PublishResponse.FromString(publish["opened"]).opened.partitions == 4
    messages = mq.PublishRequest.FromString(publish["batch"]).batch.messages
    assert [(m.sequence, m.key, m.payload) for m in messages] == [
        (1, "node-7", b"one"),
        (2, "node-7", b"two"),
    ]
    assert mq.PublishResponse.FromString(publish["ack"]).ack.sequence == 2
    assert mq.ConsumeRequest.FromString(consume["open"]).open == mq.ConsumeOpen(
        topic="t", group="g", ack_timeout_ms=30_000
    )
    assert mq.ConsumeRequest.FromString(consume["ack"]).ack.offsets[0].offsets == [0, 1]
    deliveries = mq.ConsumeResponse.FromString(consume["batch"]).batch.deliveries
    assert {delivery.stored_at_ns for delivery in deliveries} == {T0}


def wrong_names(text: str, of: Any) -> list[str]:
    """Names in a JavaScript object that are no fields of the descriptor `of`, or of those in it."""
    wrong: list[str] = []
    tokens = re.findall(r'"[^"]*"|\w+|[^\s\w]', text)
    inside: list[Any] = []  # the descriptors of the open brackets
    within = of  # that of the value that follows
    before = ""
    for token in tokens:
        if token in "{[(":
            inside.append(within if token != "(" else None)
        elif token in "}])":
            inside.pop()
        elif before in "{," and inside and inside[-1] is not None and token.isidentifier():
            field = inside[-1].fields_by_name.get(token)
            wrong += [] if field else [f"{inside[-1].name}.{token}"]
            within = field.message_type if field else None
        if token == "," and inside:
            within = inside[-1]
        before = token
    return wrong


def written(code: str, name: str) -> list[str]:
    """The objects that `name.write(...)` is called with."""
    found = []
    for match in re.finditer(rf"{name}\.write\(", code):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        found.append(code[match.end() : end - 1])
    return found


def test_the_example_for_another_language_names_what_the_protocol_has() -> None:
    [code] = re.findall(r"```js\n(.*?)```", EXAMPLE.read_text(), re.DOTALL)
    service = mq.DESCRIPTOR.services_by_name["Broker"]
    for name, method in (("producer", "Publish"), ("consumer", "Consume")):
        assert f"const {name} = broker.{method}();" in code
        requests = written(code, name)
        assert len(requests) >= 2
        for request in requests:
            assert not wrong_names(request, service.methods_by_name[method].input_type), request
    assert "gputel.mq.v1" in code
    assert wrong_names("{ open: { topik: 1 } }", mq.PublishRequest.DESCRIPTOR) == [
        "PublishOpen.topik"
    ]
    # What it takes out of responses and deliveries.
    for names, of in (
        ("opened, ack", mq.PublishResponse),
        ("assignment, batch", mq.ConsumeResponse),
        ("partition, offset, payload", mq.Delivery),
    ):
        assert f"{{ {names} }}" in code
        assert set(names.split(", ")) <= set(of.DESCRIPTOR.fields_by_name)


async def test_the_python_example_runs(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    async with asyncio.timeout(20), serving(tmp_path) as (server, channel):
        code = code.replace("127.0.0.1:50051", server.address)
        compiled = compile(code, str(REFERENCE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        await eval(compiled, {"time": time})
        response = await channel.unary_unary(
            "/gputel.mq.v1.Broker/ListGroups",
            request_serializer=mq.ListGroupsRequest.SerializeToString,
            response_deserializer=mq.ListGroupsResponse.FromString,
        )(mq.ListGroupsRequest())
    assert [group.group for group in response.groups] == ["readers"]
    assert sum(at.next_offset for at in response.groups[0].positions) == 1


async def test_grpc_health_answers_by_service(tmp_path: Path) -> None:
    async with asyncio.timeout(20), serving(tmp_path) as (server, channel):
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "gputel.mq.v1.Broker", "grpc.health.v1.Health"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="gputel.mq.v1.Broker"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await stopping


async def test_reflection_hands_out_the_protocol(tmp_path: Path) -> None:
    async with asyncio.timeout(20), serving(tmp_path) as (_, channel):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        request = reflection_pb2.ServerReflectionRequest
        await call.write(request(file_containing_symbol="gputel.mq.v1.Broker"))
        [data] = (await call.read()).file_descriptor_response.file_descriptor_proto
        expected = descriptor_pb2.FileDescriptorProto()
        mq.DESCRIPTOR.CopyToProto(expected)
        assert descriptor_pb2.FileDescriptorProto.FromString(data) == expected
        await call.write(request(file_containing_symbol="gputel.mq.v1.Nothing"))
        assert (await call.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        await call.done_writing()
