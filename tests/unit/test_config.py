"""The configuration: precedence, errors that help, files that load."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from gputel import config
from gputel.config import Config, load, parse_addresses
from gputel.config.settings import SECTIONS
from gputel.errors import ConfigError
from gputel.store.settings import DatabaseSettings

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "gputel.yaml"
    file.write_text(text)
    return file


def fails(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), environment=environment or {})
    return caught.value


def test_the_complete_file_is_the_defaults() -> None:
    assert load(ROOT / "configs/config.yaml", environment={}) == Config()


def test_the_complete_file_and_the_reference_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("render_config", ROOT / "docs/render_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for path, content in module.render().items():
        assert path.read_text() == content, "run `python docs/render_config.py`"


def test_the_complete_file_has_every_key() -> None:
    text = (ROOT / "configs/config.yaml").read_text()
    for section, struct in SECTIONS.items():
        for key in struct.__struct_fields__:
            assert f" {key}:" in text, f"{section}.{key}"


def test_the_first_generations_file_loads_unchanged() -> None:
    loaded = load(ROOT / "configs/first-generation.yaml", environment={})
    assert loaded.database == DatabaseSettings(
        host="localhost",
        port=5432,
        user="postgres",
        password="postgres",
        dbname="telemetry",
        sslmode="disable",
    )
    assert loaded.message_queue.address == "localhost:50051"
    collector = loaded.collector
    assert (collector.batch_size, collector.max_in_flight) == (100, 1000)
    assert (collector.ack_timeout_seconds, collector.worker_count) == (30, 3)


@pytest.mark.parametrize("text", ["[a:1, '[::1]:2']", "'a:1,[::1]:2'", "'a:1 , [::1]:2'"])
def test_brokers_as_a_list_or_a_text(tmp_path: Path, text: str) -> None:
    loaded = load(write(tmp_path, f"message_queue: {{address: {text}}}"), environment={})
    assert parse_addresses(loaded.message_queue.address) == (("a", 1), ("::1", 2))
    variable = {"GPUTEL_MESSAGE_QUEUE__ADDRESS": "a:1,[::1]:2"}
    assert load(environment=variable).message_queue.address == "a:1,[::1]:2"


def test_precedence_is_file_environment_flag(tmp_path: Path) -> None:
    file = write(tmp_path, "collector: {fast_hz: 2, medium_hz: 2, slow_hz: 2}")
    environment = {"GPUTEL_COLLECTOR__MEDIUM_HZ": "3", "GPUTEL_COLLECTOR__SLOW_HZ": "3"}
    loaded = load(file, environment=environment, flags={"collector.slow_hz": ("--x", "4")})
    collector = loaded.collector
    assert (collector.fast_hz, collector.medium_hz, collector.slow_hz) == (2, 3, 4)


@pytest.mark.parametrize(
    ("variable", "value", "read"),
    [
        ("GPUTEL_INSECURE", "true", lambda c: c.insecure is True),
        ("GPUTEL_DATA_DIR", "null", lambda c: c.data_dir is None),
        ("GPUTEL_DATA_DIR", "/x", lambda c: c.data_dir == "/x"),
        ("GPUTEL_STREAM__ORIGINS", "http://a, http://b", lambda c: len(c.stream.origins) == 2),
        ("GPUTEL_SOURCE__SPEED", "max", lambda c: c.source.speed == 0),
        ("GPUTEL_SOURCE__NODE", "7", lambda c: c.source.node == "7"),
        ("GPUTEL_DATABASE__PASSWORD", "12", lambda c: c.database.password == "12"),
        (
            "GPUTEL_BROKER__JETSTREAM__SERVERS",
            "nats://a:1, nats://b:2",
            lambda c: c.broker.jetstream.servers == ("nats://a:1", "nats://b:2"),
        ),
        ("GPUTEL_OBSERVE__OTLP_ENDPOINT", "", lambda c: c.observe.otlp_endpoint is None),
    ],
)
def test_a_variable_is_read_in_its_keys_type(variable: str, value: str, read: Any) -> None:
    assert read(load(environment={variable: value}))


@pytest.mark.parametrize("name", ["KERNELS", "NATIVE_DIR", "DEBUG", "SIM"])
def test_reserved_variables_are_no_settings(name: str) -> None:
    assert load(environment={f"GPUTEL_{name}": "x"}) == Config()


@pytest.mark.parametrize(
    ("text", "path", "parts"),
    [
        ("collector: {fast_hz: 0}", "collector.fast_hz", ["0 can't", "above 0", "at most 1000"]),
        ("collector: {fast_hz: .inf}", "collector.fast_hz", ["at most 1000"]),
        ("collector: {ack_timeout_seconds: .inf}", "collector.ack_timeout_seconds", ["above 0"]),
        ("collector: {batch_size: '9'}", "collector.batch_size", ["whole number"]),
        ("collector: {bach_size: 9}", "collector.bach_size", ["did you mean batch_size?"]),
        ("colector: {}", "colector", ["did you mean collector?"]),
        ("collector: 3", "collector", ["key: value"]),
        ("1: 3", "1", ["no such key"]),
        ("source: {kind: replay}", "source.kind", ["'replay'", "replay:PATH"]),
        ("database: {sslmode: on}", "database.sslmode", ["verify-full"]),
        ("api: {listen: nonsense}", "api.listen", ["no port", "HOST:PORT"]),
        ("api: {listen: '1.2.3.4:99999'}", "api.listen", ["0 to 65535"]),
        ("api: {listen: '::1:80'}", "api.listen", ["brackets"]),
        ("message_queue: {address: ''}", "message_queue.address", ["HOST:PORT"]),
        ("message_queue: {address: []}", "message_queue.address", ["as a list"]),
        ("message_queue: {address: [a:1, 2]}", "message_queue.address", ["can't be used", "list"]),
        ("message_queue: {address: [a:1, b]}", "message_queue.address", ["'b' has no port"]),
        ("message_queue: {address: 'a:1,,b:2'}", "message_queue.address", ["'' has no port"]),
        ("message_queue: {address: 'a:1, a:1'}", "message_queue.address", ["a:1 stands twice"]),
        ("message_queue: {address: 'a:1,b:x'}", "message_queue.address", ["'x' is no port"]),
        ("broker: {jetstream: {replica: 1}}", "broker.jetstream.replica", ["mean replicas?"]),
        ("broker: {jetstream: {replicas: 2}}", "broker.jetstream.replicas", ["1, 3, 5"]),
        ("broker: {jetstream: 3}", "broker.jetstream", ["key: value"]),
        ("broker: {jetstrem: {}}", "broker.jetstrem", ["did you mean jetstream?"]),
        ("broker: {jetstream: {servers: []}}", "broker.jetstream.servers", ["nats://HOST:PORT"]),
        ("message_queue: {topic: 'a b'}", "message_queue.topic", ["letters"]),
        ("stream: {listen: '0.0.0.0:80'}", "stream.listen", ["--insecure"]),
        ("sink: {listen: 'example.com:80'}", "sink.listen", ["insecure: true"]),
    ],
)
def test_an_error_names_file_path_and_what_is_allowed(
    tmp_path: Path, text: str, path: str, parts: list[str]
) -> None:
    error = fails(tmp_path, text)
    assert error.path == path
    assert error.origin == str(tmp_path / "gputel.yaml")
    assert "\n" not in str(error)
    for part in (path, *parts):
        assert part in str(error)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "is not YAML: line"),
        ("api: {}\napi: {}", "key 'api' stands twice"),
        ("api: &a {}\nstream: *a", "aliases are not supported"),
        ("- 1", "no `section:` lines"),
        ("[" * 3000, "too deeply"),
        ("? [1]\n: 2", "a key must be text"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, part: str) -> None:
    assert part in str(fails(tmp_path, text))


def test_a_file_that_is_missing_too_large_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.yaml", environment={})
    assert "larger than" in str(fails(tmp_path, "#" * (1024 * 1024 + 1)))
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(file, environment={})


def test_an_error_names_the_variable_or_the_flag() -> None:
    with pytest.raises(ConfigError, match=r"^GPUTEL_SOURCE__GPUS: source.gpus: 'x' can't"):
        load(environment={"GPUTEL_SOURCE__GPUS": "x"})
    with pytest.raises(ConfigError, match="did you mean GPUTEL_SOURCE__GPUS"):
        load(environment={"GPUTEL_SOURCE_GPUS": "8"})
    with pytest.raises(ConfigError, match=r"^--gpus: source.gpus: '0' can't"):
        load(environment={}, flags={"source.gpus": ("--gpus", "0")})


def test_insecure_lets_listeners_out() -> None:
    environment = {"GPUTEL_API__LISTEN": "0.0.0.0:80"}
    with pytest.raises(ConfigError):
        load(environment=environment)
    assert load(environment=environment, flags={"insecure": ("--insecure", True)}).insecure


def test_secrets_are_masked_and_never_in_an_error(tmp_path: Path) -> None:
    loaded = load(environment={"GPUTEL_DATABASE__PASSWORD": "tops3cret"})
    assert "tops3cret" not in config.dump(loaded)
    assert "tops3cret" not in repr(loaded)
    servers = "nats://user:tops3cret@a:1,nats://b:2"
    loaded = load(environment={"GPUTEL_BROKER__JETSTREAM__SERVERS": servers})
    assert "tops3cret" not in config.dump(loaded)
    assert "tops3cret" not in repr(loaded)
    assert "[1234567]" not in str(fails(tmp_path, "database: {password: [1234567]}"))
    assert "1234567" not in str(fails(tmp_path, "database: {password: 1234567}"))


def test_empty_files_and_sections_are_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, ""), environment={}) == Config()
    assert load(write(tmp_path, "api:\ndatabase:\n"), environment={}) == Config()
    assert load(write(tmp_path, "database: {}"), environment={}).database == DatabaseSettings()


def test_problems_lists_all_of_them() -> None:
    text = "api: {listen: 3}\nsource: {gpus: x}\nzzz: 1"
    assert len(config.problems(text, "f", {"GPUTEL_FOO": "1"})) == 4
    assert len(config.problems("a: [", "f", {})) == 1


def test_the_data_directory_follows_user_and_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert config.default_data_dir() == Path("/var/lib/gputel")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert config.default_data_dir() == Path("/data/gputel")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert config.default_data_dir() == Path("/home/someone/.local/share/gputel")
