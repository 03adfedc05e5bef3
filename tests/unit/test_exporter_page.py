"""The exporter's pages against dcgm-exporter's format, and what moves rows in and out."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gputel.catalog import BY_NAME, METRICS, SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S
from gputel.collector.exporter import Exporter, ExporterSettings, Family, Format, Row
from gputel.collector.exporter.latest import all_now
from gputel.inventory import Event, EventKind, Gpu
from gputel.sources.sim import Simulator
from gputel.sources.source import PeerStatuses
from support.exporting import FRESH_S, batch, exporting, feed, gpu

DATA = Path(__file__).parents[1] / "data" / "exporter"
MIB = 1024 * 1024

GOLDEN: tuple[Mapping[str, int | float], ...] = (
    {
        "sm_clock_mhz": 1410,
        "memory_clock_mhz": 2619,
        "memory_temperature_celsius": 41,
        "gpu_temperature_celsius": 35,
        "power_watts": 124.629,
        "energy_millijoules": 2**53 + 1,
        "pcie_replays": 0,
        "gpu_utilization_percent": 0,
        "memory_utilization_percent": 0,
        "encoder_utilization_percent": 0,
        "decoder_utilization_percent": 0,
        "xid_last": 0,
        "memory_free_bytes": 81077 * MIB + MIB - 1,
        "memory_used_bytes": MIB - 1,
        "memory_reserved_bytes": 482 * MIB,
        "remapped_rows_uncorrectable": 0,
        "remapped_rows_correctable": 0,
        "row_remap_failure": 0,
        "nvlink_megabytes_per_second": 0,
        "graphics_engine_active_ratio": 0.0,
        "tensor_active_ratio": 0.0,
        "dram_active_ratio": 0.0,
        "pcie_tx_bytes_per_second": 120345,
    },
    {
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "gpu_temperature_celsius": 36,
        "power_watts": 699.9999,
        "energy_millijoules": 17,
        "pcie_replays": 3,
        "gpu_utilization_percent": 100,
        "memory_utilization_percent": 57,
        "encoder_utilization_percent": 0,
        "decoder_utilization_percent": 0,
        "xid_last": 79,
        "memory_free_bytes": 513 * MIB,
        "memory_used_bytes": 80564 * MIB + 5,
        "memory_reserved_bytes": 482 * MIB,
        "remapped_rows_uncorrectable": 0,
        "remapped_rows_correctable": 1,
        "row_remap_failure": 0,
        "nvlink_megabytes_per_second": 412345,
        "graphics_engine_active_ratio": 0.9876543,
        "tensor_active_ratio": 1 / 3,
        "dram_active_ratio": 0.5,
        "pcie_tx_bytes_per_second": 26_000_000_000,
        "pcie_rx_bytes_per_second": 1,
        # Not in the default list.
        "sm_occupancy_ratio": 0.25,
    },
)


def text(exporter: Exporter) -> str:
    return exporter.page("dcgm", Format.TEXT).decode()


def series(exporter: Exporter, name: str, profile: str = "dcgm") -> dict[str, str]:
    """gpu label to value, of the rows of one family."""
    page = exporter.page(profile, Format.TEXT).decode()  # type: ignore[arg-type]
    rows = re.findall(rf'^{name}{{gpu="(\d+)".*}} (\S+)$', page, re.MULTILINE)
    assert len(rows) == len(dict(rows)), rows
    return dict(rows)


def event(kind: EventKind, about: Gpu, code: int = 0) -> Event:
    return Event(0, kind, about.uuid, code, "")


def golden() -> Exporter:
    exporter, clock = exporting([gpu(0), gpu(1)])
    for slot, values in enumerate(GOLDEN):
        feed(exporter, clock, slot, values)
    return exporter


def test_the_default_page_is_dcgm_exporters_byte_for_byte() -> None:
    """The file is what the template of dcgm-exporter 4.8.0 makes of these values, run in Go."""
    page = text(golden())
    ours = page.index("# HELP gputel_gpu_up")
    assert page[:ours] == (DATA / "dcgm-4.8.txt").read_text()
    assert page[ours:].count("\n") == 2 + 2, "HELP, TYPE and a row a GPU"


def test_the_default_page_shows_the_catalogs_defaults() -> None:
    exporter, clock = exporting([gpu(0)])
    feed(exporter, clock, 0, {metric.name: 1 for metric in METRICS})
    shown = re.findall(r"^# TYPE (DCGM\w+) (\w+)$", text(exporter), re.MULTILINE)
    assert sorted(shown) == sorted(
        (m.dcgm.name, m.dcgm.type) for m in METRICS if m.dcgm and m.dcgm.default
    )


def families(page: bytes, form: Format) -> list[Metric]:
    parse = parse_text if form is Format.TEXT else parse_openmetrics
    return list(parse(page.decode()))


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("profile", ["dcgm", "gputel"])
def test_every_page_is_what_prometheus_reads(profile: str, form: Format) -> None:
    exporter, clock = exporting([gpu(0), gpu(1, model='odd "\\\n name')])
    for slot in (0, 1):
        feed(exporter, clock, slot, {metric.name: 3 + slot for metric in METRICS})
    exporter.observe([event(EventKind.XID, gpu(0), 13)], 0)
    page = exporter.page(profile, form)  # type: ignore[arg-type]
    found = families(page, form)
    assert page.endswith(b"# EOF\n") == (form is Format.OPENMETRICS)
    samples = [sample for family in found for sample in family.samples]
    assert len(samples) == sum(not line.startswith(b"#") for line in page.splitlines())
    models = {s.labels[k] for s in samples for k in ("modelName", "model") if k in s.labels}
    assert models == {"NVIDIA H100 80GB HBM3", 'odd "\\\n name'}
    types = {family.name: family.type for family in found}
    if profile == "gputel":
        assert types["gputel_gpu_energy_millijoules"] == "counter"
        assert types["gputel_gpu_xid_errors"] == "counter"
    elif form is Format.OPENMETRICS:
        # A counter without `_total` is none there.
        assert types["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == "unknown"
    else:
        assert types["DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] == "counter"


def test_the_native_profile_shows_every_metric_in_full() -> None:
    exporter, clock = exporting([gpu(0)])
    values = {m.name: 0.1 + 0.2 if m.storage.value == "d" else 2**60 for m in METRICS}
    feed(exporter, clock, 0, values)
    for metric in METRICS:
        shown = series(exporter, metric.prometheus_name, "gputel")
        if metric.cadence is Cadence.DRAIN:
            assert shown == {}
        else:
            assert shown == {"0": repr(values[metric.name])}
    rows = exporter.page("gputel", Format.TEXT).decode().splitlines()
    assert f'gputel_gpu_sm_clock_mhz{{gpu="0",uuid="{gpu(0).uuid}",node="node-1"}} {2**60}' in rows


def test_a_value_that_is_no_number_is_shown_and_nothing_else_is_made_up() -> None:
    exporter, clock = exporting([gpu(0), gpu(1), gpu(2)])
    for slot, value in enumerate((math.nan, math.inf, -math.inf)):
        feed(exporter, clock, slot, {"power_watts": value})
    told = {"0": "NaN", "1": "+Inf", "2": "-Inf"}
    assert series(exporter, "DCGM_FI_DEV_POWER_USAGE") == told
    assert series(exporter, "gputel_gpu_power_watts", "gputel") == told
    assert "DCGM_FI_DEV_GPU_TEMP" not in text(exporter), "no row, no family"


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        (ExporterSettings(hostname_label="hostname"), 'modelName="NVIDIA H100 80GB HBM3",host'),
        (ExporterSettings(hostname_label=None), 'H100 80GB HBM3",DCGM_FI_DRIVER_VERSION='),
        (
            ExporterSettings(replace_blanks_in_model_name=True),
            'modelName="NVIDIA-H100-80GB-HBM3",Hostname="node-1"',
        ),
    ],
)
def test_labels_follow_the_settings(settings: ExporterSettings, labels: str) -> None:
    exporter, clock = exporting([gpu(0)], settings)
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    assert labels in text(exporter)


def test_an_xid_is_in_its_labels_too() -> None:
    exporter, clock = exporting([gpu(0)])
    feed(exporter, clock, 0, {"xid_last": 0})
    assert 'err_code="0",err_msg="No Error"} 0\n' in text(exporter)
    exporter.observe([event(EventKind.XID, gpu(0), 999)], clock.monotonic_ns())
    assert 'err_code="999",err_msg="Unknown Error"} 999\n' in text(exporter)
    assert text(exporter).count("DCGM_FI_DEV_XID_ERRORS{") == 1


def test_a_silent_gpu_goes_and_its_up_stays() -> None:
    exporter, clock = exporting([gpu(0), gpu(1)])
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    feed(exporter, clock, 1, {"sm_clock_mhz": 2})
    clock.advance(FRESH_S)
    feed(exporter, clock, 1, {"sm_clock_mhz": 3})
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "1", "1": "3"}, "fresh until then"
    clock.advance(0.001)
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"1": "3"}
    assert series(exporter, "gputel_gpu_up") == {"0": "0", "1": "1"}
    feed(exporter, clock, 0, {"sm_clock_mhz": 4})
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "4", "1": "3"}


def test_what_is_fast_decides_whether_a_gpu_is_up() -> None:
    exporter, clock = exporting([gpu(0), gpu(1)])
    lives_s = {Cadence.FAST: 2, Cadence.MEDIUM: 4, Cadence.SLOW: 90, Cadence.DRAIN: 4}
    exporter.expect({SET_BY_CADENCE[c]: s * NS_PER_S for c, s in lives_s.items()})
    for slot in (0, 1):
        feed(exporter, clock, slot, {"pcie_replays": 5})
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    clock.advance(3)
    # GPU 1 never had a fast sample: its slow ones are all that can be expected of it.
    assert series(exporter, "gputel_gpu_up") == {"0": "0", "1": "1"}
    assert series(exporter, "DCGM_FI_DEV_PCIE_REPLAY_COUNTER") == {"1": "5"}


@pytest.mark.parametrize("kind", [EventKind.LOST, EventKind.STALLED, EventKind.REMOVED])
def test_a_lost_gpu_leaves_its_xid_behind(kind: EventKind) -> None:
    exporter, clock = exporting([gpu(0), gpu(1)])
    for slot in (0, 1):
        feed(exporter, clock, slot, {"sm_clock_mhz": 7, "xid_last": 0})
    exporter.observe([event(EventKind.XID, gpu(0), 79), event(kind, gpu(0))], clock.monotonic_ns())
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"1": "7"}
    assert series(exporter, "gputel_gpu_up") == {"0": "0", "1": "1"}
    assert series(exporter, "DCGM_FI_DEV_XID_ERRORS") == {"0": "79", "1": "0"}
    exporter.observe([event(EventKind.RESTORED, gpu(0))], clock.monotonic_ns())
    assert series(exporter, "gputel_gpu_up") == {"0": "1", "1": "1"}
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "7", "1": "7"}


def test_a_metric_that_is_missing_lately_lives_until_it_is_stale() -> None:
    exporter, clock = exporting([gpu(0)])
    fast = SET_BY_CADENCE[Cadence.FAST]
    rows = ({"power_watts": 1.5, "sm_clock_mhz": 1}, {"power_watts": 2.5}, {"sm_clock_mhz": 3})
    exporter.update(0, batch(fast, *rows), all_now(clock.monotonic_ns()))
    assert series(exporter, "DCGM_FI_DEV_POWER_USAGE") == {"0": "2.500000"}
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "3"}
    clock.advance(FRESH_S + 0.001)
    feed(exporter, clock, 0, {"sm_clock_mhz": 4})
    assert series(exporter, "DCGM_FI_DEV_POWER_USAGE") == {}
    assert series(exporter, "gputel_gpu_up") == {"0": "1"}


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 16, 17])
@pytest.mark.parametrize("lacks", ["the newest", "all but the newest"])
def test_the_newest_value_of_a_batch_of_any_length(samples: int, lacks: str) -> None:
    exporter, clock = exporting([gpu(0)])
    rows = [{"power_watts": float(n), "sm_clock_mhz": n} for n in range(samples)]
    if lacks == "the newest":
        del rows[-1]["power_watts"]
        power = {"0": f"{samples - 2}.000000"} if samples > 1 else {}
    else:
        for row in rows[:-1]:
            del row["power_watts"]
        power = {"0": f"{samples - 1}.000000"}
    exporter.update(0, batch(SET_BY_CADENCE[Cadence.FAST], *rows), all_now(clock.monotonic_ns()))
    assert series(exporter, "DCGM_FI_DEV_POWER_USAGE") == power
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": str(samples - 1)}


def test_gpus_may_come_later() -> None:
    exporter, clock = exporting([gpu(0)])
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    exporter.inventory([gpu(0, driver_version="570.1"), gpu(1)])
    assert series(exporter, "gputel_gpu_up") == {"0": "1", "1": "0"}
    feed(exporter, clock, 1, {"sm_clock_mhz": 2})
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "1", "1": "2"}
    assert 'DCGM_FI_DRIVER_VERSION="570.1"' in text(exporter)


def test_without_gpus_the_page_is_empty() -> None:
    exporter, _ = exporting([])
    assert text(exporter) == ""
    assert exporter.page("dcgm", Format.OPENMETRICS) == b"# EOF\n"


def test_a_page_is_the_same_object_until_something_changes() -> None:
    exporter, clock = exporting([gpu(0)])
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    first = exporter.page("dcgm", Format.TEXT)
    clock.advance(1)
    assert exporter.page("dcgm", Format.TEXT) is first
    zipped = exporter.zipped("dcgm", Format.TEXT, first)
    assert exporter.zipped("dcgm", Format.TEXT, first) is zipped
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    assert exporter.page("dcgm", Format.TEXT) is first, "the same values came again"
    feed(exporter, clock, 0, {"sm_clock_mhz": 2})
    assert series(exporter, "DCGM_FI_DEV_SM_CLOCK") == {"0": "2"}
    changed = exporter.page("dcgm", Format.TEXT)
    assert exporter.zipped("dcgm", Format.TEXT, changed) != zipped


class Attribution:
    """A provider as the seam asks for it; counts how often it is asked."""

    def __init__(self) -> None:
        self.generation = 0
        self.pods: dict[str, Mapping[str, str]] = {}
        self.rows: Sequence[Row] = ()
        self.asked = 0

    def attributes(self, gpu: Gpu) -> Mapping[str, str]:
        self.asked += 1
        return self.pods.get(gpu.uuid, {})

    def families(self) -> Sequence[Family]:
        return (Family("gputel_pod_info", "info", "Who\nuses it", self.rows),)


def test_a_provider_adds_labels_and_families_and_is_asked_only_for_news() -> None:
    exporter, clock = exporting([gpu(0), gpu(1)])
    provider = Attribution()
    exporter.add(provider)
    feed(exporter, clock, 0, {"sm_clock_mhz": 1, "xid_last": 13})
    assert "pod=" not in text(exporter)
    asked = provider.asked
    feed(exporter, clock, 0, {"sm_clock_mhz": 2})
    assert "gputel_pod_info" not in text(exporter)
    assert provider.asked == asked
    provider.pods = {gpu(0).uuid: {"pod": 'a"b', "container": "c", "hpc_job": "7"}}
    provider.rows = (Row({"UUID": gpu(0).uuid, "pod": 'a"b'}, 1),)
    assert "pod=" not in text(exporter), "no new generation, no news"
    provider.generation += 1
    page = text(exporter)
    tail = r'DCGM_FI_DRIVER_VERSION="550.54.15",container="c",hpc_job="7",pod="a\"b"} 2'
    assert tail in page
    assert 'container="c",err_code="13",err_msg="Graphics Engine Exception",hpc_job=' in page
    assert page.endswith(
        "# HELP gputel_pod_info Who\\nuses it\n# TYPE gputel_pod_info gauge\n"
        f'gputel_pod_info{{UUID="{gpu(0).uuid}",pod="a\\"b"}} 1\n'
    )
    types = {f.name: f.type for f in parse(exporter, Format.OPENMETRICS)}
    assert types["gputel_pod"] == "info"


def parse(exporter: Exporter, form: Format) -> Iterable[Metric]:
    return families(exporter.page("dcgm", form), form)


def test_a_metrics_column_is_its_own() -> None:
    """No two metrics share a cell, whatever the sets look like."""
    exporter, clock = exporting([gpu(0)])
    values = {metric.name: number for number, metric in enumerate(METRICS)}
    feed(exporter, clock, 0, values)
    for name, value in values.items():
        if BY_NAME[name].cadence is not Cadence.DRAIN:
            (shown,) = series(exporter, BY_NAME[name].prometheus_name, "gputel").values()
            assert float(shown) == value


def test_label_values_are_escaped() -> None:
    """As the text format wants it: backslash, quote and line feed, and nothing else."""
    odd = 'H100 "SXM"\\80\nGB\tü'
    exporter, clock = exporting([gpu(0, model=odd)])
    feed(exporter, clock, 0, {"sm_clock_mhz": 1})
    for form in Format:
        page = exporter.page("dcgm", form).decode()
        assert 'modelName="H100 \\"SXM\\"\\\\80\\nGB\tü"' in page
        assert len([x for x in page.split("\n") if x.startswith("DCGM_FI_DEV_SM_CLOCK{")]) == 1


class Peered(Simulator):
    """A source that knows which GPUs reach each other."""

    def __init__(self) -> None:
        super().__init__(node="n", gpus=1, model="h100", seed=1, periods_ns={})
        self.wanted = False
        self.statuses: PeerStatuses = {}

    def want_peers(self) -> None:
        self.wanted = True

    def peers(self) -> PeerStatuses:
        return self.statuses


def test_a_row_for_each_ordered_pair_of_gpus_that_answer(tmp_path: Path) -> None:
    (tmp_path / "counters.csv").write_text(
        "DCGM_EXP_P2P_STATUS, gauge, P2P over NVLink\nDCGM_FI_DRIVER_VERSION, label, Driver\n"
    )
    gpus = [gpu(0), gpu(1), gpu(1, uuid="MIG-1", mig_parent=gpu(1).uuid), gpu(2)]
    settings = ExporterSettings(collectors=str(tmp_path / "counters.csv"))
    source = Peered()
    exporter, clock = exporting(gpus, settings, source)
    assert source.wanted
    source.statuses = {
        (gpu(0).uuid, gpu(1).uuid): 0,
        (gpu(1).uuid, gpu(0).uuid): 3,
        (gpu(0).uuid, gpu(2).uuid): 9,
        (gpu(2).uuid, gpu(1).uuid): 0,
    }

    def rows() -> list[tuple[str, str, str, float]]:
        page = exporter.page("dcgm", Format.TEXT).decode()
        families = {family.name: family for family in parse_text(page)}
        return [
            (s.labels["gpu"], s.labels["peer_gpu"], s.labels["link_status"], s.value)
            for s in families["DCGM_EXP_P2P_STATUS"].samples
        ]

    for slot in range(2):
        feed(exporter, clock, slot, {"sm_clock_mhz": 1})
    assert rows() == [("0", "1", "OK", 0), ("1", "0", "TopologyNotSupported", 3)]
    feed(exporter, clock, 3, {"sm_clock_mhz": 1})
    assert rows()[1:3] == [("0", "2", "Unknown", 9), ("1", "0", "TopologyNotSupported", 3)]
    source.statuses = {(gpu(2).uuid, gpu(1).uuid): 2}
    assert rows() == [("2", "1", "GPUNotSupported", 2)], "as it is now"
    assert (
        'DCGM_FI_DRIVER_VERSION="550.54.15",link_status='
        in exporter.page("dcgm", Format.TEXT).decode()
    )


def test_without_the_line_nobody_looks_at_pairs() -> None:
    source = Peered()
    exporter, _ = exporting([gpu(0)], None, source)
    assert not source.wanted
    assert b"P2P" not in exporter.page("dcgm", Format.TEXT)
