-- The log, and the ticks that make a feed of it. DESIGN.md says why it is right.

CREATE SEQUENCE howdah.change_id AS bigint CACHE 1; -- cached numbers would not be drawn in the order of the changes

CREATE TABLE howdah.change (
	id          bigint      NOT NULL DEFAULT nextval('howdah.change_id'),
	xid         xid8        NOT NULL DEFAULT pg_current_xact_id(),
	slot        smallint    NOT NULL,
	op          "char"      NOT NULL,
	trimmed     boolean     NOT NULL DEFAULT false,
	at          timestamptz NOT NULL DEFAULT clock_timestamp(),
	schema_name text        NOT NULL,
	table_name  text        NOT NULL,
	key         jsonb,
	old         jsonb,
	new         jsonb,
	origin      text        DEFAULT left(nullif(current_setting('howdah.origin', true), ''), 200),
	meta        text        DEFAULT CASE WHEN octet_length(current_setting('howdah.meta', true)) BETWEEN 1 AND 8192
	                                     THEN current_setting('howdah.meta', true) END
) PARTITION BY LIST (slot);
COMMENT ON TABLE howdah.change IS 'Every change that a captured statement made, in the transaction of its writer. Facts without an order: see change_commit.';
COMMENT ON COLUMN howdah.change.op IS 'i insert, u update, d delete, t truncate, m message';
COMMENT ON COLUMN howdah.change.slot IS 'Which of the eight leaves of the ring: retention empties them in turn.';

CREATE TABLE howdah.change_0 PARTITION OF howdah.change FOR VALUES IN (0);
CREATE TABLE howdah.change_1 PARTITION OF howdah.change FOR VALUES IN (1);
CREATE TABLE howdah.change_2 PARTITION OF howdah.change FOR VALUES IN (2);
CREATE TABLE howdah.change_3 PARTITION OF howdah.change FOR VALUES IN (3);
CREATE TABLE howdah.change_4 PARTITION OF howdah.change FOR VALUES IN (4);
CREATE TABLE howdah.change_5 PARTITION OF howdah.change FOR VALUES IN (5);
CREATE TABLE howdah.change_6 PARTITION OF howdah.change FOR VALUES IN (6);
CREATE TABLE howdah.change_7 PARTITION OF howdah.change FOR VALUES IN (7);
CREATE INDEX change_xid_id ON howdah.change (xid, id);

CREATE TABLE howdah.change_commit (
	n    bigint   NOT NULL,
	slot smallint NOT NULL,
	xid  xid8     NOT NULL,
	CONSTRAINT change_commit_pk PRIMARY KEY (n, slot)
);
COMMENT ON TABLE howdah.change_commit IS 'The feed: the number of each transaction, a row for each leaf that holds changes of it. A number is given once and never changed.';

CREATE TABLE howdah.change_tick (
	tick     bigint      NOT NULL,
	n        bigint      NOT NULL,
	snap     pg_snapshot NOT NULL,
	next     xid8        NOT NULL,
	seq      bigint      NOT NULL,
	timeline text        NOT NULL,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_tick_pk PRIMARY KEY (tick)
);
CREATE INDEX change_tick_at ON howdah.change_tick (at, tick);
COMMENT ON TABLE howdah.change_tick IS 'The looks at the log: what had committed at each, and the last number given by then. Only appended to.';
COMMENT ON COLUMN howdah.change_tick.next IS 'The tick''s own transaction: whoever is younger cannot have been in doubt.';

CREATE TABLE howdah.change_era (
	first    bigint      NOT NULL,
	head     bigint      NOT NULL,
	timeline text        NOT NULL,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_era_pk PRIMARY KEY (first)
);
COMMENT ON TABLE howdah.change_era IS 'Where the feed continued after a failover or restore: numbers between head and first belong to a lost history.';

CREATE TABLE howdah.change_state (
	one       boolean  NOT NULL DEFAULT true CONSTRAINT change_state_one CHECK (one),
	floor     bigint   NOT NULL DEFAULT 0,
	system    bigint   NOT NULL,
	retention interval NOT NULL DEFAULT '24 hours',
	hold      interval NOT NULL DEFAULT '7 days',
	CONSTRAINT change_state_pk PRIMARY KEY (one)
);
COMMENT ON TABLE howdah.change_state IS 'One row: commits up to floor may be gone; what is kept for how long; which cluster this is.';

INSERT INTO howdah.change_state (system)
SELECT system_identifier FROM pg_control_system();

INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
SELECT 0, 0, pg_current_snapshot(), pg_current_xact_id(), 0, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8);

CREATE TABLE howdah.change_spec (
	relation   regclass    NOT NULL,
	spec       jsonb       NOT NULL,
	hash       text        NOT NULL,
	owner      text,
	changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_spec_pk PRIMARY KEY (relation)
);
COMMENT ON TABLE howdah.change_spec IS 'What is captured of which table, and the hash of the triggers that do it.';

CREATE TABLE howdah.change_pattern (
	pattern    text        NOT NULL,
	changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_pattern_pk PRIMARY KEY (pattern)
);
COMMENT ON TABLE howdah.change_pattern IS 'Schemas all of whose tables are to be captured, so that a new table is noticed.';

CREATE FUNCTION howdah.change_slot() RETURNS smallint
LANGUAGE sql VOLATILE
RETURN (extract(epoch FROM clock_timestamp())::bigint / 14400 % 8)::smallint;
COMMENT ON FUNCTION howdah.change_slot() IS 'The leaf for changes made now: a sixth of the retention each.';

CREATE FUNCTION howdah.change_emit(topic text, payload jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM pg_current_xact_id(); -- before the change draws its number, as a trigger's transaction has: see change_tick
	INSERT INTO howdah.change (slot, op, schema_name, table_name, new)
	VALUES (howdah.change_slot(), 'm', 'message', topic, payload);
END $$;
COMMENT ON FUNCTION howdah.change_emit(text, jsonb) IS 'Puts a message into the feed, if and when the transaction commits.';

CREATE FUNCTION howdah.change_tick(wait boolean, export boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan -- there is one good plan, and to plan for all leaves takes longer than an idle tick
SET enable_seqscan = off SET jit = off -- and it must not be made for leaves that are empty, or compiled
AS $$
DECLARE
	prev  howdah.change_tick%ROWTYPE;
	snap  pg_snapshot;
	doubt xid8[];
	seq   bigint;
	line  text;
	base  bigint;
	head  bigint;
	found_ bigint;
	elsewhere boolean;
	copied boolean;
BEGIN
	IF current_setting('transaction_isolation') <> 'read committed' OR pg_current_xact_id_if_assigned() IS NOT NULL THEN
		RAISE EXCEPTION 'a tick is a transaction of its own' USING ERRCODE = 'HD002',
			HINT = 'its snapshot would not show what the transaction itself wrote';
	END IF;
	IF wait THEN
		PERFORM pg_advisory_xact_lock(1752135524, 1);
	ELSIF NOT pg_try_advisory_xact_lock(1752135524, 1) THEN
		RETURN NULL;
	END IF;
	-- Statements of their own: the snapshot of the one above is older than the lock.
	SELECT * INTO STRICT prev FROM howdah.change_tick ORDER BY tick DESC LIMIT 1;
	IF export THEN -- for one who reads what stands up to this tick; told in howdah.snapshot
		SELECT pg_current_snapshot(), set_config('howdah.snapshot', pg_export_snapshot(), true) INTO snap, line;
	ELSE
		snap := pg_current_snapshot();
	END IF;

	-- Before this transaction has an id of its own: who draws one of these numbers has
	-- an id by then, so that what is not above seq is in doubt, if not numbered.
	SELECT CASE WHEN i.is_called THEN i.last_value ELSE 0 END,
		s.ticks <> 'howdah.change_tick'::regclass OR s.database <> (SELECT oid FROM pg_database WHERE datname = current_database())
	INTO STRICT seq, copied
	FROM howdah.change_id i, howdah.change_state s;

	-- Open at the last tick and visible now: named one by one, because to look
	-- among the rows of a bulk load that is still open takes seconds.
	IF pg_snapshot_xmin(prev.snap) <> prev.next THEN
		SELECT array_agg(x) INTO doubt
		FROM (
			SELECT pg_snapshot_xip(prev.snap) AS x
			UNION ALL
			SELECT g::text::xid8 FROM generate_series(pg_snapshot_xmax(prev.snap)::text::bigint, prev.next::text::bigint - 1) AS g
		) AS d
		WHERE pg_visible_in_snapshot(x, snap);
	END IF;

	-- The usual look finds nothing: no change since, and none of those in doubt. Where
	-- they are many, a tick is written so that they are not looked for each time. Nor does a
	-- copy in which nothing has happened yet go on; what system it is in costs a file to read.
	IF seq = prev.seq AND coalesce(cardinality(doubt), 0) < 16 AND pg_snapshot_xmax(snap) >= pg_snapshot_xmax(prev.snap)
		AND (prev.n = 0 OR NOT copied)
	THEN
		IF doubt IS NULL THEN
			RETURN prev.n;
		END IF;
		PERFORM
		FROM unnest(doubt) AS d(xid)
		CROSS JOIN generate_series(0, 7) AS s(slot)
		CROSS JOIN LATERAL (
			SELECT
			FROM howdah.change l
			WHERE l.xid = d.xid AND l.slot = s.slot::smallint
			LIMIT 1) e
		LIMIT 1;
		IF NOT FOUND THEN
			RETURN prev.n;
		END IF;
	END IF;

	SELECT s.system <> (SELECT system_identifier FROM pg_control_system()) INTO STRICT elsewhere FROM howdah.change_state s;
	IF pg_snapshot_xmax(snap) < pg_snapshot_xmax(prev.snap) OR elsewhere OR copied AND prev.n > 0 THEN
		RAISE EXCEPTION 'the feed belongs to another database: this one was restored from a dump, copied, or upgraded' USING ERRCODE = 'HD001',
			HINT = 'howdah changes rebase begins a new feed';
	END IF;
	IF copied THEN
		PERFORM howdah.change_own();
	END IF;

	base := prev.n;
	line := substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8);
	IF line <> prev.timeline THEN
		-- More than anybody can have committed in the history that is lost, and in
		-- all eras together less than a double can count. A rebase leaves off just
		-- before an era, which may have begun there.
		base := ((prev.n + 1) / 1000000000000 + 1) * 1000000000000 - 1;
	END IF;

	WITH fresh AS (
		SELECT e.xid, e.slot, max(e.id) AS last
		FROM howdah.change e
		WHERE e.xid >= prev.next AND e.xid < pg_snapshot_xmax(snap) AND pg_visible_in_snapshot(e.xid, snap)
		GROUP BY e.xid, e.slot
		UNION ALL
		-- A join would be planned as a scan of the whole log once a few are in doubt.
		SELECT d.xid, s.slot::smallint, e.id
		FROM unnest(doubt) AS d(xid)
		CROSS JOIN generate_series(0, 7) AS s(slot)
		CROSS JOIN LATERAL (
			SELECT l.id
			FROM howdah.change l
			WHERE l.xid = d.xid AND l.slot = s.slot::smallint
			ORDER BY l.id DESC
			LIMIT 1) e
	), whole AS (
		SELECT xid, slot, max(last) OVER (PARTITION BY xid) AS last
		FROM fresh
	), numbered AS (
		INSERT INTO howdah.change_commit (n, slot, xid)
		SELECT base + dense_rank() OVER (ORDER BY last), slot, xid
		FROM whole
		RETURNING n
	)
	SELECT max(n), count(*) INTO head, found_ FROM numbered;

	IF found_ = 0 THEN
		base := prev.n; -- an era begins with its first commit: until then the feed ends where it did
		line := prev.timeline;
	END IF;

	-- What has a number must be as durable as the number.
	PERFORM set_config('synchronous_commit', 'on', true)
	WHERE current_setting('synchronous_commit') IN ('off', 'local', 'remote_write');
	IF base <> prev.n THEN
		INSERT INTO howdah.change_era (first, head, timeline) VALUES (base + 1, prev.n, line);
	END IF;
	head := coalesce(head, base);
	INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
	VALUES (prev.tick + 1, head, snap, pg_current_xact_id(), seq, line);
	IF found_ > 0 THEN
		PERFORM pg_notify('howdah_feed', '');
	END IF;
	RETURN head;
END $$;
COMMENT ON FUNCTION howdah.change_tick(boolean, boolean) IS 'Numbers what has committed since the last tick; returns the last number, or NULL if another is at it and wait is false.';

CREATE VIEW howdah.database_trigger_logs AS
SELECT e.id,
	jsonb_strip_nulls(jsonb_build_object(
		'operation', CASE e.op WHEN 'i' THEN 'INSERT' WHEN 'u' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' WHEN 't' THEN 'TRUNCATE' END,
		'klass_name', e.table_name,
		'crud_method', CASE WHEN e.op = 'd' THEN 'delete' WHEN e.op IN ('i', 'u') THEN 'create_or_update' END,
		'record_id', CASE WHEN jsonb_array_length(jsonb_path_query_array(e.key, '$.*')) = 1
			THEN jsonb_path_query_first(e.key, '$.*') ELSE e.key END)) AS payload,
	e.schema_name AS schema,
	e.table_name AS klass_name,
	e.at AS created_at,
	e.at AS updated_at
FROM howdah.change e
WHERE e.op <> 'm';
COMMENT ON VIEW howdah.database_trigger_logs IS 'The log with the columns of the talk''s table. Its ids have gaps and come out of order: read the feed instead.';
