"""What only the API server knows of a pod: its UID and its labels.

Asked for when a pod with a GPU is not known yet, and every few minutes, since labels may
change; after a failure ever more rarely. The pods of this node are listed with their metadata
only, out of the API server's cache, which is the cheapest question there is.
"""

from __future__ import annotations

import http.client
import logging
import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import orjson

from gputel.clock import NS_PER_S, Clock
from gputel.collector.attribution.origin import ReadFailed, Reason, bounded
from gputel.collector.attribution.settings import compile_patterns
from gputel.collector.blocking import DaemonCaller

log = logging.getLogger(__name__)

SOCKET_TIMEOUT_S: Final = 5.0
FETCH_DEADLINE_S: Final = 15.0
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
PAGES_MAX: Final = 64
PAGE_PODS: Final = 500
REFRESH_S: Final = 300.0
RETRY_S: Final = 5.0
RETRY_MAX_S: Final = 300.0
LABELS_PER_POD_MAX: Final = 32
READ_BYTES: Final = 64 * 1024

ACCEPT: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
#: Labels that the exporter's series have already, and prefixes that are Prometheus' or DCGM's.
RESERVED: Final = frozenset(
    {
        "gpu", "uuid", "node", "pci_bus_id", "device", "modelname", "model", "hostname",
        "gpu_i_id", "gpu_i_profile", "container", "namespace", "pod", "pod_uid", "vgpu",
        "hpc_job", "mig_uuid", "xid", "err_code", "err_msg", "clock_event", "window_size_in_ms",
        "le", "quantile",
    }
)  # fmt: skip
RESERVED_PREFIXES: Final = ("__", "dcgm_")

_UNFIT: Final = re.compile(r"[^A-Za-z0-9_]")

PodName = tuple[str, str]  # namespace, name


class PodFacts(NamedTuple):
    """uid, and the chosen labels by the name that Prometheus allows."""

    uid: str = ""
    labels: tuple[tuple[str, str], ...] = ()


NOTHING: Final = PodFacts()


class PodDirectory:
    """The facts of the pods asked for, as far as they are known.

    api           http(s)://host[:port] of the API server
    account_dir   has `token`, and `ca.crt` for https
    """

    def __init__(
        self,
        api: str,
        account_dir: str,
        label_patterns: Iterable[str],
        clock: Clock,
    ) -> None:
        self._api = api
        self._account_dir = Path(account_dir)
        self._patterns = compile_patterns(label_patterns)
        self._clock = clock
        self._caller = DaemonCaller("kubernetes-api")
        self._facts: dict[PodName, PodFacts] = {}
        self._due_ns = 0  # when everything is asked for again
        self._retry_ns = 0  # not before
        self._retry_s = RETRY_S
        self.errors: dict[Reason, int] = {}

    def facts(self, pod: PodName) -> PodFacts:
        """What is known of a pod."""
        return self._facts.get(pod, NOTHING)

    async def refresh(self, pods: set[PodName], node: str) -> bool:
        """Learn of `pods`, which run on `node`, if that is due; True when something changed.

        Facts of other pods are forgotten: one that comes back under the same name is another.
        """
        now_ns = self._clock.monotonic_ns()
        known = {pod: facts for pod, facts in self._facts.items() if pod in pods}
        changed = len(known) != len(self._facts)
        self._facts = known
        if not pods or now_ns < self._retry_ns:
            return changed
        if pods <= known.keys() and now_ns < self._due_ns:
            return changed
        try:
            found = await self._fetch(pods, node)
        except ReadFailed as failure:
            self._failed(failure, now_ns)
            return changed
        self._due_ns = now_ns + round(REFRESH_S * NS_PER_S)
        # A pod that is deleted may still end on the node: what was known of it holds.
        self._facts = known | found
        # One that the API server's cache does not show yet is asked for again, not at once.
        missing = pods - self._facts.keys()
        self._retry_ns = now_ns + (round(RETRY_S * NS_PER_S) if missing else 0)
        self._retry_s = RETRY_S
        return changed or self._facts != known

    def _failed(self, failure: ReadFailed, now_ns: int) -> None:
        if self._retry_s == RETRY_S:  # the first of a row
            log.warning("attribution: no pod labels: %s", failure)
        self.errors[failure.reason] = self.errors.get(failure.reason, 0) + 1
        self._retry_ns = now_ns + round(self._retry_s * NS_PER_S)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    async def _fetch(self, pods: set[PodName], node: str) -> dict[PodName, PodFacts]:
        try:
            return await self._caller.call(
                lambda: {name: facts for name, facts in self._list_pods(node) if name in pods},
                FETCH_DEADLINE_S,
            )
        except TimeoutError:
            raise ReadFailed("timeout", f"{self._api} does not answer") from None
        except (OSError, http.client.HTTPException) as error:
            raise ReadFailed("unavailable", f"{self._api}: {error}") from None
        except ReadFailed:
            raise
        except Exception as defect:  # a token that is no header, or a fault of ours
            raise ReadFailed("invalid", f"{self._api}: {defect!r}") from None

    # -- on the thread -----------------------------------------------------------------

    def _list_pods(self, node: str) -> Iterator[tuple[PodName, PodFacts]]:
        # The caller has given up by then: a server that drips must not keep the thread.
        deadline_ns = self._clock.monotonic_ns() + round(FETCH_DEADLINE_S * NS_PER_S)
        token = ""
        connection = self._connect()
        try:
            for _ in range(PAGES_MAX):
                answer = self._get(connection, node, token, deadline_ns)
                try:
                    for item in answer["items"]:
                        yield self._pod(item["metadata"])
                    token = answer["metadata"].get("continue") or ""
                except (KeyError, TypeError, AttributeError) as error:
                    text = f"{self._api}: this is no list of pods: {error!r}"
                    raise ReadFailed("invalid", text) from None
                if not token:
                    return
            raise ReadFailed("invalid", f"{self._api}: more than {PAGES_MAX} pages of pods")
        finally:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        url = urlsplit(self._api)
        host = url.hostname or ""
        if url.scheme == "http":
            return http.client.HTTPConnection(host, url.port, timeout=SOCKET_TIMEOUT_S)
        context = ssl.create_default_context(cafile=str(self._account_dir / "ca.crt"))
        return http.client.HTTPSConnection(
            host, url.port, timeout=SOCKET_TIMEOUT_S, context=context
        )

    def _get(
        self, connection: http.client.HTTPConnection, node: str, token: str, deadline_ns: int
    ) -> Any:
        query = {
            "fieldSelector": f"spec.nodeName={node}",
            "limit": str(PAGE_PODS),
            **({"continue": token} if token else {"resourceVersion": "0"}),
        }
        headers = {"Accept": ACCEPT, "User-Agent": "gputel"}
        if isinstance(connection, http.client.HTTPSConnection):  # a token never goes in clear
            # Read each time: the kubelet replaces it long before it expires.
            secret = (self._account_dir / "token").read_text().strip()
            headers["Authorization"] = f"Bearer {secret}"
        connection.request("GET", f"/api/v1/pods?{urlencode(query)}", headers=headers)
        response = connection.getresponse()
        if response.status in (401, 403):
            raise ReadFailed(
                "denied",
                f"{self._api} answers {response.status}: the service account needs the verb "
                "list on pods",
            )
        if response.status != 200:
            raise ReadFailed("unavailable", f"{self._api} answers {response.status}")
        body = bytearray()
        # read1 returns what has come; read would wait for all of READ_BYTES from a server
        # that drips, and so never look at the deadline.
        while block := response.read1(READ_BYTES):
            body += block
            if len(body) > ANSWER_BYTES_MAX:
                raise ReadFailed("invalid", f"{self._api}: more than {ANSWER_BYTES_MAX} bytes")
            if self._clock.monotonic_ns() > deadline_ns:
                raise TimeoutError
        response.close()  # read1 leaves it open, and then no page could follow
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise ReadFailed("invalid", f"{self._api} answers something that is no JSON") from None

    def _pod(self, metadata: Mapping[str, Any]) -> tuple[PodName, PodFacts]:
        labels = chosen_labels(metadata.get("labels") or {}, self._patterns)
        name = bounded(str(metadata["namespace"])), bounded(str(metadata["name"]))
        return name, PodFacts(bounded(str(metadata["uid"])), labels)


def chosen_labels(
    labels: Mapping[str, Any], patterns: Iterable[re.Pattern[str]]
) -> tuple[tuple[str, str], ...]:
    """The labels whose name a pattern finds, under names that Prometheus allows, sorted.

    Of names that become equal the first counts; one that a series has already is left out.
    """
    found: dict[str, str] = {}
    for key in sorted(labels):
        if any(pattern.search(key) for pattern in patterns):
            name = label_name(key)
            if name.lower() not in RESERVED and not name.lower().startswith(RESERVED_PREFIXES):
                found.setdefault(name, bounded(str(labels[key])))
    return tuple(sorted(found.items())[:LABELS_PER_POD_MAX])


def label_name(key: str) -> str:
    """A Kubernetes label's name as Prometheus allows it: app.kubernetes.io/name becomes
    app_kubernetes_io_name."""
    name = _UNFIT.sub("_", bounded(key))
    return f"_{name}" if name[:1].isdigit() else name
