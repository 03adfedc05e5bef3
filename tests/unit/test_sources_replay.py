"""Recorded files: every value once and exact, damage counted, steps that repeat themselves."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gputel.catalog import BY_DCGM, METRIC_SETS, Cadence, Storage
from gputel.errors import InputError
from gputel.kernels import Columns, Ring
from gputel.sources.replay import Replay
from gputel.sources.replay_file import ReplayFile

HEADER = (
    "timestamp,metric_name,gpu_id,device,uuid,modelName,Hostname,container,pod,namespace,"
    "value,labels_raw"
)
SHARED = Path(__file__).parents[3] / "shared/data/dcgm-31-hosts-247-h100.csv"
Value = tuple[str, str, int, int | float]
NOW_NS = 1_800_000_000_000_000_000


def dcgm_line(metric: str, value: str, *, gpu: int = 0, host: str = "h0", second: int = 0) -> str:
    labels = f'DCGM_FI_DRIVER_VERSION=""535.129.03"",pci_bus_id=""0000:0{gpu}"",gpu=""{gpu}""'
    return (
        f'"2025-07-18T20:42:{second:02}Z","{metric}","{gpu}","nvidia{gpu}","GPU-{host}-{gpu}",'
        f'"H100","{host}","","","","{value}","{labels}"'
    )


def dump(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "dump.csv"
    path.write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")
    return path


def play(path: Path, ring_rows: int = 64) -> tuple[Counter[Value], list[int]]:
    """All values of a file as (uuid, metric, time, value), and the rows of each step."""
    source = Replay(str(path), node="here", speed=0, once=True)
    gpus = source.open()
    rings = {s: Ring(s.storages, ring_rows) for s in METRIC_SETS}
    values: Counter[Value] = Counter()
    steps: list[int] = []
    rows = 0
    for _ in range(100_000):
        if source.exhausted:
            break
        sealed = source.sweep(Cadence.FAST, NOW_NS, rings)
        for metric_set, ring in rings.items():
            columns = Columns(metric_set.storages, len(gpus), ring_rows)
            rows += columns.drain(ring)
            for part in columns.seal():
                for j, column in enumerate(part.columns):
                    mask = np.unpackbits(part.valid[j], count=len(column), bitorder="little")
                    for i in np.flatnonzero(mask):
                        cell = column[i].item()
                        name = metric_set.metrics[j].name
                        values[gpus[part.gpu].uuid, name, int(part.time_ns[i]), cell] += 1
        if sealed:
            steps.append(rows)
            rows = 0
    assert source.exhausted
    source.close()
    return values, steps


def expected(path: Path) -> Counter[Value]:
    values: Counter[Value] = Counter()
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            metric = BY_DCGM[row["metric_name"]]
            assert metric.dcgm is not None
            value: int | float = float(row["value"])
            if metric.storage is not Storage.F64:
                value = int(row["value"]) * metric.dcgm.divisor
            time_ns = int(np.datetime64(row["timestamp"].rstrip("Z"), "ns").astype(np.int64))
            values[row["uuid"], metric.name, time_ns, value] += 1
    return values


def generated(tmp_path: Path) -> Path:
    lines = [
        dcgm_line(metric, f"{7 + gpu + 3 * host}", gpu=gpu, host=f"h{host}", second=second)
        for metric in ("DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP")
        for second in range(5)
        for host in range(3)
        for gpu in range(8)
    ]
    return dump(tmp_path, *lines)


def test_every_value_of_a_generated_dump_is_found_once(tmp_path: Path) -> None:
    path = generated(tmp_path)
    values, steps = play(path)
    assert values == expected(path)
    assert values.total() == 360
    assert len(steps) == 5  # one a second of recorded time


def test_every_value_of_the_recorded_fleet_is_found_once() -> None:
    if not SHARED.exists():
        pytest.skip("no shared/data beside this repository")
    values, _ = play(SHARED)
    assert values == expected(SHARED)
    assert values.total() == 2470


def test_steps_do_not_depend_on_the_rings(tmp_path: Path) -> None:
    path = generated(tmp_path)
    assert play(path, 64) == play(path, 4096)


def test_values_are_exact_however_small_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = generated(tmp_path)
    whole, _ = play(path)
    monkeypatch.setattr("gputel.sources.steps.WINDOW_VALUES", 7)
    assert play(path)[0] == whole


def test_a_repeated_value_is_kept(tmp_path: Path) -> None:
    util = "DCGM_FI_DEV_GPU_UTIL"
    values, _ = play(dump(tmp_path, *(dcgm_line(util, v) for v in ("5", "6", "6"))))
    assert sorted(value for *_, value in values.elements()) == [5, 6, 6]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("a,b,c", "wrong number of columns"),
        (dcgm_line("DCGM_FI_DEV_GPU_UTIL", "12.5"), "fraction in an integer metric"),
        (dcgm_line("DCGM_FI_DEV_GPU_UTIL", "250"), "value out of range"),
        (dcgm_line("DCGM_FI_DEV_FB_USED", "1e999"), "value out of range"),
        (dcgm_line("DCGM_FI_DEV_POWER_USAGE", "abc"), "not a number"),
        (dcgm_line("DCGM_FI_DEV_POWER_USAGE", "1").replace("2025", "20x5"), "bad timestamp"),
        (dcgm_line("DCGM_FI_DEV_POWER_USAGE", "1") + '"', "malformed CSV"),
        (dcgm_line("DCGM_FI_DEV_POWER_USAGE", "\0"), "NUL byte"),
        (
            dcgm_line("DCGM_FI_DEV_GPU_UTIL", "1").replace('"0"', '""').replace("GPU-h0-0", ""),
            "neither uuid nor gpu_id",
        ),
    ],
)
def test_a_bad_line_is_counted_and_the_rest_used(tmp_path: Path, line: str, reason: str) -> None:
    path = dump(tmp_path, dcgm_line("DCGM_FI_DEV_GPU_TEMP", "40"), line)
    file = ReplayFile(str(path), node="here")
    file.scan()
    assert dict(file.problems.lines) == {reason: 1}
    assert file.problems.examples[0].startswith(f"line 3: {reason}")
    assert file.values == 1


def test_facts_of_a_gpu_come_from_columns_and_labels(tmp_path: Path) -> None:
    file = ReplayFile(str(dump(tmp_path, dcgm_line("DCGM_FI_DEV_GPU_TEMP", "40"))), node="x")
    file.scan()
    (gpu,) = file.parser.gpus.all()
    assert (gpu.uuid, gpu.node, gpu.index, gpu.device) == ("GPU-h0-0", "h0", 0, "nvidia0")
    assert (gpu.driver_version, gpu.pci_bus_id) == ("535.129.03", "0000:00")


SMI = """timestamp, index, name, power.draw [W], memory.used [MiB], utilization.gpu [%], pstate
2025/07/18 20:42:34.123, 0, NVIDIA H100, 70.25 W, 12 MiB, 3 %, P0
2025/07/18 20:42:34.125, 1, NVIDIA H100, [N/A], 13 MiB, ERR!, P8

timestamp, index, name, power.draw [W], memory.used [MiB], utilization.gpu [%], pstate
2025/07/18 20:42:35.123, 0, NVIDIA H100, 71.5, 14, 4, P2
2025/07/18 20:42:35.125, 1, NVI"""


def test_an_nvidia_smi_log(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    path.write_text(SMI)
    values, _ = play(path)
    cells = sorted((name, value) for _, name, _, value in values.elements())
    mib = 2**20
    assert cells == [
        ("gpu_utilization_percent", 3), ("gpu_utilization_percent", 4),
        ("memory_used_bytes", 12 * mib), ("memory_used_bytes", 13 * mib),
        ("memory_used_bytes", 14 * mib), ("performance_state", 0), ("performance_state", 2),
        ("performance_state", 8), ("power_watts", 70.25), ("power_watts", 71.5),
    ]  # fmt: skip
    assert min(time_ns for _, _, time_ns, _ in values) == 1_752_871_354_123_000_000


def test_a_log_without_header_needs_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "smi.csv"
    path.write_text("2025/07/18 20:42:34.123, 0, 70.25\n")
    with pytest.raises(InputError, match=r"column 2 .*\?columns=timestamp"):
        ReplayFile(str(path), node="n").scan()
    file = ReplayFile(f"{path}?columns=timestamp,index,power.draw&node=a&tz=Etc/GMT-2", node="n")
    file.scan()
    assert file.values == 1
    assert file.parser.gpus.all()[0].node == "a"
    assert file.first_ns == 1_752_864_154_123_000_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00\x01\x02" * 99, "neither a capture, a DCGM"),
        (b"hello\nworld\n", "neither a capture, a DCGM"),
        (b"\xff\xfet\x00", "UTF-16"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"timestamp,metric_name,gpu_id\n", "without the columns value"),
        (HEADER.encode() + b"\n", "no usable value"),
        (b"index, power.draw [W]\n0, 7\n", "without a timestamp"),
    ],
)
def test_a_useless_file_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        ReplayFile(str(path), node="n").scan()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["missing.csv", ".", "x.csv?format=xml", "x.csv?speed=3"])
def test_a_bad_spec_is_an_input_error(spec: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        ReplayFile(str(tmp_path / spec), node="n")


def test_a_looped_replay_keeps_spacing_and_goes_on_forever(tmp_path: Path) -> None:
    path = dump(
        tmp_path, *(dcgm_line("DCGM_FI_DEV_GPU_TEMP", str(40 + s), second=s) for s in range(3))
    )
    source = Replay(str(path), node="n")
    source.open()
    assert source.identity is None
    rings = {s: Ring(s.storages, 64) for s in METRIC_SETS}
    for tick in range(80):
        source.sweep(Cadence.FAST, NOW_NS + tick * 100_000_000, rings)
    medium = METRIC_SETS[1]
    columns = Columns(medium.storages, 1, 64)
    columns.drain(rings[medium])
    (part,) = columns.seal()
    assert [(t - NOW_NS) // 10**9 for t in part.time_ns.tolist()] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert part.sequence.tolist() == list(range(8))
    assert part.columns[0].tolist() == [40, 41, 42] * 2 + [40, 41]
