-- Integers modulo 2^64, and floats from their bits.
--
-- bigint stands for i64 and u64 alike, as in a chunk; PostgreSQL's own operators refuse to
-- overflow. Functions in SQL are one expression, which the planner puts in the place of the call:
-- so they are not STRICT, and an argument must be a variable, not an expression that is dear.

CREATE OR REPLACE FUNCTION gputel_wrap(number numeric) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (mod(mod(number, 18446744073709551616) + 27670116110564327424, 18446744073709551616)
            - 9223372036854775808)::bigint
$$;

-- The u64 with the bits of `number`.
CREATE OR REPLACE FUNCTION gputel_unsigned(number bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN number < 0 THEN number + 18446744073709551616 ELSE number::numeric END
$$;

-- PERF(sql): a value mostly is far from the ends of i64, and its step small; numeric takes ten
-- times as long.
CREATE OR REPLACE FUNCTION gputel_add(number bigint, step bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN number BETWEEN -9000000000000000000 AND 9000000000000000000
            AND step BETWEEN -200000000000000000 AND 200000000000000000 THEN number + step
        ELSE gputel_wrap(number::numeric + step)
    END
$$;

CREATE OR REPLACE FUNCTION gputel_multiply(number bigint, factor bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN number BETWEEN -2147483648 AND 2147483647
            AND factor BETWEEN -2147483648 AND 2147483647 THEN number * factor
        ELSE gputel_wrap(number::numeric * factor)
    END
$$;

-- 0, 1, 2, 3, 4 ... -> 0, -1, 1, -2, 2 ...
CREATE OR REPLACE FUNCTION gputel_unzigzag(number bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT ((number >> 1) & 9223372036854775807) # -(number & 1)
$$;

-- Eight bytes from `at` on, little-endian.
CREATE OR REPLACE FUNCTION gputel_word(bytes bytea, at integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT get_byte(bytes, at)::bigint
        | (get_byte(bytes, at + 1)::bigint << 8) | (get_byte(bytes, at + 2)::bigint << 16)
        | (get_byte(bytes, at + 3)::bigint << 24) | (get_byte(bytes, at + 4)::bigint << 32)
        | (get_byte(bytes, at + 5)::bigint << 40) | (get_byte(bytes, at + 6)::bigint << 48)
        | (get_byte(bytes, at + 7)::bigint << 56)
$$;

-- The double with these bits: every step is exact, and no power is subnormal. All NaNs are one.
CREATE OR REPLACE FUNCTION gputel_f64(bits bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE (bits >> 52) & 2047
        WHEN 2047 THEN CASE
            WHEN bits & 4503599627370495 > 0 THEN 'NaN'
            WHEN bits < 0 THEN '-Infinity'
            ELSE 'Infinity' END::double precision
        WHEN 0 THEN CASE WHEN bits < 0 THEN -1.0::double precision ELSE 1.0 END
            * ((bits & 4503599627370495)::double precision / 4503599627370496)
            * power(2::double precision, -1022)
        ELSE CASE WHEN bits < 0 THEN -1.0::double precision ELSE 1.0 END
            * (((bits & 4503599627370495) | 4503599627370496)::double precision / 4503599627370496)
            * power(2::double precision, ((bits >> 52) & 2047) - 1023)
    END
$$;

-- The same of a f32, whose bits are a number of 0 to 2^32 - 1.
CREATE OR REPLACE FUNCTION gputel_f32(bits bigint) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE (bits >> 23) & 255
        WHEN 255 THEN CASE
            WHEN bits & 8388607 > 0 THEN 'NaN'
            WHEN bits >= 2147483648 THEN '-Infinity'
            ELSE 'Infinity' END::double precision
        WHEN 0 THEN CASE WHEN bits >= 2147483648 THEN -1.0::double precision ELSE 1.0 END
            * ((bits & 8388607)::double precision / 8388608) * power(2::double precision, -126)
        ELSE CASE WHEN bits >= 2147483648 THEN -1.0::double precision ELSE 1.0 END
            * (((bits & 8388607) | 8388608)::double precision / 8388608)
            * power(2::double precision, ((bits >> 23) & 255) - 127)
    END
$$;

-- A value of a chunk's column: `storage` is 0 f32, 1 f64, 2 i64, 3 u64; `power` is what decimals
-- are divided by, NULL where `bits` are a float's.
CREATE OR REPLACE FUNCTION gputel_value(storage integer, power double precision, bits bigint)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE storage
        WHEN 0 THEN CASE
            WHEN power IS NULL THEN gputel_f32(bits)
            ELSE (bits::double precision / power)::real::double precision END
        WHEN 1 THEN CASE
            WHEN power IS NULL THEN gputel_f64(bits) ELSE bits::double precision / power END
        WHEN 2 THEN bits::double precision
        ELSE gputel_unsigned(bits)::double precision
    END
$$;

-- The same without rounding integers; a float as the shortest decimal that reads as that float.
CREATE OR REPLACE FUNCTION gputel_exact(storage integer, power double precision, bits bigint)
RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE storage
        WHEN 0 THEN gputel_value(storage, power, bits)::real::text::numeric
        WHEN 1 THEN gputel_value(storage, power, bits)::text::numeric
        WHEN 2 THEN bits::numeric
        ELSE gputel_unsigned(bits)
    END
$$;

-- Hot rows: a value in the cells of a row (src/gputel/_reference/hot_rows.py draws them), whose
-- bytes begin at `at`. NULL where its bit is not set, and where there are no cells.

CREATE OR REPLACE FUNCTION gputel_cell_bits(cells bytea, at integer) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (get_byte(cells, at)::bigint << 56) | (get_byte(cells, at + 1)::bigint << 48)
        | (((get_byte(cells, at + 2) << 16) | (get_byte(cells, at + 3) << 8)
            | get_byte(cells, at + 4))::bigint << 24)
        | ((get_byte(cells, at + 5) << 16) | (get_byte(cells, at + 6) << 8)
            | get_byte(cells, at + 7))
$$;

-- PERF(sql): made of the bytes, as gputel_f64 of the bits: these would be an expression that is
-- dear, not a variable, and the call would stay one.
CREATE OR REPLACE FUNCTION gputel_cell_f64(cells bytea, at integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE ((get_byte(cells, at) & 127) << 4) | (get_byte(cells, at + 1) >> 4)
        WHEN 2047 THEN gputel_f64(gputel_cell_bits(cells, at))
        ELSE CASE WHEN get_byte(cells, at) > 127 THEN -1.0::double precision ELSE 1.0 END
            * (((CASE WHEN (get_byte(cells, at) & 127) > 0 OR get_byte(cells, at + 1) > 15
                      THEN 16 ELSE 0 END) | (get_byte(cells, at + 1) & 15))
                * 281474976710656::double precision
                + ((get_byte(cells, at + 2) << 16) | (get_byte(cells, at + 3) << 8)
                    | get_byte(cells, at + 4)) * 16777216::double precision
                + ((get_byte(cells, at + 5) << 16) | (get_byte(cells, at + 6) << 8)
                    | get_byte(cells, at + 7)))
            / 4503599627370496
            * power(2::double precision, greatest(
                ((get_byte(cells, at) & 127) << 4) | (get_byte(cells, at + 1) >> 4), 1) - 1023)
    END
$$;

CREATE OR REPLACE FUNCTION gputel_cell_f32(cells bytea, at integer) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE ((get_byte(cells, at) & 127) << 1) | (get_byte(cells, at + 1) >> 7)
        WHEN 255 THEN CASE
            WHEN ((get_byte(cells, at + 1) & 127) | get_byte(cells, at + 2)
                  | get_byte(cells, at + 3)) > 0 THEN 'NaN'
            WHEN get_byte(cells, at) > 127 THEN '-Infinity'
            ELSE 'Infinity' END::double precision
        ELSE CASE WHEN get_byte(cells, at) > 127 THEN -1.0::double precision ELSE 1.0 END
            * ((CASE WHEN (get_byte(cells, at) & 127) > 0 OR get_byte(cells, at + 1) > 127
                     THEN 8388608 ELSE 0 END)
                | ((get_byte(cells, at + 1) & 127) << 16) | (get_byte(cells, at + 2) << 8)
                | get_byte(cells, at + 3))::double precision / 8388608
            * power(2::double precision, greatest(
                ((get_byte(cells, at) & 127) << 1) | (get_byte(cells, at + 1) >> 7), 1) - 127)
    END
$$;

CREATE OR REPLACE FUNCTION gputel_cell(cells bytea, cell integer, storage integer, at integer)
RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN get_bit(cells, cell) = 1 THEN CASE storage
        WHEN 0 THEN gputel_cell_f32(cells, at)
        WHEN 1 THEN gputel_cell_f64(cells, at)
        WHEN 2 THEN gputel_cell_bits(cells, at)::double precision
        ELSE gputel_unsigned(gputel_cell_bits(cells, at))::double precision
    END END
$$;

-- As gputel_exact.
CREATE OR REPLACE FUNCTION gputel_cell_exact(
    cells bytea, cell integer, storage integer, at integer
) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN get_bit(cells, cell) = 1 THEN CASE storage
        WHEN 0 THEN gputel_cell_f32(cells, at)::real::text::numeric
        WHEN 1 THEN gputel_cell_f64(cells, at)::text::numeric
        WHEN 2 THEN gputel_cell_bits(cells, at)::numeric
        ELSE gputel_unsigned(gputel_cell_bits(cells, at))
    END END
$$;

-- Nanoseconds since 1970 as PostgreSQL counts them, floored to the microsecond.
CREATE OR REPLACE FUNCTION gputel_time(time_ns bigint) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT to_timestamp((time_ns / 1000000000)::double precision)
        + (time_ns % 1000000000 / 1000) * interval '1 microsecond'
$$;

CREATE OR REPLACE FUNCTION gputel_time_ns("time" timestamptz) RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (extract(epoch FROM "time") * 1000000)::bigint * 1000
$$;
