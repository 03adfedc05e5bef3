"""HTTP errors as RFC 9457 `application/problem+json`, the same for every service.

`type` is a URN that names the kind of problem and never changes; `title` says it in words,
`detail` says what was wrong this time, `instance` is the path of the request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import falcon
import falcon.asgi
import orjson

from gputel.errors import DatabaseUnavailable, GputelError, NotFound, QueryInvalid

log = logging.getLogger(__name__)

MEDIA_PROBLEM = "application/problem+json"
RETRY_AFTER_S = 5
INSTANCE_CHARS_MAX = 512

App = falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]


def problem(
    status: int, kind: str, title: str, detail: str, instance: str, **members: object
) -> bytes:
    """One problem document; `members` are RFC 9457 extension members."""
    return orjson.dumps(
        {
            "type": f"urn:gputel:problem:{kind}",
            "title": title,
            "status": status,
            "detail": detail,
            "instance": instance[:INSTANCE_CHARS_MAX],
            **members,
        }
    )


def install_problems(app: App) -> None:
    """Make every error of `app` a problem document: Falcon's, ours and the unexpected."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(QueryInvalid, _on_query_invalid)
    app.add_error_handler(NotFound, _on_not_found)
    app.add_error_handler(DatabaseUnavailable, _on_database_unavailable)
    app.add_error_handler(Exception, _on_bug)
    # Falcon's own errors keep their handlers, which a handler for Exception would hide.
    app.add_error_handler(falcon.HTTPError, _on_http_error)


def _answer(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    status: int,
    kind: str,
    title: str,
    detail: str,
    members: Mapping[str, object] | None = None,
) -> None:
    if resp is None:  # a WebSocket handshake: there is no body to write a problem into
        raise falcon.HTTPError(status, title=title, description=detail)
    resp.status = status
    resp.content_type = MEDIA_PROBLEM
    resp.data = problem(status, kind, title, detail, req.path, **(members or {}))


def _kind(title: str) -> str:
    return title.lower().replace(" ", "-")


def _serialize(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError
) -> None:
    title = falcon.code_to_http_status(error.status_code).partition(" ")[2]
    detail = error.description or _DETAILS.get(error.status_code, title).format(
        path=req.path[:INSTANCE_CHARS_MAX], method=req.method
    )
    _answer(req, resp, error.status_code, _kind(title), title, detail)


_DETAILS = {
    404: "Nothing is at {path}; /openapi.json lists what there is",
    405: "{method} is not allowed here; the Allow header lists what is",
}


async def _on_http_error(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    error: falcon.HTTPError,
    params: Mapping[str, Any],
    ws: falcon.asgi.WebSocket | None = None,
) -> None:
    if resp is None:
        assert ws is not None
        await ws.close(3000 + error.status_code)
        return
    resp.status = error.status_code
    resp.set_headers(dict(error.headers or {}))
    _serialize(req, resp, error)


async def _on_query_invalid(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: QueryInvalid,
    params: Mapping[str, Any],
) -> None:
    members: dict[str, object] = {"parameter": error.parameter}
    if error.allowed:
        members["allowed"] = list(error.allowed)
    _answer(req, resp, 400, "query-invalid", "Invalid query parameter", str(error), members)


async def _on_not_found(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: NotFound,
    params: Mapping[str, Any],
) -> None:
    _answer(req, resp, 404, "not-found", "Not Found", str(error))


async def _on_database_unavailable(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response,
    error: GputelError,
    params: Mapping[str, Any],
) -> None:
    log.warning("%s %s: %s", req.method, req.path, error)
    resp.set_header("Retry-After", str(RETRY_AFTER_S))
    _answer(
        req,
        resp,
        503,
        "database-unavailable",
        "Database unavailable",
        "The database does not answer; /readyz and the service's log say more",
    )


async def _on_bug(
    req: falcon.asgi.Request,
    resp: falcon.asgi.Response | None,
    error: Exception,
    params: Mapping[str, Any],
    ws: falcon.asgi.WebSocket | None = None,
) -> None:
    log.error("%s %s failed", req.method, req.path, exc_info=error)
    if resp is None:
        assert ws is not None
        await ws.close(1011)
        return
    _answer(
        req,
        resp,
        500,
        "internal",
        "Internal Server Error",
        "The request failed inside gputel; the service's log has the details",
    )
