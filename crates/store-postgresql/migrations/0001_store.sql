-- The store: devices and their places in line, everything else as named values, and the attempts to commit.
--
-- A migration that was released is never edited: its checksum is kept in `schema`, and a difference is refused.
-- Functions carry a version in their name, so that two releases can work on one database side by side.

-- The lines that were ever joined. A number is short in the rows of `place`, and names the line's sequence: place_seq_<line>.
CREATE TABLE line (
    line     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    instance text COLLATE "C" NOT NULL UNIQUE CHECK (instance ~ '^[a-z0-9-]{1,63}$')
);

-- One record per device, named by its registration ID. Its place is beside it and never inside. No index but the key, so that most updates
-- stay within their page.
CREATE TABLE device (
    name    bytea PRIMARY KEY,
    version uuid NOT NULL,
    line    integer,
    class   smallint,
    seq     bigint,
    value   bytea NOT NULL,
    CHECK (num_nulls(line, class, seq) IN (0, 3))
) WITH (fillfactor = 75);

-- The places of a line in order, in narrow rows: who takes over a line reads these and no record. Kept by commit_v1 together with `device`.
-- The name is part of the key because places that come from elsewhere may share a number with a place of another class.
CREATE TABLE place (
    line  integer,
    seq   bigint,
    class smallint NOT NULL,
    name  bytea,
    PRIMARY KEY (line, seq, name)
);

-- Everything that is no device: what tbl means is in the store's code.
CREATE TABLE entry (
    tbl     smallint,
    name    bytea,
    version uuid NOT NULL,
    value   bytea NOT NULL,
    PRIMARY KEY (tbl, name)
) WITH (fillfactor = 75);

-- What became of an attempt to commit, until its writer has heard of it. An attempt that is known not to have happened, happened = false,
-- never will: see settle_v1.
CREATE TABLE attempt (
    id        uuid PRIMARY KEY,
    happened  boolean NOT NULL,
    conflicts integer[],
    numbers   bigint[],
    at        timestamptz NOT NULL DEFAULT now()
);

-- The number of an instance's line; the first who asks creates it, with its sequence. With the rights of the schema's owner, so that a
-- gateway needs no right to create anything.
CREATE FUNCTION line_v1(p_instance text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = dps_proxy, pg_temp AS $$
DECLARE
    v_line integer;
BEGIN
    SELECT l.line INTO v_line FROM line l WHERE l.instance = p_instance;
    IF FOUND THEN
        RETURN v_line;
    END IF;
    INSERT INTO line (instance) VALUES (p_instance) ON CONFLICT (instance) DO NOTHING RETURNING line.line INTO v_line;
    IF v_line IS NULL THEN
        SELECT l.line INTO STRICT v_line FROM line l WHERE l.instance = p_instance;
    ELSE
        EXECUTE format('CREATE SEQUENCE place_seq_%s AS bigint MINVALUE 0 START 0', v_line);
    END IF;
    RETURN v_line;
END $$;

-- Numbers that are given in a line from now on are at least p_next.
CREATE FUNCTION raise_v1(p_line integer, p_next bigint) RETURNS void
LANGUAGE plpgsql SET search_path = dps_proxy, pg_temp AS $$
DECLARE
    v_next bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7, p_line);
    EXECUTE format('SELECT CASE WHEN is_called THEN last_value + 1 ELSE last_value END FROM place_seq_%s', p_line) INTO v_next;
    IF v_next < p_next THEN
        PERFORM setval(('place_seq_' || p_line)::regclass, p_next, false);
    END IF;
END $$;

-- Carries out a batch of commits, each whole or not at all, in one transaction.
--
-- A write is one position of all arrays from p_unit on. The writes of a commit share p_unit (1, 2, …, in the order of the commits, without
-- gaps); p_slot is the position within it. No key may occur twice in a batch.
--   p_tbl       1 device, else the tbl of `entry`
--   p_expect    0 absent, 1 the version p_expected, 2 anything
--   p_change    0 nothing, 1 put, 2 delete
--   p_line      NULL nowhere; with p_seq NULL: joins the end of the line
-- Returns per commit the first slot whose expectation did not hold, or NULL where it was applied (a negative number is reserved for
-- commits that carry a fence which does not hold), and the numbers that were given, in the order of the writes.
--
-- Order of locks, for everybody: the attempt, lines, devices by name, entries by key, then what is created in the same order. So nobody
-- waits in a circle. The lock of a line is held until what was numbered is visible: numbers become visible in their order, and whoever
-- reads a line by a cursor misses none.
--
-- Another transaction may create a key between the look at it and the insertion: then all of this fails with unique_violation, nothing was
-- applied, and the caller comes again.
CREATE FUNCTION commit_v1(
    p_attempt uuid, p_settled uuid,
    p_unit integer[], p_slot integer[], p_tbl smallint[], p_name bytea[], p_expect smallint[], p_expected uuid[],
    p_change smallint[], p_version uuid[], p_value bytea[], p_line integer[], p_class smallint[], p_seq bigint[],
    OUT conflicts integer[], OUT numbers bigint[])
LANGUAGE plpgsql
SET search_path = dps_proxy, pg_temp
-- Plans are kept, and made while the tables may be empty: always by the key.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET enable_bitmapscan = off SET jit = off
AS $$
DECLARE
    v_found       uuid[]     := array_fill(NULL::uuid, ARRAY[cardinality(p_name)]);
    v_found_line  integer[]  := array_fill(NULL::integer, ARRAY[cardinality(p_name)]);
    v_found_class smallint[] := array_fill(NULL::smallint, ARRAY[cardinality(p_name)]);
    v_found_seq   bigint[]   := array_fill(NULL::bigint, ARRAY[cardinality(p_name)]);
    v_seq         bigint[]   := p_seq;
    v_number      bigint;
    r             record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_attempt::text, 0));
    FOR r IN
        SELECT DISTINCT w.line FROM unnest(p_line, p_seq) AS w(line, seq)
        WHERE w.line IS NOT NULL AND w.seq IS NULL ORDER BY w.line
    LOOP
        PERFORM pg_advisory_xact_lock(7, r.line);
    END LOOP;

    FOR r IN
        SELECT w.pos, d.version, d.line, d.class, d.seq
        FROM unnest(p_tbl, p_name) WITH ORDINALITY AS w(tbl, name, pos) JOIN device d ON d.name = w.name
        WHERE w.tbl = 1 ORDER BY d.name FOR UPDATE OF d
    LOOP
        v_found[r.pos] := r.version;
        v_found_line[r.pos] := r.line;
        v_found_class[r.pos] := r.class;
        v_found_seq[r.pos] := r.seq;
    END LOOP;
    FOR r IN
        SELECT w.pos, e.version
        FROM unnest(p_tbl, p_name) WITH ORDINALITY AS w(tbl, name, pos) JOIN entry e ON e.tbl = w.tbl AND e.name = w.name
        WHERE w.tbl <> 1 ORDER BY e.tbl, e.name FOR UPDATE OF e
    LOOP
        v_found[r.pos] := r.version;
    END LOOP;

    SELECT array_agg(c.slot ORDER BY c.unit) INTO conflicts
    FROM (
        SELECT w.unit, min(w.slot) FILTER (WHERE CASE w.expect
            WHEN 0 THEN w.found IS NOT NULL
            WHEN 1 THEN w.found IS DISTINCT FROM w.expected
            ELSE false END) AS slot
        FROM unnest(p_unit, p_slot, p_expect, p_expected, v_found) AS w(unit, slot, expect, expected, found)
        GROUP BY w.unit
    ) c;
    numbers := '{}';
    IF array_position(conflicts, NULL) IS NULL THEN
        RETURN;
    END IF;

    FOR r IN
        SELECT w.pos, w.line FROM unnest(p_unit, p_line, p_seq) WITH ORDINALITY AS w(unit, line, seq, pos)
        WHERE w.line IS NOT NULL AND w.seq IS NULL AND conflicts[w.unit] IS NULL ORDER BY w.pos
    LOOP
        v_number := nextval(('place_seq_' || r.line)::regclass);
        v_seq[r.pos] := v_number;
        numbers := numbers || v_number;
    END LOOP;

    WITH w AS MATERIALIZED (
        SELECT * FROM unnest(p_unit, p_tbl, p_name, p_change, p_version, p_value, p_line, p_class, v_seq,
                             v_found, v_found_line, v_found_class, v_found_seq)
            AS w(unit, tbl, name, change, version, value, line, class, seq, found, found_line, found_class, found_seq)
        WHERE conflicts[w.unit] IS NULL AND w.change <> 0
    ), devices_deleted AS (
        DELETE FROM device d USING w WHERE w.tbl = 1 AND w.change = 2 AND w.found IS NOT NULL AND d.name = w.name
    ), devices_changed AS (
        UPDATE device d SET version = w.version, line = w.line, class = w.class, seq = w.seq, value = w.value
        FROM w WHERE w.tbl = 1 AND w.change = 1 AND w.found IS NOT NULL AND d.name = w.name
    ), devices_created AS (
        INSERT INTO device (name, version, line, class, seq, value)
        SELECT w.name, w.version, w.line, w.class, w.seq, w.value
        FROM w WHERE w.tbl = 1 AND w.change = 1 AND w.found IS NULL ORDER BY w.name
    ), places_left AS (
        DELETE FROM place p USING w
        WHERE w.tbl = 1 AND w.found_line IS NOT NULL
          AND (w.change = 2 OR (w.line, w.seq) IS DISTINCT FROM (w.found_line, w.found_seq))
          AND p.line = w.found_line AND p.seq = w.found_seq AND p.name = w.name
    ), places_of_another_class AS (
        UPDATE place p SET class = w.class FROM w
        WHERE w.tbl = 1 AND w.change = 1 AND w.line = w.found_line AND w.seq = w.found_seq AND w.class <> w.found_class
          AND p.line = w.line AND p.seq = w.seq AND p.name = w.name
    ), places_taken AS (
        INSERT INTO place (line, seq, class, name)
        SELECT w.line, w.seq, w.class, w.name FROM w
        WHERE w.tbl = 1 AND w.change = 1 AND w.line IS NOT NULL
          AND (w.line, w.seq) IS DISTINCT FROM (w.found_line, w.found_seq)
        ORDER BY w.line, w.seq, w.name
    ), entries_deleted AS (
        DELETE FROM entry e USING w
        WHERE w.tbl <> 1 AND w.change = 2 AND w.found IS NOT NULL AND e.tbl = w.tbl AND e.name = w.name
    ), entries_changed AS (
        UPDATE entry e SET version = w.version, value = w.value
        FROM w WHERE w.tbl <> 1 AND w.change = 1 AND w.found IS NOT NULL AND e.tbl = w.tbl AND e.name = w.name
    )
    INSERT INTO entry (tbl, name, version, value)
    SELECT w.tbl, w.name, w.version, w.value
    FROM w WHERE w.tbl <> 1 AND w.change = 1 AND w.found IS NULL ORDER BY w.tbl, w.name;

    -- Fails if the attempt was settled meanwhile: it comes too late.
    INSERT INTO attempt (id, happened, conflicts, numbers) VALUES (p_attempt, true, conflicts, numbers);
    DELETE FROM attempt a WHERE a.id = p_settled;
END $$;

-- What became of an attempt whose answer was lost. Waits for it if it is under way. If it did not happen, it never will from here on, also if
-- its statement is still on its way to the server.
CREATE FUNCTION settle_v1(p_attempt uuid, OUT happened boolean, OUT conflicts integer[], OUT numbers bigint[])
LANGUAGE plpgsql SET search_path = dps_proxy, pg_temp AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_attempt::text, 0));
    SELECT a.happened, a.conflicts, a.numbers INTO happened, conflicts, numbers FROM attempt a WHERE a.id = p_attempt;
    IF NOT FOUND THEN
        happened := false;
        INSERT INTO attempt (id, happened) VALUES (p_attempt, false);
    END IF;
END $$;
