"""What is known of a GPU besides its samples, and what happens to it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import Enum

_NAMESPACE = uuid.UUID("6f1c3c52-6d0c-5f0e-9a55-0d7c1f1f7a11")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU in one node. `uuid` and `node` together are its identity in the store.

    `uuid` is NVML's string (`GPU-...`, `MIG-...`); a source that has none synthesises it
    with `synthetic_uuid`. Unknown text is empty, an unknown number is None.
    """

    uuid: str
    node: str
    index: int
    device: str = ""  # nvidiaN
    pci_bus_id: str = ""
    model: str = ""
    serial: str = ""
    brand: str = ""
    vbios_version: str = ""
    driver_version: str = ""
    nvml_version: str = ""
    memory_total_bytes: int | None = None
    #: Of a MIG instance, which stands beside its GPU: the GPU's uuid, NVIDIA's name of the
    #: profile (3g.40gb) and the number of the GPU instance. `index` and the bus are the GPU's.
    mig_parent: str = ""
    mig_profile: str = ""
    mig_instance: int | None = None


class EventKind(Enum):
    """The typed events; the value is what the store and the API show."""

    XID = "xid"
    ECC = "ecc"
    MIG = "mig"  # the MIG mode changed
    RECOVERY = "recovery"  # the driver asks for a reset, a drain, ...
    LOST = "lost"
    STALLED = "stalled"  # a driver call for this GPU does not return
    RESTORED = "restored"  # after LOST or STALLED
    ADDED = "added"
    REMOVED = "removed"
    COUNTER_RESET = "counter_reset"
    DEMOTED = "demoted"  # a cadence is asked less often, because it costs too much
    PAUSED = "paused"  # driver calls stopped on request
    RESUMED = "resumed"
    GAP = "gap"  # rows dropped: `code` says how many


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a GPU (or to its collector: `gpu_uuid` is then empty)."""

    time_ns: int
    kind: EventKind
    gpu_uuid: str
    code: int  # XID number, rows dropped, ...; 0 when there is none
    message: str


class ProcessKind(Enum):
    """What a process uses the GPU for."""

    COMPUTE = "compute"
    GRAPHICS = "graphics"
    MPS = "mps"


@dataclass(frozen=True, slots=True)
class ProcessSample:
    """One process on one GPU. None is what the driver does not tell.

    `name` and `cgroup` are read from /proc by the collector; empty when unreadable.
    Utilisations are the driver's averages over the time since the last sample.
    """

    time_ns: int
    gpu_uuid: str
    pid: int
    kind: ProcessKind
    memory_used_bytes: int | None = None
    sm_utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    encoder_utilization_percent: int | None = None
    decoder_utilization_percent: int | None = None
    name: str = ""
    cgroup: str = ""
    container_id: str = ""


def synthetic_uuid(node: str, key: str) -> str:
    """A stable GPU uuid for input that names none; `key` tells the GPUs of a node apart."""
    return f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{key}')}"
