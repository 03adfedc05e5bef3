"""The exporter over HTTP: /metrics and /health, as dcgm-exporter has them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import falcon
import falcon.asgi

from gputel.collector.exporter.exporter import PROFILES, Exporter, ProfileName
from gputel.collector.exporter.exposition import Format
from gputel.collector.exporter.negotiation import HEADER_CHARS_MAX, negotiate_format, takes_gzip
from gputel.collector.exporter.renderer import EOF
from gputel.errors import QueryInvalid
from gputel.observe import Telemetry
from gputel.observe.at_once import Answer, AtOnce
from gputel.observe.http import App
from gputel.observe.problems import install_problems

METRICS_PATH: Final = "/metrics"
#: Where the collector's own metrics are.
OWN_METRICS_PATH: Final = "/metrics/collector"
# Below this a compressed answer saves no packet.
GZIP_BYTES_MIN: Final = 1400
# Scrapers have a handful of ways to ask.
ACCEPTS_KEPT: Final = 32
_VARY: Final = "Accept, Accept-Encoding"
_INDEX: Final = f"""<!doctype html><title>gputel exporter</title><h1>gputel exporter</h1>
<p><a href="/metrics">Metrics</a> · <a href="/metrics?profile=dcgm">dcgm</a> ·
<a href="/metrics?profile=gputel">gputel</a> · <a href="{OWN_METRICS_PATH}">the collector's own</a>
<p><a href="/health">Health</a> · <a href="/healthz">liveness</a> · <a href="/readyz">readiness</a>
"""


class _Metrics:
    def __init__(
        self, exporter: Exporter, profile: ProfileName, telemetry: Telemetry | None
    ) -> None:
        self._exporter = exporter
        self._profile = profile
        self._telemetry = telemetry

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        profile = self._profile_of(req)
        form = negotiate_format(req.get_header("Accept") or "")
        resp.content_type = form.value
        resp.set_header("Vary", _VARY)
        if self._telemetry is not None:
            own, _ = self._telemetry.exposition(form.value)
            page = self._exporter.page(profile, form)
            resp.data = page.removesuffix(EOF.encode()) + own
            return
        gzip = takes_gzip(req.get_header("Accept-Encoding") or "")
        resp.data, zipped = _body(self._exporter, profile, form, gzip=gzip)
        if zipped:
            resp.set_header("Content-Encoding", "gzip")

    on_head = on_get

    def _profile_of(self, req: falcon.asgi.Request) -> ProfileName:
        asked = req.get_param("profile", default=self._profile)
        for profile in PROFILES:
            if asked == profile:
                return profile
        raise QueryInvalid("profile", f"there is no {asked[:80]!r}", allowed=PROFILES)


def _body(
    exporter: Exporter, profile: ProfileName, form: Format, *, gzip: bool
) -> tuple[bytes, bool]:
    """(the page, whether it is zipped)."""
    page = exporter.page(profile, form)
    if gzip and len(page) >= GZIP_BYTES_MIN:
        return exporter.zipped(profile, form, page), True
    return page, False


def pages_at_once(exporter: Exporter, profile: ProfileName) -> AtOnce:
    """What `exporter_app` answers to a plain GET of /metrics."""
    path = METRICS_PATH.encode()

    def answer(target: bytes, header: Mapping[bytes, bytes]) -> Answer | None:
        if target != path:
            return None
        accept, encoding = header.get(b"accept", b""), header.get(b"accept-encoding", b"")
        form, gzip = _negotiated(accept[:HEADER_CHARS_MAX], encoding[:HEADER_CHARS_MAX])
        body, zipped = _body(exporter, profile, form, gzip=gzip)
        return Answer(_HEADERS[form, zipped], body)

    return answer


@lru_cache(maxsize=ACCEPTS_KEPT)
def _negotiated(accept: bytes, accept_encoding: bytes) -> tuple[Format, bool]:
    return negotiate_format(accept.decode("latin-1")), takes_gzip(accept_encoding.decode("latin-1"))


_HEADERS: Final = {
    (form, zipped): (
        f"content-type: {form.value}\r\nvary: {_VARY}\r\n"
        + ("content-encoding: gzip\r\n" if zipped else "")
    ).encode()
    for form in Format
    for zipped in (False, True)
}


class _Text:
    def __init__(self, text: str, content_type: str) -> None:
        self._text = text
        self._content_type = content_type

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.content_type = self._content_type
        resp.text = self._text

    on_head = on_get


def exporter_app(
    exporter: Exporter, profile: ProfileName, telemetry: Telemetry | None = None
) -> App:
    """The application. `telemetry`: whose metrics stand behind the exporter's on /metrics."""
    app: App = falcon.asgi.App()
    install_problems(app)
    app.add_route(METRICS_PATH, _Metrics(exporter, profile, telemetry))
    # dcgm-exporter's probe: it answers as long as the server does.
    app.add_route("/health", _Text("OK", "text/plain; charset=utf-8"))
    app.add_route("/", _Text(_INDEX, falcon.MEDIA_HTML))
    return app
