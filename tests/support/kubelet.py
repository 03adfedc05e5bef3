"""A kubelet as far as the collector sees it: the pod-resources API on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio

from gputel._proto.gputel.kubelet.v1 import pod_resources_pb2 as pb


class FakeKubelet:
    """Answers `List` with `response`; set `status` to fail, clear `answering` to stall."""

    def __init__(self) -> None:
        self.response = pb.ListPodResourcesResponse()
        self.status: grpc.StatusCode | None = None
        self.answering = asyncio.Event()
        self.answering.set()
        self.calls = 0

    def run(
        self,
        namespace: str,
        pod: str,
        container: str,
        devices: Mapping[str, Iterable[str]],
        claims: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Start a container; `devices` by resource, `claims` as (driver, device)."""
        running = pb.PodResources(name=pod, namespace=namespace)
        resources = running.containers.add(name=container)
        for resource, ids in devices.items():
            resources.devices.add(resource_name=resource, device_ids=ids)
        for driver, device in claims:
            claim = resources.dynamic_resources.add(claim_name="claim", claim_namespace=namespace)
            claim.claim_resources.add(driver_name=driver, pool_name="pool", device_name=device)
        self.response.pod_resources.append(running)

    def clear(self) -> None:
        """Nothing runs any more."""
        self.response = pb.ListPodResourcesResponse()

    async def list(
        self,
        request: pb.ListPodResourcesRequest,
        context: grpc.aio.ServicerContext[pb.ListPodResourcesRequest, pb.ListPodResourcesResponse],
    ) -> pb.ListPodResourcesResponse:
        self.calls += 1
        await self.answering.wait()
        if self.status is not None:
            await context.abort(self.status, "as the test wants")
        return self.response

    @asynccontextmanager
    async def serve(self, socket: Path) -> AsyncGenerator[None]:
        """Listen on `socket`, which is gone afterwards, as when a kubelet stops."""
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(
            self.list,
            request_deserializer=pb.ListPodResourcesRequest.FromString,
            response_serializer=pb.ListPodResourcesResponse.SerializeToString,
        )
        handler = grpc.method_handlers_generic_handler("v1.PodResourcesLister", {"List": method})
        server.add_generic_rpc_handlers((handler,))
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
        try:
            yield
        finally:
            self.answering.set()
            await server.stop(None)
            socket.unlink(missing_ok=True)  # noqa: ASYNC240 - a local file
