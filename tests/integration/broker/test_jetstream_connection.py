"""What an operator reads when the NATS servers are not as the broker needs them."""

from __future__ import annotations

import builtins
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gputel.broker.engine.jetstream import cluster
from gputel.broker.engine.jetstream import engine as engine_module
from gputel.broker.engine.jetstream.engine import JetStreamEngine
from gputel.broker.engines import make_engine
from gputel.broker.settings import BrokerSettings, JetStreamSettings
from gputel.clock import NS_PER_S
from gputel.errors import BrokerUnavailable, InputError
from support.nats_servers import running


def settings(*urls: str, **changed: Any) -> BrokerSettings:
    fields: dict[str, Any] = {"servers": urls, "replicas": 1} | changed
    return BrokerSettings(engine="jetstream", jetstream=JetStreamSettings(**fields))


@asynccontextmanager
async def started(options: BrokerSettings) -> AsyncIterator[JetStreamEngine]:
    engine = JetStreamEngine(options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_a_password_in_the_url_works_and_is_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    authorization = {"user": "gputel", "password": "tops3cret"}
    with running(tmp_path, 1, authorization=authorization) as servers:
        place = servers.urls[0].removeprefix("nats://")
        async with started(settings(f"nats://gputel:tops3cret@{place}")) as engine:
            assert engine.cluster.connected
        with pytest.raises(InputError, match=f"{place} refuses us: .*Authorization") as caught:
            async with started(settings(f"nats://gputel:wr0ng@{place}")):
                pass
    assert "wr0ng" not in str(caught.value)
    assert "tops3cret" not in caplog.text


async def test_servers_without_jetstream_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "START_NS", NS_PER_S // 2)
    with (
        running(tmp_path, 1, jetstream=False) as servers,
        pytest.raises(BrokerUnavailable, match="with JetStream"),
    ):
        async with started(settings(*servers.urls)):
            pass


async def test_what_a_server_that_has_just_begun_refuses_is_asked_again() -> None:
    engine = JetStreamEngine(settings("nats://127.0.0.1:1"))
    refusals = [cluster.Refused("INFO", {"err_code": 10059, "description": "stream not found"})]

    async def step() -> None:
        if refusals:
            raise refusals.pop()

    await engine._patiently(step)
    assert not refusals


async def test_servers_that_take_small_messages_only_are_named(tmp_path: Path) -> None:
    with (
        running(tmp_path, 1, max_payload=1000) as servers,
        pytest.raises(InputError, match="takes messages of 1000 bytes at most"),
    ):
        async with started(settings(*servers.urls)):
            pass


async def test_no_server_and_no_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "START_S", 0.5)
    with pytest.raises(BrokerUnavailable, match=r"none of 127\.0\.0\.1:1 answers"):
        async with started(settings("nats://127.0.0.1:1")):
            pass
    with pytest.raises(InputError, match=r"/nowhere/ca\.pem"):
        async with started(settings("tls://127.0.0.1:1", ca_file="/nowhere/ca.pem")):
            pass
    with pytest.raises(InputError, match=r"/nowhere/x\.creds"):
        async with started(settings("nats://127.0.0.1:1", credentials_file="/nowhere/x.creds")):
            pass


def test_missing_packages_are_named_with_the_command_that_brings_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = builtins.__import__

    def without_nats(name: str, *rest: Any, **named: Any) -> Any:
        if name.endswith("engine.jetstream") or name.startswith("nats"):
            raise ImportError(f"No module named {name!r}", name="nats")
        return whole(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_nats)
    with pytest.raises(InputError, match=r"needs the package nats.*gputel\[cluster\]"):
        make_engine(settings("nats://127.0.0.1:1"), tmp_path)


def certificate(directory: Path, name: str, *issuer: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key; signed by (certificate, key), or by itself."""
    made, key = directory / f"{name}.pem", directory / f"{name}.key"
    signed = ("-CA", str(issuer[0]), "-CAkey", str(issuer[1])) if issuer else ()
    basic = "CA:FALSE" if issuer else "CA:TRUE"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", f"/CN={name}", "-keyout", str(key)),
            *("-out", str(made), "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-addext", f"basicConstraints=critical,{basic}", *signed),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return made, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
async def test_servers_and_broker_show_each_other_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificate(tmp_path, "authority")
    for_server = certificate(tmp_path, "server", *authority)
    for_broker = certificate(tmp_path, "broker", *authority)
    stranger, _ = certificate(tmp_path, "stranger")
    tls = {
        "cert_file": str(for_server[0]),
        "key_file": str(for_server[1]),
        "ca_file": str(authority[0]),
        "verify": True,
    }
    shown = {"certificate_file": str(for_broker[0]), "key_file": str(for_broker[1])}
    with running(tmp_path / "nats", 1, tls=tls) as servers:
        url = servers.urls[0].replace("nats://", "tls://")
        async with started(settings(url, ca_file=str(authority[0]), **shown)) as engine:
            assert engine.cluster.connected
        monkeypatch.setattr(cluster, "START_S", 1.5)
        with pytest.raises(BrokerUnavailable, match="certificate verify failed"):
            async with started(settings(url, ca_file=str(stranger), **shown)):
                pass
