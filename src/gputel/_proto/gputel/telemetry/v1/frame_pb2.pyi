from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("producer", "epoch", "sequence", "node", "sealed_at_ns", "gpus", "inventory", "events", "traceparent", "processes")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEALED_AT_NS_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    producer: str
    epoch: int
    sequence: int
    node: str
    sealed_at_ns: int
    gpus: _containers.RepeatedCompositeFieldContainer[GpuChunks]
    inventory: _containers.RepeatedCompositeFieldContainer[GpuInfo]
    events: _containers.RepeatedCompositeFieldContainer[GpuEvent]
    traceparent: str
    processes: _containers.RepeatedCompositeFieldContainer[ProcessSample]
    def __init__(self, producer: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., node: _Optional[str] = ..., sealed_at_ns: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[GpuChunks, _Mapping]]] = ..., inventory: _Optional[_Iterable[_Union[GpuInfo, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[GpuEvent, _Mapping]]] = ..., traceparent: _Optional[str] = ..., processes: _Optional[_Iterable[_Union[ProcessSample, _Mapping]]] = ...) -> None: ...

class GpuChunks(_message.Message):
    __slots__ = ("uuid", "chunks")
    UUID_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    chunks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, uuid: _Optional[str] = ..., chunks: _Optional[_Iterable[bytes]] = ...) -> None: ...

class GpuInfo(_message.Message):
    __slots__ = ("uuid", "index", "device", "pci_bus_id", "model", "serial", "brand", "vbios_version", "driver_version", "nvml_version", "memory_total_bytes")
    UUID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PCI_BUS_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    BRAND_FIELD_NUMBER: _ClassVar[int]
    VBIOS_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    NVML_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    uuid: str
    index: int
    device: str
    pci_bus_id: str
    model: str
    serial: str
    brand: str
    vbios_version: str
    driver_version: str
    nvml_version: str
    memory_total_bytes: int
    def __init__(self, uuid: _Optional[str] = ..., index: _Optional[int] = ..., device: _Optional[str] = ..., pci_bus_id: _Optional[str] = ..., model: _Optional[str] = ..., serial: _Optional[str] = ..., brand: _Optional[str] = ..., vbios_version: _Optional[str] = ..., driver_version: _Optional[str] = ..., nvml_version: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ...) -> None: ...

class GpuEvent(_message.Message):
    __slots__ = ("time_ns", "kind", "gpu_uuid", "code", "message")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    GPU_UUID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    kind: str
    gpu_uuid: str
    code: int
    message: str
    def __init__(self, time_ns: _Optional[int] = ..., kind: _Optional[str] = ..., gpu_uuid: _Optional[str] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class ProcessSample(_message.Message):
    __slots__ = ("time_ns", "gpu_uuid", "pid", "kind", "memory_used_bytes", "sm_utilization_percent", "memory_utilization_percent", "encoder_utilization_percent", "decoder_utilization_percent", "name", "cgroup", "container_id")
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    GPU_UUID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SM_UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ENCODER_UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    DECODER_UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_ID_FIELD_NUMBER: _ClassVar[int]
    time_ns: int
    gpu_uuid: str
    pid: int
    kind: str
    memory_used_bytes: int
    sm_utilization_percent: int
    memory_utilization_percent: int
    encoder_utilization_percent: int
    decoder_utilization_percent: int
    name: str
    cgroup: str
    container_id: str
    def __init__(self, time_ns: _Optional[int] = ..., gpu_uuid: _Optional[str] = ..., pid: _Optional[int] = ..., kind: _Optional[str] = ..., memory_used_bytes: _Optional[int] = ..., sm_utilization_percent: _Optional[int] = ..., memory_utilization_percent: _Optional[int] = ..., encoder_utilization_percent: _Optional[int] = ..., decoder_utilization_percent: _Optional[int] = ..., name: _Optional[str] = ..., cgroup: _Optional[str] = ..., container_id: _Optional[str] = ...) -> None: ...
