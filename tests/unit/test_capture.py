"""Capture files: written, cut, damaged, replayed and exported."""

from __future__ import annotations

import contextlib
import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from gputel import wire
from gputel.batch import DTYPES, Batch
from gputel.catalog import METRIC_SETS, MetricSet
from gputel.clock import NS_PER_S, rfc3339
from gputel.errors import CaptureCorrupt, InputError
from gputel.inventory import Event, EventKind, Gpu
from gputel.kernels import Ring, WhenFull
from gputel.services.export import export
from gputel.sources.capture_file import CaptureFile
from gputel.sources.replay import Replay
from gputel.sources.replay_file import open_recording
from gputel.wire import capture

START_NS = 1_760_000_000 * NS_PER_S
GPUS = [Gpu(f"GPU-{i}", "node-a", 7 - i, model="H100") for i in range(2)]


def batch(metric_set: MetricSet, second: int, n: int = 3) -> Batch:
    columns = tuple(
        (np.arange(n) + 10 * j + second).astype(DTYPES[code])
        for j, code in enumerate(metric_set.storages)
    )
    valid = np.full((len(columns), 1), (1 << n) - 1, np.uint8)
    valid[1, 0] = 0b001  # one column that is mostly missing
    times = START_NS + (np.arange(n) + second) * NS_PER_S
    return Batch(metric_set, times, np.arange(n) + second, columns, valid)


def frames() -> list[bytes]:
    """Samples first, inventory and an event only in the second frame."""
    encoded = []
    for number in range(2):
        gpus = tuple(
            wire.GpuChunks(
                gpu.uuid, tuple(wire.encode_batch(batch(s, 3 * number)) for s in METRIC_SETS)
            )
            for gpu in GPUS
        )
        told = tuple(GPUS) if number else ()
        event = Event(START_NS + 4 * NS_PER_S, EventKind.XID, "GPU-1", 63, "XID 63")
        encoded.append(
            wire.encode_frame(
                wire.Frame(
                    "collector:node-a",
                    1,
                    number + 1,
                    "node-a",
                    START_NS,
                    gpus,
                    told,
                    (event,) if number else (),
                )
            )
        )
    return encoded


def written(path: Path, payloads: list[bytes]) -> Path:
    path.write_bytes(capture.MAGIC + b"".join(capture.record_head(p) + p for p in payloads))
    return path


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    return written(tmp_path / "a.cap", frames())


def read(data: bytes) -> list[capture.Recorded]:
    return list(capture.read_records(io.BytesIO(data), len(data)))


def test_records_come_back_and_a_cut_file_gives_all_whole_ones(recorded: Path) -> None:
    data = recorded.read_bytes()
    payloads = frames()
    assert [found.payload for found in read(data)] == payloads
    first_end = len(capture.MAGIC) + capture.HEAD_BYTES + len(payloads[0])
    assert [found.end for found in read(data)] == [first_end, len(data)]
    for size_bytes in range(len(capture.MAGIC), len(data)):
        whole = payloads[: int(size_bytes >= first_end)]
        assert [found.payload for found in read(data[:size_bytes])] == whole


def test_a_flipped_bit_is_never_read_as_data(recorded: Path) -> None:
    data = recorded.read_bytes()
    payloads = frames()
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for position in [*range(40), *rng.choices(range(len(data)), k=500)]:
        bad = bytearray(data)
        bad[position] ^= 1 << rng.randrange(8)
        found: list[bytes | None] = []
        with contextlib.suppress(CaptureCorrupt):
            records = capture.read_records(io.BytesIO(bad), len(bad))
            found.extend(record.payload for record in records)  # up to the error
        assert all(payload in (None, *payloads) for payload in found)
        assert found != payloads


def test_a_capture_is_scanned_and_knows_gpus_told_later(recorded: Path) -> None:
    file = open_recording(str(recorded), node="here")
    assert isinstance(file, CaptureFile)
    file.scan()
    assert file.gpus() == tuple(GPUS)
    assert (file.first_ns, file.last_ns) == (START_NS, START_NS + 5 * NS_PER_S)
    per_gpu = sum(3 * len(s.metrics) - 2 for s in METRIC_SETS)
    assert file.values == 2 * 2 * per_gpu
    assert sum(len(record.cells) for record in file.records()) == file.values
    assert [event.code for event in file.events] == [63]
    assert file.faults == 0


def test_damage_is_counted_and_the_rest_is_used(tmp_path: Path, recorded: Path) -> None:
    data = bytearray(recorded.read_bytes())
    data[30] ^= 1  # in the first frame
    path = tmp_path / "bad.cap"
    path.write_bytes(data)
    file = CaptureFile(path)
    file.scan()
    assert file.faults == 1
    assert file.first_ns == START_NS + 3 * NS_PER_S
    assert "1 damaged" in file.left_out


@pytest.mark.parametrize(
    ("payloads", "tail", "message"),
    [([], b"", "no sample"), ([b"junk"], b"", "no sample"), ([], b"\xff" * 20, "no sample")],
)
def test_a_useless_capture_is_refused(
    tmp_path: Path, payloads: list[bytes], tail: bytes, message: str
) -> None:
    path = written(tmp_path / "x.cap", payloads)
    path.write_bytes(path.read_bytes() + tail)
    with pytest.raises(InputError, match=message):
        CaptureFile(path).scan()
    with pytest.raises(InputError, match="takes no options"):
        open_recording(f"{path}?node=a", node="n")


def play(path: Path, *, once: bool) -> tuple[dict[str, Any], list[Event], Replay]:
    source = Replay(str(path), node="here", speed=0, once=once)
    source.open()
    rings = {s: Ring(s.storages, 1024, WhenFull.BLOCK) for s in METRIC_SETS}
    now_ns = START_NS + 10**6 * NS_PER_S
    [cadence] = source.cadences()
    events: list[Event] = []
    for tick in range(8 if once else 4):
        if source.sweep(cadence, now_ns + tick * NS_PER_S, rings):
            events += source.events()
    return {s.name: ring.pushed_rows for s, ring in rings.items()}, events, source


def test_a_capture_is_replayed_with_its_events(recorded: Path) -> None:
    rows, events, source = play(recorded, once=True)
    assert rows == {s.name: 12 for s in METRIC_SETS}
    assert source.exhausted
    assert events == [Event(START_NS + 4 * NS_PER_S, EventKind.XID, "GPU-1", 63, "XID 63")]
    assert source.identity == play(recorded, once=True)[2].identity


def test_a_looped_capture_tells_its_events_at_the_time_of_the_loop(recorded: Path) -> None:
    _, events, source = play(recorded, once=False)
    assert source.identity is None
    assert all(event.time_ns > START_NS + 10**5 * NS_PER_S for event in events)


def test_an_export_holds_every_value(tmp_path: Path, recorded: Path) -> None:
    told: list[int] = []
    table, text = tmp_path / "t.parquet", tmp_path / "t.csv"
    assert export(str(recorded), table, "parquet", force=False, told=told.append) == 48
    assert export(str(recorded), text, "csv", force=False, told=told.append) == 48
    assert told == [48, 48]
    parquet = pyarrow.parquet.read_table(table).to_pylist()
    with text.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(parquet) == len(lines) == 48
    for one, other in zip(parquet, lines, strict=True):
        assert one["time"].isoformat()[:19] == other["time"][:19]
        for name, cell in one.items():
            if name != "time":
                shown = "" if cell is None else str(cell)
                assert shown == other[name], name
    first = lines[0]
    assert (first["time"], first["node"]) == (rfc3339(START_NS), "node-a")
    assert (first["uuid"], first["gpu"], first["model"]) == ("GPU-0", "7", "H100")
    assert (first["set"], first["gpu_utilization_percent"]) == ("fast", "0")
    assert [line["memory_utilization_percent"] for line in lines].count("") == 48 - 4


def test_an_export_leaves_nothing_half_done(
    tmp_path: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t.csv"
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(str(recorded), out, "csv", force=False, told=lambda _: None)
    assert out.read_text() == "mine"

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="No space left"):
        export(str(recorded), out, "csv", force=True, told=fail)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.cap", "t.csv"]
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'gputel\[arrow\]'"):
        export(str(recorded), out, "parquet", force=True, told=lambda _: None)
