"""Configuration of the API (section `api`)."""

from __future__ import annotations

import msgspec


class ApiSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """REST, OpenAPI and the dashboard."""

    listen: str = "127.0.0.1:8080"
