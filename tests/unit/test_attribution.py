"""What the exporter shows of pods and jobs, while their origins come, go and stall."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gputel.clock import ManualClock
from gputel.collector import Collector
from gputel.collector.attribution import Attribution, AttributionSettings
from gputel.collector.attribution import attribution as module
from gputel.collector.attribution.origin import Assignment, ReadFailed
from gputel.collector.attribution.pods import PodFacts
from gputel.collector.exporter import Format
from gputel.collector.settings import CollectorSettings
from gputel.inventory import Gpu
from gputel.observe import Health, Telemetry
from gputel.sources.replay import Replay
from gputel.sources.sim import Simulator
from support.account import write_dump
from support.kubelet import FakeKubelet

GPUS = [Gpu(f"GPU-{i}", "node-1", i) for i in range(2)]
NAME = "gputel_gpu_attribution_info"


class Origin:
    """Answers what the test says."""

    skipped = 0

    def __init__(self, *answers: Assignment, name: str = "kubernetes") -> None:
        self.name = name
        self.answers = list(answers)
        self.failure: Exception | None = None
        self.closed = False

    async def read(self, gpus: Sequence[Gpu]) -> list[Assignment]:
        if self.failure is not None:
            raise self.failure
        return list(self.answers)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry("collector")
    yield telemetry
    telemetry.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def made(
    clock: ManualClock, telemetry: Telemetry, *origins: Origin, **settings: Any
) -> Attribution:
    """An attribution of the origins given, not started."""
    attribution = Attribution(AttributionSettings(**settings), clock, telemetry)
    attribution.readings = [module.Reading(origin) for origin in origins]
    attribution._gpus = lambda: GPUS
    return attribution


async def poll(attribution: Attribution) -> None:
    for reading in attribution.readings:
        await attribution.poll(reading)


def rows(attribution: Attribution) -> list[dict[str, str]]:
    (family,) = attribution.families()
    assert (family.name, family.type) == (NAME, "info")
    assert all(row.value == 1 for row in family.rows)
    return [dict(row.labels) for row in family.rows]


POD = Assignment("GPU-0", "ml", "train", "main")
SECOND = Assignment("GPU-0", "aa", "infer", "main", share="1")
SLICE = Assignment("GPU-1", "ml", "small", "main", part=True, gpu_instance="3", mig_profile="1g")
JOB = Assignment("GPU-0", hpc_job="4711")


async def test_info_has_a_row_each_and_no_label_goes_elsewhere(
    clock: ManualClock, telemetry: Telemetry
) -> None:
    attribution = made(clock, telemetry, Origin(POD, SECOND, SLICE), Origin(JOB))
    await poll(attribution)
    base = {"gpu": "0", "UUID": "GPU-0"}
    assert rows(attribution) == [
        {**base, "hpc_job": "4711"},
        {**base, "namespace": "aa", "pod": "infer", "container": "main", "vgpu": "1"},
        {**base, "namespace": "ml", "pod": "train", "container": "main"},
        {
            "gpu": "1",
            "UUID": "GPU-1",
            "namespace": "ml",
            "pod": "small",
            "container": "main",
            "GPU_I_PROFILE": "1g",
            "GPU_I_ID": "3",
        },
    ]
    assert [attribution.attributes(gpu) for gpu in GPUS] == [{}, {}]


async def test_labels_are_of_the_first_who_has_the_whole_gpu(
    clock: ManualClock, telemetry: Telemetry
) -> None:
    later = Assignment("GPU-0", hpc_job="9000")
    origins = Origin(POD, SECOND, SLICE), Origin(later, JOB)
    attribution = made(clock, telemetry, *origins, mode="labels")
    await poll(attribution)
    assert attribution.attributes(GPUS[0]) == {
        "namespace": "aa",
        "pod": "infer",
        "container": "main",
        "vgpu": "1",
        "hpc_job": "4711",
    }
    assert attribution.attributes(GPUS[1]) == {}, "a slice is not the GPU"
    assert len(rows(attribution)) == 5


async def test_a_generation_is_a_change(clock: ManualClock, telemetry: Telemetry) -> None:
    origin = Origin(POD)
    attribution = made(clock, telemetry, origin)
    seen = []
    for answers in ([POD], [POD], [POD, SECOND], [SECOND, POD], [], []):
        origin.answers = answers
        await poll(attribution)
        seen.append(attribution.generation)
    assert seen == [1, 1, 2, 2, 3, 3]


async def test_the_last_answer_holds_for_a_while(clock: ManualClock, telemetry: Telemetry) -> None:
    pods, jobs = Origin(POD), Origin(JOB, name="hpc")
    attribution = made(clock, telemetry, pods, jobs, keep_seconds=60)
    await poll(attribution)
    pods.failure = ReadFailed("timeout", "it stalls")
    clock.advance(60)
    await poll(attribution)
    assert len(rows(attribution)) == 2
    clock.advance(1)
    await poll(attribution)
    assert rows(attribution) == [{"gpu": "0", "UUID": "GPU-0", "hpc_job": "4711"}]
    ages = {labels["origin"]: age for age, labels in attribution._ages()}
    assert ages == {"kubernetes": 61, "hpc": 0}
    assert attribution.readings[0].errors == {"timeout": 2}
    pods.failure = None
    await poll(attribution)
    assert len(rows(attribution)) == 2


async def test_a_machine_without_kubernetes_has_no_error(
    clock: ManualClock, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    origin = Origin()
    origin.failure = ReadFailed("absent", "no socket")
    attribution = made(clock, telemetry, origin)
    for _ in range(3):
        await poll(attribution)
    assert not attribution.readings[0].errors
    assert not caplog.records
    # One whose kubelet went away has.
    origin.failure, gone = None, origin.failure
    await poll(attribution)
    origin.failure = gone
    for _ in range(3):
        await poll(attribution)
    assert attribution.readings[0].errors == {"absent": 3}
    assert len(caplog.records) == 1, "it is said once"


async def test_a_defect_ends_nothing(clock: ManualClock, telemetry: Telemetry) -> None:
    origin = Origin(POD)
    attribution = made(clock, telemetry, origin)
    await poll(attribution)
    origin.failure = RuntimeError("a defect")
    await poll(attribution)
    assert attribution.readings[0].errors == {"invalid": 1}
    assert len(rows(attribution)) == 1


async def test_too_many_rows_are_hidden_and_counted(
    clock: ManualClock, telemetry: Telemetry
) -> None:
    many = [Assignment("GPU-0", "ml", f"pod-{i:05}", "main") for i in range(module.ROWS_MAX + 5)]
    attribution = made(clock, telemetry, Origin(*many))
    await poll(attribution)
    assert len(rows(attribution)) == module.ROWS_MAX
    assert attribution.hidden_rows == 5


async def test_a_gpu_that_is_gone_has_no_row(clock: ManualClock, telemetry: Telemetry) -> None:
    attribution = made(clock, telemetry, Origin(POD, SLICE))
    attribution._gpus = lambda: GPUS[1:]
    await poll(attribution)
    assert [row["UUID"] for row in rows(attribution)] == ["GPU-1"]


class Directory:
    """Knows one pod."""

    errors: dict[str, int] = {}  # noqa: RUF012 - never written

    def __init__(self) -> None:
        self.asked: list[tuple[set[tuple[str, str]], str]] = []

    def facts(self, pod: tuple[str, str]) -> PodFacts:
        return PodFacts("uid-1", (("app", 'a"b'),)) if pod == ("ml", "train") else PodFacts()

    async def refresh(self, pods: set[tuple[str, str]], node: str) -> bool:
        self.asked.append((pods, node))
        return True


async def test_labels_and_uid_of_pods(clock: ManualClock, telemetry: Telemetry) -> None:
    attribution = made(clock, telemetry, Origin(POD, JOB, SECOND), pod_labels=(".",))
    directory: Any = Directory()
    attribution._pods = directory
    await poll(attribution)
    await attribution.learn_pods(directory)
    assert directory.asked == [({("ml", "train"), ("aa", "infer")}, "node-1")]
    assert rows(attribution)[2] == {
        "gpu": "0",
        "UUID": "GPU-0",
        "namespace": "ml",
        "pod": "train",
        "container": "main",
        "pod_uid": "uid-1",
        "app": 'a"b',
    }
    assert "app" not in rows(attribution)[1]


@asynccontextmanager
async def collecting(
    telemetry: Telemetry, socket: Path, **settings: Any
) -> AsyncGenerator[Collector]:
    """A collector of two simulated GPUs without a broker."""
    source = Simulator(node="node-1", gpus=2, model="h100", seed=1, periods_ns={})
    attribution = AttributionSettings(
        pod_resources_socket=str(socket), poll_seconds=0.1, **settings
    )
    collector = Collector(
        CollectorSettings(), source, None, "t", telemetry, Health("c"), attribution=attribution
    )
    await collector.start()
    try:
        yield collector
    finally:
        await collector.stop()


async def until(page: Any, text: str, *, there: bool = True) -> str:
    async with asyncio.timeout(10):
        while (text in page()) is not there:  # noqa: ASYNC110 - a deadline around any condition
            await asyncio.sleep(0.01)
    found: str = page()
    return found


async def test_pods_in_the_exposition_come_and_go(telemetry: Telemetry, tmp_path: Path) -> None:
    kubelet, jobs = FakeKubelet(), tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "1").write_text('47"11\n')
    async with collecting(
        telemetry, tmp_path / "k", mode="labels", hpc_job_mapping_dir=str(jobs)
    ) as collector:
        uuid = collector.gpus[0].uuid

        def page(form: Format = Format.TEXT) -> str:
            return collector.exporter.page("dcgm", form).decode()

        await until(page, "hpc_job")
        kubelet.run("ml", "train", "main", {"nvidia.com/gpu": [uuid]})
        async with kubelet.serve(tmp_path / "k"):
            text = await until(page, 'pod="train"')
            families = {family.name: family for family in parse_text(text)}
            found = [sample.labels for sample in families[NAME].samples]
            assert sorted(found, key=lambda labels: labels["gpu"]) == [
                {"gpu": "0", "UUID": uuid, "namespace": "ml", "pod": "train", "container": "main"},
                {"gpu": "1", "UUID": collector.gpus[1].uuid, "hpc_job": '47"11'},
            ]
            parsed = {f.name: f for f in parse_openmetrics(page(Format.OPENMETRICS))}
            assert parsed[NAME.removesuffix("_info")].type == "info"
            native = collector.exporter.page("gputel", Format.TEXT).decode()
            assert f'{NAME}{{gpu="0",uuid="{uuid}",namespace="ml"' in native
            kubelet.clear()
            await until(page, 'pod="train"', there=False)
            kubelet.run("ml", "again", "main", {"nvidia.com/gpu": [uuid]})
            await until(page, 'pod="again"')


def test_a_recording_is_nobodys(telemetry: Telemetry, tmp_path: Path) -> None:
    write_dump(tmp_path / "dump.csv", hosts=1, gpus=1, seconds=1, seed=1)
    replay = Replay(str(tmp_path / "dump.csv"), node="n", once=True)
    settings = AttributionSettings(mode="labels")
    collector = Collector(
        CollectorSettings(), replay, None, "t", telemetry, Health("c"), attribution=settings
    )
    assert collector.attribution is None


async def test_a_kubelet_that_stalls_delays_no_scrape_and_no_stop(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    kubelet = FakeKubelet()
    kubelet.answering.clear()
    async with kubelet.serve(tmp_path / "k"):
        async with asyncio.timeout(5), collecting(telemetry, tmp_path / "k") as collector:
            while not kubelet.calls:  # noqa: ASYNC110 - a deadline around any condition
                await asyncio.sleep(0.01)
            loop = asyncio.get_running_loop()
            slowest = 0.0
            for _ in range(20):
                began = loop.time()
                assert collector.exporter.page("dcgm", Format.TEXT) is not None
                slowest = max(slowest, loop.time() - began)
                await asyncio.sleep(0)
            assert slowest < 1
            stopped = loop.time()
        assert loop.time() - stopped < 2
        assert kubelet.calls == 1
