"""Samples in PostgreSQL: hot rows, chunks, rollups, and the way in and out."""

from typing import TYPE_CHECKING

from gputel.lazy import lazy

if TYPE_CHECKING:
    from gputel.store.connection import Store, connect

__all__ = ["Store", "connect"]

__getattr__ = lazy(__name__, {"Store": "connection", "connect": "connection"})
