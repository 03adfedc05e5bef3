"""What `gputel doctor` makes of a collector's /metrics."""

from __future__ import annotations

from gputel.collector.settings import CollectorSettings
from gputel.services.check import Check
from gputel.services.collector_report import CollectorReport, Samples, checks, losses, report

WELL = """\
# HELP gputel_collector_sweeps_total Sweeps done
# TYPE gputel_collector_sweeps_total counter
gputel_collector_sweeps_total{cadence="fast"} 1000.0
gputel_collector_sweeps_total{cadence="medium"} 20.0
gputel_collector_missed_ticks_total{cadence="fast"} 0.0
gputel_collector_effective_hz{cadence="fast"} 50.0
gputel_collector_effective_hz{cadence="medium"} 1.0
gputel_collector_period_seconds{cadence="fast"} 0.02
gputel_collector_tick_lateness_seconds_bucket{le="0.0005"} 900.0
gputel_collector_tick_lateness_seconds_bucket{le="0.001"} 995.0
gputel_collector_tick_lateness_seconds_bucket{le="+Inf"} 1000.0
gputel_collector_dropped_frames_total{reason="spool_full"} 0.0
gputel_spool_active 1.0
gputel_spool_bytes 1.048576e+06
gputel_spool_frames 2.0
gputel_spool_oldest_age_seconds 0.2
gputel_metric_nominal_hertz{metric="energy_millijoules"} 50.0
gputel_metric_nominal_hertz{metric="memory_used_bytes"} 50.0
gputel_metric_nominal_hertz{metric="gpu_temperature_celsius"} 1.0
gputel_metric_effective_hertz{metric="energy_millijoules"} 9.98
gputel_metric_changing_gpus{metric="energy_millijoules"} 8.0
gputel_metric_changing_gpus{metric="memory_used_bytes"} 0.0
DCGM_FI_DEV_GPU_TEMP{gpu="0",modelName="a } b"} 33
"""


def found(text: str, **settings: object) -> tuple[CollectorReport, dict[str, Check]]:
    samples = Samples(text)
    made = report("http://127.0.0.1:9400", samples)
    given = checks(made, samples, CollectorSettings(**settings))  # type: ignore[arg-type]
    return made, {check.name: check for check in given}


def changed(line: str, value: str) -> str:
    assert line in WELL
    return WELL.replace(line, f"{line.rpartition(' ')[0]} {value}")


def test_a_collector_that_is_well() -> None:
    made, by_name = found(WELL)
    assert all(check.well for check in by_name.values())
    assert set(by_name) == {"spool", "cadence fast", "cadence medium", "rate fast"}
    assert "2 frames wait" in by_name["spool"].finding
    assert "1.0 MiB on disk" in by_name["spool"].finding
    assert "99 % of the sweeps began within 1 ms" in by_name["cadence fast"].finding
    assert "due every 0.02 s" in by_name["cadence fast"].finding
    assert "collector.fast_hz: 10 would" in by_name["rate fast"].advice
    table = list(made.lines())
    assert [line.split() for line in table[1:]] == [
        ["energy_millijoules", "50", "Hz", "9.98", "Hz", "8"],
        ["memory_used_bytes", "50", "Hz", "-", "0"],
        ["gpu_temperature_celsius", "1", "Hz", "-", "0"],
    ]
    assert made.as_dict()["rates"][1]["effective_hz"] is None


def test_a_broker_that_is_away_for_long() -> None:
    _, by_name = found(changed("gputel_spool_oldest_age_seconds 0.2", "600"))
    assert not by_name["spool"].well
    assert "the oldest for 600 s" in by_name["spool"].finding
    assert "message_queue.address" in by_name["spool"].advice


def test_a_spool_that_can_not_be_used() -> None:
    text = changed("gputel_spool_active 1.0", "0.0")
    assert not found(text)[1]["spool"].well
    assert "in memory only" in found(text)[1]["spool"].finding
    assert found(text, spool_bytes=0)[1]["spool"].well, "as it was asked for"


def test_ticks_that_are_missed() -> None:
    _, by_name = found(changed('gputel_collector_missed_ticks_total{cadence="fast"} 0.0', "300"))
    assert not by_name["cadence fast"].well
    assert "300 of 1300" in by_name["cadence fast"].finding
    assert by_name["cadence medium"].well


def test_what_is_asked_as_often_as_it_changes_gets_no_advice() -> None:
    text = changed('gputel_metric_effective_hertz{metric="energy_millijoules"} 9.98', "48")
    assert found(text)[1]["rate fast"].advice == ""


def test_a_pause_is_told() -> None:
    assert not found(WELL + "gputel_collector_paused 1.0\n")[1]["paused"].well
    assert "paused" not in found(WELL + "gputel_collector_paused 0.0\n")[1]


def test_losses_are_told_by_place_and_reason() -> None:
    assert "nothing" in losses({"collector": Samples(WELL)}).finding
    text = changed('gputel_collector_dropped_frames_total{reason="spool_full"} 0.0', "12.0")
    text += 'gputel_ring_dropped_rows_total{set="fast"} 3.0\n'
    sink = Samples("gputel_sink_dead_letters_total 4.0\ngputel_sink_rows_total 7\n")
    finding = losses({"collector": Samples(text), "sink": sink}).finding
    assert "collector: 12 frames (reason spool_full)" in finding
    assert "collector ring: 3 rows (set fast)" in finding
    assert "sink: 4 dead_letters" in finding
    assert "7" not in finding


def test_an_exporter_alone_has_no_spool() -> None:
    _, by_name = found("gputel_collector_rows_total 1.0\nrubbish {\ngputel_x nonsense\n")
    assert by_name == {}
