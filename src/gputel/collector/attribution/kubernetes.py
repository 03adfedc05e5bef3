"""The kubelet's pod-resources API: which container has which device.

One unary call over a unix socket, with a deadline. A channel serves until a call fails: the
kubelet makes its socket anew when it restarts, and gRPC's own reconnecting would back off for
minutes. gRPC is imported when there is a socket; a node without Kubernetes never pays for it.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from gputel.clock import NS_PER_S, Clock
from gputel.collector.attribution.devices import (
    DeviceRef,
    Devices,
    parse_device_id,
    parse_dra_device,
)
from gputel.collector.attribution.origin import Assignment, ReadFailed, Reason, bounded
from gputel.collector.blocking import DaemonCaller
from gputel.inventory import Gpu
from gputel.sources.nvml_mig import MigParent

if TYPE_CHECKING:  # without a kubelet, gRPC and protobuf stay out
    import grpc
    import grpc.aio

    from gputel._proto.gputel.kubelet.v1 import pod_resources_pb2 as kubelet

log = logging.getLogger(__name__)

METHOD: Final = "/v1.PodResourcesLister/List"
DEADLINE_S: Final = 2.0
LOOK_DEADLINE_S: Final = 2.0
RESPONSE_BYTES_MAX: Final = 4 * 1024 * 1024
DEVICES_MAX: Final = 4096
MIG_RESOURCE_PREFIX: Final = "nvidia.com/mig-"
DRA_DRIVER: Final = "gpu.nvidia.com"
MIG_PARENTS_MAX: Final = 1024
MIG_LOOKUP_DEADLINE_S: Final = 2.0
MIG_RETRY_S: Final = 60.0

MigLookup = Callable[[str], MigParent | None]


class Held(NamedTuple):
    """A device in the hands of a container."""

    namespace: str
    pod: str
    container: str
    device: DeviceRef
    mig_profile: str


class Kubernetes:
    """Origin of pods. `mig_lookup` asks the driver, or is None where there is no driver."""

    name = "kubernetes"

    def __init__(
        self, socket: str, gpu_resources: Iterable[str], mig_lookup: MigLookup | None, clock: Clock
    ) -> None:
        self._socket = socket
        self._gpu_resources = frozenset(gpu_resources)
        self._mig_lookup = mig_lookup
        self._clock = clock
        self._files = DaemonCaller("pod-resources")
        self._driver = DaemonCaller("mig-lookup")
        self._parents: dict[str, MigParent] = {}
        self._orphans: dict[str, int] = {}  # MIG UUID -> when to ask for its parent again
        self._channel: grpc.aio.Channel | None = None
        self.skipped = 0

    async def read(self, gpus: Sequence[Gpu]) -> list[Assignment]:
        """One assignment a container and device. ReadFailed."""
        await self._check_socket()
        response = await self._list()
        held, skipped = held_devices(response, self._gpu_resources)
        known = {gpu.uuid for gpu in gpus}
        await self._learn_parents({h.device.mig_uuid for h in held} - {""} - known)
        devices = Devices(gpus, self._parents)
        found = set()
        for item in held:
            match = devices.find(item.device)
            if match is None:
                skipped += 1
            else:
                found.add(_assignment(item, *match))
        self.skipped = skipped
        return sorted(found)

    async def close(self) -> None:
        """Close the channel."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _check_socket(self) -> None:
        try:
            there = await self._files.call(lambda: _is_socket(self._socket), LOOK_DEADLINE_S)
        except FileNotFoundError:
            await self.close()
            raise ReadFailed("absent", f"{self._socket} is not there") from None
        except TimeoutError:
            raise ReadFailed("timeout", f"{self._socket}: its file system hangs") from None
        except OSError as error:
            reason: Reason = "denied" if isinstance(error, PermissionError) else "unavailable"
            raise ReadFailed(reason, f"{self._socket}: {error.strerror}") from None
        if not there:
            raise ReadFailed("invalid", f"{self._socket} is no socket")

    async def _list(self) -> kubelet.ListPodResourcesResponse:
        import grpc
        import grpc.aio

        from gputel._proto.gputel.kubelet.v1 import pod_resources_pb2 as kubelet

        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                f"unix:{self._socket}",
                options=[
                    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
                    # A channel made anew must not share the old one's broken connection.
                    ("grpc.use_local_subchannel_pool", 1),
                    # Go's HTTP/2 server refuses the path of the socket as authority.
                    ("grpc.default_authority", "localhost"),
                ],
            )
        ask = self._channel.unary_unary(
            METHOD,
            request_serializer=kubelet.ListPodResourcesRequest.SerializeToString,
            response_deserializer=kubelet.ListPodResourcesResponse.FromString,
        )
        try:
            response: kubelet.ListPodResourcesResponse = await ask(
                kubelet.ListPodResourcesRequest(), timeout=DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            await self.close()
            reasons: dict[grpc.StatusCode, Reason] = {
                grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
                grpc.StatusCode.UNAVAILABLE: "unavailable",
                grpc.StatusCode.PERMISSION_DENIED: "denied",
                grpc.StatusCode.UNAUTHENTICATED: "denied",
            }
            raise ReadFailed(
                reasons.get(error.code(), "invalid"),
                f"{self._socket}: {error.code().name}: {bounded(error.details() or '')}",
            ) from None
        return response

    async def _learn_parents(self, mig_uuids: set[str]) -> None:
        """Ask the driver about MIG devices not seen before; those it does not know later again."""
        lookup = self._mig_lookup
        if lookup is None:
            return
        now_ns = self._clock.monotonic_ns()
        self._parents = {uuid: p for uuid, p in self._parents.items() if uuid in mig_uuids}
        self._orphans = {u: due for u, due in self._orphans.items() if u in mig_uuids}
        new = sorted(
            uuid
            for uuid in mig_uuids - self._parents.keys()
            if self._orphans.get(uuid, now_ns) <= now_ns
        )[:MIG_PARENTS_MAX]
        if not new:
            return
        try:
            answers = await self._driver.call(
                lambda: {uuid: lookup(uuid) for uuid in new}, MIG_LOOKUP_DEADLINE_S
            )
        except TimeoutError:
            answers = dict.fromkeys(new)
        for uuid, parent in answers.items():
            if parent is None:
                self._orphans[uuid] = now_ns + round(MIG_RETRY_S * NS_PER_S)
            else:
                self._parents[uuid] = parent


def _is_socket(path: str) -> bool:
    """On the thread, which also imports what a socket needs: that takes a while."""
    if not stat.S_ISSOCK(Path(path).stat().st_mode):
        return False
    import grpc.aio  # noqa: F401

    return True


def held_devices(
    response: kubelet.ListPodResourcesResponse, gpu_resources: frozenset[str]
) -> tuple[list[Held], int]:
    """(the GPU devices of all containers, how many entries made no sense or were too many)."""
    held: list[Held] = []
    skipped = 0
    for pod in response.pod_resources:
        for container in pod.containers:
            for device, profile in _devices(container, gpu_resources):
                if device is None or len(held) >= DEVICES_MAX:
                    skipped += 1
                    continue
                names = bounded(pod.namespace), bounded(pod.name), bounded(container.name)
                held.append(Held(*names, device, bounded(profile)))
    return held, skipped


def _devices(
    container: kubelet.ContainerResources, gpu_resources: frozenset[str]
) -> Iterator[tuple[DeviceRef | None, str]]:
    for devices in container.devices:
        name = devices.resource_name
        is_mig = name.startswith(MIG_RESOURCE_PREFIX)
        if is_mig or name in gpu_resources:
            profile = name.removeprefix(MIG_RESOURCE_PREFIX).removesuffix(".shared")
            for device_id in devices.device_ids:
                yield parse_device_id(device_id), profile if is_mig else ""
    for claim in container.dynamic_resources:
        for resource in claim.claim_resources:
            if resource.driver_name == DRA_DRIVER:
                yield parse_dra_device(resource.device_name), ""


def _assignment(held: Held, gpu: Gpu, device: DeviceRef) -> Assignment:
    return Assignment(
        gpu_uuid=gpu.uuid,
        namespace=held.namespace,
        pod=held.pod,
        container=held.container,
        share=device.share,
        part=device.part,
        gpu_instance=device.gpu_instance,
        mig_profile=held.mig_profile if device.part else "",
        mig_uuid=device.mig_uuid,
    )
