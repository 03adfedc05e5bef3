-- Hours: rollup_1h_part takes what each transaction adds to an hour, beside its minutes; the
-- maintainer sums it up into rollup_1h, one row a GPU and hour, when the hour is over. An hour of
-- a GPU is the sum of both at any moment. Arrays as in rollup_1m.

CREATE TABLE rollup_1h (
    gpu_id     bigint NOT NULL,
    hour       timestamptz NOT NULL,
    metric_ids smallint[] NOT NULL,
    n          bigint[] NOT NULL,
    min        double precision[] NOT NULL,
    max        double precision[] NOT NULL,
    sum        double precision[] NOT NULL,
    PRIMARY KEY (gpu_id, hour)
) PARTITION BY RANGE (hour);

CREATE TABLE rollup_1h_part (
    gpu_id     bigint NOT NULL,
    hour       timestamptz NOT NULL,
    metric_ids smallint[] NOT NULL,
    n          integer[] NOT NULL,
    min        double precision[] NOT NULL,
    max        double precision[] NOT NULL,
    sum        double precision[] NOT NULL
);
CREATE INDEX rollup_1h_part_gpu_hour ON rollup_1h_part (gpu_id, hour);

-- When the small chunks of a partition were last looked for.
ALTER TABLE store_partition ADD COLUMN merged_at timestamptz;

-- The minutes that are here already.
DO $$
DECLARE
    span constant interval := interval '30 days';
    low timestamptz;
BEGIN
    FOR low IN SELECT DISTINCT date_bin(span, minute, timestamptz 'epoch') FROM rollup_1m LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF rollup_1h FOR VALUES FROM (%L) TO (%L)',
                       'rollup_1h_p' || to_char(low AT TIME ZONE 'UTC', 'YYYYMMDDHH24MI'),
                       low, low + span);
        INSERT INTO store_partition (name, parent, lower, upper)
        VALUES ('rollup_1h_p' || to_char(low AT TIME ZONE 'UTC', 'YYYYMMDDHH24MI'),
                'rollup_1h', low, low + span);
    END LOOP;
END $$;

INSERT INTO rollup_1h (gpu_id, hour, metric_ids, n, min, max, sum)
SELECT gpu_id, hour, array_agg(metric_id ORDER BY metric_id), array_agg(n ORDER BY metric_id),
       array_agg(min ORDER BY metric_id), array_agg(max ORDER BY metric_id),
       array_agg(sum ORDER BY metric_id)
FROM (
    SELECT r.gpu_id, date_bin('1 hour', r.minute, timestamptz 'epoch') AS hour, v.metric_id,
           sum(v.n)::bigint AS n, min(v.min) AS min, max(v.max) AS max, sum(v.sum) AS sum
    FROM rollup_1m r
    CROSS JOIN LATERAL unnest(r.metric_ids, r.n, r.min, r.max, r.sum)
        AS v (metric_id, n, min, max, sum)
    WHERE v.n > 0
    GROUP BY 1, 2, 3
) AS cells
GROUP BY 1, 2;
