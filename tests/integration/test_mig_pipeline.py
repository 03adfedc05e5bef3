"""MIG instances from the simulated driver to the API and to SQL, through every real process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest

from support.account import get, query, until
from support.pipeline import Running, Start
from support.simulation import LIBRARY

pytestmark = pytest.mark.integration

SIM = "gpus=2,model=h100,profile=training,mig=0:3g.40gb+2g.20gb"
CONFIG = "collector: {medium_hz: 5}\n"
PROFILES = ["3g.40gb", "2g.20gb"]
#: What NVML tells of an instance, by cadence.
TOLD = {"memory_used_bytes", "memory_free_bytes"}
BUSY = {"sm_active_ratio", "dram_active_ratio", "tensor_active_ratio"}


@pytest.fixture(scope="module")
def divided(start_pipeline: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Two GPUs, one of them with two instances."""
    file = tmp_path_factory.mktemp("config") / "gputel.yaml"
    file.write_text(CONFIG)
    variables = {"GPUTEL_SIM": SIM, "GPUTEL_SOURCE__LIBRARY": str(LIBRARY)}
    return start_pipeline("--config", str(file), "--source", "nvml", **variables)


def gpus(running: Running) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(f"{running.ready['api']}/api/v1/gpus")["gpus"]
    return found


def instances(running: Running) -> list[dict[str, Any]]:
    """In the order of their numbers, as the GPUs are found."""
    return [gpu for gpu in gpus(running) if gpu["uuid"].startswith("MIG-")]


def telemetry(running: Running, uuid: str, **more: Any) -> dict[str, dict[str, Any]]:
    """The last minutes of a GPU, by metric."""
    now = datetime.now(UTC)
    window = {"start_time": (now - timedelta(minutes=30)).isoformat(), "end_time": now.isoformat()}
    url = f"{running.ready['api']}/api/v1/gpus/{quote(uuid)}/telemetry"
    found = get(url, **window, **more)["series"]
    return {series["metric"]: series for series in found if series["time"]}


def works(series: dict[str, dict[str, Any]]) -> bool:
    """All metrics have come, and its work has begun, which takes it a while."""
    if not set(series) >= TOLD | BUSY:
        return False
    return any(float(value) > 0 for value in series["memory_used_bytes"]["value"])


def test_instances_are_gpus_of_the_api(divided: Running) -> None:
    until(lambda: len(gpus(divided)) == 4, 60)
    whole = next(gpu for gpu in gpus(divided) if gpu["index"] == 0 and "MIG" not in gpu["model"])
    found = {gpu["model"].rpartition(" MIG ")[2]: gpu for gpu in instances(divided)}
    assert sorted(found) == sorted(PROFILES)
    for eighths, profile in ((4, "3g.40gb"), (2, "2g.20gb")):
        gpu = found[profile]
        assert (gpu["node"], gpu["index"]) == (whole["node"], whole["index"])
        assert gpu["pci_bus_id"] == whole["pci_bus_id"]
        # NVML tells whole MiB.
        assert gpu["memory_total_bytes"] >> 20 == whole["memory_total_bytes"] * eighths // 8 >> 20
        alone = get(f"{divided.ready['api']}/api/v1/gpus/{gpu['uuid']}")
        assert (alone["id"], alone["model"]) == (gpu["id"], gpu["model"])


def test_their_samples_come_back_by_rest_and_by_sql(divided: Running) -> None:
    until(lambda: len(instances(divided)) == 2, 60)
    for gpu in instances(divided):
        uuid = gpu["uuid"]
        until(lambda uuid=uuid: works(telemetry(divided, uuid)), 60)  # type: ignore[misc]
        series = telemetry(divided, uuid, limit=10_000)
        assert set(series) >= TOLD | BUSY
        assert not {"power_watts", "gpu_utilization_percent", "pcie_tx_bytes_per_second"} & set(
            series
        )
        for metric in TOLD | BUSY:
            times, values = series[metric]["time"], series[metric]["value"]
            assert times == sorted(set(times)), "each sample once"
            by_sql = query(
                divided.ready,
                f"SELECT time, value FROM gpu_samples('{uuid}', '{metric}', "
                f"'{times[0]}', '{times[-1]}'::timestamptz + interval '1 microsecond')",
            )
            assert [value for _, value in by_sql] == pytest.approx([float(v) for v in values])
            assert [time for time, _ in by_sql] == [datetime.fromisoformat(t) for t in times]
        assert max(map(float, series["memory_used_bytes"]["value"])) < gpu["memory_total_bytes"]


def test_the_view_of_the_newest_shows_them_beside_their_gpu(divided: Running) -> None:
    until(lambda: len(instances(divided)) == 2, 60)

    def newest() -> dict[str, tuple[Any, ...]]:
        rows = query(
            divided.ready,
            "SELECT uuid, gpu_index, memory_used_bytes, sm_active_ratio, power_watts "
            "FROM gpu_latest WHERE memory_used_bytes > 0 AND sm_active_ratio IS NOT NULL",
        )
        return {row[0]: row[1:] for row in rows}

    until(lambda: len(newest()) == 4, 60)
    rows = newest()
    whole = next(uuid for uuid, row in rows.items() if row[0] == 0 and row[3] is not None)
    for gpu in instances(divided):
        index, used, busy, power = rows[gpu["uuid"]]
        assert index == 0
        assert 0 < used < rows[whole][1]
        assert 0 <= busy <= 1
        assert power is None, "of the GPU alone"
