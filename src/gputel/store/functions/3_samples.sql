-- Samples by SQL: hot rows and chunks together, each sample once, in the order of the API.

-- By number (gpu_id), UUID, or node/index; of several the one that was seen last. A MIG instance has
-- the node and index of its GPU: that name is the GPU's.
CREATE OR REPLACE FUNCTION gputel_gpu_id(gpu text) RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
DECLARE
    parts constant text[] := regexp_match(gpu, '^(.+)/([0-9]{1,9})$');
    found bigint;
BEGIN
    IF gpu ~ '^[0-9]{1,18}$' THEN
        SELECT g.gpu_id INTO found FROM gpu g WHERE g.gpu_id = gpu::bigint;
    ELSE
        SELECT s.gpu_id INTO found FROM gpu_seen s JOIN gpu g USING (gpu_id)
        WHERE g.uuid = $1 OR (g.node = parts[1] AND g.gpu_index = parts[2]::integer
                              AND g.uuid NOT LIKE 'MIG-%')
        ORDER BY g.uuid = $1 DESC, s.last_seen DESC LIMIT 1;
    END IF;
    IF found IS NULL THEN
        RAISE EXCEPTION 'no GPU %', quote_literal(gpu) USING ERRCODE = 'no_data_found',
            HINT = 'A GPU is its gpu_id, its uuid or node/index: '
                'SELECT gpu_id, uuid, node, gpu_index FROM gpu';
    END IF;
    RETURN found;
END
$$;

CREATE OR REPLACE FUNCTION gputel_metric_id(metric text) RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
DECLARE
    found integer;
BEGIN
    SELECT m.metric_id INTO found FROM metric m WHERE m.name = $1;
    IF found IS NULL THEN
        RAISE EXCEPTION 'no metric %', quote_literal(metric) USING ERRCODE = 'no_data_found',
            HINT = 'SELECT name, unit, help FROM metric';
    END IF;
    RETURN found;
END
$$;

-- The query of all samples of some metrics of a GPU in [start_time, end_time), whose columns are
-- `columns`. It is one statement with one snapshot: sealing moves rows into chunks meanwhile.
CREATE OR REPLACE FUNCTION gputel_samples_query(
    gpu text, metric_ids integer[], start_time timestamptz, end_time timestamptz, exact boolean,
    columns text
) RETURNS text
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path FROM CURRENT SET timezone = 'UTC' AS $$
DECLARE
    gpu_id constant bigint := gputel_gpu_id(gpu);
    -- Nothing lies outside, and infinity has no nanoseconds.
    low constant timestamptz := least(greatest(start_time, '1970-01-01Z'), '2255-01-01Z');
    high constant timestamptz := least(greatest(end_time, '1970-01-01Z'), '2255-01-01Z');
    parts text[];
BEGIN
    IF end_time <= start_time THEN
        RAISE EXCEPTION 'end_time % is not later than start_time %', end_time, start_time
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- A chunk spans less than a day, so none that begins earlier reaches the time. `rest` are the
    -- nanoseconds that PostgreSQL's times have no room for.
    parts := ARRAY(SELECT format($query$
        SELECT h.time, 0 AS rest, %1$s AS set_id, h.epoch, h.sequence, m.metric_id,
            %7$s(h.cells, m.cell, m.storage, m.cell_at) AS value
        FROM %2$s h JOIN metric m ON m.set_id = %1$s AND m.metric_id = ANY (%8$L)
            AND get_bit(h.cells, m.cell) = 1
        WHERE h.gpu_id = %4$s AND h.time >= %5$L AND h.time < %6$L
    UNION ALL
        SELECT gputel_time(u.time_ns), (u.time_ns %% 1000)::integer, %1$s, c.epoch, u.sequence,
            k.metric_id, %3$s(k.storage, k.power, u.bits)
        FROM sample_chunk c
        CROSS JOIN LATERAL gputel_chunk(
            c.payload, %8$L, format('chunk of GPU %4$s, set %1$s, %%s', c.t0)) k
        CROSS JOIN LATERAL unnest(k.time_ns, k.sequence, k.bits) AS u (time_ns, sequence, bits)
        WHERE c.gpu_id = %4$s AND c.set_id = %1$s AND c.t1 >= %5$L
            AND c.t0 >= %9$L AND c.t0 < %6$L
            AND u.time_ns >= %10$s AND u.time_ns < %11$s $query$,
        set_id, gputel_hot_table(set_id),
        CASE WHEN exact THEN 'gputel_exact' ELSE 'gputel_value' END, gpu_id, low, high,
        CASE WHEN exact THEN 'gputel_cell_exact' ELSE 'gputel_cell' END, metric_ids,
        low - interval '24 hours', gputel_time_ns(low), gputel_time_ns(high))
    FROM (
        SELECT DISTINCT m.set_id FROM metric m WHERE m.metric_id = ANY (metric_ids)
    ) AS sets);
    RETURN format(
        'SELECT %s FROM (%s) AS s JOIN metric m USING (metric_id) '
        'ORDER BY s.time, s.rest, s.set_id, s.epoch, s.sequence, s.metric_id',
        columns, array_to_string(parts, ' UNION ALL '));
END
$$;

-- A partition that is gone since the snapshot of a transaction was taken took rows along that the
-- snapshot shows, and chunks with them it does not show. In read committed this can't be.
CREATE OR REPLACE FUNCTION gputel_check_snapshot(metric_ids integer[]) RETURNS void
LANGUAGE plpgsql PARALLEL RESTRICTED SET search_path FROM CURRENT AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' AND EXISTS (
        SELECT FROM metric m
        JOIN pg_inherits i ON i.inhparent = gputel_hot_table(m.set_id)::regclass
        WHERE m.metric_id = ANY (metric_ids) AND pg_table_is_visible(i.inhrelid) IS NULL
    ) THEN
        RAISE EXCEPTION 'samples were sealed since this transaction began'
            USING ERRCODE = 'serialization_failure', HINT = 'Begin it anew.';
    END IF;
END
$$;

-- NOTE(snapshot): these are not STABLE, for then the query's snapshot would be that of the statement
-- around it, which may be older than a sealed partition is gone.
CREATE OR REPLACE FUNCTION gpu_samples(
    gpu text, metric text, start_time timestamptz, end_time timestamptz
) RETURNS TABLE ("time" timestamptz, value double precision)
LANGUAGE plpgsql STRICT PARALLEL RESTRICTED ROWS 3600 SET search_path FROM CURRENT SET jit = off
AS $$
DECLARE
    ids constant integer[] := ARRAY[gputel_metric_id(metric)];
BEGIN
    RETURN QUERY EXECUTE gputel_samples_query(
        gpu, ids, start_time, end_time, false, 's.time, s.value');
    PERFORM gputel_check_snapshot(ids);
END
$$;
COMMENT ON FUNCTION gpu_samples(text, text, timestamptz, timestamptz) IS
    'The samples of a metric of a GPU (its gpu_id, UUID or node/index) in [start_time, end_time)';

CREATE OR REPLACE FUNCTION gpu_samples_exact(
    gpu text, metric text, start_time timestamptz, end_time timestamptz
) RETURNS TABLE ("time" timestamptz, value numeric)
LANGUAGE plpgsql STRICT PARALLEL RESTRICTED ROWS 3600 SET search_path FROM CURRENT SET jit = off
SET extra_float_digits = 1  -- the shortest decimals that give the same double back
AS $$
DECLARE
    ids constant integer[] := ARRAY[gputel_metric_id(metric)];
BEGIN
    RETURN QUERY EXECUTE gputel_samples_query(
        gpu, ids, start_time, end_time, true, 's.time, s.value');
    PERFORM gputel_check_snapshot(ids);
END
$$;
COMMENT ON FUNCTION gpu_samples_exact(text, text, timestamptz, timestamptz) IS
    'As gpu_samples, with integers beyond 2^53 unrounded';

CREATE OR REPLACE FUNCTION gpu_all_samples(
    gpu text, start_time timestamptz, end_time timestamptz
) RETURNS TABLE ("time" timestamptz, metric text, value double precision)
LANGUAGE plpgsql STRICT PARALLEL RESTRICTED ROWS 36000 SET search_path FROM CURRENT SET jit = off
AS $$
DECLARE
    ids constant integer[] := ARRAY(SELECT m.metric_id FROM metric m);
BEGIN
    RETURN QUERY EXECUTE gputel_samples_query(
        gpu, ids, start_time, end_time, false, 's.time, m.name, s.value');
    PERFORM gputel_check_snapshot(ids);
END
$$;
COMMENT ON FUNCTION gpu_all_samples(text, timestamptz, timestamptz) IS
    'The samples of all metrics of a GPU in [start_time, end_time)';

-- For gpu_latest: the newest sample of a chunk, a row for each of its values. A damaged chunk has
-- none, and a warning: it must not hide all other GPUs. It depends on nothing but its arguments, and
-- Citus takes no other functions to its workers.
CREATE OR REPLACE FUNCTION gputel_newest(
    payload bytea, wanted integer[], gpu_id bigint, set_id integer, t0 timestamptz
)
RETURNS TABLE (metric_id integer, "time" timestamptz, value double precision, exact numeric)
LANGUAGE plpgsql IMMUTABLE PARALLEL UNSAFE COST 100000 ROWS 20
SET search_path FROM CURRENT SET extra_float_digits = 1 AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT metric_id, gputel_time(time_ns), gputel_value(storage, power, bits),
            gputel_exact(storage, power, bits)
        FROM (
            SELECT k.metric_id, k.storage, k.power, u.time_ns, u.bits,
                rank() OVER (ORDER BY u.time_ns DESC, u.sequence DESC) AS age
            FROM gputel_chunk(
                payload, wanted, format('chunk of GPU %s, set %s, %s', gpu_id, set_id, t0)) AS k
            CROSS JOIN LATERAL (
                SELECT * FROM unnest(k.time_ns, k.sequence, k.bits) AS u (time_ns, sequence, bits)
                ORDER BY time_ns DESC, sequence DESC LIMIT 1
            ) AS u
        ) AS newest
        WHERE age = 1;
EXCEPTION WHEN data_corrupted THEN
    RAISE WARNING '%', sqlerrm;
END
$$;
