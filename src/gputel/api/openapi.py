"""The OpenAPI 3.1 document, generated from the route table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gputel import __version__
from gputel.api.params import Parameter
from gputel.api.routes import Route
from gputel.api.views import SCHEMAS, Json
from gputel.observe.problems import MEDIA_PROBLEM

_PROBLEMS: Final = {
    "400": "A parameter that is unknown, given twice or not understood.",
    "404": "No such GPU.",
    "414": "A query string that is too long.",
    "500": "A defect of gputel.",
    "503": "The database does not answer; try again after `Retry-After` seconds.",
}


def openapi(routes: Sequence[Route]) -> Json:
    """The document; every route is in it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gputel",
            "version": __version__,
            "description": "GPU telemetry: inventory, history and the pipeline's own state. "
            "Times are RFC 3339 in UTC, units are UCUM codes, a missing value is absent.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": {route.path: {"get": _operation(route)} for route in routes},
        "components": {
            "schemas": dict(SCHEMAS),
            "responses": {
                f"Problem{status}": {
                    "description": description,
                    "content": {
                        MEDIA_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}
                    },
                    **_retry_after(status),
                }
                for status, description in _PROBLEMS.items()
            },
        },
    }


def _retry_after(status: str) -> Json:
    if status != "503":
        return {}
    return {"headers": {"Retry-After": {"schema": {"type": "integer"}}}}


def _operation(route: Route) -> Json:
    statuses = [status for status in _PROBLEMS if status != "404" or "{id}" in route.path]
    return {
        "operationId": route.operation_id,
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
        "responses": {
            "200": {
                "description": route.summary,
                "content": {
                    "application/json": {"schema": {"$ref": f"#/components/schemas/{route.answer}"}}
                },
            },
            **{status: {"$ref": f"#/components/responses/Problem{status}"} for status in statuses},
        },
    }


def _parameter(parameter: Parameter) -> Json:
    # Lists are comma-separated: style form, not exploded.
    is_list = parameter.schema.get("type") == "array"
    return {
        "name": parameter.name,
        "in": parameter.where,
        "required": parameter.where == "path",
        "description": parameter.description,
        "schema": dict(parameter.schema),
        **({"style": "form", "explode": False} if is_list else {}),
    }
