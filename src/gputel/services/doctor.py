"""`gputel doctor`: what this machine has, how the running pipeline is, and what to do."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import http.client
import importlib
import json
import shutil
import socket
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gputel.collector.exporter import OWN_METRICS_PATH
from gputel.config import Config, parse_address
from gputel.errors import BrokerUnavailable, NotFound
from gputel.limits import MIB
from gputel.services import broker_admin, nats
from gputel.services.check import Check
from gputel.services.collector_report import CollectorReport, Samples, losses, report
from gputel.services.collector_report import checks as collector_checks
from gputel.services.simulate import is_simulated
from gputel.services.state import (
    FREE_BYTES_MIN,
    UpState,
    data_dir_of,
    is_running,
    read_state,
)
from gputel.store.settings import SINK_GROUP

TIMEOUT_S: Final = 3.0
ANSWER_BYTES_MAX: Final = 8 * MIB
FRESH_S: Final = 30.0
LAG_FRAMES_MAX: Final = 10_000
#: A line of the sink's /metrics.
STORE_WORKERS_METRIC: Final = "gputel_store_workers"


@dataclass(frozen=True, slots=True)
class Examination:
    """All findings, and what the collector says if one runs."""

    checks: list[Check]
    collector: CollectorReport | None = None

    @property
    def well(self) -> bool:
        return all(check.well for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        collector = self.collector.as_dict() if self.collector else None
        return {"checks": [check.as_dict() for check in self.checks], "collector": collector}

    def lines(self) -> Iterator[str]:
        """For people."""
        for check in self.checks:
            yield f"{'ok  ' if check.well else 'FAIL'}  {check.name}: {check.finding}"
            if check.advice:
                yield f"      do: {check.advice}"
        if self.collector and self.collector.rates:
            yield ""
            yield from self.collector.lines()


async def examine(config: Config) -> Examination:
    """All checks: of the machine, then of the pipeline on the data directory if one runs, or
    of a collector that runs alone."""
    data_dir = data_dir_of(config)
    checks = [_python(), _kernels(), _driver(config.source.kind), _disk(data_dir)]
    state = read_state(data_dir) if is_running(data_dir) else None
    if state is not None:
        checks += await asyncio.to_thread(_pipeline, state)
        checks += await _lag(config)
        checks += await asyncio.to_thread(_end_to_end, state)
        urls = {name: _status_url(found.addresses) for name, found in state.services.items()}
    else:
        urls = await asyncio.to_thread(_alone, config)
        checks += _ports(config, urls)
        checks += [_health(name, url) for name, url in urls.items()]
        finding = f"none runs on {data_dir}"
        checks.append(Check("pipeline", True, finding, "" if urls else "start it with `gputel up`"))
    said = await asyncio.to_thread(_said, {name: url for name, url in urls.items() if url})
    if said:
        checks.append(losses(said))
    checks += _store(said)
    if "collector" not in said:
        return Examination(checks)
    collector = report(urls["collector"], said["collector"])
    checks += collector_checks(collector, said["collector"], config.collector)
    return Examination(checks, collector)


def _alone(config: Config) -> dict[str, str]:
    """A collector that answers where one is configured, though no pipeline of ours runs."""
    host, port = parse_address(config.collector.listen)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    said = _said({"collector": url}) if port else {}
    return {"collector": url} if said and "gputel_collector_rows_total" in said["collector"] else {}


def _health(name: str, url: str) -> Check:
    problems = _failing(url)
    finding = f"one answers at {url}" + (f"; {'; '.join(problems)}" if problems else "")
    advice = "it may pass by itself; else look at its log" if problems else ""
    return Check(name, not problems, finding, advice)


def _said(urls: dict[str, str]) -> dict[str, Samples]:
    """What the services that answer say of themselves; a collector's /metrics is of its GPUs."""
    found = {}
    for name, url in urls.items():
        with contextlib.suppress(OSError, http.client.HTTPException):
            path = OWN_METRICS_PATH if name == "collector" else "/metrics"
            status, body = _get(f"{url}{path}")
            if status == http.client.OK:
                found[name] = Samples(body.decode(errors="replace"))
    return found


def _store(said: dict[str, Samples]) -> list[Check]:
    """Whether the tables are distributed, as far as a sink says."""
    if "sink" not in said or STORE_WORKERS_METRIC not in said["sink"]:
        return []
    workers = int(said["sink"].one(STORE_WORKERS_METRIC))
    finding = f"distributed by Citus over {workers} nodes" if workers else "one PostgreSQL"
    return [Check("store", True, finding, "")]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), version, "")


def _kernels() -> Check:
    try:
        importlib.import_module("gputel.kernels")
    except Exception as error:  # whatever it is, it is what the user needs to know
        return Check("kernels", False, f"not usable: {error}", "build them with `make build`")
    return Check("kernels", True, "loaded")


def _driver(kind: str) -> Check:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        finding = "no NVIDIA driver library (libnvidia-ml.so.1) on this machine"
        if kind == "nvml":
            return Check("driver", False, finding, "install the driver, or use --source sim")
        return Check("driver", True, f"{finding}; GPUs are simulated with --source auto")
    if is_simulated():
        return Check("driver", True, "libnvidia-ml.so.1 is the simulated one (`gputel sim`)")
    return Check("driver", True, "libnvidia-ml.so.1 is here")


def _disk(data_dir: Path) -> Check:
    place = data_dir.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    well = free >= 4 * FREE_BYTES_MIN
    advice = "" if well else "free some space, or choose another --data-dir"
    return Check("disk", well, f"{free // MIB} MiB free for {data_dir}", advice)


def _ports(config: Config, ours: Container[str]) -> list[Check]:
    """Are the configured ports free? Asked only when no pipeline of ours holds them; `ours`
    are services that run alone."""
    listeners = {
        "collector": config.collector.listen,
        "broker": config.broker.listen,
        "broker metrics": config.broker.metrics_listen,
        "sink": config.sink.listen,
        "api": config.api.listen,
        "stream": config.stream.listen,
    }
    checks = []
    for name, listen in listeners.items():
        if name in ours:
            continue
        host, port = parse_address(listen)
        try:
            with socket.create_connection((host, port), timeout=0.5):
                taken = True
        except OSError:
            taken = False
        advice = f"stop what listens there, or change {name.replace(' ', '.')}.listen"
        finding = f"{listen} is {'taken' if taken else 'free'}"
        checks.append(Check(f"port {name}", not taken, finding, advice if taken else ""))
    return checks


def _pipeline(state: UpState) -> list[Check]:
    well = state.state == "ready"
    finding = f"`gputel up` (pid {state.pid}) is {state.state}, source {state.source or 'unknown'}"
    checks = [Check("pipeline", well, finding, "" if well else "wait a moment and ask again")]
    for name, service in state.services.items():
        restarts = f", restarted {service.restarts} times, last: {service.last_end}"
        history = restarts if service.restarts else ""
        finding = f"{service.state}{history}"
        if service.state != "ready":
            checks.append(Check(name, False, finding, "look at the log of `gputel up`"))
            continue
        problems = _problems(service.addresses)
        if problems:
            finding += f"; {'; '.join(problems)}"
        advice = "it may pass by itself; else look at the log of `gputel up`" if problems else ""
        checks.append(Check(name, not problems, finding, advice))
    return checks


def _end_to_end(state: UpState) -> list[Check]:
    if "api" not in state.services:
        return []
    finite = state.source == "replay"
    return _freshness(state.services["api"].addresses.get("api", ""), finite=finite)


def _status_url(addresses: dict[str, str]) -> str:
    """The HTTP address among those that a service announced."""
    return next((url for url in addresses.values() if url.startswith("http://")), "")


def _get(url: str) -> tuple[int, bytes]:
    """(status, body) of a GET; OSError or HTTPException when there is no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        return response.status, response.read(ANSWER_BYTES_MAX)
    finally:
        connection.close()


def _problems(addresses: dict[str, str]) -> list[str]:
    """What a service that is ready complains about."""
    if "nats" in addresses:
        problem = nats.find_problem(addresses["monitor"])
        return [problem] if problem else []
    url = _status_url(addresses)
    return _failing(url) if url else []


def _failing(url: str) -> list[str]:
    """What /healthz and /readyz complain about."""
    problems: dict[str, str] = {}
    for path in ("/healthz", "/readyz"):
        try:
            status, body = _get(url + path)
            checks = json.loads(body)["checks"]
        except (OSError, http.client.HTTPException) as error:
            return [f"{url}{path} does not answer: {error}"]
        except (ValueError, KeyError, TypeError):
            return [f"{url}{path} answers something else"]
        if status != http.client.OK:
            problems |= {name: said for name, said in checks.items() if said != "ok"}
    return [f"{name}: {said}" for name, said in problems.items()]


async def _lag(config: Config) -> list[Check]:
    """What the brokers hold for the sinks; whichever answers knows it of all."""
    try:
        rows = await broker_admin.lag(config, SINK_GROUP)
    except (BrokerUnavailable, NotFound):
        return []  # the brokers' own checks say so; or no sink has ever come
    frames = sum(row["lag"] for row in rows)
    well = frames < LAG_FRAMES_MAX
    advice = "" if well else "see whether the sink is well and the database keeps up"
    return [Check("lag", well, f"{frames} frames wait to be stored", advice)]


def _freshness(url: str, *, finite: bool) -> list[Check]:
    """Age of the newest sample that the API knows; a replayed file may be as old as it is."""
    try:
        status, body = _get(f"{url}/api/v1/gpus")
        gpus = json.loads(body)["gpus"] if status == http.client.OK else None
        seen = [datetime.fromisoformat(gpu["last_seen"]) for gpu in gpus] if gpus else []
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return [Check("end to end", False, f"the API's answer is unusable: {error!r}", "")]
    if not seen:
        advice = "wait until the first samples are stored; then see the collector's log"
        return [Check("end to end", False, "the API knows no GPU", advice)]
    age_s = (datetime.now(UTC) - max(seen)).total_seconds()
    well = finite or age_s < FRESH_S
    finding = f"{len(seen)} GPUs, newest sample at most {age_s:.1f} s old"
    advice = "" if well else "see which stage above is not well"
    return [Check("end to end", well, finding, advice)]
