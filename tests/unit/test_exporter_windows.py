"""Windowed counts: nothing that happened between two scrapes is missed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gputel.catalog import SET_BY_CADENCE, Cadence
from gputel.clock import NS_PER_S
from gputel.collector.exporter import Exporter, ExporterSettings, Format
from gputel.collector.exporter.latest import all_now
from gputel.collector.exporter.windows import CODES_MAX, STEPS, Window
from gputel.inventory import Event, EventKind
from support.exporting import batch, exporting, gpu

FAST = SET_BY_CADENCE[Cadence.FAST]
LABELS = re.compile(r'gpu="(\d+)".*DCGM_FI_DRIVER_VERSION="[^"]+"(.*)} (\d+)$')


@pytest.fixture
def settings(tmp_path: Path) -> ExporterSettings:
    file = tmp_path / "counters.csv"
    file.write_text(
        "DCGM_EXP_CLOCK_EVENTS_COUNT, gauge, Clock events\n"
        "DCGM_EXP_XID_ERRORS_COUNT, gauge, XIDs\n"
        "DCGM_FI_DRIVER_VERSION, label, Driver\n"
    )
    return ExporterSettings(
        collectors=str(file), xid_window_ms=60_000, clock_events_window_ms=30_000
    )


def rows(exporter: Exporter, name: str) -> list[tuple[str, ...]]:
    page = exporter.page("dcgm", Format.TEXT).decode()
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    return [found.groups() for line in lines if (found := LABELS.search(line))]


def xid(exporter: Exporter, slot: int, code: int, now_ns: int) -> None:
    exporter.observe([Event(0, EventKind.XID, gpu(slot).uuid, code, "")], now_ns)


def test_xids_between_two_scrapes_are_counted_each(settings: ExporterSettings) -> None:
    exporter, clock = exporting([gpu(0), gpu(1)], settings)
    window = ',window_size_in_ms="60000"'
    none = [("0", window, "0"), ("1", window, "0")]
    assert rows(exporter, "DCGM_EXP_XID_ERRORS_COUNT") == none
    for code in (31, 31, 13):
        xid(exporter, 1, code, clock.monotonic_ns())
        clock.advance(1)
    assert rows(exporter, "DCGM_EXP_XID_ERRORS_COUNT") == [
        ("0", window, "0"),
        ("1", f'{window},xid="13"', "1"),
        ("1", f'{window},xid="31"', "2"),
    ]
    clock.advance(57.5)
    assert [row[2] for row in rows(exporter, "DCGM_EXP_XID_ERRORS_COUNT")] == ["0", "1", "1"]
    clock.advance(3)
    assert rows(exporter, "DCGM_EXP_XID_ERRORS_COUNT") == none
    native = exporter.page("gputel", Format.TEXT).decode()
    assert re.search(r'gputel_gpu_xid_errors_total{gpu="1".*,xid="31"} 2\n', native)
    xid(exporter, 0, 79, clock.monotonic_ns())
    exporter.observe([Event(0, EventKind.LOST, gpu(0).uuid, 0, "")], clock.monotonic_ns())
    assert rows(exporter, "DCGM_EXP_XID_ERRORS_COUNT")[0] == ("0", f'{window},xid="79"', "1")


def test_clock_events_of_every_sample_are_counted(settings: ExporterSettings) -> None:
    exporter, clock = exporting([gpu(0), gpu(1), gpu(2)], settings)
    # Two bits, none, a bit nobody knows, no value, and one bit in the last of many samples.
    held = [{"clock_event_reasons": 0x60}, {"clock_event_reasons": 0}, {}] * 4
    exporter.update(0, batch(FAST, *held), all_now(clock.monotonic_ns()))
    exporter.update(0, batch(FAST, {"clock_event_reasons": 0x20}), all_now(clock.monotonic_ns()))
    exporter.update(1, batch(FAST, {"clock_event_reasons": 0x8000}), all_now(clock.monotonic_ns()))
    name, window = "DCGM_EXP_CLOCK_EVENTS_COUNT", 'window_size_in_ms="30000"'
    assert rows(exporter, name) == [
        ("0", f',clock_event="sw_thermal",{window}', "5"),
        ("0", f',clock_event="hw_thermal",{window}', "4"),
        # GPU 1 was heard and had nothing to tell; GPU 2 was not heard.
        ("2", f",{window}", "0"),
    ]
    clock.advance(30.2)
    assert [row[2] for row in rows(exporter, name)] == ["0", "0", "0"]
    native = exporter.page("gputel", Format.TEXT).decode()
    assert re.search(r'clock_event_samples_total{gpu="0".*="hw_thermal"} 4\n', native)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2), st.integers(1, 4)), max_size=60),
    st.integers(0, 40),
)
def test_a_window_counts_what_a_list_of_everything_would(
    happened: list[tuple[int, int, int]], idle_s: int
) -> None:
    window_ms = 30_000
    window, now_ns = Window(window_ms), 0
    everything: list[tuple[int, int, int]] = []
    for after_s, code, n in happened:
        now_ns += after_s * NS_PER_S
        window.add(0, code, n, now_ns)
        everything.append((now_ns, code, n))
    now_ns += idle_s * NS_PER_S
    oldest = now_ns - window_ms * 1_000_000
    kept: dict[int, int] = {}
    for time_ns, code, n in everything:
        if time_ns >= oldest:
            kept[code] = kept.get(code, 0) + n
    assert window.counts(now_ns).get(0, {}) == kept
    total = sum(sum(counts.values()) for counts in window.totals().values())
    assert total == sum(n for _, _, n in happened)


def test_a_window_is_bounded_and_says_what_it_refuses() -> None:
    window = Window(1000)
    for code in range(CODES_MAX + 3):
        window.add(0, code, 2, 0)
    assert window.refused == 6
    assert len(window.totals()[0]) == CODES_MAX
    for tick in range(10 * STEPS):
        window.add(0, 1, 1, tick * 1_000_000)
    (steps,) = [codes[1].steps for codes in window._gpus.values()]
    assert len(steps) <= STEPS + 1
