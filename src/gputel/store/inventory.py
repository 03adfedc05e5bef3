"""The tables `gpu` and `gpu_seen`: which id a GPU has, what is known of it, when it was seen.

What is known changes rarely, and may be copied to many nodes; `gpu_seen` changes all the time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gputel.clock import NS_PER_S
from gputel.inventory import Gpu
from gputel.limits import GPUS_PER_COLLECTOR_MAX
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


@dataclass(frozen=True, slots=True)
class Sighting:
    """A GPU in a batch of frames: what is known of it, the times of its samples, the metrics
    that it has values of."""

    gpu: Gpu
    first_ns: int
    last_ns: int
    metric_ids: frozenset[int] = frozenset()

    def joined(self, other: Sighting) -> Sighting:
        """Both together; `other` is the later one, but only inventory knows an index."""
        gpu = self.gpu if other.gpu.index == INDEX_UNKNOWN else other.gpu
        return Sighting(
            gpu,
            min(self.first_ns, other.first_ns),
            max(self.last_ns, other.last_ns),
            united(self.metric_ids, other.metric_ids),
        )


@dataclass(frozen=True, slots=True)
class _Known:
    """What the tables say of a GPU, and from when on `last_seen` is to move."""

    gpu_id: int
    seen: Sighting
    due_ns: int


class GpuIds:
    """Ids of the GPUs seen, so that a frame of known GPUs costs no query.

    The cache follows commits: what a transaction wrote is remembered by `remember` only
    after it was committed.
    """

    def __init__(self) -> None:
        self._known: dict[Identity, _Known] = {}

    async def write(
        self, connection: Connection, sightings: Iterable[Sighting]
    ) -> Mapping[Identity, _Known]:
        """Insert or update what is new; returns every GPU of `sightings` by identity."""
        found: dict[Identity, _Known] = {}
        due: dict[Identity, Sighting] = {}
        moved: list[_Known] = []
        entered: list[_Known] = []
        for seen in sightings:
            identity = (seen.gpu.uuid, seen.gpu.node)
            known = self._known.get(identity)
            if known is None:
                due[identity] = seen
                continue
            found[identity] = known
            together = known.seen.joined(seen)
            # PERF(inventory): most often it is the same object; comparing its texts is dear.
            same = together.gpu is known.seen.gpu or together.gpu == known.seen.gpu
            same = same and together.metric_ids is known.seen.metric_ids
            if not same or together.first_ns < known.seen.first_ns:
                due[identity] = together
            elif together.last_ns >= known.due_ns:
                found[identity] = self._written(known.gpu_id, together)
                moved.append(found[identity])
        for statement in (_UPDATE, _INSERT):
            if due:
                for uuid, node, gpu_id in await connection.fetch(statement, *_parameters(due)):
                    found[uuid, node] = self._written(gpu_id, due.pop((uuid, node)))
                    entered.append(found[uuid, node])
        assert not due, "every GPU was updated or inserted"
        for statement, changed in ((_SEEN, moved), (_ENTERED, entered)):
            if changed:
                # In one order everywhere, as _parameters.
                changed.sort(key=lambda known: known.gpu_id)
                await connection.execute(
                    statement,
                    [known.gpu_id for known in changed],
                    [to_datetime(known.seen.last_ns) for known in changed],
                )
        return found

    def _written(self, gpu_id: int, seen: Sighting) -> _Known:
        step_ns = len(self._known) * NS_PER_S // SEEN_PER_S
        step_ns = min(max(step_ns, SEEN_STEP_NS), SEEN_STEP_MAX_NS)
        sooner_ns = step_ns // 4 * (gpu_id // 8 % _SPREAD) // _SPREAD
        return _Known(gpu_id, seen, seen.last_ns + step_ns - sooner_ns)

    def remember(self, written: Mapping[Identity, _Known]) -> None:
        """Keep what a committed transaction wrote."""
        self._known.update(written)


def united(ids: frozenset[int], others: frozenset[int]) -> frozenset[int]:
    """Both; `ids` itself when it has them all."""
    return ids if others is ids or others <= ids else ids | others


# PERF(inventory): a GPU whose inventory does not come along is asked for with every frame.
@functools.lru_cache(maxsize=GPUS_PER_COLLECTOR_MAX)
def unknown(uuid: str, node: str) -> Gpu:
    """A GPU of which only samples are known."""
    return Gpu(uuid=uuid, node=node, index=INDEX_UNKNOWN)


def _parameters(due: Mapping[Identity, Sighting]) -> list[list[object]]:
    # In one order everywhere: two sinks that write the same GPUs must not deadlock.
    ordered = [due[identity] for identity in sorted(due)]
    rows = [
        (
            s.gpu.uuid,
            s.gpu.node,
            s.gpu.index,
            s.gpu.device,
            s.gpu.pci_bus_id,
            s.gpu.model,
            s.gpu.serial,
            s.gpu.brand,
            s.gpu.vbios_version,
            s.gpu.driver_version,
            s.gpu.nvml_version,
            s.gpu.memory_total_bytes,
            to_datetime(s.first_ns),
            # As text: unnest would take an array of arrays apart to the last element.
            "{" + ",".join(map(str, sorted(s.metric_ids))) + "}",
        )
        for s in ordered
    ]
    return [list(column) for column in zip(*rows, strict=True)]
