"""What a running collector says of itself in /metrics, put into words for `gputel doctor`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from gputel.catalog import METRICS, Cadence
from gputel.collector.settings import CollectorSettings
from gputel.limits import MIB
from gputel.services.check import Check

#: Asking so much more often than the fastest metric of a cadence changes is asking in vain.
OVERSAMPLED: Final = 1.5
WAITING_S_MAX: Final = 60.0
MISSED_SHARE_MAX: Final = 0.01
_LINE: Final = re.compile(r"^(gputel_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
#: What is lost has one of these in its name: gputel_PLACE_dropped_UNIT_total.
_LOST: Final = re.compile(
    r"^gputel_(\w+?)_(?:dropped_(\w+)|(dead_letters|missing_frames|damaged_bytes))_total$"
)
_CADENCE_OF: Final = {metric.name: metric.cadence.value for metric in METRICS}

Labels = Mapping[str, str]


class Samples:
    """The `gputel_*` samples of one exposition in Prometheus text format."""

    def __init__(self, text: str) -> None:
        self._found: dict[str, list[tuple[Labels, float]]] = {}
        for name, labels, value in _LINE.findall(text):
            try:
                number = float(value)
            except ValueError:
                continue
            self._found.setdefault(name, []).append((dict(_LABEL.findall(labels)), number))

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def of(self, name: str) -> list[tuple[Labels, float]]:
        """(labels, value) of each sample of a name."""
        return self._found.get(name, [])

    def one(self, name: str) -> float:
        """The sum over all labels; 0 when there is none."""
        return sum(value for _, value in self.of(name))

    def by(self, name: str, label: str) -> dict[str, float]:
        """Label's value to sample."""
        return {labels.get(label, ""): value for labels, value in self.of(name)}

    def losses(self) -> Iterator[tuple[str, str, Labels, float]]:
        """(place, unit, labels, count) of everything that was lost, if anything was."""
        for name, samples in self._found.items():
            found = _LOST.match(name)
            if found is not None:
                for labels, count in samples:
                    if count > 0:
                        yield found[1], found[2] or found[3], labels, count


@dataclass(frozen=True, slots=True)
class CadenceRow:
    """What happens to the ticks of a cadence. A period of None: not said."""

    cadence: str
    period_s: float | None
    effective_hz: float
    sweeps: int
    missed: int


@dataclass(frozen=True, slots=True)
class RateRow:
    """A metric: how often it is asked and how often it changes; None: it does not change."""

    metric: str
    cadence: str
    nominal_hz: float
    effective_hz: float | None
    changing_gpus: int


@dataclass(frozen=True, slots=True)
class CollectorReport:
    """The collector at `url`."""

    url: str
    cadences: tuple[CadenceRow, ...]
    rates: tuple[RateRow, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The rates as a table for people."""
        if not self.rates:
            return
        yield f"{'metric':<32} {'asked':>10} {'changes':>10}  on GPUs"
        for rate in self.rates:
            changes = f"{rate.effective_hz:.3g} Hz" if rate.effective_hz else "-"
            asked = f"{rate.nominal_hz:.3g} Hz"
            yield f"{rate.metric:<32} {asked:>10} {changes:>10}  {rate.changing_gpus}"


def report(url: str, samples: Samples) -> CollectorReport:
    """What the samples of a collector tell."""
    periods = samples.by("gputel_collector_period_seconds", "cadence")
    sweeps = samples.by("gputel_collector_sweeps_total", "cadence")
    missed = samples.by("gputel_collector_missed_ticks_total", "cadence")
    effective = samples.by("gputel_collector_effective_hz", "cadence")
    cadences = tuple(
        CadenceRow(
            name,
            periods.get(name),
            effective.get(name, 0.0),
            int(count),
            int(missed.get(name, 0)),
        )
        for name, count in sweeps.items()
    )
    changes = samples.by("gputel_metric_effective_hertz", "metric")
    gpus = samples.by("gputel_metric_changing_gpus", "metric")
    rates = tuple(
        RateRow(name, _CADENCE_OF.get(name, ""), hz, changes.get(name), int(gpus.get(name, 0)))
        for name, hz in samples.by("gputel_metric_nominal_hertz", "metric").items()
    )
    return CollectorReport(url, cadences, rates)


def checks(found: CollectorReport, samples: Samples, settings: CollectorSettings) -> list[Check]:
    """What is well with a collector and what is not."""
    checks = [*_spool(samples, settings), *_cadences(found, samples), *_rates(found)]
    if samples.one("gputel_collector_paused"):
        finding, advice = "driver calls are paused on request", "resume them with SIGUSR1"
        checks.append(Check("paused", False, finding, advice))
    return checks


def losses(by_service: Mapping[str, Samples]) -> Check:
    """Everything that any service counts as lost since it started."""
    parts = []
    for service, samples in by_service.items():
        for place, unit, labels, count in samples.losses():
            why = ", ".join(f"{name} {value}" for name, value in labels.items())
            where = place if place == service else f"{service} {place}"
            parts.append(f"{where}: {count:.0f} {unit}{f' ({why})' if why else ''}")
    return Check("losses", True, "; ".join(parts) or "nothing was lost since the start")


def _spool(samples: Samples, settings: CollectorSettings) -> Iterator[Check]:
    if "gputel_spool_active" not in samples:
        return
    frames = samples.one("gputel_spool_frames")
    age_s = samples.one("gputel_spool_oldest_age_seconds")
    size_mib = samples.one("gputel_spool_bytes") / MIB
    place = f"{size_mib:.1f} MiB on disk"
    if not samples.one("gputel_spool_active"):
        place = "in memory only"
    waiting = f"{frames:.0f} frames wait for the broker, {place}"
    if frames:
        waiting += f", the oldest for {age_s:.0f} s"
    errors = samples.one("gputel_spool_disk_errors_total")
    if errors:
        waiting += f"; the disk refused {errors:.0f} times"
    advice = ""
    if age_s > WAITING_S_MAX:
        advice = "see whether the broker is well, and message_queue.address right"
    elif settings.spool_bytes and not samples.one("gputel_spool_active"):
        advice = "see the collector's log, and choose a place with collector.spool_dir"
    yield Check("spool", not advice, waiting, advice)


def _cadences(found: CollectorReport, samples: Samples) -> Iterator[Check]:
    late_s = _lateness_p99_s(samples)
    for row in found.cadences:
        share = row.missed / max(row.sweeps + row.missed, 1)
        finding = f"{row.effective_hz:.3g} Hz" if row.effective_hz else "rate not known yet"
        if row.period_s:
            finding += f", due every {row.period_s:.3g} s"
        finding += f", {row.missed} of {row.sweeps + row.missed} ticks missed"
        advice = ""
        if share > MISSED_SHARE_MAX:
            advice = f"ask less often (collector.{row.cadence}_hz), or see what takes the CPU"
        if row.cadence == Cadence.FAST.value and late_s is not None:
            finding += f"; 99 % of the sweeps began within {late_s * 1e3:.3g} ms"
        yield Check(f"cadence {row.cadence}", not advice, finding, advice)


def _lateness_p99_s(samples: Samples) -> float | None:
    """The bucket of the 99th percentile over all cadences; None: not known, or beyond all."""
    buckets: dict[float, float] = {}
    for labels, count in samples.of("gputel_collector_tick_lateness_seconds_bucket"):
        bound = float(labels["le"])
        buckets[bound] = buckets.get(bound, 0) + count
    total = buckets.get(math.inf, 0)
    within = [bound for bound, count in buckets.items() if total and count >= 0.99 * total]
    return min(within) if within and min(within) < math.inf else None


def _rates(found: CollectorReport) -> Iterator[Check]:
    for row in found.cadences:
        rates = [rate for rate in found.rates if rate.cadence == row.cadence]
        fastest_hz = max((rate.effective_hz or 0.0 for rate in rates), default=0.0)
        if not fastest_hz:
            continue
        nominal_hz = rates[0].nominal_hz
        finding = f"asked at {nominal_hz:.3g} Hz, the fastest metric changes at {fastest_hz:.3g} Hz"
        advice = ""
        if nominal_hz > OVERSAMPLED * fastest_hz:
            advice = (
                f"collector.{row.cadence}_hz: {float(f'{fastest_hz:.2g}'):g} would tell the same: "
                "the driver does not refresh faster"
            )
        yield Check(f"rate {row.cadence}", True, finding, advice)
