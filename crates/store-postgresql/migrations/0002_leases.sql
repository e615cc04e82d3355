-- Leases, and the fences of commits.

-- Who owns what several gateways could own: one row per lease, which is changed for ever and never removed, so that its epoch never falls
-- back. What the columns mean is in the store's contract. No time is in it, and none is read: `clock` is the owner's own.
CREATE TABLE lease (
    name     text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z0-9/-]{1,128}$'),
    epoch    bigint NOT NULL CHECK (epoch > 0),
    beat     bigint NOT NULL CHECK (beat >= 0),
    owner    uuid NOT NULL,
    replica  text NOT NULL CHECK (length(replica) <= 128),
    boot     text NOT NULL CHECK (length(boot) <= 128),
    clock    bigint NOT NULL CHECK (clock >= 0),
    released boolean NOT NULL
) WITH (fillfactor = 10);

-- Makes a change of the epoch one of a key: it waits for everybody who holds the row FOR KEY SHARE, and whoever wants it so afterwards
-- waits for the change. A renewal changes no key, and nobody waits.
CREATE UNIQUE INDEX lease_epoch ON lease (name, epoch);

-- Takes a lease, if it is what was seen (p_epoch NULL: if there is none). `granted` tells whether it did, or had done so before for this
-- very owner; the rest is the lease as it is now, all NULL if there is none.
CREATE FUNCTION lease_take_v1(
    p_name text, p_epoch bigint, p_beat bigint, p_owner uuid, p_replica text, p_boot text, p_clock bigint,
    OUT granted boolean, OUT epoch bigint, OUT beat bigint, OUT owner uuid, OUT replica text, OUT boot text,
    OUT clock bigint, OUT released boolean)
LANGUAGE plpgsql SET search_path = dps_proxy, pg_temp AS $$
BEGIN
    IF p_epoch IS NULL THEN
        INSERT INTO lease (name, epoch, beat, owner, replica, boot, clock, released)
        VALUES (p_name, 1, 0, p_owner, p_replica, p_boot, p_clock, false)
        ON CONFLICT ON CONSTRAINT lease_pkey DO NOTHING;
    ELSE
        UPDATE lease l
        SET epoch = l.epoch + 1, beat = 0, owner = p_owner, replica = p_replica, boot = p_boot, clock = p_clock, released = false
        WHERE l.name = p_name AND l.epoch = p_epoch AND l.beat = p_beat;
    END IF;
    -- Sees what it has lost to, if it has lost.
    SELECT l.epoch, l.beat, l.owner, l.replica, l.boot, l.clock, l.released
    INTO epoch, beat, owner, replica, boot, clock, released
    FROM lease l WHERE l.name = p_name;
    granted := coalesce(epoch = coalesce(p_epoch, 0) + 1 AND owner = p_owner AND NOT released, false);
END $$;

-- Renews a lease, or gives it back, if its owner holds it in this epoch. `granted` and the rest are as above. A clock never falls back
-- within a boot, so that what arrives late takes nothing back.
CREATE FUNCTION lease_renew_v1(
    p_name text, p_epoch bigint, p_owner uuid, p_boot text, p_clock bigint, p_release boolean,
    OUT granted boolean, OUT epoch bigint, OUT beat bigint, OUT owner uuid, OUT replica text, OUT boot text,
    OUT clock bigint, OUT released boolean)
LANGUAGE plpgsql SET search_path = dps_proxy, pg_temp AS $$
BEGIN
    UPDATE lease l
    SET beat = l.beat + 1, boot = p_boot, released = p_release,
        clock = CASE WHEN l.boot = p_boot THEN greatest(l.clock, p_clock) ELSE p_clock END
    WHERE l.name = p_name AND l.epoch = p_epoch AND l.owner = p_owner AND NOT l.released;
    SELECT l.epoch, l.beat, l.owner, l.replica, l.boot, l.clock, l.released
    INTO epoch, beat, owner, replica, boot, clock, released
    FROM lease l WHERE l.name = p_name;
    granted := coalesce(epoch = p_epoch AND owner = p_owner AND released = p_release, false);
END $$;

-- Carries out a batch of commits as commit_v1 does, and checks the fences that they carry.
--
-- p_fence and p_epoch have one position per commit: the lease and the epoch that have to be in force, or NULL where it carries no fence. A
-- commit may be without writes. Everything else is as commit_v1 says it; a commit whose fence does not hold has -1 among the conflicts,
-- whatever it expects, and leaves nothing.
--
-- The rows of the leases are locked FOR KEY SHARE until the end of the transaction, before everything but the attempt, in the order of
-- their names: that keeps a taking waiting and lets a renewal pass. A batch waits for a taking that is under way, and then sees what that
-- left.
CREATE FUNCTION commit_v2(
    p_attempt uuid, p_settled uuid, p_fence text[], p_epoch bigint[],
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
    v_fenced      integer[]  := '{}';
    v_unit        integer;
    v_epoch       bigint;
    r             record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_attempt::text, 0));
    FOR r IN SELECT DISTINCT f.name FROM unnest(p_fence) AS f(name) WHERE f.name IS NOT NULL ORDER BY f.name LOOP
        SELECT l.epoch INTO v_epoch FROM lease l WHERE l.name = r.name AND NOT l.released FOR KEY SHARE;
        IF NOT FOUND THEN
            v_epoch := NULL;
        END IF;
        SELECT v_fenced || array_agg(f.unit::integer) INTO v_fenced
        FROM unnest(p_fence, p_epoch) WITH ORDINALITY AS f(name, epoch, unit)
        WHERE f.name = r.name AND f.epoch IS DISTINCT FROM v_epoch;
    END LOOP;
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

    conflicts := array_fill(NULL::integer, ARRAY[cardinality(p_fence)]);
    FOR r IN
        SELECT w.unit, min(w.slot) AS slot
        FROM unnest(p_unit, p_slot, p_expect, p_expected, v_found) AS w(unit, slot, expect, expected, found)
        WHERE CASE w.expect
            WHEN 0 THEN w.found IS NOT NULL
            WHEN 1 THEN w.found IS DISTINCT FROM w.expected
            ELSE false END
        GROUP BY w.unit
    LOOP
        conflicts[r.unit] := r.slot;
    END LOOP;
    FOREACH v_unit IN ARRAY v_fenced LOOP
        conflicts[v_unit] := -1;
    END LOOP;
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
