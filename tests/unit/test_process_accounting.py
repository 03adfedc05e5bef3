"""Process accounting: what goes into frames, what the exporter shows, and the bounds of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gputel import limits, wire
from gputel.catalog import METRIC_SETS, Cadence
from gputel.clock import ManualClock
from gputel.collector.batcher import Framer
from gputel.collector.exporter.exposition import Family
from gputel.collector.processes import PENDING_MAX, SERIES_MAX, ProcessAccounting
from gputel.inventory import Gpu, ProcessKind, ProcessSample
from gputel.kernels import Ring
from gputel.observe import Telemetry
from gputel.sources.sim import Simulator

GPUS = [Gpu(f"GPU-{i}", "node-1", i) for i in range(2)]
SEEN = ProcessSample(1000, "GPU-0", 4711, ProcessKind.COMPUTE, 2**33, 97)


class Stop(BaseException):
    """Ends a loop that survives every error."""


class Source:
    """What the accounting asks of one."""

    def __init__(self) -> None:
        self.waiting: list[ProcessSample] = []

    def processes(self) -> Sequence[ProcessSample]:
        taken, self.waiting = self.waiting, []
        return taken


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    telemetry = Telemetry("collector")
    yield telemetry
    telemetry.close()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def accounting(
    source: Any, clock: ManualClock, telemetry: Telemetry, tmp_path: Path
) -> ProcessAccounting:
    (tmp_path / "4711").mkdir()
    (tmp_path / "4711" / "comm").write_text("python3\n")
    made = ProcessAccounting(
        source, clock, telemetry, period_s=30, publish=True, proc_root=tmp_path
    )
    made._gpus = lambda: GPUS
    return made


def series(families: Sequence[Family], name: str) -> dict[tuple[str, str], float]:
    rows = next(f.rows for f in families if f.name == name)
    found = {(row.labels["UUID"], row.labels["pid"]): row.value for row in rows}
    assert len(found) == len(rows), "a series stands there once"
    return found


async def test_names_come_from_proc_and_only_where_there_are_none(
    source: Source, accounting: ProcessAccounting
) -> None:
    source.waiting = [SEEN, replace(SEEN, pid=99), replace(SEEN, name="known", container_id="c")]
    await accounting.poll()
    assert [s.name for s in accounting.take()] == ["python3", "", "known"]
    assert accounting.take() == []
    assert (accounting.samples, accounting.unnamed) == (3, 1)


async def test_numbers_out_of_range_are_unknown(
    source: Source, accounting: ProcessAccounting
) -> None:
    source.waiting = [replace(SEEN, memory_used_bytes=2**64 - 1, sm_utilization_percent=2**32 - 1)]
    await accounting.poll()
    (taken,) = accounting.take()
    assert taken.memory_used_bytes is None
    assert taken.sm_utilization_percent is None
    wire.decode_frame(wire.encode_frame(wire.Frame("p", 1, 1, "n", 0, (), processes=(taken,))))


async def test_what_the_exporter_shows(source: Source, accounting: ProcessAccounting) -> None:
    before = accounting.generation
    source.waiting = [
        SEEN,
        replace(SEEN, kind=ProcessKind.GRAPHICS, memory_used_bytes=2**20, sm_utilization_percent=3),
        replace(SEEN, gpu_uuid="GPU-1", memory_used_bytes=None),
    ]
    await accounting.poll()
    assert accounting.generation != before
    families = accounting.families()
    assert series(families, "gputel_process_memory_used_bytes") == {("GPU-0", "4711"): 2**33}
    assert series(families, "gputel_process_sm_utilization_ratio") == {
        ("GPU-0", "4711"): 0.97,
        ("GPU-1", "4711"): 0.97,
    }
    assert dict(families[0].rows[0].labels) == {
        "gpu": "0",
        "UUID": "GPU-0",
        "pid": "4711",
        "name": "python3",
        "container_id": "",
    }
    assert accounting.attributes(GPUS[0]) == {}


async def test_a_process_that_ended_is_gone_at_the_next_look_or_after_a_while(
    source: Source, accounting: ProcessAccounting, clock: ManualClock
) -> None:
    memory = "gputel_process_memory_used_bytes"
    source.waiting = [SEEN, replace(SEEN, pid=8), replace(SEEN, gpu_uuid="GPU-1", pid=9)]
    await accounting.poll()
    clock.advance(30)
    # Two looks at GPU 0 since: the newest counts.
    source.waiting = [replace(SEEN, time_ns=2000), replace(SEEN, pid=5, time_ns=3000)]
    await accounting.poll()
    assert set(series(accounting.families(), memory)) == {("GPU-0", "5"), ("GPU-1", "9")}
    known = accounting.generation
    clock.advance(50)
    assert accounting.generation != known
    assert set(series(accounting.families(), memory)) == {("GPU-0", "5")}
    clock.advance(30)
    assert accounting.generation
    assert not any(family.rows for family in accounting.families())


async def test_the_largest_are_shown_and_the_others_counted(
    source: Source, accounting: ProcessAccounting
) -> None:
    source.waiting = [replace(SEEN, pid=i, memory_used_bytes=i) for i in range(1, SERIES_MAX + 11)]
    await accounting.poll()
    shown = series(accounting.families(), "gputel_process_memory_used_bytes")
    assert len(shown) == SERIES_MAX
    assert min(shown.values()) == 11
    assert accounting.hidden == 10


async def test_what_nobody_takes_is_bounded_and_counted(
    source: Source, accounting: ProcessAccounting
) -> None:
    source.waiting = [replace(SEEN, pid=i) for i in range(1, PENDING_MAX + 8)]
    await accounting.poll()
    assert accounting.dropped == 7
    source.waiting = [SEEN]
    await accounting.poll()
    assert accounting.dropped == 8
    assert len(accounting.take()) == PENDING_MAX


async def test_a_source_that_fails_is_asked_again(
    source: Source, accounting: ProcessAccounting, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail() -> Sequence[ProcessSample]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop
        raise RuntimeError("driver")

    monkeypatch.setattr(source, "processes", fail)
    with pytest.raises(Stop):
        await accounting.run(lambda: GPUS)
    assert calls == 3


def test_frames_of_many_processes_stay_small() -> None:
    wide = replace(SEEN, name="n" * 512, cgroup="c" * 512, container_id="f" * 64)
    offered = [replace(wide, pid=i, gpu_uuid=f"GPU-{i % 2}") for i in range(1, 4097)]
    drafts = list(Framer(GPUS).process_frames(offered))
    assert [s for d in drafts for s in d.processes] == offered
    for draft in drafts:
        frame = wire.Frame("p", 1, 1, draft.node, 0, (), processes=draft.processes)
        assert len(wire.encode_frame(frame)) <= limits.FRAME_BYTES_TARGET
    assert len(drafts) < 100
    assert not list(Framer(GPUS).process_frames([]))


def test_the_simulators_processes_follow_its_jobs() -> None:
    sim = Simulator(node="n", gpus=4, model="h100", seed=1, periods_ns={}, processes=True)
    rings = {s: Ring(s.storages, 4096) for s in METRIC_SETS}
    jobs: dict[str, set[str]] = {}
    for tick in range(120):
        sim.sweep(Cadence.SLOW, (1_800_000_000 + 10 * tick) * 10**9, rings)
        seen = sim.processes()
        for sample in seen:
            assert sample.pid > 4_194_304
            assert 0 <= (sample.sm_utilization_percent or 0) <= 100
            jobs.setdefault(sample.gpu_uuid, set()).add(sample.container_id)
        assert len({(s.gpu_uuid, s.pid) for s in seen}) == len(seen)
        assert len({s.pid for s in seen}) == len(seen)
    assert len(jobs) == 4
    assert all(len(containers) > 2 for containers in jobs.values()), "jobs come and go"
    quiet = Simulator(node="n", gpus=4, model="h100", seed=1, periods_ns={})
    quiet.sweep(Cadence.SLOW, 1_800_000_000 * 10**9, rings)
    assert quiet.processes() == []
