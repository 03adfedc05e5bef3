"""dcgm-exporter's counter files: what is taken, and what is said of lines that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from gputel.catalog import METRICS
from gputel.collector.exporter import ExporterSettings, Format
from gputel.collector.exporter.counters import (
    FILE_BYTES_MAX,
    CounterFileInvalid,
    parse_counters,
    read_counters,
)
from gputel.collector.exporter.dcgm_fields import data_file, fields
from gputel.errors import InputError
from support.exporting import exporting, feed, gpu


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(CounterFileInvalid) as caught:
        parse_counters(text, "c.csv")
    return caught.value.problems


def test_a_file_is_read_as_dcgm_exporter_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    file.write_text(
        "# Format\n\n"
        "DCGM_FI_DEV_GPU_TEMP,    gauge, GPU temperature (in C).\n"
        "DCGM_FI_DEV_DEC_UTIL ,gauge,Decoder\n"
        '  DCGM_FI_DEV_SM_CLOCK, counter, "a, ""quoted"" help"  \n'
        "DCGM_FI_DEV_SERIAL, label, Serial\r\n"
        "DCGM_FI_DEV_BRAND, label, Brand\n"
    )
    counters = read_counters(str(file))
    assert counters.warnings == ()
    assert [(c.name, c.type, c.help) for c in counters.counters] == [
        ("DCGM_FI_DEV_SM_CLOCK", "counter", 'a, "quoted" help'),
        ("DCGM_FI_DEV_GPU_TEMP", "gauge", "GPU temperature (in C)."),
        ("DCGM_FI_DEV_DEC_UTIL", "gauge", "Decoder"),
    ]
    one = gpu(0, serial="165", brand="NVIDIA")
    exporter, clock = exporting([one], ExporterSettings(collectors=str(file)))
    feed(exporter, clock, 0, {"sm_clock_mhz": 5, "gpu_temperature_celsius": 6, "power_watts": 1})
    page = exporter.page("dcgm", Format.TEXT).decode()
    start = page.splitlines()[:3]
    assert start[0] == '# HELP DCGM_FI_DEV_SM_CLOCK a, "quoted" help'
    assert start[1] == "# TYPE DCGM_FI_DEV_SM_CLOCK counter"
    assert start[2].endswith(
        'Hostname="node-1",DCGM_FI_DEV_BRAND="NVIDIA",DCGM_FI_DEV_SERIAL="165"} 5'
    )
    assert "DRIVER_VERSION" not in page
    assert "POWER_USAGE" not in page


def test_an_alias_keeps_the_name_it_was_asked_by() -> None:
    counters = parse_counters(
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS, gauge, x\ndcgm_gpu_temp, gauge, y", "c.csv"
    )
    assert [c.name for c in counters.counters] == [
        "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
        "dcgm_gpu_temp",
    ]
    assert all(c.metric for c in counters.counters)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    told = problems(
        "# fine\n"
        "DCGM_FI_DEV_GPU_TEMP, gauge\n"
        "DCGM_FI_DEV_GPU_TMP, gauge, typo\n"
        "DCGM_FI_DEV_SM_CLOCK, gage, typo\n"
        "DCGM_FI_DEV_SM_CLOCK, gauge, with, comma\n"
        'DCGM_FI_DEV_SM_CLOCK, gauge, "open\n'
        "DCGM_FI_DRIVER_VERSION, gauge, text\n"
        "DCGM_FI_DEV_GPU_TEMP_CELSIUS, gauge, new name\n"
        "DCGM_EXP_XID_COUNT, counter, typo\n"
    )
    assert [problem.split(": ")[0] for problem in told] == [f"c.csv:{n}" for n in range(2, 10)]
    assert "2 cells, a line has 3: FIELD, type, help" in told[0]
    assert "DCGM_FI_DEV_GPU_TMP" in told[1]
    assert "did you mean DCGM_FI_DEV_GPU_TEMP" in told[1]
    assert "allowed: gauge, counter, histogram, summary, label" in told[2]
    assert "double quotes" in told[3]
    assert "is not CSV" in told[4]
    assert "its type is label" in told[5]
    assert "name of DCGM_FI_DEV_GPU_TEMP" in told[6]
    assert "DCGM_EXP_XID_ERRORS_COUNT" in told[7]


def test_what_dcgm_exporter_takes_and_gputel_does_not_measure_is_a_warning() -> None:
    counters = parse_counters(
        "DCGM_FI_DEV_SM_CLOCK, histogram, x\n"
        "DCGM_FI_DEV_SM_CLOCK, gauge, again\n"
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_L0, counter, x\n"
        "DCGM_FI_DEV_OEM_INFOROM_VER, label, x\n"
        "DCGM_EXP_GPU_HEALTH_STATUS, gauge, x\n",
        "c.csv",
    )
    assert [(c.name, c.type) for c in counters.counters] == [("DCGM_FI_DEV_SM_CLOCK", "untyped")]
    assert [warning.split(": ")[0] for warning in counters.warnings] == [
        f"c.csv:{n}" for n in range(1, 6)
    ]


def test_an_empty_file_and_one_that_is_not_there(tmp_path: Path) -> None:
    assert problems("# nothing\n") == ("c.csv: no line yields a family",)
    with pytest.raises(InputError, match=r"nowhere\.csv: can't be read: No such file"):
        read_counters(str(tmp_path / "nowhere.csv"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        read_counters(str(tmp_path / "binary"))
    (tmp_path / "large").write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(InputError, match="larger than"):
        read_counters(str(tmp_path / "large"))


def test_the_shipped_file_names_everything_that_is_measured() -> None:
    defaults = read_counters(None)
    assert defaults.warnings == ()
    assert defaults.labels == {"DCGM_FI_DRIVER_VERSION": "driver_version"}
    switched_on = data_file("default_counters.csv").replace("# DCGM_", "DCGM_")
    everything = parse_counters(switched_on, "all")
    assert everything.warnings == ()
    assert {c.metric for c in everything.counters if c.metric} == {m for m in METRICS if m.dcgm}
    assert set(fields().labels.values()) == set(everything.labels.values())
