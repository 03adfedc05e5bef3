"""What all brokers share and change by compare-and-set: a NATS key-value bucket.

It is laid out as NATS lays out its buckets, so `nats kv get BUCKET KEY` shows what is in it.
"""

from __future__ import annotations

from typing import NamedTuple

from gputel.broker.engine.jetstream.cluster import WRONG_LAST_SEQUENCE, Cluster, Refused


class Entry(NamedTuple):
    """A value, and the revision that `put` needs to replace it."""

    value: bytes
    revision: int


class Bucket:
    """Keys are words of letters, digits, '-', '_' and '=', joined by dots."""

    def __init__(self, cluster: Cluster, name: str, replicas: int) -> None:
        self._cluster = cluster
        self._name = name
        self._replicas = replicas

    @property
    def _stream(self) -> str:
        return f"KV_{self._name}"

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def open(self) -> None:
        """Make the bucket unless it is there; one that is keeps its settings."""
        config = {
            "name": self._stream,
            "subjects": [self._subject(">")],
            "storage": "file",
            "num_replicas": self._replicas,
            "max_msgs_per_subject": 1,
            "discard": "new",
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_direct": True,
        }
        await self._cluster.create(config)

    async def get(self, key: str) -> Entry | None:
        """The newest value, by the word of the leader."""
        found = await self._cluster.last(self._stream, self._subject(key))
        return None if found is None else Entry(found.data, found.sequence)

    async def put(self, key: str, value: bytes, revision: int) -> int | None:
        """Replace what `revision` (0: nothing) named; the new revision, None: it has changed."""
        headers = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return await self._cluster.publish(self._subject(key), value, headers)
        except Refused as refused:
            if refused.number in WRONG_LAST_SEQUENCE:
                return None
            raise

    async def list(self, pattern: str, entries_max: int) -> dict[str, Entry]:
        """Keys that match, with their values as some replica knows them."""
        found = await self._cluster.last_of_each(self._stream, self._subject(pattern), entries_max)
        prefix = len(self._subject(""))
        return {
            message.headers["Nats-Subject"][prefix:]: Entry(message.data, message.sequence)
            for message in found
        }
