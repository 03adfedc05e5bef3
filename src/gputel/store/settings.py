"""Configuration of the store (sections `database` and `store`)."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

#: The broker's consumer group that writes the store.
SINK_GROUP: Final = "store"

Positive = Annotated[int, msgspec.Meta(ge=1)]


class DatabaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An existing PostgreSQL server. Without this section the embedded one is used."""

    host: str = "localhost"
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 5432
    user: str = "postgres"
    password: str = ""
    dbname: str = "gputel"
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "prefer"

    def __repr__(self) -> str:  # a password is never logged
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.dbname}"


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How samples are kept."""

    #: Span of one partition of the hot tables.
    hot_partition_minutes: Annotated[int, msgspec.Meta(ge=1, le=1440)] = 60
    #: A hot partition is sealed into chunks this long after its end.
    seal_after_minutes: Positive = 30
    #: Raw samples are dropped this long after their time, and never sooner than this long
    #: after they were stored (a replay of an old file stays).
    raw_retention_days: Positive = 7
    minute_retention_days: Positive = 90
    hour_retention_days: Positive = 730
