-- Hot rows hold all their values in one field, `cells`, instead of a column a metric: PostgreSQL
-- pays for each field that it takes or sends. src/gputel/_reference/hot_rows.py draws the bytes.
-- The tables are made anew, with the rows that are here, sealed or not; who still writes columns
-- finds none. On an empty database there is nothing to do: gputel.store.schema makes the tables.

-- The columns so far, in the order of their cells, all of eight bytes.
CREATE TEMPORARY TABLE packed_column ON COMMIT DROP AS
SELECT * FROM (VALUES
    ('fast', 0, 'gpu_utilization_percent', 'q'),
    ('fast', 1, 'memory_utilization_percent', 'q'),
    ('fast', 2, 'power_watts', 'd'),
    ('fast', 3, 'power_instant_watts', 'd'),
    ('fast', 4, 'energy_millijoules', 'q'),
    ('fast', 5, 'sm_clock_mhz', 'q'),
    ('fast', 6, 'clock_event_reasons', 'q'),
    ('fast', 7, 'memory_used_bytes', 'q'),
    ('fast', 8, 'memory_free_bytes', 'q'),
    ('fast', 9, 'memory_reserved_bytes', 'q'),
    ('fast', 10, 'pcie_tx_bytes', 'q'),
    ('fast', 11, 'pcie_rx_bytes', 'q'),
    ('fast', 12, 'nvlink_tx_bytes', 'q'),
    ('fast', 13, 'nvlink_rx_bytes', 'q'),
    ('fast', 14, 'power_violation_ns', 'q'),
    ('fast', 15, 'thermal_violation_ns', 'q'),
    ('fast', 16, 'sync_boost_violation_ns', 'q'),
    ('fast', 17, 'board_limit_violation_ns', 'q'),
    ('fast', 18, 'low_utilization_violation_ns', 'q'),
    ('fast', 19, 'reliability_violation_ns', 'q'),
    ('medium', 0, 'gpu_temperature_celsius', 'q'),
    ('medium', 1, 'memory_temperature_celsius', 'q'),
    ('medium', 2, 'memory_clock_mhz', 'q'),
    ('medium', 3, 'video_clock_mhz', 'q'),
    ('medium', 4, 'performance_state', 'q'),
    ('medium', 5, 'encoder_utilization_percent', 'q'),
    ('medium', 6, 'decoder_utilization_percent', 'q'),
    ('medium', 7, 'jpeg_utilization_percent', 'q'),
    ('medium', 8, 'ofa_utilization_percent', 'q'),
    ('medium', 9, 'graphics_engine_active_ratio', 'd'),
    ('medium', 10, 'sm_active_ratio', 'd'),
    ('medium', 11, 'sm_occupancy_ratio', 'd'),
    ('medium', 12, 'tensor_active_ratio', 'd'),
    ('medium', 13, 'dram_active_ratio', 'd'),
    ('medium', 14, 'fp64_active_ratio', 'd'),
    ('medium', 15, 'fp32_active_ratio', 'd'),
    ('medium', 16, 'fp16_active_ratio', 'd'),
    ('medium', 17, 'pcie_tx_bytes_per_second', 'q'),
    ('medium', 18, 'pcie_rx_bytes_per_second', 'q'),
    ('medium', 19, 'nvlink_megabytes_per_second', 'q'),
    ('slow', 0, 'power_limit_watts', 'd'),
    ('slow', 1, 'memory_total_bytes', 'q'),
    ('slow', 2, 'bar1_used_bytes', 'q'),
    ('slow', 3, 'fan_speed_percent', 'q'),
    ('slow', 4, 'ecc_sbe_volatile', 'q'),
    ('slow', 5, 'ecc_dbe_volatile', 'q'),
    ('slow', 6, 'ecc_sbe_aggregate', 'q'),
    ('slow', 7, 'ecc_dbe_aggregate', 'q'),
    ('slow', 8, 'remapped_rows_uncorrectable', 'q'),
    ('slow', 9, 'remapped_rows_correctable', 'q'),
    ('slow', 10, 'row_remap_failure', 'q'),
    ('slow', 11, 'retired_pages_sbe', 'q'),
    ('slow', 12, 'retired_pages_dbe', 'q'),
    ('slow', 13, 'retired_pages_pending', 'q'),
    ('slow', 14, 'nvlink_crc_flit_errors', 'q'),
    ('slow', 15, 'nvlink_crc_data_errors', 'q'),
    ('slow', 16, 'nvlink_replay_errors', 'q'),
    ('slow', 17, 'nvlink_recovery_errors', 'q'),
    ('slow', 18, 'pcie_replays', 'q'),
    ('slow', 19, 'pcie_link_generation', 'q'),
    ('slow', 20, 'pcie_link_width', 'q'),
    ('slow', 21, 'mig_mode', 'q'),
    ('slow', 22, 'xid_last', 'q'),
    ('slow', 23, 'vgpu_license_status', 'q'),
    ('drain', 0, 'power_sample_watts', 'd'),
    ('drain', 1, 'gpu_utilization_sample_percent', 'q'),
    ('drain', 2, 'memory_utilization_sample_percent', 'q'),
    ('drain', 3, 'encoder_utilization_sample_percent', 'q'),
    ('drain', 4, 'decoder_utilization_sample_percent', 'q'),
    ('drain', 5, 'sm_clock_sample_mhz', 'q'),
    ('drain', 6, 'memory_clock_sample_mhz', 'q')
) AS c (set_name, cell, name, storage);

-- Everything else by EXECUTE: Citus hands on the text that it finds a statement in.
DO $$
DECLARE
    citus constant boolean := EXISTS (SELECT FROM pg_extension WHERE extname = 'citus');
    field constant text := 'gpu_id bigint NOT NULL, time timestamptz NOT NULL, '
        'epoch bigint NOT NULL, sequence bigint NOT NULL, cells bytea NOT NULL';
    zeros constant text := quote_literal('\x' || repeat('00', 8)) || '::bytea';
    old record;
    piece record;
    bitmap text;
    packed text;
BEGIN
    IF citus THEN
        SET LOCAL citus.multi_shard_modify_mode = 'sequential';
    END IF;
    EXECUTE 'DROP VIEW IF EXISTS gpu_latest, gpu_minute, gpu_hour';
    -- Where SQL finds a metric: its storage (0 f32, 1 f64, 2 i64, 3 u64), the number of its cell, whose
    -- bit says whether there is a value, and its first byte. NULL: the catalog has it no more.
    EXECUTE 'ALTER TABLE metric ADD COLUMN storage integer, ADD COLUMN cell integer, '
        'ADD COLUMN cell_at integer';
    -- Hot tables first, as who seals them takes their locks.
    FOR old IN
        SELECT kind, set_name, name, name || '_columns' AS renamed
        FROM (SELECT DISTINCT kind, set_name, format('sample_%s_%s', kind, set_name) AS name
              FROM packed_column, (VALUES ('hot'), ('newest')) AS k (kind)) AS tables
        WHERE to_regclass(name) IS NOT NULL ORDER BY kind, set_name
    LOOP
        EXECUTE format('LOCK TABLE %I IN ACCESS EXCLUSIVE MODE', old.name);
        EXECUTE format('ALTER TABLE %I RENAME TO %I', old.name, old.renamed);
        EXECUTE format('ALTER INDEX %I RENAME TO %I', old.name || '_pkey', old.renamed || '_pkey');
        EXECUTE format(
            CASE old.kind
                WHEN 'hot' THEN 'CREATE TABLE %I (%s, PRIMARY KEY (gpu_id, time, epoch, sequence)) '
                    'PARTITION BY RANGE (time)'
                ELSE 'CREATE TABLE %I (%s, PRIMARY KEY (gpu_id)) WITH (fillfactor = 50)' END,
            old.name, field);
        EXECUTE format('ALTER TABLE %I ALTER COLUMN cells SET STORAGE PLAIN', old.name);
        FOR piece IN
            SELECT name, name || '_columns' AS renamed, lower, upper
            FROM store_partition WHERE parent = old.name
        LOOP
            EXECUTE format('ALTER TABLE %I RENAME TO %I', piece.name, piece.renamed);
            EXECUTE format('ALTER INDEX %I RENAME TO %I', piece.name || '_pkey',
                           piece.renamed || '_pkey');
            EXECUTE format('CREATE TABLE %I PARTITION OF %I FOR VALUES FROM (%L) TO (%L)',
                           piece.name, old.name, piece.lower, piece.upper);
        END LOOP;
        IF citus THEN
            -- Where the old one is, so that no row leaves its node.
            EXECUTE format(
                'SELECT create_distributed_table(%L, ''gpu_id'', colocate_with => ''gpu_seen'') '
                'FROM pg_dist_partition WHERE logicalrelid = %L::regclass', old.name, old.renamed);
        END IF;
        -- A column that an older catalog did not have yet has no value.
        WITH known AS (
            SELECT c.cell, CASE c.storage WHEN 'd' THEN 'float8send' ELSE 'int8send' END AS send,
                CASE WHEN a.attname IS NOT NULL THEN quote_ident(c.name) END AS name
            FROM packed_column c LEFT JOIN pg_attribute a ON NOT a.attisdropped
                AND a.attrelid = to_regclass(old.renamed) AND a.attname = c.name
            WHERE c.set_name = old.set_name
        ), bytes AS (
            SELECT cell / 8 AS byte, coalesce(
                string_agg(format('CASE WHEN %s IS NULL THEN 0 ELSE %s END', name, 1 << cell % 8),
                           ' + ') FILTER (WHERE name IS NOT NULL), '0') AS bits
            FROM known GROUP BY cell / 8
        )
        SELECT (SELECT format('substring(%s || %s FOR 8)',
                    string_agg(format('substring(int4send(%s) FROM 4)', bits), ' || ' ORDER BY byte),
                    zeros) FROM bytes),
            string_agg(CASE WHEN name IS NULL THEN zeros
                ELSE format('coalesce(%s(%s), %s)', send, name, zeros) END, ' || ' ORDER BY cell)
        INTO bitmap, packed FROM known;
        EXECUTE format('INSERT INTO %I SELECT gpu_id, time, epoch, sequence, %s || %s FROM %I',
                       old.name, bitmap, packed, old.renamed);
        EXECUTE format('DROP TABLE %I', old.renamed);
    END LOOP;
END $$;
