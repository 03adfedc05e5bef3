"""Frames: what goes in comes out, and what makes no sense is FrameCorrupt with the field's name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel import limits, wire
from gputel._proto.gputel.telemetry.v1 import frame_pb2
from gputel.errors import FrameCorrupt, FrameTooLarge
from gputel.inventory import Event, EventKind, Gpu, ProcessKind, ProcessSample

GPU = Gpu("GPU-1", "node-1", 3, "nvidia3", "0000:1a:00.0", "H100", "1650", "Tesla", "96.00", "550",
          "12.550", 2**36)  # fmt: skip
PROCESS = ProcessSample(5, "GPU-1", 4711, ProcessKind.COMPUTE, 2**33, 97, 40, 0, 1, "python",
                        "/kubepods.slice/x.scope", "c0ffee")  # fmt: skip
FRAME = wire.Frame(
    producer="collector:node-1",
    epoch=2**62,
    sequence=1,
    node="node-1",
    sealed_at_ns=-1,
    gpus=(wire.GpuChunks("GPU-1", (b"one", b"two")), wire.GpuChunks("GPU-2", ())),
    inventory=(GPU, replace(GPU, uuid="GPU-2", memory_total_bytes=None)),
    events=tuple(Event(i, kind, "GPU-1", -i, "text") for i, kind in enumerate(EventKind)),
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    processes=tuple(replace(PROCESS, kind=kind) for kind in ProcessKind),
)


def test_round_trip() -> None:
    assert wire.decode_frame(wire.encode_frame(FRAME)) == FRAME
    bare = wire.Frame("p", 1, 1, "n", 0, ())
    assert wire.decode_frame(wire.encode_frame(bare)) == bare


def test_zero_bytes_of_memory_are_not_unknown_memory() -> None:
    frame = replace(FRAME, inventory=(replace(GPU, memory_total_bytes=0),))
    assert wire.decode_frame(wire.encode_frame(frame)).inventory[0].memory_total_bytes == 0


def test_an_idle_process_is_not_one_of_which_nothing_is_known() -> None:
    unknown = ProcessSample(5, "GPU-1", 1, ProcessKind.MPS)
    idle = replace(unknown, memory_used_bytes=0, sm_utilization_percent=0)
    frame = replace(FRAME, processes=(unknown, idle))
    assert wire.decode_frame(wire.encode_frame(frame)).processes == (unknown, idle)


def test_the_cap_is_exact() -> None:
    def frame(size: int) -> wire.Frame:
        return replace(FRAME, gpus=(wire.GpuChunks("GPU-1", (bytes(size),)),))

    spare = limits.FRAME_BYTES_MAX - len(wire.encode_frame(frame(400_000)))
    largest = wire.encode_frame(frame(400_000 + spare))
    assert len(largest) == limits.FRAME_BYTES_MAX
    assert wire.decode_frame(largest) == frame(400_000 + spare)
    with pytest.raises(FrameTooLarge) as refused:
        wire.encode_frame(frame(400_000 + spare + 1))
    assert refused.value.size_bytes == limits.FRAME_BYTES_MAX + 1
    with pytest.raises(FrameCorrupt, match="at most"):
        wire.decode_frame(largest + b"\x00")


def encoded(**changes: Any) -> bytes:
    """FRAME as protobuf, with fields replaced below our own encoder."""
    message = frame_pb2.Frame.FromString(wire.encode_frame(FRAME))
    for name, value in changes.items():
        message.ClearField(name)
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message.SerializeToString()


def process(**changes: Any) -> frame_pb2.ProcessSample:
    fields = {"gpu_uuid": "GPU-1", "pid": 1, "kind": "compute"}
    return frame_pb2.ProcessSample(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"producer": ""}, "producer: missing"),
        ({"producer": "x" * (limits.PRODUCER_BYTES_MAX + 1)}, "producer: longer"),
        ({"producer": "é" * limits.PRODUCER_BYTES_MAX}, "producer: longer"),
        ({"node": ""}, "node: missing"),
        ({"node": "a\0b"}, "node: contains a NUL"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": 2**63}, "epoch"),
        ({"sequence": 0}, "sequence"),
        ({"sequence": 2**64 - 1}, "sequence"),
        ({"traceparent": "x" * 1000}, "traceparent: longer"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="")]}, "uuid: missing"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="a\0b")]}, "uuid: contains a NUL"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="a" * 513)]}, "uuid: longer than 512"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="\u00e9" * 257)]}, "uuid: longer than 512"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="a"), frame_pb2.GpuChunks(uuid="a")]}, "gpus: a uuid"),
        ({"gpus": [frame_pb2.GpuChunks(uuid=str(i)) for i in range(65)]}, "gpus: 65"),
        ({"gpus": [frame_pb2.GpuChunks(uuid="a", chunks=[b""] * 65)]}, "chunks of a GPU: 65"),
        ({"inventory": [frame_pb2.GpuInfo(uuid=str(i)) for i in range(65)]}, "inventory: 65"),
        ({"inventory": [frame_pb2.GpuInfo(uuid="a")] * 2}, "inventory: a uuid"),
        ({"inventory": [frame_pb2.GpuInfo(uuid="a", model="\0")]}, "model"),
        ({"inventory": [frame_pb2.GpuInfo(uuid="a", index=2**31)]}, "index"),
        (
            {"inventory": [frame_pb2.GpuInfo(uuid="a", memory_total_bytes=2**63)]},
            "memory_total_bytes",
        ),
        ({"events": [frame_pb2.GpuEvent(kind="party")]}, "event kind 'party'"),
        ({"events": [frame_pb2.GpuEvent(kind="xid", message="x" * 5000)]}, "message: longer"),
        ({"events": [frame_pb2.GpuEvent(kind="xid")] * 4097}, "events: 4097"),
        ({"processes": [process(kind="party")]}, "process kind 'party'"),
        ({"processes": [process(gpu_uuid="")]}, "gpu_uuid: missing"),
        ({"processes": [process(pid=0)]}, "pid: 0"),
        ({"processes": [process(pid=2**31)]}, "pid: 2147483648"),
        ({"processes": [process(name="a\0b")]}, "name: contains a NUL"),
        ({"processes": [process(cgroup="x" * 513)]}, "cgroup: longer"),
        ({"processes": [process(memory_used_bytes=2**63)]}, "memory_used_bytes"),
        ({"processes": [process(sm_utilization_percent=101)]}, "sm_utilization_percent: 101"),
        ({"processes": [process()] * 4097}, "processes: 4097"),
    ],
)
def test_absurd_values_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(FrameCorrupt, match=text):
        wire.decode_frame(encoded(**changes))


def test_bytes_that_are_no_protobuf() -> None:
    with pytest.raises(FrameCorrupt, match="no protobuf frame"):
        wire.decode_frame(b"\xff" * 20)
    with pytest.raises(FrameCorrupt):
        wire.decode_frame(b"")
    broken_utf8 = wire.encode_frame(FRAME).replace(b"collector:node-1", b"collector:node-\xff")
    with pytest.raises(FrameCorrupt, match="no protobuf frame"):
        wire.decode_frame(broken_utf8)


@given(st.data())
def test_a_damaged_frame_is_refused_or_read(data: st.DataObject) -> None:
    damaged = bytearray(wire.encode_frame(FRAME))
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        frame = wire.decode_frame(bytes(damaged))
    except FrameCorrupt:
        return
    assert frame.epoch >= 1
    assert frame.sequence >= 1
