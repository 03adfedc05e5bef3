"""Folding: the parts of hours that are over become one row a GPU and hour of `rollup_1h`.

A step moves a bounded number of parts, in one transaction: an hour is the sum of its row and
its parts before, after, and when the step is killed. Parts that come later are added to the row.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import numpy as np

from gputel.store.partitions import Partitions
from gputel.store.times import to_ns

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

PARTS_A_STEP: Final = 4096

_DUE: Final = """
SELECT gpu_id, hour FROM rollup_1h_part WHERE hour < $1 ORDER BY gpu_id, hour LIMIT $2
"""

# The parts that the row was made of are not there any more, so nothing is counted twice.
_FOLD: Final = """
WITH part AS (
    DELETE FROM rollup_1h_part p USING unnest($1::bigint[], $2::timestamptz[]) AS d (gpu_id, hour)
    WHERE p.gpu_id = d.gpu_id AND p.hour = d.hour
    RETURNING p.gpu_id, p.hour, p.metric_ids, p.n::bigint[], p.min, p.max, p.sum
), present AS (
    DELETE FROM rollup_1h r USING (SELECT DISTINCT gpu_id, hour FROM part) AS p
    WHERE r.gpu_id = p.gpu_id AND r.hour = p.hour
    RETURNING r.gpu_id, r.hour, r.metric_ids, r.n, r.min, r.max, r.sum
), cell AS (
    SELECT a.gpu_id, a.hour, v.metric_id, sum(v.n)::bigint AS n, min(v.min) AS min,
           max(v.max) AS max, sum(v.sum) AS sum
    FROM (SELECT * FROM part UNION ALL SELECT * FROM present) AS a
    CROSS JOIN LATERAL unnest(a.metric_ids, a.n, a.min, a.max, a.sum)
        AS v (metric_id, n, min, max, sum)
    WHERE v.n > 0
    GROUP BY 1, 2, 3
)
INSERT INTO rollup_1h (gpu_id, hour, metric_ids, n, min, max, sum)
SELECT gpu_id, hour, array_agg(metric_id ORDER BY metric_id), array_agg(n ORDER BY metric_id),
       array_agg(min ORDER BY metric_id), array_agg(max ORDER BY metric_id),
       array_agg(sum ORDER BY metric_id)
FROM cell GROUP BY 1, 2
"""


async def fold_hours(store: Store, partitions: Partitions, before: datetime) -> int:
    """Fold the parts of hours that began before `before`; returns how many parts there were.

    asyncpg.SerializationError: another process does the same.
    """
    folded = 0
    async with store.session() as session:
        while count := await _step(session, partitions, before):
            folded += count
            if count < PARTS_A_STEP:
                break
    return folded


async def _step(session: Connection, partitions: Partitions, before: datetime) -> int:
    due = await session.fetch(_DUE, before, PARTS_A_STEP)
    if not due:
        return 0
    # Of the last hour there may be more.
    whole = sorted({(gpu_id, hour) for gpu_id, hour in due})
    # In its own transaction, before the snapshot that must see the partitions.
    hours = np.array(sorted({to_ns(hour) for _, hour in whole}), np.int64)
    await partitions.ensure({"rollup_1h": [hours]})
    async with session.transaction(isolation="repeatable_read"):
        await session.execute(_FOLD, [gpu_id for gpu_id, _ in whole], [hour for _, hour in whole])
    return len(due)
