-- A row of rollup_1m holds all metrics of what was stored together, as arrays, and rows are
-- only ever added: what one minute of a GPU comes to is the sum of its rows. An upsert of a row
-- a metric cost more than the chunk itself.

DROP VIEW IF EXISTS gpu_minute;
ALTER TABLE rollup_1m RENAME TO rollup_1m_by_metric;

-- The i-th elements belong to metric_ids[i]. Where n is 0, min is NaN (the greatest double to
-- PostgreSQL), max is -infinity and sum is 0.
CREATE TABLE rollup_1m (
    gpu_id     bigint NOT NULL,
    minute     timestamptz NOT NULL,
    metric_ids smallint[] NOT NULL,
    n          integer[] NOT NULL,
    min        double precision[] NOT NULL,
    max        double precision[] NOT NULL,
    sum        double precision[] NOT NULL
) PARTITION BY RANGE (minute);
CREATE INDEX rollup_1m_gpu_minute ON rollup_1m (gpu_id, minute);

DO $$
DECLARE
    p record;
BEGIN
    FOR p IN SELECT name, lower, upper FROM store_partition WHERE parent = 'rollup_1m' LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO %I', p.name, p.name || '_by_metric');
        EXECUTE format('CREATE TABLE %I PARTITION OF rollup_1m FOR VALUES FROM (%L) TO (%L)',
                       p.name, p.lower, p.upper);
    END LOOP;
END $$;

INSERT INTO rollup_1m (gpu_id, minute, metric_ids, n, min, max, sum)
SELECT r.gpu_id, r.minute,
       array_agg(r.metric_id ORDER BY r.metric_id), array_agg(r.n::integer ORDER BY r.metric_id),
       array_agg(r.min ORDER BY r.metric_id), array_agg(r.max ORDER BY r.metric_id),
       array_agg(r.sum ORDER BY r.metric_id)
FROM rollup_1m_by_metric r JOIN metric m USING (metric_id)
GROUP BY r.gpu_id, m.set_id, r.minute;

DROP TABLE rollup_1m_by_metric;

-- The metrics of which this GPU ever had a value: what it has not need not be looked for. Of
-- the GPUs that are here nobody noted it, so they may have any.
ALTER TABLE gpu ADD COLUMN metric_ids smallint[] NOT NULL DEFAULT '{}';
UPDATE gpu SET metric_ids = ARRAY(SELECT metric_id FROM metric ORDER BY metric_id);

-- last_seen is updated again and again: with room in the page, no index needs to know.
ALTER TABLE gpu SET (fillfactor = 50);
