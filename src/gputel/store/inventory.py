"""The tables `gpu` and `gpu_seen`: which id a GPU has, what is known of it, when it was seen.

What is known changes rarely, and may be copied to many nodes; `gpu_seen` changes all the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from gputel.clock import NS_PER_S
from gputel.inventory import Gpu
from gputel.store.times import to_datetime

if TYPE_CHECKING:
    from gputel.store.connection import Connection

Identity = tuple[str, str]  # uuid, node

#: `last_seen` moves when the samples are this much newer, not with every frame; with so many GPUs
#: that this would be more than SEEN_PER_S updates a second, it moves later, by a minute at most.
SEEN_STEP_NS: Final = 10 * NS_PER_S
SEEN_STEP_MAX_NS: Final = 60 * NS_PER_S
SEEN_PER_S: Final = 1000
#: GPUs that came together do not all move together: each 8 ids up to a quarter sooner.
_SPREAD: Final = 64
#: gpu_index of a GPU whose inventory has not arrived yet.
INDEX_UNKNOWN: Final = -1

_ROWS: Final = """
unnest($1::text[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[],
       $8::text[], $9::text[], $10::text[], $11::text[], $12::bigint[], $13::timestamptz[],
       $14::text[])
    AS n (uuid, node, gpu_index, device, pci_bus_id, model, serial, brand, vbios_version,
          driver_version, nvml_version, memory_total_bytes, first_seen, metric_ids)
"""
_TEXTS: Final = (
    "device",
    "pci_bus_id",
    "model",
    "serial",
    "brand",
    "vbios_version",
    "driver_version",
    "nvml_version",
)
_CHANGES: Final = f"""
    gpu_index = CASE WHEN n.gpu_index >= 0 THEN n.gpu_index ELSE g.gpu_index END,
    {", ".join(f"{text} = coalesce(nullif(n.{text}, ''), g.{text})" for text in _TEXTS)},
    memory_total_bytes = coalesce(n.memory_total_bytes, g.memory_total_bytes),
    first_seen = least(n.first_seen, g.first_seen),
    metric_ids = ARRAY(SELECT unnest(n.metric_ids::smallint[])
                       UNION SELECT unnest(g.metric_ids) ORDER BY 1)
"""
# An update first: every row offered to INSERT ... ON CONFLICT would use up an id.
_UPDATE: Final = f"""
UPDATE gpu AS g SET {_CHANGES} FROM {_ROWS}
WHERE g.uuid = n.uuid AND g.node = n.node RETURNING g.uuid, g.node, g.gpu_id
"""
_INSERT: Final = f"""
INSERT INTO gpu AS g (uuid, node, gpu_index, {", ".join(_TEXTS)}, memory_total_bytes,
                      first_seen, metric_ids)
SELECT uuid, node, gpu_index, {", ".join(_TEXTS)}, memory_total_bytes, first_seen,
       metric_ids::smallint[] FROM {_ROWS}
ON CONFLICT (uuid, node) DO UPDATE SET {_CHANGES.replace("n.", "excluded.")}
RETURNING uuid, node, gpu_id
"""
_TIMES: Final = "unnest($1::bigint[], $2::timestamptz[]) AS n (gpu_id, last_seen)"
_SEEN: Final = f"""
UPDATE gpu_seen AS s SET last_seen = greatest(n.last_seen, s.last_seen)
FROM {_TIMES} WHERE s.gpu_id = n.gpu_id
"""
_ENTERED: Final = f"""
INSERT INTO gpu_seen AS s (gpu_id, last_seen) SELECT gpu_id, last_seen FROM {_TIMES}
ON CONFLICT (gpu_id) DO UPDATE SET last_seen = greatest(excluded.last_seen, s.last_seen)
"""


class Seen(NamedTuple):
    """What samples say of their GPU: their earliest and latest time, and which metrics it has."""

    first_ns: int
    last_ns: int
    metric_ids: frozenset[int] = frozenset()

    def joined(self, other: Seen) -> Seen:
        """Both together."""
        return Seen(
            min(self.first_ns, other.first_ns),
            max(self.last_ns, other.last_ns),
            united(self.metric_ids, other.metric_ids),
        )


class Known(NamedTuple):
    """What the tables say of a GPU, and from when on `last_seen` is to move."""

    gpu_id: int
    gpu: Gpu
    seen: Seen
    due_ns: int


class Written(NamedTuple):
    """The id of every GPU that was asked for, and what is known anew of some of them."""

    ids: dict[Identity, int]
    changed: dict[Identity, Known]


class GpuIds:
    """Ids of the GPUs seen, so that a frame of known GPUs costs no query.

    The cache follows commits: what a transaction wrote is remembered by `remember` only
    after it was committed.
    """

    def __init__(self) -> None:
        self._known: dict[Identity, Known] = {}

    async def write(
        self, connection: Connection, seen: Mapping[Identity, Seen], gpus: Mapping[Identity, Gpu]
    ) -> Written:
        """Insert or update what is new of the GPUs `seen`; inventory came of `gpus`."""
        ids: dict[Identity, int] = {}
        due: dict[Identity, tuple[Gpu, Seen]] = {}
        moved: dict[Identity, Known] = {}
        entered: dict[Identity, Known] = {}
        for identity, now in seen.items():
            known = self._known.get(identity)
            gpu = gpus.get(identity)
            if known is None:
                due[identity] = gpu or Gpu(*identity, index=INDEX_UNKNOWN), now
                continue
            # PERF(inventory): once a row. Most often nothing is new, and the objects are the same.
            gpu_id, gpu_before, before, due_ns = known
            ids[identity] = gpu_id
            if (
                (gpu is not None and gpu is not gpu_before and gpu != gpu_before)
                or now.first_ns < before.first_ns
                or united(before.metric_ids, now.metric_ids) is not before.metric_ids
            ):
                due[identity] = gpu or gpu_before, before.joined(now)
            elif now.last_ns >= due_ns:
                moved[identity] = self._written(gpu_id, gpu or gpu_before, before.joined(now))
        for statement in (_UPDATE, _INSERT):
            if due:
                for uuid, node, gpu_id in await connection.fetch(statement, *_parameters(due)):
                    identity = uuid, node
                    ids[identity] = gpu_id
                    entered[identity] = self._written(gpu_id, *due.pop(identity))
        assert not due, "every GPU was updated or inserted"
        for statement, changed in ((_SEEN, moved), (_ENTERED, entered)):
            if changed:
                # In one order everywhere, as _parameters.
                ordered = sorted(changed.values(), key=lambda known: known.gpu_id)
                await connection.execute(
                    statement,
                    [known.gpu_id for known in ordered],
                    [to_datetime(known.seen.last_ns) for known in ordered],
                )
        return Written(ids, moved | entered)

    def _written(self, gpu_id: int, gpu: Gpu, seen: Seen) -> Known:
        step_ns = len(self._known) * NS_PER_S // SEEN_PER_S
        step_ns = min(max(step_ns, SEEN_STEP_NS), SEEN_STEP_MAX_NS)
        sooner_ns = step_ns // 4 * (gpu_id // 8 % _SPREAD) // _SPREAD
        return Known(gpu_id, gpu, seen, seen.last_ns + step_ns - sooner_ns)

    def remember(self, written: Written) -> None:
        """Keep what a committed transaction wrote."""
        self._known.update(written.changed)


def united(ids: frozenset[int], others: frozenset[int]) -> frozenset[int]:
    """Both; `ids` itself when it has them all."""
    return ids if others is ids or others <= ids else ids | others


def _parameters(due: Mapping[Identity, tuple[Gpu, Seen]]) -> list[list[object]]:
    # In one order everywhere: two sinks that write the same GPUs must not deadlock.
    ordered = [due[identity] for identity in sorted(due)]
    rows = [
        (
            gpu.uuid,
            gpu.node,
            gpu.index,
            gpu.device,
            gpu.pci_bus_id,
            gpu.model,
            gpu.serial,
            gpu.brand,
            gpu.vbios_version,
            gpu.driver_version,
            gpu.nvml_version,
            gpu.memory_total_bytes,
            to_datetime(seen.first_ns),
            # As text: unnest would take an array of arrays apart to the last element.
            "{" + ",".join(map(str, sorted(seen.metric_ids))) + "}",
        )
        for gpu, seen in ordered
    ]
    return [list(column) for column in zip(*rows, strict=True)]
