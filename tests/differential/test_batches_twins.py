"""Both codecs of batches write what protobuf writes, and read what it reads or leave it alone."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
from google.protobuf.message import DecodeError

import gputel._native.batches
import gputel._reference.batches
from gputel._proto.gputel.mq.v1 import broker_pb2 as mq
from support.damage import damaged

TWINS: tuple[Any, ...] = (gputel._native.batches, gputel._reference.batches)
KEYS = ("", "node-1", "node-1", "n", "knöten/ü", "鍵" * 50, "k" * 200)
EDGES = (0, 1, 127, 128, 2**14 - 1, 2**14, 2**32 - 1, 2**32, 2**63, 2**64 - 1)
TIMES = (0, 1, -1, 1_790_000_000_000_000_000, -(2**63), 2**63 - 1)


class Record(NamedTuple):
    offset: int
    stored_at_ns: int
    producer: str
    epoch: int
    sequence: int
    payload: bytes


def number(rng: random.Random, bits: int) -> int:
    return rng.choice([rng.getrandbits(rng.randint(0, bits)), *EDGES]) & ((1 << bits) - 1)


def payload(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([0, 1, 127, 128, rng.randint(0, 40_000)]))


def messages(rng: random.Random) -> list[mq.Message]:
    return [
        mq.Message(sequence=number(rng, 64), key=rng.choice(KEYS), payload=payload(rng))
        for _ in range(rng.randint(0, 20))
    ]


def deliveries(rng: random.Random) -> tuple[int, list[tuple[Record, int]]]:
    return number(rng, 32), [
        (
            Record(
                number(rng, 64), rng.choice(TIMES), rng.choice(KEYS),
                number(rng, 64), number(rng, 64), payload(rng),
            ),
            number(rng, 32),
        )
        for _ in range(rng.randint(0, 20))
    ]  # fmt: skip


def proto_messages(batch: list[mq.Message]) -> bytes:
    return mq.PublishRequest(batch=mq.MessageBatch(messages=batch)).SerializeToString()


def proto_deliveries(partition: int, taken: list[tuple[Record, int]]) -> bytes:
    batch = mq.DeliveryBatch()
    for record, attempt in taken:
        batch.deliveries.add(partition=partition, attempt=attempt, **record._asdict())
    return mq.ConsumeResponse(batch=batch).SerializeToString()


def message_fields(data: bytes) -> list[Any] | None:
    """What protobuf reads; None when it is no batch."""
    request = mq.PublishRequest.FromString(data)
    if request.WhichOneof("request") != "batch":
        return None
    return [(m.sequence, m.key, m.payload) for m in request.batch.messages]


def delivery_fields(data: bytes) -> list[Any] | None:
    response = mq.ConsumeResponse.FromString(data)
    if response.WhichOneof("response") != "batch":
        return None
    return [
        (d.partition, d.offset, d.stored_at_ns, d.attempt, d.producer, d.epoch, d.sequence,
         d.payload)
        for d in response.batch.deliveries
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_they_write_and_read_what_protobuf_does(seed: int) -> None:
    rng = random.Random(seed)
    batch = messages(rng)
    sent = proto_messages(batch)
    partition, taken = deliveries(rng)
    stored = proto_deliveries(partition, taken)
    for twin in TWINS:
        assert twin.encode_messages(batch) == sent
        assert twin.decode_messages(sent) == message_fields(sent)
        assert twin.encode_deliveries(partition, iter(taken)) == stored
        assert twin.decode_deliveries(stored) == delivery_fields(stored)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_bytes_are_read_as_protobuf_reads_them_or_left_to_it(seed: int) -> None:
    rng = random.Random(seed)
    small = [mq.Message(sequence=n, key="k", payload=rng.randbytes(n)) for n in range(4)]
    partition, taken = deliveries(rng)
    short = [(record._replace(payload=record.payload[:9]), n) for record, n in taken[:4]]
    read = 0
    for name, data, expected in (
        ("decode_messages", proto_messages(small), message_fields),
        ("decode_deliveries", proto_deliveries(partition, short), delivery_fields),
    ):
        for _ in range(300):
            hostile = damaged(rng, data)
            native, reference = (getattr(twin, name)(hostile) for twin in TWINS)
            assert native == reference, hostile.hex()
            if native is not None:
                read += 1
                try:
                    assert native == expected(hostile), hostile.hex()
                except DecodeError:
                    pytest.fail(f"protobuf refuses what the kernels read: {hostile.hex()}")
    assert read, "nothing that was damaged could be read: the test says little"


@pytest.mark.parametrize(
    "request_",
    [
        mq.PublishRequest(),
        mq.PublishRequest(open=mq.PublishOpen(topic="t", producer="p", epoch=1)),
    ],
)
def test_another_request_is_left_to_protobuf(request_: mq.PublishRequest) -> None:
    for twin in TWINS:
        assert twin.decode_messages(request_.SerializeToString()) is None


@pytest.mark.parametrize(
    "data",
    [
        "12021203",  # a field of the batch that it does not have
        "12040a020100",  # a field of the message that it does not have
        "120a0a080a066b6b6b6b6b",  # a key of the wrong tag
        "12060a04120208011a00",  # bytes behind the batch
        "12070a051a01780801",  # another order
        "12040a021201",  # a key that the message ends within
        "12050a031201ff",  # no UTF-8
        "120d0a0b08ffffffffffffffffff02",  # a number beyond 64 bits
        "12ffffffffffffffffff01",  # a size beyond everything
        "128080808080808080808001",  # a size without an end
    ],
)
def test_other_forms_are_left_to_protobuf(data: str) -> None:
    for twin in TWINS:
        assert twin.decode_messages(bytes.fromhex(data)) is None


def test_what_has_no_form_is_refused() -> None:
    too_much = Record(2**64, 0, "p", 0, 0, b"")
    for twin in TWINS:
        with pytest.raises(UnicodeEncodeError):
            twin.encode_deliveries(0, [(Record(0, 0, "\ud800", 0, 0, b""), 1)])
        with pytest.raises(OverflowError):
            twin.encode_deliveries(0, [(too_much, 1)])
        with pytest.raises(OverflowError):
            twin.encode_deliveries(2**32, [(too_much._replace(offset=1), 1)])
