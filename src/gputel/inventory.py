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


class EventKind(Enum):
    """The typed events; the value is what the store and the API show."""

    XID = "xid"
    ECC = "ecc"
    LOST = "lost"
    RESTORED = "restored"
    COUNTER_RESET = "counter_reset"
    GAP = "gap"  # rows dropped: `data` says how many and where


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a GPU (or to its collector: `gpu_uuid` is then empty)."""

    time_ns: int
    kind: EventKind
    gpu_uuid: str
    code: int  # XID number, rows dropped, ...; 0 when there is none
    message: str


def synthetic_uuid(node: str, key: str) -> str:
    """A stable GPU uuid for input that names none; `key` tells the GPUs of a node apart."""
    return f"GPU-{uuid.uuid5(_NAMESPACE, f'{node}/{key}')}"
