"""Pod labels and UIDs from an API server that answers, refuses, stalls, drips or lies."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gputel.clock import ManualClock
from gputel.collector.attribution import pods
from gputel.collector.attribution.pods import (
    NOTHING,
    PodDirectory,
    PodFacts,
    chosen_labels,
    label_name,
)
from gputel.collector.attribution.settings import compile_patterns

A, B = ("ml", "a"), ("ml", "b")


class ApiServer(ThreadingHTTPServer):
    """Serves `pods` of node-1, `page` a page; `answer` replaces the answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods: dict[tuple[str, str], dict[str, Any]] = {}
        self.page = 100
        self.answer: Callable[[Handler], object] | None = None
        self.requests: list[tuple[dict[str, list[str]], dict[str, str]]] = []
        self.go_on = threading.Event()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that go away are what is tested here

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer goes out at once, not its head before its body
    server: ApiServer

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        self.server.requests.append((query, dict(self.headers.items())))
        if self.server.answer is not None:
            self.server.answer(self)
            return
        assert url.path == "/api/v1/pods"
        on_node = query["fieldSelector"] == ["spec.nodeName=node-1"]
        names = sorted(self.server.pods) if on_node else []
        first = int(query.get("continue", ["0"])[0])
        chosen = names[first : first + self.server.page]
        following = first + self.server.page
        self.send(
            200,
            {
                "kind": "PartialObjectMetadataList",
                "metadata": {"continue": str(following)} if following < len(names) else {},
                "items": [
                    {"metadata": {"namespace": ns, "name": name, **self.server.pods[ns, name]}}
                    for ns, name in chosen
                ],
            },
        )

    def send(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def directory(server: ApiServer, clock: ManualClock, tmp_path: Path) -> PodDirectory:
    return PodDirectory(f"http://{server.address}", str(tmp_path), ["^app", "team"], clock)


def metadata(uid: str, **labels: str) -> dict[str, Any]:
    return {"uid": uid, "labels": {name.replace("__", "/"): text for name, text in labels.items()}}


async def test_facts_of_the_pods_asked_for(server: ApiServer, directory: PodDirectory) -> None:
    server.pods = {
        A: metadata("uid-a", app="llm", app_kubernetes_io__name="x", secret="y", myteam="z"),
        B: {"uid": "uid-b"},
        ("ml", "other"): metadata("uid-c", app="not asked for"),
    }
    assert await directory.refresh({A, B}, "node-1")
    expected = (("app", "llm"), ("app_kubernetes_io_name", "x"), ("myteam", "z"))
    assert directory.facts(A) == PodFacts("uid-a", expected)
    assert directory.facts(B) == PodFacts("uid-b")
    assert directory.facts(("ml", "other")) == NOTHING
    ((query, headers),) = server.requests
    assert query["resourceVersion"] == ["0"]
    assert "PartialObjectMetadataList" in headers["Accept"]
    assert "Authorization" not in headers, "a token never goes in clear"


async def test_it_is_asked_rarely(
    server: ApiServer, directory: PodDirectory, clock: ManualClock
) -> None:
    server.pods = {A: metadata("uid-a")}
    assert not await directory.refresh(set(), "node-1")
    assert not server.requests, "without a pod there is no question"
    assert await directory.refresh({A}, "node-1")
    for _ in range(20):
        clock.advance(5)
        assert not await directory.refresh({A}, "node-1")
    assert len(server.requests) == 1
    # Labels may change.
    server.pods = {A: metadata("uid-a", app="new")}
    clock.advance(pods.REFRESH_S)
    assert await directory.refresh({A}, "node-1")
    assert directory.facts(A).labels == (("app", "new"),)
    # A new pod: at once; while it is not there yet: every few seconds.
    for _ in range(3):
        await directory.refresh({A, B}, "node-1")
    assert len(server.requests) == 3
    server.pods[B] = metadata("uid-b")
    clock.advance(pods.RETRY_S)
    assert await directory.refresh({A, B}, "node-1")
    assert directory.facts(B).uid == "uid-b"


async def test_a_pod_that_comes_back_is_another(server: ApiServer, directory: PodDirectory) -> None:
    server.pods = {A: metadata("uid-1")}
    await directory.refresh({A}, "node-1")
    assert await directory.refresh(set(), "node-1")
    server.pods = {A: metadata("uid-2")}
    assert directory.facts(A) == NOTHING
    await directory.refresh({A}, "node-1")
    assert directory.facts(A).uid == "uid-2"


async def test_a_pod_that_is_deleted_keeps_its_labels_while_it_ends(
    server: ApiServer, directory: PodDirectory, clock: ManualClock
) -> None:
    server.pods = {A: metadata("uid-a"), B: metadata("uid-b")}
    await directory.refresh({A, B}, "node-1")
    del server.pods[A]
    clock.advance(pods.REFRESH_S)
    assert not await directory.refresh({A, B}, "node-1")
    assert directory.facts(A).uid == "uid-a"


async def test_many_pods_come_in_pages(server: ApiServer, directory: PodDirectory) -> None:
    wanted = {("ml", f"pod-{i:03}") for i in range(250)}
    server.pods = {name: metadata(f"uid {name[1]}") for name in wanted}
    await directory.refresh(wanted, "node-1")
    assert all(directory.facts(name).uid == f"uid {name[1]}" for name in wanted)
    assert len(server.requests) == 3
    assert "resourceVersion" not in server.requests[1][0]


ANSWERS: dict[str, tuple[Callable[[Handler], object], str]] = {
    "forbidden": (lambda h: h.send(403, {"kind": "Status"}), "denied"),
    "a token that expired": (lambda h: h.send(401, b""), "denied"),
    "overload": (lambda h: h.send(429, b""), "unavailable"),
    "a redirect": (lambda h: h.send(302, b""), "unavailable"),
    "no JSON": (lambda h: h.send(200, b"<html>"), "invalid"),
    "no list": (lambda h: h.send(200, {"items": 3, "metadata": {}}), "invalid"),
    "no metadata": (lambda h: h.send(200, {"items": [{}], "metadata": {}}), "invalid"),
    "labels of another shape": (
        lambda h: h.send(
            200,
            {"metadata": {}, "items": [
                {"metadata": {"namespace": "ml", "name": "a", "uid": "u", "labels": [1]}}
            ]},
        ),
        "invalid",
    ),
    "pages without end": (
        lambda h: h.send(200, {"items": [], "metadata": {"continue": "again"}}),
        "invalid",
    ),
    "no HTTP": (lambda h: h.wfile.write(b"SSH-2.0-x\r\n"), "unavailable"),
    "hanging up": (lambda h: h.connection.shutdown(socket.SHUT_RDWR), "unavailable"),
    "too much": (lambda h: h.send(200, b" " * (pods.ANSWER_BYTES_MAX + 1)), "invalid"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_a_server_that_is_of_no_use(
    server: ApiServer, directory: PodDirectory, name: str
) -> None:
    server.answer, reason = ANSWERS[name]
    assert not await directory.refresh({A}, "node-1")
    assert directory.errors == {reason: 1}
    assert directory.facts(A) == NOTHING


async def test_a_server_that_stalls_is_left_alone_ever_longer(
    server: ApiServer,
    directory: PodDirectory,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pods, "SOCKET_TIMEOUT_S", 0.02)
    server.pods = {A: metadata("uid-a")}
    server.answer = lambda handler: server.go_on.wait()
    for _ in range(100):
        await directory.refresh({A}, "node-1")
        clock.advance(5)
    assert sum(directory.errors.values()) == 7  # 5, 10, 20, 40, 80, 160, 300 s apart
    server.answer = None
    clock.advance(pods.RETRY_MAX_S)
    assert await directory.refresh({A}, "node-1")
    assert directory.facts(A).uid == "uid-a"


async def test_a_server_that_drips(
    server: ApiServer, directory: PodDirectory, clock: ManualClock
) -> None:
    def drip(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not server.go_on.wait(0.002):
            clock.advance(1)
            handler.wfile.write(b" ")
            handler.wfile.flush()

    server.answer = drip
    assert not await directory.refresh({A}, "node-1")
    assert directory.errors == {"timeout": 1}
    server.answer = None
    clock.advance(pods.RETRY_MAX_S)
    server.pods = {A: metadata("uid-a")}
    assert await directory.refresh({A}, "node-1"), "the thread has not been kept"


async def test_a_failure_forgets_nothing(
    server: ApiServer, directory: PodDirectory, clock: ManualClock
) -> None:
    server.pods = {A: metadata("uid-a")}
    await directory.refresh({A}, "node-1")
    server.answer = lambda handler: handler.send(500, b"")
    clock.advance(pods.REFRESH_S)
    await directory.refresh({A}, "node-1")
    assert directory.facts(A).uid == "uid-a"


async def test_another_node_has_other_pods(server: ApiServer, directory: PodDirectory) -> None:
    server.pods = {A: metadata("uid-a")}
    await directory.refresh({A}, "node-2")
    assert directory.facts(A) == NOTHING


async def test_no_service_account(clock: ManualClock, tmp_path: Path) -> None:
    directory = PodDirectory("https://127.0.0.1:1", str(tmp_path), [], clock)
    assert not await directory.refresh({A}, "node-1")
    assert directory.errors == {"unavailable": 1}


def make_certificate(folder: Path, name: str) -> None:
    """A certificate for 127.0.0.1 that is its own authority: NAME.crt and NAME.key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", folder / f"{name}.key",
         "-out", folder / f"{name}.crt"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
async def test_the_token_goes_to_the_server_of_the_clusters_authority(
    server: ApiServer, clock: ManualClock, tmp_path: Path
) -> None:
    make_certificate(tmp_path, "cluster")
    make_certificate(tmp_path, "stranger")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cluster.crt", tmp_path / "cluster.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    (tmp_path / "token").write_text("s3cret\n")
    server.pods = {A: metadata("uid-a")}

    async def ask(authority: str) -> PodDirectory:
        shutil.copy(tmp_path / f"{authority}.crt", tmp_path / "ca.crt")
        directory = PodDirectory(f"https://{server.address}", str(tmp_path), [], clock)
        await directory.refresh({A}, "node-1")
        return directory

    assert (await ask("stranger")).errors == {"unavailable": 1}
    assert not server.requests
    assert (await ask("cluster")).facts(A).uid == "uid-a"
    assert server.requests[0][1]["Authorization"] == "Bearer s3cret"
    (tmp_path / "token").write_text("bad\r\nX-Injected: 1")
    assert (await ask("cluster")).errors == {"invalid": 1}


def test_label_names() -> None:
    assert label_name("app.kubernetes.io/name") == "app_kubernetes_io_name"
    assert label_name("9lives") == "_9lives"
    assert label_name("ünï") == "_n_"


def test_the_allow_list_chooses_and_nothing_collides() -> None:
    labels = {
        "app": "1", "a.b": "dot", "a/b": "slash", "pod": "mine", "UUID": "mine", "Hostname": "x",
        "__name__": "x", "DCGM_FI_DRIVER_VERSION": "x", "value": 'a"\n\\',
    }  # fmt: skip
    assert chosen_labels(labels, compile_patterns([])) == ()
    assert chosen_labels(labels, compile_patterns(["."])) == (
        ("a_b", "dot"),
        ("app", "1"),
        ("value", 'a"\n\\'),
    )
    assert chosen_labels(labels, compile_patterns(["^ap+$", "nothing"])) == (("app", "1"),)
    many = {f"label{i:03}": "x" * 1000 for i in range(100)}
    chosen = chosen_labels(many, compile_patterns([""]))
    assert len(chosen) == pods.LABELS_PER_POD_MAX
    assert len(chosen[0][1]) == 256


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        compile_patterns(["ok", "("])
