"""The kubelet's answers: devices of every kind, a socket that stalls, fails, or is not there."""

from __future__ import annotations

import asyncio
import socket as sockets
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import grpc
import pytest

from gputel._proto.gputel.kubelet.v1 import pod_resources_pb2 as pb
from gputel.clock import ManualClock
from gputel.collector.attribution import kubernetes
from gputel.collector.attribution.kubernetes import DEVICES_MAX, Kubernetes, held_devices
from gputel.collector.attribution.origin import Assignment, ReadFailed
from gputel.inventory import Gpu
from gputel.sources.nvml_mig import MigParent
from support.kubelet import FakeKubelet

GPUS = [Gpu(f"GPU-{name}", "node-1", i, device=f"nvidia{i}") for i, name in enumerate("abcd")]
RESOURCES = ("nvidia.com/gpu", "nvidia.com/gpu.shared")
#: A response with every field set, encoded with the kubelet's own api.proto (kubelet v0.35).
GOLDEN = bytes.fromhex(
    "0aad010a07747261696e2d3012026d6c1a92010a046d61696e12270a0e6e76696469612e636f6d2f6770751205"
    "4750552d6112084750552d623a3a311a040a0208011a0103220a0a066d656d6f727910052a521205636c61696d"
    "1a026d6c22450a210a1f6b38732e6770752e6e76696469612e636f6d2f6465766963653d6770752d32120e6770"
    "752e6e76696469612e636f6d1a066e6f64652d3122056770752d322a0173220201022a050a016d1001"
)


@pytest.fixture
def kubelet() -> FakeKubelet:
    return FakeKubelet()


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "k.sock"


@pytest.fixture
async def origin(socket: Path) -> AsyncGenerator[Kubernetes]:
    made = Kubernetes(str(socket), RESOURCES, None, ManualClock())
    yield made
    await made.close()


def pod(uuid: str, name: str, **facts: object) -> Assignment:
    return Assignment(uuid, "ml", name, "main", **facts)  # type: ignore[arg-type]


def test_the_kubelets_own_bytes_are_understood() -> None:
    held, skipped = held_devices(
        pb.ListPodResourcesResponse.FromString(GOLDEN), frozenset(RESOURCES)
    )
    assert skipped == 0
    assert [(h.namespace, h.pod, h.container) for h in held] == [("ml", "train-0", "main")] * 3
    assert [h.device.gpu_uuid for h in held] == ["GPU-a", "GPU-b", ""]
    assert [h.device.share for h in held] == ["", "1", ""]
    assert held[2].device.minor == 2


async def test_pods_of_whole_shared_and_split_gpus(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes
) -> None:
    kubelet.run("ml", "whole", "main", {"nvidia.com/gpu": ["GPU-a", "GPU-b"]})
    kubelet.run("ml", "first", "main", {"nvidia.com/gpu.shared": ["GPU-c::0"]})
    kubelet.run("ml", "second", "main", {"nvidia.com/gpu": ["GPU-c::1"]})
    kubelet.run("ml", "split", "main", {"nvidia.com/mig-1g.10gb": ["MIG-GPU-d/7/0"]})
    kubelet.run("ml", "shared-split", "main", {"nvidia.com/mig-2g.20gb.shared": ["nvidia3/gi2"]})
    kubelet.run("ml", "claimed", "main", {}, [("gpu.nvidia.com", "gpu-3"), ("other", "gpu-0")])
    kubelet.run("ml", "other", "main", {"rdma/hca": ["GPU-a"], "intel.com/gpu": ["GPU-a"]})
    kubelet.run("ml", "idle", "main", {})
    async with kubelet.serve(socket):
        assert await origin.read(GPUS) == [
            pod("GPU-a", "whole"),
            pod("GPU-b", "whole"),
            pod("GPU-c", "first", share="0"),
            pod("GPU-c", "second", share="1"),
            pod("GPU-d", "claimed"),
            pod("GPU-d", "shared-split", part=True, gpu_instance="2", mig_profile="2g.20gb"),
            pod("GPU-d", "split", part=True, gpu_instance="7", mig_profile="1g.10gb"),
        ]
        assert origin.skipped == 0
        kubelet.clear()
        assert await origin.read(GPUS) == []


async def test_ids_that_make_no_sense_are_counted(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes
) -> None:
    ids = ["GPU-elsewhere", "garbage", "", "77", "MIG-unknown", "GPU-a", "GPU-a"]
    kubelet.run("ml", "p", "main", {"nvidia.com/gpu": ids})
    async with kubelet.serve(socket):
        assert await origin.read(GPUS) == [pod("GPU-a", "p")]
    assert origin.skipped == 5


def test_an_answer_without_end_is_cut_and_counted() -> None:
    kubelet = FakeKubelet()
    kubelet.run("ml", "p", "main", {"nvidia.com/gpu": [f"{i}" for i in range(DEVICES_MAX + 3)]})
    held, skipped = held_devices(kubelet.response, frozenset(RESOURCES))
    assert (len(held), skipped) == (DEVICES_MAX, 3)


async def failure(origin: Kubernetes) -> str:
    with pytest.raises(ReadFailed) as failed:
        await origin.read(GPUS)
    return failed.value.reason


async def test_no_socket_a_file_in_its_place_and_a_kubelet_that_comes_later(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes
) -> None:
    assert await failure(origin) == "absent"
    socket.write_text("no socket")  # noqa: ASYNC240 - a local file
    assert await failure(origin) == "invalid"
    socket.unlink()  # noqa: ASYNC240 - a local file
    kubelet.run("ml", "p", "main", {"nvidia.com/gpu": ["GPU-a"]})
    for _ in range(2):  # it restarts: the socket is another one under the same name
        async with kubelet.serve(socket):
            assert await origin.read(GPUS) == [pod("GPU-a", "p")]
        assert await failure(origin) == "absent"


async def test_a_socket_that_nobody_serves(socket: Path, origin: Kubernetes) -> None:
    with sockets.socket(sockets.AF_UNIX) as abandoned:
        abandoned.bind(str(socket))
    assert await failure(origin) == "unavailable"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "denied"),
        (grpc.StatusCode.UNIMPLEMENTED, "invalid"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "invalid"),
        (grpc.StatusCode.UNAVAILABLE, "unavailable"),
    ],
)
async def test_a_kubelet_that_refuses_and_then_does_not(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes, status: grpc.StatusCode, reason: str
) -> None:
    async with kubelet.serve(socket):
        kubelet.status = status
        assert await failure(origin) == reason
        kubelet.status = None
        assert await origin.read(GPUS) == []


async def test_a_kubelet_that_never_answers(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "DEADLINE_S", 0.05)
    kubelet.answering.clear()
    async with kubelet.serve(socket):
        started = time.monotonic()
        assert await failure(origin) == "timeout"
        assert time.monotonic() - started < 2
        kubelet.answering.set()
        assert await origin.read(GPUS) == []


async def test_an_answer_above_the_bound(
    kubelet: FakeKubelet, socket: Path, origin: Kubernetes
) -> None:
    kubelet.run("ml", "p", "main", {"nvidia.com/gpu": ["x" * 1024] * 5000})
    async with kubelet.serve(socket):
        assert await failure(origin) == "invalid"


async def test_the_driver_is_asked_once_for_a_mig_device_and_again_when_it_did_not_know(
    kubelet: FakeKubelet, socket: Path
) -> None:
    asked: list[str] = []
    answers = {"MIG-1": MigParent("GPU-b", 4)}

    def lookup(uuid: str) -> MigParent | None:
        asked.append(uuid)
        return answers.get(uuid)

    clock = ManualClock()
    origin = Kubernetes(str(socket), RESOURCES, lookup, clock)
    kubelet.run("ml", "p", "main", {"nvidia.com/mig-3g.40gb": ["MIG-1", "MIG-2"]})
    one = pod("GPU-b", "p", part=True, gpu_instance="4", mig_profile="3g.40gb", mig_uuid="MIG-1")
    async with kubelet.serve(socket):
        for _ in range(3):
            assert await origin.read(GPUS) == [one]
        assert sorted(asked) == ["MIG-1", "MIG-2"]
        assert origin.skipped == 1
        answers["MIG-2"] = MigParent("GPU-a", 1)
        clock.advance(61)
        assert len(await origin.read(GPUS)) == 2
        await origin.close()


async def test_a_driver_that_hangs_costs_its_own_devices_only(
    kubelet: FakeKubelet, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "MIG_LOOKUP_DEADLINE_S", 0.02)
    go_on = threading.Event()

    def hang(uuid: str) -> None:
        go_on.wait()

    origin = Kubernetes(str(socket), RESOURCES, hang, ManualClock())
    kubelet.run("ml", "p", "main", {"nvidia.com/gpu": ["GPU-a"], "nvidia.com/mig-1": ["MIG-1"]})
    async with kubelet.serve(socket):
        assert await origin.read(GPUS) == [pod("GPU-a", "p")]
        assert await origin.read(GPUS) == [pod("GPU-a", "p")]
        await origin.close()
    go_on.set()
    await asyncio.sleep(0)
