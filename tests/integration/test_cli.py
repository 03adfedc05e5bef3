"""The command line: help, and one clear line with a documented exit code for each mistake."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from support.pipeline import environment

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration


def gputel(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GPUTEL_")}
    return subprocess.run(
        [sys.executable, "-m", "gputel", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**environment, **variables},
        check=False,
    )


def fails(code: int, *arguments: str, **variables: str) -> str:
    """The one line that the command says; no log line may hide it, no traceback follow it."""
    done = gputel(*arguments, **variables)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("gputel: error: ")]
    assert len(errors) == 1, done.stderr
    assert done.stderr.rstrip().endswith(errors[0])
    return errors[0]


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["up"],
        ["collector"],
        ["broker"],
        ["sink"],
        ["api"],
        ["streamer"],
        ["doctor"],
        ["migrate"],
        ["config"],
        ["config", "check"],
        ["sim"],
        ["sim", "path"],
        ["sim", "run"],
        ["version"],
    ],
)
def test_help_is_there(command: list[str]) -> None:
    done = gputel(*command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: gputel")
    assert "ready-fd" not in done.stdout


def test_version() -> None:
    assert gputel("version").stdout == gputel("--version").stdout
    assert set(json.loads(gputel("version", "--json").stdout)) == {"version", "python"}


def test_light_commands_load_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from gputel.cli import main\n"
        "try: main(['version'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'grpc', 'asyncpg', 'falcon', 'yaml', 'msgspec', 'opentelemetry'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "import gputel.config\n"
        "heavy -= {'yaml', 'msgspec'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_no_command_is_a_usage_error() -> None:
    assert gputel().returncode == 2
    assert gputel("explode").returncode == 2


def test_a_missing_config(tmp_path: Path) -> None:
    line = fails(3, "up", "--config", str(tmp_path / "none.yaml"))
    assert "none.yaml" in line
    assert "No such file" in line


def test_a_bad_key_variable_and_flag(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("collector: {fast_hertz: 3}")
    assert "did you mean fast_hz?" in fails(3, "sink", "--config", str(file))
    assert "GPUTEL_SOURCE__GPUS" in fails(3, "up", GPUTEL_SOURCE__GPUS="none")
    assert "--hz" in fails(3, "up", "--hz", "fast")
    assert "--insecure" in fails(3, "up", "--http", "0.0.0.0:0")


def test_config_check(tmp_path: Path) -> None:
    done = gputel("config", "check", str(ROOT / "configs/first-generation.yaml"))
    assert done.returncode == 0
    assert "password: '********'" in done.stdout
    file = tmp_path / "bad.yaml"
    file.write_text("a: 1\nb: 2\ncollector: {batch_size: 0}")
    done = gputel("config", "check", str(file))
    assert done.returncode == 3
    assert done.stderr.count("gputel: error: ") == 3


def test_the_checked_configuration_can_be_loaded_again(tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    file.write_text(gputel("config", "check", GPUTEL_API__LISTEN="127.0.0.1:1").stdout)
    assert "127.0.0.1:1\n" in gputel("config", "check", str(file)).stdout


def test_a_reader_that_leaves_early() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gputel", "config", "check"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_a_missing_replay_file(tmp_path: Path) -> None:
    source = f"replay:{tmp_path / 'none.csv'}"
    line = fails(4, "up", "--source", source, "--ephemeral", TMPDIR=str(tmp_path))
    assert "none.csv: No such file" in line
    assert not list(tmp_path.iterdir()), "a temporary data directory is left"


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ports = {
            "GPUTEL_BROKER__LISTEN": "127.0.0.1:0",
            "GPUTEL_BROKER__METRICS_LISTEN": "127.0.0.1:0",
            "GPUTEL_SINK__LISTEN": "127.0.0.1:0",
            "GPUTEL_STREAM__LISTEN": "127.0.0.1:0",
            "GPUTEL_COLLECTOR__LISTEN": "127.0.0.1:0",
        }
        line = fails(5, "up", "--http", address, "--data-dir", str(tmp_path), **ports)
    assert f"api: {address} is in use" in line


def test_a_data_directory_that_can_not_be_made(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    line = fails(4, "up", "--ephemeral", "--data-dir", str(file / "data"))
    assert "Not a directory" in line
    assert "--data-dir" in line


def test_an_unreachable_database() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: it refuses
        port = str(closed.getsockname()[1])
        variables = {"GPUTEL_DATABASE__PORT": port, "GPUTEL_DATABASE__PASSWORD": "tops3cret"}
        line = fails(6, "migrate", **variables)
        assert "tops3cret" not in line
        assert port in line


def test_migrate_wants_a_configured_server() -> None:
    assert "database" in fails(3, "migrate")


def test_doctor_without_a_pipeline(tmp_path: Path) -> None:
    done = gputel("doctor", "--json", "--data-dir", str(tmp_path))
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert {"python", "kernels", "driver", "disk", "pipeline"} <= set(checks)
    assert "gputel up" in checks["pipeline"]["advice"]
    well = all(check["well"] for check in checks.values())
    assert done.returncode == (0 if well else 9)


def test_doctor_sees_a_collector_that_runs_alone(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {
        "GPUTEL_COLLECTOR__LISTEN": listen,
        "GPUTEL_MESSAGE_QUEUE__ADDRESS": "127.0.0.1:1",
        "GPUTEL_SOURCE__KIND": "sim",
        "GPUTEL_COLLECTOR__FAST_HZ": "50",
    }
    command = [sys.executable, "-m", "gputel", "collector", "--data-dir", str(tmp_path)]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, env={**environment(), **variables}, stderr=stderr) as collector,
    ):
        try:
            deadline = time.monotonic() + 40
            checks: dict[str, Any] = {}
            while "rate fast" not in checks and time.monotonic() < deadline:
                done = gputel("doctor", "--json", "--data-dir", str(tmp_path), **variables)
                said = json.loads(done.stdout)
                checks = {check["name"]: check for check in said["checks"]}
            assert "the broker is away" in checks["collector"]["finding"]
            assert "frames wait" in checks["spool"]["finding"]
            # The simulator refreshes at 10 Hz; a busy machine misses some of that, never more.
            advised = re.search(r"_hz: (\S+) would tell the same", checks["rate fast"]["advice"])
            fastest = re.search(r"changes at (\S+) Hz", checks["rate fast"]["finding"])
            assert advised is not None
            assert fastest is not None
            assert float(advised[1]) == pytest.approx(float(fastest[1]), rel=0.05)
            rates = {rate["metric"]: rate for rate in said["collector"]["rates"]}
            assert 12 < rates["energy_millijoules"]["nominal_hz"] < 60
            assert 1 < rates["energy_millijoules"]["effective_hz"] < 12
            assert "port collector" not in checks
        finally:
            collector.terminate()
    assert "stay in the spool" in log.read_text()


def test_doctor_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = gputel("doctor", "--data-dir", str(tmp_path), GPUTEL_API__LISTEN=listen)
    assert done.returncode == 9
    assert f"FAIL  port api: {listen} is taken" in done.stdout
    assert "do: stop what listens there" in done.stdout
