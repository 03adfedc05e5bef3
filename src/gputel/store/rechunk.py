"""Rechunking: the small chunks of a partition become chunks of SAMPLES_A_CHUNK.

Small ones come from frames, and from late data that were sealed a few rows at a time. A step
takes some of one GPU and metric set: in one transaction they are decoded, put together in the
order of time, written, and deleted. Nobody waits for it, readers find each sample once, and what
a killed step did is undone. Minutes and hours have counted the samples already.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Final

import asyncpg

from gputel import wire
from gputel.catalog import BY_ID, SET_BY_ID
from gputel.errors import ChunkCorrupt
from gputel.kernels import read_chunk_header
from gputel.limits import CHUNK_BYTES_MAX
from gputel.store import chunks, hot
from gputel.store.chunks import Chunk
from gputel.store.hot import Rows
from gputel.store.merge import I64_MIN, in_order
from gputel.store.seal import CONTENDED, SAMPLES_A_CHUNK, chunks_of

if TYPE_CHECKING:
    from gputel.store.connection import Connection, Store

log = logging.getLogger(__name__)

#: A chunk of fewer samples and bytes is small.
SMALL_SAMPLES: Final = SAMPLES_A_CHUNK // 2
SMALL_BYTES: Final = CHUNK_BYTES_MAX // 4
PAIRS_A_LOOK: Final = 256
CHUNKS_A_STEP: Final = 2048
SAMPLES_A_STEP: Final = 131_072

# GPUs and sets behind one that have something to merge. One look for many: a partition has a
# chunk or more for every hour of each, and most have nothing.
_NEXT: Final = f"""
SELECT DISTINCT gpu_id, set_id FROM (
    SELECT gpu_id, set_id FROM {{table}} WHERE (gpu_id, set_id) > ($1, $2) AND t1 < $3
        AND samples < {SMALL_SAMPLES} AND octet_length(payload) < {SMALL_BYTES}
    GROUP BY gpu_id, set_id, epoch HAVING count(*) > 1 AND sum(samples) >= $4
) AS c ORDER BY gpu_id, set_id LIMIT {PAIRS_A_LOOK}
"""

# Small chunks of epochs that have several, and as many samples as are wanted.
_SMALL: Final = f"""
SELECT epoch, t0, first_sequence, payload FROM (
    SELECT epoch, t0, first_sequence, payload, samples,
           sum(samples) OVER (ORDER BY epoch, t0, first_sequence) AS total
    FROM (
        SELECT *, count(*) OVER of_epoch AS chunks, sum(samples) OVER of_epoch AS of_epoch
        FROM {{table}} WHERE gpu_id = $1 AND set_id = $2 AND t1 < $3
            AND samples < {SMALL_SAMPLES} AND octet_length(payload) < {SMALL_BYTES}
        WINDOW of_epoch AS (PARTITION BY epoch)
    ) AS small
    WHERE chunks > 1 AND of_epoch >= $4
    ORDER BY epoch, t0, first_sequence LIMIT {CHUNKS_A_STEP}
) AS c WHERE total - samples < {SAMPLES_A_STEP} ORDER BY epoch, t0, first_sequence
"""

_DELETE: Final = """
DELETE FROM {table} c USING unnest($3::bigint[], $4::timestamptz[], $5::bigint[])
    AS k (epoch, t0, first_sequence)
WHERE c.gpu_id = $1 AND c.set_id = $2 AND c.epoch = k.epoch AND c.t0 = k.t0
    AND c.first_sequence = k.first_sequence
"""


@dataclass(slots=True)
class Pass:
    """One walk through a partition, GPU by GPU, and what it has done so far."""

    name: str
    #: Chunks that end before this.
    before: datetime
    #: Leave an epoch with fewer samples for later: more will come.
    samples_min: int
    #: When it began.
    began_ns: int
    gpu_id: int = I64_MIN
    set_id: int = 0
    #: What comes next, as far as it was looked for.
    pairs: deque[tuple[int, int]] = field(default_factory=deque)
    over: bool = False
    merged: int = 0
    written: int = 0

    async def advance(self, store: Store) -> None:
        """Do the next GPU and set. DatabaseUnavailable."""
        async with store.session() as session:
            try:
                if not self.pairs:
                    found = await session.fetch(
                        _NEXT.format(table=self.name),
                        self.gpu_id,
                        self.set_id,
                        self.before,
                        self.samples_min,
                    )
                    self.pairs.extend((gpu_id, set_id) for gpu_id, set_id in found)
                if not self.pairs:
                    self.over = True
                    return
                self.gpu_id, self.set_id = self.pairs.popleft()
                while self.set_id in SET_BY_ID and await self._step(session):
                    pass
            except CONTENDED as error:
                log.debug("merging in %s is put off: %s", self.name, error)
            except asyncpg.UndefinedTableError:
                self.over = True  # retention was faster
            except asyncpg.UniqueViolationError as error:
                log.warning("GPU %d in %s is left as it is: %s", self.gpu_id, self.name, error)

    async def _step(self, session: Connection) -> bool:
        """Merge some small chunks; False: none are left for which it is worth while."""
        before = self.merged - self.written
        async with session.transaction(isolation="repeatable_read"):
            small = await session.fetch(
                _SMALL.format(table=self.name),
                self.gpu_id,
                self.set_id,
                self.before,
                self.samples_min,
            )
            gone: list[asyncpg.Record] = []
            new: list[tuple[int, Chunk]] = []
            for epoch, of_epoch in groupby(small, key=lambda row: row["epoch"]):
                taken, made = self._merge(epoch, list(of_epoch))
                if len(made) < len(taken):
                    gone += taken
                    new += [(self.gpu_id, chunk) for chunk in made]
            if gone:
                keys = [[row[name] for row in gone] for name in ("epoch", "t0", "first_sequence")]
                await session.execute(
                    _DELETE.format(table=self.name), self.gpu_id, self.set_id, *keys
                )
                await chunks.write(session, new, counted=True)
        self.merged += len(gone)
        self.written += len(new)
        return self.merged - self.written > before

    def _merge(
        self, epoch: int, rows: list[asyncpg.Record]
    ) -> tuple[list[asyncpg.Record], list[Chunk]]:
        """(those that could be read, what they become)."""
        metric_set = SET_BY_ID[self.set_id]
        taken: list[asyncpg.Record] = []
        pieces: list[Rows] = []
        for row in rows:
            try:
                header = read_chunk_header(row["payload"])
                if not BY_ID.keys() >= set(header.metric_ids):
                    continue  # a newer program's: metrics that are unknown here would be lost
                batch = wire.decode_chunk(row["payload"])
            except ChunkCorrupt as error:
                log.warning("a chunk of GPU %d in %s: %s", self.gpu_id, self.name, error)
                continue
            taken.append(row)
            pieces.append(hot.from_batch(batch, epoch, metric_set.metrics))
        if len(pieces) < 2:
            return [], []
        return taken, list(chunks_of(metric_set, in_order(hot.concatenate(pieces))))


assert SMALL_SAMPLES <= SAMPLES_A_CHUNK < SAMPLES_A_STEP
