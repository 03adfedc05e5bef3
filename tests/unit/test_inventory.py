"""How often `last_seen` moves, without a database."""

from __future__ import annotations

from typing import Any

import pytest

from gputel.inventory import Gpu
from gputel.store.inventory import SEEN_PER_S, GpuIds, Seen

S = 1_000_000_000
START_NS = 1_760_000_000 * S
GPUS = {f"GPU-{i}": Gpu(uuid=f"GPU-{i}", node=f"node-{i // 8}", index=i % 8) for i in range(12_000)}


class Table:
    """Gives ids, and counts the GPUs whose last_seen moves."""

    def __init__(self) -> None:
        self.moved = 0
        self.offered: list[str] = []  # uuids of which something else is new

    async def fetch(self, query: str, *columns: list[str]) -> list[tuple[str, str, int]]:
        if query.lstrip().startswith("UPDATE"):
            self.offered += columns[0]
        if query.lstrip().startswith("UPDATE"):
            return []
        uuids, nodes, *_ = columns
        return [(uuid, node, int(uuid[4:]) + 1) for uuid, node in zip(uuids, nodes, strict=True)]

    async def execute(self, query: str, gpu_ids: list[int], times: list[object]) -> None:
        assert gpu_ids == sorted(gpu_ids)
        assert len(gpu_ids) == len(times)
        if query.lstrip().startswith("UPDATE"):
            self.moved += len(gpu_ids)


async def seconds(gpus: int, duration_s: int) -> list[int]:
    """How many moved in each second, all of them seen once a second."""
    ids, table = GpuIds(), Table()
    connection: Any = table
    moved = []
    for second in range(duration_s):
        now_ns = START_NS + second * S
        before = table.moved
        inventory = {(gpu.uuid, gpu.node): gpu for gpu in list(GPUS.values())[:gpus]}
        seen = dict.fromkeys(inventory, Seen(now_ns, now_ns))
        ids.remember(await ids.write(connection, seen, inventory))
        moved.append(table.moved - before)
    return moved


async def test_a_few_move_each_ten_seconds() -> None:
    moved = await seconds(8, 31)
    assert moved == [8 if second and second % 10 == 0 else 0 for second in range(31)]


@pytest.mark.parametrize(("gpus", "step_s"), [(1024, 10), (12_000, 12)])
async def test_many_move_more_rarely_and_not_all_at_once(gpus: int, step_s: int) -> None:
    moved = await seconds(gpus, 2 * step_s + 1)
    # From 3/4 of a step on, whatever the step; the first one is not known to be long yet.
    assert sum(moved) <= gpus * (2 * 4 / 3 + 1)
    assert sum(moved) >= gpus
    assert max(moved) < gpus
    assert sum(moved[-step_s:]) / step_s <= max(SEEN_PER_S, gpus / 10) * 4 / 3


KEY = "GPU-0", "node-0"
KNOWN = Seen(START_NS, START_NS, frozenset({1, 2}))
MODEL = Gpu(uuid="GPU-0", node="node-0", index=0, model="H100")


@pytest.mark.parametrize(
    ("seen", "inventory", "offered", "after"),
    [
        (Seen(START_NS + S, START_NS + S, frozenset({2})), {}, False, None),
        (KNOWN, {KEY: Gpu(uuid="GPU-0", node="node-0", index=0)}, False, None),
        (KNOWN, {KEY: MODEL}, True, KNOWN),
        (
            Seen(START_NS - S, START_NS, frozenset()),
            {},
            True,
            KNOWN._replace(first_ns=START_NS - S),
        ),
        (
            Seen(START_NS, START_NS + S, frozenset({2, 3})),
            {},
            True,
            Seen(START_NS, START_NS + S, frozenset({1, 2, 3})),
        ),
        (
            KNOWN._replace(last_ns=START_NS + 10 * S),
            {},
            False,
            KNOWN._replace(last_ns=START_NS + 10 * S),
        ),
    ],
    ids=["nothing new", "same inventory", "inventory", "earlier", "a metric", "last seen"],
)
async def test_only_what_is_new_is_written_and_remembered(
    seen: Seen, inventory: dict[tuple[str, str], Gpu], offered: bool, after: Seen | None
) -> None:
    ids, table = GpuIds(), Table()
    connection: Any = table
    first = await ids.write(connection, {KEY: KNOWN}, {KEY: GPUS["GPU-0"]})
    assert first.ids == {KEY: 1}
    ids.remember(first)
    table.offered.clear()
    written = await ids.write(connection, {KEY: seen}, inventory)
    assert written.ids == {KEY: 1}
    assert table.offered == (["GPU-0"] if offered else [])
    assert {key: known.seen for key, known in written.changed.items()} == (
        {KEY: after} if after else {}
    )
    assert all(known.gpu == inventory.get(KEY, GPUS["GPU-0"]) for known in written.changed.values())
