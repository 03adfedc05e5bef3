"""The parts of `gputel up`, alone and as a cluster: names, order, addresses, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gputel.config import Config, load
from gputel.errors import ConfigError
from gputel.services.announcement import Announcement
from gputel.services.lineup import Lineup, settle


def lineup(
    tmp_path: Path,
    variables: Mapping[str, str] = {},
    *,
    cluster: bool = True,
    ephemeral: bool = False,
) -> Lineup:
    environment = {f"GPUTEL_{name}": value for name, value in variables.items()}
    config = settle(load(environment=environment), cluster=cluster)
    return Lineup(config, tmp_path, cluster=cluster, ephemeral=ephemeral)


def told(of: Lineup, name: str, **announced: dict[str, str]) -> dict[str, Any]:
    """What a part is configured with once `announced` serve (service_2: service-2)."""
    announcements = {
        service.replace("_", "-"): Announcement(
            service=service.partition("_")[0], pid=1, addresses=addresses
        )
        for service, addresses in announced.items()
    }
    plan = next(plan for plan in of.plans() if plan.part.name == name)
    configuration: dict[str, Any] = json.loads(plan.configure(announcements))
    return configuration


def test_one_of_each(tmp_path: Path) -> None:
    one = lineup(tmp_path, cluster=False)
    needs = {plan.part.name: set(plan.needs) for plan in one.plans()}
    assert needs == {
        "postgres": set(),
        "broker": set(),
        "sink": {"broker", "postgres"},
        "streamer": {"broker"},
        "api": {"sink", "streamer"},
        "collector": {"broker", "sink", "streamer", "api"},
    }
    assert one.stop_order() == [
        ["collector"],
        ["api", "streamer"],
        ["sink"],
        ["broker"],
        ["postgres"],
    ]
    assert not (tmp_path / "nats").exists()
    assert told(one, "broker")["broker"]["engine"] == "embedded"


def test_a_cluster(tmp_path: Path) -> None:
    several = lineup(tmp_path)
    needs = {plan.part.name: set(plan.needs) for plan in several.plans()}
    servers = {"nats-1", "nats-2", "nats-3"}
    brokers = {"broker-1", "broker-2"}
    sinks = {"sink-1", "sink-2"}
    assert set(needs) == {*servers, *brokers, *sinks, "postgres", "streamer", "api", "collector"}
    assert needs["broker-2"] == servers
    assert needs["sink-2"] == {*brokers, "postgres"}
    assert needs["collector"] == {*brokers, *sinks, "streamer", "api"}
    assert [set(group) for group in several.stop_order()] == [
        {"collector"},
        {"api", "streamer"},
        sinks,
        brokers,
        {*servers, "postgres"},
    ]


def test_the_second_of_a_kind_listens_higher(tmp_path: Path) -> None:
    several = lineup(tmp_path, {"BROKER__METRICS_LISTEN": "127.0.0.1:7000"})
    assert [(name, str(address)) for name, address in several.listeners()] == [
        ("broker-1", "127.0.0.1:50051"),
        ("broker-1", "127.0.0.1:7000"),
        ("broker-2", "127.0.0.1:50061"),
        ("broker-2", "127.0.0.1:7010"),
        ("sink-1", "127.0.0.1:9402"),
        ("sink-2", "127.0.0.1:9412"),
        ("streamer", "127.0.0.1:8081"),
        ("api", "127.0.0.1:8080"),
        ("collector", "127.0.0.1:9400"),
    ]


def test_both_brokers_where_the_queues_addresses_say(tmp_path: Path) -> None:
    several = lineup(tmp_path, {"MESSAGE_QUEUE__ADDRESS": "localhost:6001,localhost:7001"})
    assert told(several, "broker-1")["broker"]["listen"] == "127.0.0.1:6001"
    assert told(several, "broker-2")["broker"]["listen"] == "127.0.0.1:7001"


def test_free_ports_until_they_are_announced_and_the_same_ones_afterwards(tmp_path: Path) -> None:
    several = lineup(
        tmp_path, {"MESSAGE_QUEUE__ADDRESS": "localhost:1,localhost:2"}, ephemeral=True
    )
    assert {address.port for _, address in several.listeners()} == {0}
    first = {"broker": "127.0.0.1:6001", "metrics": "http://127.0.0.1:6002"}
    second = {"broker": "127.0.0.1:7001", "metrics": "http://127.0.0.1:7002"}
    again = told(several, "broker-2", broker_1=first, broker_2=second)["broker"]
    assert (again["listen"], again["metrics_listen"]) == ("127.0.0.1:7001", "127.0.0.1:7002")
    for name in ("sink-1", "sink-2", "streamer", "collector"):
        queue = told(several, name, broker_1=first, broker_2=second)["message_queue"]
        assert queue["address"] == "127.0.0.1:6001,127.0.0.1:7001"
    sinks = {"sink_1": {"sink": "http://127.0.0.1:8001"}, "sink_2": {"sink": "http://127.0.0.1:1"}}
    assert told(several, "sink-1", **sinks)["sink"]["listen"] == "127.0.0.1:8001"
    assert told(several, "sink-2", **sinks)["sink"]["listen"] == "127.0.0.1:1"


def test_the_brokers_are_told_of_the_servers(tmp_path: Path) -> None:
    several = lineup(tmp_path, {"BROKER__PARTITIONS": "6"})
    broker = told(several, "broker-2")["broker"]
    assert broker["engine"] == "jetstream"
    assert broker["jetstream"]["servers"] == [server.url for server in several.nats]
    assert (len(several.nats), broker["jetstream"]["replicas"], broker["partitions"]) == (3, 3, 6)


def test_a_listener_on_all_addresses_is_reached_on_loopback(tmp_path: Path) -> None:
    one = lineup(tmp_path, {"BROKER__LISTEN": "[::]:5", "INSECURE": "true"}, cluster=False)
    said = {"broker": "[::]:5", "metrics": "http://127.0.0.1:6"}
    assert told(one, "sink", broker=said)["message_queue"]["address"] == "[::1]:5"


@pytest.mark.parametrize(
    ("variables", "path", "part"),
    [
        ({"MESSAGE_QUEUE__ADDRESS": "a:1"}, "message_queue.address", "a:1 is not on this machine"),
        ({"MESSAGE_QUEUE__ADDRESS": "localhost:1,a:1"}, "message_queue.address", "a:1 is not on"),
        (
            {"MESSAGE_QUEUE__ADDRESS": "localhost:1,localhost:2,localhost:3"},
            "message_queue.address",
            "3 addresses; --cluster starts 2 brokers",
        ),
        (
            {"BROKER__JETSTREAM__SERVERS": "nats://a:1"},
            "broker.jetstream.servers",
            "nats-servers of its own",
        ),
        (
            {"BROKER__JETSTREAM__REPLICAS": "5"},
            "broker.jetstream.replicas",
            "5 copies; --cluster starts 3 servers; allowed: 1, 3",
        ),
        ({"SINK__LISTEN": "127.0.0.1:65530"}, "sink.listen", "sink-2 would listen on port 65540"),
        (
            {"MESSAGE_QUEUE__ADDRESS": "localhost:1", "BROKER__LISTEN": "127.0.0.1:2"},
            "message_queue.address",
            "localhost:1 is not where the broker listens",
        ),
    ],
)
def test_what_a_cluster_on_this_machine_can_not_be(
    tmp_path: Path, variables: dict[str, str], path: str, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        list(lineup(tmp_path, variables).listeners())
    assert caught.value.path == path
    assert part in str(caught.value)


def test_without_a_cluster_one_address_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--cluster starts two"):
        lineup(tmp_path, {"MESSAGE_QUEUE__ADDRESS": "localhost:1,localhost:2"}, cluster=False)
    elsewhere = lineup(tmp_path, {"MESSAGE_QUEUE__ADDRESS": "a:1,b:2"}, cluster=False)
    assert not elsewhere.own_broker
    assert "broker" not in {plan.part.name for plan in elsewhere.plans()}
    assert told(elsewhere, "sink")["message_queue"]["address"] == "a:1,b:2"
    assert settle(Config(), cluster=False) == Config()
