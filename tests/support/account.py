"""What a running pipeline must hold: dumps to replay, and the proof by sequence numbers."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

import asyncpg

from gputel.catalog import BY_DCGM, METRIC_SETS

FIELDS = ["timestamp", "metric_name", "gpu_id", "device", "uuid", "modelName", "Hostname"]
FIELDS += ["container", "pod", "namespace", "value", "labels_raw"]
START = datetime(2025, 7, 18, 20, 0, tzinfo=UTC)
MODEL = "NVIDIA H100 80GB HBM3"
#: Integer-valued, floating and scaled metrics of two sets, as a real dump has them.
METRICS = {
    "DCGM_FI_DEV_GPU_UTIL": lambda r: str(r.randrange(101)),
    "DCGM_FI_DEV_POWER_USAGE": lambda r: f"{r.uniform(60, 700):.3f}",
    "DCGM_FI_DEV_FB_USED": lambda r: str(r.randrange(81_559)),
    "DCGM_FI_DEV_GPU_TEMP": lambda r: str(r.randrange(25, 90)),
    "DCGM_FI_DEV_MEM_CLOCK": lambda r: str(r.choice([1593, 2619])),
}


def write_dump(path: Path, *, hosts: int, gpus: int, seconds: int, seed: int) -> int:
    """A DCGM CSV dump in the form of the real one; returns how many values it holds."""
    rng = random.Random(seed)
    count = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(FIELDS)
        for second in range(seconds):
            for metric, draw in METRICS.items():
                for host in range(hosts):
                    for gpu in range(gpus):
                        uuid = f"GPU-{seed:08x}-0000-0000-{host:04x}-{gpu:012x}"
                        stamp = (START + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%SZ")
                        node = f"mtv5-dgx1-hgpu-{host:03}"
                        row = [stamp, metric, gpu, f"nvidia{gpu}", uuid, MODEL, node, "", "", ""]
                        writer.writerow([*row, draw(rng), 'DCGM_FI_DRIVER_VERSION="535.129.03"'])
                        count += 1
    return count


def expected_values(path: Path) -> Counter[tuple[str, str, str, str, float]]:
    """(uuid, metric, unit, time, value in the catalog's unit) of every line of a dump."""
    found: Counter[tuple[str, str, str, str, float]] = Counter()
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            metric = BY_DCGM[row["metric_name"]]
            assert metric.dcgm is not None
            value = float(Decimal(row["value"]) * metric.dcgm.divisor)
            unit = metric.unit.value
            found[row["uuid"], metric.name, unit, normal(row["timestamp"]), value] += 1
    return found


def normal(stamp: str) -> str:
    """One spelling for one instant."""
    return datetime.fromisoformat(stamp).isoformat()


def get(url: str, **query: Any) -> dict[str, Any]:
    with urlopen(f"{url}?{urlencode(query)}" if query else url, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def stored_values(api: str) -> Counter[tuple[str, str, str, str, float]]:
    """Everything the API holds of 2025, GPU by GPU and page by page."""
    found: Counter[tuple[str, str, str, str, float]] = Counter()
    for gpu in get(f"{api}/api/v1/gpus", limit=10_000)["gpus"]:
        query = {
            "start_time": "2025-01-01T00:00:00Z",
            "end_time": "2026-01-01T00:00:00Z",
            "limit": 500,
        }
        while True:
            page = get(f"{api}/api/v1/gpus/{quote(gpu['uuid'])}/telemetry", **query)
            for series in page["series"]:
                for stamp, value in zip(series["time"], series["value"], strict=True):
                    key = (
                        gpu["uuid"],
                        series["metric"],
                        series["unit"],
                        normal(stamp),
                        float(value),
                    )
                    found[key] += 1
            if not page["next_cursor"]:
                break
            query["cursor"] = page["next_cursor"]
    return found


def until(condition: Callable[[], Any], timeout_s: float) -> Any:
    """Poll until `condition` holds; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            value = condition()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            value = None
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)


def query(ready: dict[str, Any], sql: str) -> list[tuple[Any, ...]]:
    """SQL against the embedded database of a running pipeline."""

    async def ask() -> list[tuple[Any, ...]]:
        url = urlsplit(ready["database"])
        connection = await asyncpg.connect(
            host=url.hostname,
            port=url.port,
            user=url.username,
            database=url.path[1:],
            password=(Path(ready["data_dir"]) / "postgres.password").read_text().strip(),
        )
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    return asyncio.run(ask())


def gaps_and_doubles(ready: dict[str, Any]) -> list[tuple[Any, ...]]:
    """(set, gpu, epoch, rows, first, last) wherever sequences are not 0, 1, 2, ... each once.

    Hot rows only: nothing is sealed in the minutes that a test takes.
    """
    wrong: list[tuple[Any, ...]] = []
    for metric_set in METRIC_SETS:
        wrong += query(
            ready,
            f"SELECT '{metric_set.name}', gpu_id, epoch, count(*), min(sequence), max(sequence) "
            f"FROM sample_hot_{metric_set.name} GROUP BY gpu_id, epoch "
            "HAVING min(sequence) <> 0 OR count(*) <> max(sequence) + 1 "
            "OR count(DISTINCT sequence) <> count(*)",
        )
    return wrong


def hot_rows(ready: dict[str, Any]) -> int:
    """Rows in the fast table."""
    return int(query(ready, "SELECT count(*) FROM sample_hot_fast")[0][0])
