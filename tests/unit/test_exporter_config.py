"""dcgm-exporter's flags and variables, in gputel's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from gputel import config
from gputel.errors import ConfigError

MANIFEST = {
    "DCGM_EXPORTER_LISTEN": ":9401",
    "DCGM_EXPORTER_COLLECTORS": "counters.csv",
    "DCGM_EXPORTER_NO_HOSTNAME": "true",
    "DCGM_EXPORTER_REPLACE_BLANKS_IN_MODEL_NAME": "true",
    "DCGM_EXPORTER_XID_COUNT_WINDOW_SIZE": "60000",
    "DCGM_EXPORTER_CLOCK_EVENTS_COUNT_WINDOW_SIZE": "120000",
    "NODE_NAME": "worker-7",
    # What Kubernetes sets for a service of that name, and a variable that means nothing here.
    "DCGM_EXPORTER_PORT": "tcp://10.0.0.1:9400",
    "DCGM_EXPORTER_KUBERNETES": "true",
}


def test_a_manifest_of_dcgm_exporter_keeps_its_meaning() -> None:
    loaded = config.load(environment=MANIFEST, flags={"insecure": ("--insecure", True)})
    assert loaded.collector.listen == "0.0.0.0:9401"
    assert loaded.source.node == "worker-7"
    exporter = loaded.exporter
    assert exporter.collectors == "counters.csv"
    assert exporter.hostname_label is None
    assert exporter.replace_blanks_in_model_name
    assert (exporter.xid_window_ms, exporter.clock_events_window_ms) == (60_000, 120_000)


def test_our_own_variable_wins() -> None:
    environment = {
        **MANIFEST,
        "DCGM_EXPORTER_NO_HOSTNAME": "false",
        "GPUTEL_COLLECTOR__LISTEN": "127.0.0.1:9402",
    }
    loaded = config.load(environment=environment)
    assert loaded.collector.listen == "127.0.0.1:9402"
    assert loaded.exporter.hostname_label == "Hostname"


def test_all_addresses_want_to_be_said_out_loud() -> None:
    with pytest.raises(
        ConfigError, match=r"DCGM_EXPORTER_LISTEN: .*0\.0\.0\.0:9401 can be reached"
    ):
        config.load(environment=MANIFEST)
    with pytest.raises(ConfigError, match=r"DCGM_EXPORTER_XID_COUNT_WINDOW_SIZE.* from 1000"):
        config.load(environment={"DCGM_EXPORTER_XID_COUNT_WINDOW_SIZE": "-1"})


def test_the_process_environment_is_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MANIFEST.items():
        monkeypatch.setenv(name, value)
    read = config.read_environment()
    assert read["DCGM_EXPORTER_LISTEN"] == ":9401"
    assert "DCGM_EXPORTER_PORT" not in read


def test_the_file_has_the_section(tmp_path: Path) -> None:
    file = tmp_path / "gputel.yaml"
    file.write_text("exporter:\n  profile: gputel\n  hostname_label: hostname\n")
    loaded = config.load(file, environment={})
    assert (loaded.exporter.profile, loaded.exporter.hostname_label) == ("gputel", "hostname")
    file.write_text("exporter:\n  hostname_label: HOST\n")
    with pytest.raises(ConfigError, match=r"exporter\.hostname_label.*Hostname, hostname"):
        config.load(file, environment={})
