"""A frame: what one publish carries, the chunks of one node. docs/reference/frame.md."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from gputel import limits
from gputel._proto.gputel.telemetry.v1 import frame_pb2
from gputel.errors import FrameCorrupt, FrameTooLarge
from gputel.inventory import Event, EventKind, Gpu, ProcessKind, ProcessSample

I64_MAX = 2**63 - 1
NAME_BYTES_MAX = 512  # node, uuid, model, ...
MESSAGE_BYTES_MAX = 4 * limits.KIB
EVENTS_MAX = 4096
PROCESSES_MAX = 4096
PID_MAX = 2**31 - 1
PERCENT_MAX = 100
CHUNKS_PER_GPU_MAX = 64


class GpuChunks(NamedTuple):
    """The chunks of one GPU."""

    uuid: str
    chunks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """The samples, events and processes of one node since its last frame.

    (producer, epoch, sequence) is its identity: `epoch` and `sequence` start at 1 at the
    lowest. Every GPU of `inventory` is of `node`.
    """

    producer: str
    epoch: int
    sequence: int
    node: str
    sealed_at_ns: int
    gpus: tuple[GpuChunks, ...]
    inventory: tuple[Gpu, ...] = ()
    events: tuple[Event, ...] = ()
    traceparent: str = ""
    processes: tuple[ProcessSample, ...] = ()


def encode_frame(frame: Frame) -> bytes:
    """`frame` as protobuf. FrameTooLarge: more than FRAME_BYTES_MAX."""
    message = frame_pb2.Frame(
        producer=frame.producer,
        epoch=frame.epoch,
        sequence=frame.sequence,
        node=frame.node,
        sealed_at_ns=frame.sealed_at_ns,
        gpus=[frame_pb2.GpuChunks(uuid=gpu.uuid, chunks=gpu.chunks) for gpu in frame.gpus],
        inventory=[_encode_gpu(frame.node, gpu) for gpu in frame.inventory],
        events=[_encode_event(event) for event in frame.events],
        traceparent=frame.traceparent,
        processes=[_encode_process(sample) for sample in frame.processes],
    )
    data = message.SerializeToString()
    if len(data) > limits.FRAME_BYTES_MAX:
        raise FrameTooLarge(len(data), limits.FRAME_BYTES_MAX)
    return data


def _encode_gpu(node: str, gpu: Gpu) -> frame_pb2.GpuInfo:
    assert gpu.node == node, "a frame is of one node"
    return frame_pb2.GpuInfo(
        uuid=gpu.uuid,
        index=gpu.index,
        device=gpu.device,
        pci_bus_id=gpu.pci_bus_id,
        model=gpu.model,
        serial=gpu.serial,
        brand=gpu.brand,
        vbios_version=gpu.vbios_version,
        driver_version=gpu.driver_version,
        nvml_version=gpu.nvml_version,
        memory_total_bytes=gpu.memory_total_bytes,
    )


def _encode_event(event: Event) -> frame_pb2.GpuEvent:
    return frame_pb2.GpuEvent(
        time_ns=event.time_ns,
        kind=event.kind.value,
        gpu_uuid=event.gpu_uuid,
        code=event.code,
        message=event.message,
    )


def _encode_process(sample: ProcessSample) -> frame_pb2.ProcessSample:
    return frame_pb2.ProcessSample(
        time_ns=sample.time_ns,
        gpu_uuid=sample.gpu_uuid,
        pid=sample.pid,
        kind=sample.kind.value,
        memory_used_bytes=sample.memory_used_bytes,
        sm_utilization_percent=sample.sm_utilization_percent,
        memory_utilization_percent=sample.memory_utilization_percent,
        encoder_utilization_percent=sample.encoder_utilization_percent,
        decoder_utilization_percent=sample.decoder_utilization_percent,
        name=sample.name,
        cgroup=sample.cgroup,
        container_id=sample.container_id,
    )


def decode_frame(data: bytes) -> Frame:
    """The frame in `data`; its chunks stay opaque. FrameCorrupt: no frame, or absurd values."""
    if len(data) > limits.FRAME_BYTES_MAX:
        raise FrameCorrupt(f"{len(data)} bytes, at most {limits.FRAME_BYTES_MAX} are allowed")
    message = frame_pb2.Frame()
    try:
        message.ParseFromString(bytes(data))
    except (DecodeError, UnicodeDecodeError) as error:
        raise FrameCorrupt(f"no protobuf frame: {error}") from None
    node = _text("node", message.node, required=True)
    _count("gpus", message.gpus, limits.FRAME_GPUS_MAX)
    _count("inventory", message.inventory, limits.FRAME_GPUS_MAX)
    _count("events", message.events, EVENTS_MAX)
    _count("processes", message.processes, PROCESSES_MAX)
    frame = Frame(
        producer=_text("producer", message.producer, limits.PRODUCER_BYTES_MAX, required=True),
        epoch=_natural("epoch", message.epoch),
        sequence=_natural("sequence", message.sequence),
        node=node,
        sealed_at_ns=message.sealed_at_ns,
        gpus=tuple([_decode_chunks(gpu) for gpu in message.gpus]),
        inventory=tuple(_decode_gpu(node, gpu) for gpu in message.inventory),
        events=tuple(_decode_event(event) for event in message.events),
        traceparent=_text("traceparent", message.traceparent),
        processes=tuple(_decode_process(sample) for sample in message.processes),
    )
    _distinct("gpus", [gpu.uuid for gpu in frame.gpus])
    _distinct("inventory", [gpu.uuid for gpu in frame.inventory])
    return frame


def _text(name: str, text: str, bytes_max: int = NAME_BYTES_MAX, *, required: bool = False) -> str:
    if text and text.isascii() and len(text) <= bytes_max and "\0" not in text:
        return text
    if len(text) > bytes_max or len(text.encode()) > bytes_max:
        raise FrameCorrupt(f"{name}: longer than {bytes_max} bytes")
    if "\0" in text:  # PostgreSQL can't store it
        raise FrameCorrupt(f"{name}: contains a NUL character")
    if required and not text:
        raise FrameCorrupt(f"{name}: missing")
    return text


def _natural(name: str, number: int) -> int:
    if not 1 <= number <= I64_MAX:
        raise FrameCorrupt(f"{name}: {number} is outside 1 to {I64_MAX}")
    return number


def _count(name: str, items: Sized, items_max: int) -> None:
    count = len(items)
    if count > items_max:
        raise FrameCorrupt(f"{name}: {count} entries, at most {items_max} are allowed")


def _distinct(name: str, uuids: list[str]) -> None:
    if len(set(uuids)) != len(uuids):
        raise FrameCorrupt(f"{name}: a uuid occurs twice")


def _decode_chunks(message: frame_pb2.GpuChunks) -> GpuChunks:
    # PERF(frame): once a row, at low rates. A slice is made in C, where tuple() asks for each
    # chunk; and almost always what follows is all there is to look at.
    uuid, chunks = message.uuid, tuple(message.chunks[:])
    if len(chunks) > CHUNKS_PER_GPU_MAX:
        _count("chunks of a GPU", chunks, CHUNKS_PER_GPU_MAX)
    if not uuid.isascii() or not 0 < len(uuid) <= NAME_BYTES_MAX or "\0" in uuid:
        uuid = _text("uuid", uuid, required=True)
    return GpuChunks(uuid, chunks)


def _decode_gpu(node: str, message: frame_pb2.GpuInfo) -> Gpu:
    memory = None
    if message.HasField("memory_total_bytes"):
        memory = message.memory_total_bytes
        if memory > I64_MAX:
            raise FrameCorrupt(f"memory_total_bytes: {memory} is above {I64_MAX}")
    if message.index > limits.GPUS_PER_COLLECTOR_MAX:
        raise FrameCorrupt(f"index: {message.index} is above {limits.GPUS_PER_COLLECTOR_MAX}")
    return Gpu(
        uuid=_text("uuid", message.uuid, required=True),
        node=node,
        index=message.index,
        device=_text("device", message.device),
        pci_bus_id=_text("pci_bus_id", message.pci_bus_id),
        model=_text("model", message.model),
        serial=_text("serial", message.serial),
        brand=_text("brand", message.brand),
        vbios_version=_text("vbios_version", message.vbios_version),
        driver_version=_text("driver_version", message.driver_version),
        nvml_version=_text("nvml_version", message.nvml_version),
        memory_total_bytes=memory,
    )


def _decode_event(message: frame_pb2.GpuEvent) -> Event:
    try:
        kind = EventKind(message.kind)
    except ValueError:
        raise FrameCorrupt(f"event kind {message.kind[:64]!r} is unknown") from None
    return Event(
        time_ns=message.time_ns,
        kind=kind,
        gpu_uuid=_text("gpu_uuid", message.gpu_uuid),
        code=message.code,
        message=_text("message", message.message, MESSAGE_BYTES_MAX),
    )


def _decode_process(message: frame_pb2.ProcessSample) -> ProcessSample:
    try:
        kind = ProcessKind(message.kind)
    except ValueError:
        raise FrameCorrupt(f"process kind {message.kind[:64]!r} is unknown") from None
    if not 1 <= message.pid <= PID_MAX:
        raise FrameCorrupt(f"pid: {message.pid} is outside 1 to {PID_MAX}")

    def number(name: str, number_max: int) -> int | None:
        if not message.HasField(name):
            return None
        value: int = getattr(message, name)
        if value > number_max:
            raise FrameCorrupt(f"{name}: {value} is above {number_max}")
        return value

    return ProcessSample(
        time_ns=message.time_ns,
        gpu_uuid=_text("gpu_uuid", message.gpu_uuid, required=True),
        pid=message.pid,
        kind=kind,
        memory_used_bytes=number("memory_used_bytes", I64_MAX),
        sm_utilization_percent=number("sm_utilization_percent", PERCENT_MAX),
        memory_utilization_percent=number("memory_utilization_percent", PERCENT_MAX),
        encoder_utilization_percent=number("encoder_utilization_percent", PERCENT_MAX),
        decoder_utilization_percent=number("decoder_utilization_percent", PERCENT_MAX),
        name=_text("name", message.name),
        cgroup=_text("cgroup", message.cgroup),
        container_id=_text("container_id", message.container_id),
    )
