"""The exporter over HTTP: /metrics and /health, as dcgm-exporter has them."""

from __future__ import annotations

from typing import Final

import falcon
import falcon.asgi

from gputel.collector.exporter.exporter import PROFILES, Exporter, ProfileName
from gputel.collector.exporter.negotiation import negotiate_format, takes_gzip
from gputel.collector.exporter.renderer import EOF
from gputel.errors import QueryInvalid
from gputel.observe import Telemetry
from gputel.observe.http import App
from gputel.observe.problems import install_problems

#: Where the collector's own metrics are.
OWN_METRICS_PATH: Final = "/metrics/collector"
# Below this a compressed answer saves no packet.
GZIP_BYTES_MIN: Final = 1400
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
        resp.set_header("Vary", "Accept, Accept-Encoding")
        if self._telemetry is not None:
            own, _ = self._telemetry.exposition(form.value)
            page = self._exporter.page(profile, form)
            resp.data = page.removesuffix(EOF.encode()) + own
            return
        resp.data = self._exporter.page(profile, form)
        if len(resp.data) >= GZIP_BYTES_MIN and takes_gzip(req.get_header("Accept-Encoding") or ""):
            resp.data = self._exporter.zipped(profile, form)
            resp.set_header("Content-Encoding", "gzip")

    on_head = on_get

    def _profile_of(self, req: falcon.asgi.Request) -> ProfileName:
        asked = req.get_param("profile", default=self._profile)
        for profile in PROFILES:
            if asked == profile:
                return profile
        raise QueryInvalid("profile", f"there is no {asked[:80]!r}", allowed=PROFILES)


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
    app.add_route("/metrics", _Metrics(exporter, profile, telemetry))
    # dcgm-exporter's probe: it answers as long as the server does.
    app.add_route("/health", _Text("OK", "text/plain; charset=utf-8"))
    app.add_route("/", _Text(_INDEX, falcon.MEDIA_HTML))
    return app
