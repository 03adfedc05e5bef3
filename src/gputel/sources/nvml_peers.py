"""Which GPUs reach each other over NVLink: one status of the driver for each ordered pair."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gputel.plan import Outcome, classify


class DriverGone(Exception):
    """The driver can't be asked any more; `code` is the nvmlReturn."""

    def __init__(self, code: int) -> None:
        super().__init__(f"NVML return {code}")
        self.code = code


def peer_statuses(nvml: Any, handle: Any, peers: Iterable[tuple[str, Any]]) -> dict[str, int]:
    """nvmlGpuP2PStatus_t of a GPU to each of its `peers` (uuid and handle), by uuid. A pair of
    which the driver says nothing is left out. DriverGone.

    That a GPU is lost is no answer here: the driver doesn't say which of the two.
    """
    statuses = {}
    for uuid, peer in peers:
        try:
            status = nvml.nvmlDeviceGetP2PStatus(handle, peer, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        except nvml.NVMLError as error:
            if classify(int(error.value)) is Outcome.FATAL:
                raise DriverGone(int(error.value)) from None
        else:
            statuses[uuid] = int(status)
    return statuses
