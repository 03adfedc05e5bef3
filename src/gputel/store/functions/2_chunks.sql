-- Chunks, as docs/reference/chunk-format.md draws them, read without an extension.
--
-- `bytes` is a chunk without its checksum and with 16 zeros behind: what reads a word near the end
-- finds bytes there, and what has gone too far is noticed a little later. `origin` says in errors
-- which chunk it is. gputel's own reader is src/gputel/_reference/codec.py, in the same order.

-- A column of a chunk: where its values are, and which earlier column it is predicted from.
DO $$
BEGIN
    IF to_regtype('gputel_column') IS NULL THEN
        CREATE TYPE gputel_column AS (
            storage integer,    -- 0 f32, 1 f64, 2 i64, 3 u64
            mode    integer,    -- 0 series, 1 decimal, 2 same, 3 raw
            power   double precision,  -- of decimals: 10^k
            bitmap  integer,    -- where its bitmap begins; NULL: every row has a value
            count   integer,    -- values
            at      integer,    -- where they begin: of a series its tag
            back    integer,    -- columns back to the one it is linked to; 0: none
            next    integer     -- behind it
        );
    END IF;
END $$;

CREATE OR REPLACE FUNCTION gputel_refuse(origin text, what text) RETURNS void
LANGUAGE plpgsql PARALLEL SAFE AS $$
BEGIN
    RAISE EXCEPTION '%: %', origin, what USING ERRCODE = 'data_corrupted',
        HINT = 'Nothing of it is returned; ask for the time before and after it.';
END
$$;

CREATE OR REPLACE FUNCTION gputel_varint(
    bytes bytea, at integer, origin text, OUT number bigint, OUT next integer
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    byte integer;
BEGIN
    number := 0;
    next := at;
    FOR shift IN 0..63 BY 7 LOOP
        IF next >= octet_length(bytes) - 16 THEN
            PERFORM gputel_refuse(origin, format('truncated at byte %s', next));
        END IF;
        byte := get_byte(bytes, next);
        next := next + 1;
        number := number | ((byte & 127)::bigint << shift);
        IF byte < 128 THEN
            EXIT WHEN shift = 63 AND byte > 1;
            RETURN;
        END IF;
    END LOOP;
    PERFORM gputel_refuse(origin, format('the varint at byte %s is above 2^64 - 1', at));
END
$$;

-- first, first + step, first + 2 step ...
CREATE OR REPLACE FUNCTION gputel_steps(first bigint, step bigint, count integer) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    numbers bigint[];
    number bigint := first;
BEGIN
    IF first BETWEEN -4611686018427387904 AND 4611686018427387903  -- 2^62, and 2^16 times 2^45
        AND step BETWEEN -35184372088832 AND 35184372088832
    THEN
        RETURN ARRAY(SELECT first + i * step FROM generate_series(0, count - 1) AS i);
    END IF;
    numbers := array_fill(first, ARRAY[count]);
    FOR i IN 2..count LOOP
        number := gputel_add(number, step);
        numbers[i] := number;
    END LOOP;
    RETURN numbers;
END
$$;

-- A series of `count` integers whose tag is at `at`, without what its link adds. All shapes but two
-- are blocks: OFFSET and RAW a large one that has a floor, DELTA one of steps, DELTA2 one of
-- differences' steps. Not `wanted`: only where the series ends, which is soon found.
CREATE OR REPLACE FUNCTION gputel_series(
    bytes bytea, at integer, version integer, count integer, wanted boolean, origin text,
    OUT numbers bigint[], OUT back bigint, OUT factor bigint, OUT shift integer, OUT next integer
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    tag constant integer := get_byte(bytes, at);
    shape constant integer := tag & 7;
    differences constant boolean := tag & 16 > 0 OR shape = 4;
    field record;
    first bigint := 0;   -- v[0], or the floor of OFFSET
    divisor bigint := 1;
    step bigint := 0;    -- of STEP, or the first difference
    skipped integer;
BEGIN
    IF tag > 63 OR shape > 6 OR (version = 1 AND (tag > 15 OR shape = 6))
        OR (tag & 8 > 0 AND shape IN (0, 1, 5)) OR (tag & 16 > 0 AND shape <> 6)
    THEN
        PERFORM gputel_refuse(origin, format('series at byte %s: unknown tag %s', at, tag));
    END IF;
    next := at + 1;
    back := 0;
    IF tag & 32 > 0 THEN
        field := gputel_varint(bytes, next, origin);
        back := field.number;
        field := gputel_varint(bytes, field.next, origin);
        factor := gputel_unzigzag(field.number);
        shift := get_byte(bytes, field.next);
        next := field.next + 1;
        IF back = 0 OR shift > 63 THEN
            PERFORM gputel_refuse(
                origin, format('series at byte %s: link %s back, shift %s', at, back, shift));
        END IF;
    END IF;
    IF shape <> 5 THEN
        field := gputel_varint(bytes, next, origin);
        first := gputel_unzigzag(field.number);
        next := field.next;
    END IF;
    IF tag & 8 > 0 THEN
        field := gputel_varint(bytes, next, origin);
        divisor := field.number;
        next := field.next;
        IF divisor IN (0, 1) THEN
            PERFORM gputel_refuse(
                origin, format('series at byte %s: common divisor %s', at, divisor));
        END IF;
    END IF;
    IF shape = 1 OR differences THEN
        field := gputel_varint(bytes, next, origin);
        step := gputel_unzigzag(field.number);
        next := field.next;
        IF differences AND count < 2 THEN
            PERFORM gputel_refuse(
                origin, format('series at byte %s: differences of one number', at));
        END IF;
    END IF;
    IF shape IN (0, 1) THEN
        IF wanted THEN
            numbers := gputel_steps(first, step, count);
        END IF;
    ELSIF wanted THEN
        field := gputel_blocks(
            bytes, next, shape, first, divisor, differences, step, count, origin);
        numbers := field.numbers;
        next := field.next;
    ELSE
        skipped := CASE WHEN shape IN (2, 5) THEN 0 WHEN differences THEN 2 ELSE 1 END;
        next := gputel_skip(bytes, next, shape, count - skipped, origin);
    END IF;
END
$$;

-- Where the `count` numbers of a series end that nobody asked for.
CREATE OR REPLACE FUNCTION gputel_skip(
    bytes bytea, at integer, shape integer, count integer, origin text
) RETURNS integer
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    stop constant integer := octet_length(bytes) - 16;
    next integer := at;
    control integer := 64;
BEGIN
    IF shape = 6 THEN
        FOR block IN 1 .. (count + 15) / 16 LOOP
            control := get_byte(bytes, next);
            next := next + 1
                + (least(16, count - 16 * (block - 1)) * (control & 127) + 7) / 8
                + CASE WHEN control < 128 THEN 0
                    WHEN get_byte(bytes, next + 1) < 128 THEN 1  -- of its base
                    ELSE (gputel_varint(bytes, next + 1, origin)).next - next - 1 END;
            EXIT WHEN next > stop;
        END LOOP;
    ELSE
        IF shape <> 5 THEN
            control := get_byte(bytes, next);
            next := next + 1;
        END IF;
        next := next + (count * control + 7) / 8;
    END IF;
    IF next > stop THEN
        PERFORM gputel_refuse(origin, format('truncated at byte %s', stop));
    END IF;
    RETURN (next);
END
$$;

-- The values of a series of blocks. Behind `first`, and the second value of `differences`, each
-- number that is unpacked gives one.
CREATE OR REPLACE FUNCTION gputel_blocks(
    bytes bytea, at integer, shape integer, first bigint, divisor bigint, differences boolean,
    delta bigint, count integer, origin text,
    OUT numbers bigint[], OUT next integer
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    stop constant integer := octet_length(bytes) - 16;
    scaled constant boolean := divisor <> 1;
    field record;
    done integer := CASE WHEN shape IN (2, 5) THEN 0 WHEN differences THEN 2 ELSE 1 END;
    value bigint := first;   -- of differences: the value before the next one
    number bigint := delta;  -- the number before the next one
    x bigint;
    size integer;            -- numbers of this block
    width integer;           -- their bits
    floored boolean;         -- they count from `base`, not from the number before
    base bigint;
    bits integer;            -- where the next one begins
    mask bigint;
BEGIN
    next := at;
    numbers := array_fill(first, ARRAY[count]);
    IF differences THEN
        x := gputel_multiply(delta, divisor);
        value := gputel_add(value, x);
        numbers[2] := value;
    END IF;
    WHILE done < count LOOP
        size := CASE shape WHEN 6 THEN least(count - done, 16) ELSE count - done END;
        floored := shape IN (2, 5);
        base := 0;
        width := 64;
        IF shape <> 5 THEN
            width := get_byte(bytes, next);
            next := next + 1;
        END IF;
        IF shape = 6 AND width > 127 THEN
            field := gputel_varint(bytes, next, origin);
            base := gputel_unzigzag(field.number);
            base := gputel_add(base, number);
            next := field.next;
            floored := true;
            width := width - 128;
        END IF;
        bits := next * 8;
        next := next + (size * width + 7) / 8;
        IF width > 64 OR next > stop THEN
            PERFORM gputel_refuse(origin, format(
                '%s numbers of %s bits at byte %s of %s', size, width, bits / 8, stop));
        ELSIF size * width % 8 > 0 AND get_byte(bytes, next - 1) >> size * width % 8 > 0 THEN
            PERFORM gputel_refuse(origin, format('padding bits are set at byte %s', next - 1));
        END IF;
        mask := CASE width WHEN 64 THEN -1 ELSE ~((-1)::bigint << width) END;
        FOR i IN done + 1 .. done + size LOOP
            -- PERF(sql): most numbers are short, and each byte costs 20 ns.
            IF width <= 9 THEN
                x := ((get_byte(bytes, bits >> 3)
                       | (get_byte(bytes, (bits >> 3) + 1) << 8)) >> (bits & 7)) & mask;
            ELSIF width <= 25 THEN
                x := ((get_byte(bytes, bits >> 3)
                       | (get_byte(bytes, (bits >> 3) + 1) << 8)
                       | (get_byte(bytes, (bits >> 3) + 2) << 16)
                       | (get_byte(bytes, (bits >> 3) + 3) << 24)) >> (bits & 7)) & mask;
            ELSE
                x := gputel_word(bytes, bits >> 3);
                IF bits & 7 > 0 THEN  -- its upper bits are in the ninth byte
                    x := ((x >> (bits & 7)) & ~((-1)::bigint << (64 - (bits & 7))))
                        | (get_byte(bytes, (bits >> 3) + 8)::bigint << (64 - (bits & 7)));
                END IF;
                x := x & mask;
            END IF;
            bits := bits + width;
            IF floored THEN
                number := gputel_add(base, x);
            ELSE
                number := gputel_add(number, gputel_unzigzag(x));
            END IF;
            x := number;
            IF scaled THEN
                x := gputel_multiply(number, divisor);
            END IF;
            IF differences THEN
                value := gputel_add(value, x);
                numbers[i] := value;
            ELSE
                numbers[i] := gputel_add(first, x);
            END IF;
        END LOOP;
        done := done + size;
    END LOOP;
    IF next > stop THEN
        PERFORM gputel_refuse(origin, format('truncated at byte %s', stop));
    END IF;
END
$$;

-- The header, up to the times.
CREATE OR REPLACE FUNCTION gputel_header(
    bytes bytea, origin text,
    OUT samples integer, OUT t0_ns bigint, OUT t1_ns bigint, OUT first_sequence bigint,
    OUT metric_ids integer[], OUT next integer
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    field record;
    number bigint;
    runs bigint;
    last integer := 0;
    ids integer;
BEGIN
    field := gputel_varint(bytes, 3, origin);
    IF field.number NOT BETWEEN 0 AND 65535 THEN
        PERFORM gputel_refuse(origin, 'the set id is above 65535');
    END IF;
    field := gputel_varint(bytes, field.next, origin);
    IF field.number NOT BETWEEN 1 AND 65536 THEN
        PERFORM gputel_refuse(origin, 'it has not 1 to 65536 samples');
    END IF;
    samples := field.number;
    IF field.next + 8 > octet_length(bytes) - 16 THEN
        PERFORM gputel_refuse(origin, format('truncated at byte %s', field.next));
    END IF;
    t0_ns := gputel_word(bytes, field.next);
    field := gputel_varint(bytes, field.next + 8, origin);
    number := field.number;  -- the span, a u64
    IF t0_ns + gputel_unsigned(number) > 9223372036854775807 THEN
        PERFORM gputel_refuse(origin, 'its latest time is no i64');
    END IF;
    t1_ns := gputel_add(t0_ns, number);
    field := gputel_varint(bytes, field.next, origin);
    first_sequence := gputel_unzigzag(field.number);
    field := gputel_varint(bytes, field.next, origin);
    runs := field.number;
    next := field.next;
    IF runs NOT BETWEEN 0 AND 64 THEN
        PERFORM gputel_refuse(origin, 'it has more than 64 runs of metric ids');
    END IF;
    metric_ids := '{}';
    FOR run IN 1..runs LOOP
        field := gputel_varint(bytes, next, origin);
        number := gputel_unzigzag(field.number);
        field := gputel_varint(bytes, field.next, origin);
        next := field.next;
        IF number NOT BETWEEN -65535 AND 65535 OR field.number NOT BETWEEN 1 AND 64 THEN
            PERFORM gputel_refuse(origin, format('bad metric ids before byte %s', next));
        END IF;
        ids := field.number;
        number := last + number;
        last := number + ids - 1;
        metric_ids := metric_ids || ARRAY(SELECT generate_series(number::integer, last));
        IF number < 1 OR last > 65535 OR cardinality(metric_ids) > 64 THEN
            PERFORM gputel_refuse(origin, format('bad metric ids before byte %s', next));
        END IF;
    END LOOP;
    IF (SELECT count(DISTINCT id) FROM unnest(metric_ids) AS id) < cardinality(metric_ids) THEN
        PERFORM gputel_refuse(origin, 'a metric id occurs twice');
    END IF;
END
$$;

-- What is at a column's tag; `earlier` are the columns before it.
CREATE OR REPLACE FUNCTION gputel_column_at(
    bytes bytea, at integer, version integer, samples integer, earlier gputel_column[], origin text
) RETURNS gputel_column
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    stop constant integer := octet_length(bytes) - 16;
    tag constant integer := get_byte(bytes, at);
    found gputel_column;
    base gputel_column;
    field record;
    k integer;
BEGIN
    found.storage := tag & 3;
    found.mode := (tag >> 3) & 3;
    found.count := samples;
    found.at := at + 1;
    found.back := 0;
    IF tag > 31 OR (found.mode > 0 AND found.storage > 1)
        OR (found.mode = 0 AND found.storage < 2 AND version = 1)
    THEN
        PERFORM gputel_refuse(origin, format('column at byte %s: unknown tag %s', at, tag));
    END IF;
    IF tag & 4 > 0 THEN
        found.bitmap := found.at;
        found.at := found.at + (samples + 7) / 8;
        IF found.at > stop THEN
            PERFORM gputel_refuse(origin, format('truncated at byte %s', stop));
        END IF;
        found.count := bit_count(substring(bytes FROM found.bitmap + 1 FOR (samples + 7) / 8));
        IF found.count NOT BETWEEN 1 AND samples - 1
            OR (samples % 8 > 0 AND get_byte(bytes, found.at - 1) >> samples % 8 > 0)
        THEN
            PERFORM gputel_refuse(origin, format(
                'column at byte %s: %s values of %s samples', at, found.count, samples));
        END IF;
    END IF;
    IF found.mode = 1 THEN
        k := get_byte(bytes, found.at);
        found.at := found.at + 1;
        IF k > 9 THEN
            PERFORM gputel_refuse(origin, format('column at byte %s: %s decimals', at, k));
        END IF;
        found.power := (10::numeric ^ k)::double precision;
    END IF;
    IF found.mode < 2 THEN
        field := gputel_series(bytes, found.at, version, found.count, false, origin);
        found.next := field.next;
        IF field.back <> 0 THEN
            IF field.back BETWEEN 1 AND cardinality(earlier) THEN
                found.back := field.back;
                base := earlier[cardinality(earlier) + 1 - found.back];
            END IF;
            IF found.back = 0 OR base.mode > 1 OR base.count <> found.count THEN
                PERFORM gputel_refuse(
                    origin, format('column at byte %s: no column to predict it from', at));
            END IF;
        END IF;
    ELSE
        found.next := found.at + CASE found.storage WHEN 0 THEN 4 ELSE 8 END
            * CASE found.mode WHEN 2 THEN 1 ELSE found.count END;
    END IF;
    IF found.next > stop THEN
        PERFORM gputel_refuse(origin, format('truncated at byte %s', stop));
    END IF;
    RETURN found;
END
$$;

-- The integers of the last of `columns`: of floats their bits, or what is divided by `power`.
CREATE OR REPLACE FUNCTION gputel_integers(
    bytes bytea, version integer, columns gputel_column[], origin text
) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    last constant gputel_column := columns[cardinality(columns)];
    mask constant bigint := CASE last.storage WHEN 0 THEN 4294967295 ELSE -1 END;
    size constant integer := CASE last.storage WHEN 0 THEN 4 ELSE 8 END;
    path integer[] := ARRAY[cardinality(columns)];  -- from the column that is not linked on
    field record;
    base bigint[];
    numbers bigint[];
    first bigint;
    x bigint;
BEGIN
    IF last.mode = 2 THEN
        RETURN array_fill(gputel_word(bytes, last.at) & mask, ARRAY[last.count]);
    ELSIF last.mode = 3 THEN
        RETURN ARRAY(SELECT gputel_word(bytes, last.at + i * size) & mask
                     FROM generate_series(0, last.count - 1) AS i);
    END IF;
    WHILE (columns[path[1]]).back > 0 LOOP
        path := path[1] - (columns[path[1]]).back || path;
    END LOOP;
    FOR i IN 1..cardinality(path) LOOP
        field := gputel_series(bytes, (columns[path[i]]).at, version, last.count, true, origin);
        numbers := field.numbers;
        IF i > 1 THEN
            first := gputel_wrap(-base[1]::numeric);
            FOR row IN 1..last.count LOOP
                x := gputel_add(base[row], first);
                x := gputel_multiply(x, field.factor);
                numbers[row] := gputel_add(numbers[row], x >> field.shift);
            END LOOP;
        END IF;
        base := numbers;
    END LOOP;
    IF last.mode = 0 AND last.storage = 0
        AND EXISTS (SELECT FROM unnest(numbers) AS u WHERE u NOT BETWEEN 0 AND 4294967295)
    THEN
        PERFORM gputel_refuse(origin, 'the bits of a f32 are above 2^32 - 1');
    END IF;
    RETURN numbers;
END
$$;

-- Times and sequences of all samples.
CREATE OR REPLACE FUNCTION gputel_rows(
    bytes bytea, at integer, version integer, samples integer, t0_ns bigint, t1_ns bigint,
    first_sequence bigint, origin text,
    OUT time_ns bigint[], OUT sequence bigint[], OUT next integer
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    times record;
    steps record;
BEGIN
    IF samples = 1 THEN
        time_ns := ARRAY[t0_ns];
        sequence := ARRAY[first_sequence];
        next := at;
    ELSE
        times := gputel_series(bytes, at, version, samples, true, origin);
        steps := gputel_series(bytes, times.next, version, samples, true, origin);
        IF times.back <> 0 OR steps.back <> 0 THEN
            PERFORM gputel_refuse(origin, 'its times or sequences have a link');
        ELSIF steps.numbers[1] <> 0 THEN
            PERFORM gputel_refuse(origin, 'the sequences contradict the header');
        END IF;
        time_ns := ARRAY(SELECT gputel_add(t0_ns, u) FROM unnest(times.numbers) AS u);
        sequence := ARRAY(SELECT gputel_add(first_sequence, u) FROM unnest(steps.numbers) AS u);
        next := steps.next;
    END IF;
    IF (SELECT (min(t), max(t)) <> (t0_ns, t1_ns) FROM unnest(time_ns) AS t) THEN
        PERFORM gputel_refuse(origin, 'the times contradict the header');
    END IF;
END
$$;

-- Of some numbers those whose bit is set.
CREATE OR REPLACE FUNCTION gputel_masked(numbers bigint[], bitmap bytea) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ARRAY(SELECT n FROM unnest(numbers) WITH ORDINALITY AS u (n, i)
                 WHERE get_bit(bitmap, i - 1) = 1 ORDER BY i)
$$;

-- The columns of `wanted` metrics that a chunk has. The i-th elements are one sample; its value is
-- what gputel_value makes of `storage`, `power` and bits[i]. Columns that are not wanted are passed
-- over, unless a wanted one is linked to them; behind the last one only the checksum is looked at.
CREATE OR REPLACE FUNCTION gputel_chunk(payload bytea, wanted integer[], origin text)
RETURNS TABLE (
    metric_id integer, storage integer, power double precision,
    time_ns bigint[], sequence bigint[], bits bigint[]
)
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE ROWS 1 COST 100000 SET search_path FROM CURRENT AS $$
DECLARE
    size constant integer := octet_length(payload);
    -- PERF(sql): made anew, or else get_byte would fetch the whole of it from its table each time.
    bytes constant bytea :=
        substring(payload FOR greatest(size - 4, 0)) || decode(repeat('00', 16), 'hex');
    version integer;
    checksum bigint;
    header record;
    rows record;
    columns gputel_column[] := '{}';
    found gputel_column;
    bitmap bytea;
    next integer;
    left_over integer;
BEGIN
    IF size NOT BETWEEN 7 AND 262144 OR substring(payload FOR 2) <> 'GC' THEN
        PERFORM gputel_refuse(origin, format(
            'no chunk: %s bytes, the first are %s', size, substring(payload FOR 3)));
    END IF;
    version := get_byte(payload, 2);
    IF version NOT IN (1, 2) THEN
        PERFORM gputel_refuse(origin, format('version %s is unknown, 1 and 2 are read', version));
    END IF;
    -- Older servers have no such function, and in SQL it would take longer than all else.
    IF current_setting('server_version_num')::integer >= 180000 THEN
        checksum := gputel_word(substring(payload FROM size - 3) || '\x00000000', 0);
        IF crc32c(substring(payload FOR size - 4)) <> checksum THEN
            PERFORM gputel_refuse(origin, 'its checksum is wrong');
        END IF;
    END IF;
    header := gputel_header(bytes, origin);
    left_over := (SELECT count(*) FROM unnest(header.metric_ids) AS id WHERE id = ANY (wanted));
    IF left_over = 0 THEN
        RETURN;
    END IF;
    rows := gputel_rows(bytes, header.next, version, header.samples, header.t0_ns, header.t1_ns,
                        header.first_sequence, origin);
    next := rows.next;
    FOREACH metric_id IN ARRAY header.metric_ids LOOP
        found := gputel_column_at(bytes, next, version, header.samples, columns, origin);
        columns := columns || found;
        next := found.next;
        CONTINUE WHEN metric_id <> ALL (wanted);
        storage := found.storage;
        power := found.power;
        bits := gputel_integers(bytes, version, columns, origin);
        time_ns := rows.time_ns;
        sequence := rows.sequence;
        IF found.bitmap IS NOT NULL THEN
            bitmap := substring(bytes FROM found.bitmap + 1 FOR (header.samples + 7) / 8);
            time_ns := gputel_masked(rows.time_ns, bitmap);
            sequence := gputel_masked(rows.sequence, bitmap);
        END IF;
        RETURN NEXT;
        left_over := left_over - 1;
        EXIT WHEN left_over = 0;
    END LOOP;
END
$$;
