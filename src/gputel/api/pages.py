"""The dashboard, the API's documentation and their assets: files of the package, nothing else.

The set of files is fixed when the application is made; a request can only name one of them,
so that no path leads anywhere else.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import falcon
import falcon.asgi

from gputel.observe.problems import App

CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
PAGES: Final = {"/": "index.html", "/docs": "docs.html"}


class _File:
    """One file, read when it is first asked for; revalidated by ETag."""

    def __init__(self, file: Traversable, content_type: str) -> None:
        self._file = file
        self._content_type = content_type
        self._content: bytes | None = None
        self._etag = ""

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        if self._content is None:
            self._content = self._file.read_bytes()
            self._etag = hashlib.sha256(self._content).hexdigest()[:32]
        resp.etag = self._etag
        resp.cache_control = ["no-cache"]  # keep it, but ask whether it is still the same
        asked = req.if_none_match or ()
        if any(tag == "*" or tag == self._etag for tag in asked):
            resp.status = falcon.HTTP_304
            return
        resp.content_type = self._content_type
        resp.data = self._content

    on_head = on_get


def _files(folder: Traversable, prefix: str = "") -> dict[str, Traversable]:
    found: dict[str, Traversable] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _files(entry, f"{prefix}{entry.name}/")
        else:
            found[prefix + entry.name] = entry
    return found


def add_pages(app: App) -> None:
    """Serve the pages at their paths and every other asset under /static/."""
    files = _files(resources.files("gputel") / "web")
    for name, file in files.items():
        suffix = name[name.rfind(".") :]
        if suffix in CONTENT_TYPES and name not in PAGES.values():
            app.add_route(f"/static/{name}", _File(file, CONTENT_TYPES[suffix]))
    for path, name in PAGES.items():
        app.add_route(path, _File(files[name], CONTENT_TYPES[".html"]))
