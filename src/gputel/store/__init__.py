"""Samples in PostgreSQL: hot rows, chunks, rollups, and the way in and out."""

from gputel.store.connection import Store, connect

__all__ = ["Store", "connect"]
