-- What howdah keeps beside counter tables, and the functions that add up. The tables themselves are made, where they
-- are missing, by howdah.counters_setup, with the rights of whoever calls it.
CREATE TABLE howdah.counter_tables (
	tbl      text  COLLATE "C" NOT NULL,
	settings jsonb NOT NULL,
	CONSTRAINT counter_tables_pk PRIMARY KEY (tbl)
);
COMMENT ON TABLE howdah.counter_tables IS 'Settings of counter tables, which say where in them a number lies; a table without a row has the defaults.';
COMMENT ON COLUMN howdah.counter_tables.tbl IS 'Schema and name, quoted where they have to be';

CREATE TABLE howdah.counter_slots (
	tbl  text     COLLATE "C" NOT NULL,
	key  text     COLLATE "C" NOT NULL,
	slot smallint NOT NULL,
	data jsonb    NOT NULL,
	CONSTRAINT counter_slots_pk PRIMARY KEY (tbl, key, slot)
) WITH (fillfactor = 70);
COMMENT ON TABLE howdah.counter_slots IS 'Increments that are not yet added to the rows of their keys.';

CREATE TABLE howdah.counter_events (
	tbl  text        COLLATE "C" NOT NULL,
	id   text        COLLATE "C" NOT NULL,
	hash bytea,
	at   timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT counter_events_pk PRIMARY KEY (tbl, id)
);
CREATE INDEX counter_events_at ON howdah.counter_events (at);
COMMENT ON TABLE howdah.counter_events IS 'IDs of events that were applied, so that they are not applied again.';

CREATE TABLE howdah.counter_writers (
	id  uuid        NOT NULL,
	seq bigint      NOT NULL,
	at  timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT counter_writers_pk PRIMARY KEY (id)
);
COMMENT ON TABLE howdah.counter_writers IS 'The last flush of each writer that was committed.';

-- Bodies of SQL functions are bound to what they call when they are made, so that nobody's search_path bends them.
CREATE FUNCTION howdah.counters_number(stored jsonb, field text) RETURNS numeric
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	plain text := stored #>> '{}';
	n     numeric;
BEGIN
	IF plain IS NULL THEN
		RETURN 0;
	END IF;
	IF jsonb_typeof(stored) = 'number' THEN
		RETURN stored::numeric;
	END IF;
	IF jsonb_typeof(stored) = 'string' AND length(plain) <= 250 AND plain ~ '^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]{1,4})?$' THEN
		n := plain;
		IF n = 0 OR abs(n) < 1e101 AND abs(n) >= 1e-100 AND length(trim('0' FROM translate(n::text, '-.', ''))) <= 100 THEN
			RETURN n;
		END IF;
	END IF;
	RAISE EXCEPTION 'field % holds %, which is no number', field, left(stored::text, 60)
		USING ERRCODE = '22H01', DETAIL = field, COLUMN = left(stored::text, 60);
END $$;
COMMENT ON FUNCTION howdah.counters_number(jsonb, text) IS 'The number that a field holds: 0 where it is missing or null, that of a text that is a plain decimal; else an error.';

-- old || '{}' takes a wide row out of its storage once, not once for each field; OFFSET 0 keeps it so.
CREATE FUNCTION howdah.counters_add_many(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
	SELECT o || coalesce((
		SELECT jsonb_object_agg(key, CASE
			WHEN NOT o ? key THEN value
			WHEN jsonb_typeof(o -> key) = 'number' THEN to_jsonb((o -> key)::numeric + value::numeric)
			ELSE to_jsonb(howdah.counters_number(o -> key, key) + value::numeric) END)
		FROM jsonb_each(new)), '{}')
	FROM (SELECT old || '{}' AS o OFFSET 0) AS once);
COMMENT ON FUNCTION howdah.counters_add_many(jsonb, jsonb) IS 'counters_add of many fields.';

-- Most events have few fields, and most rows too: a loop then costs half of an aggregate. Else each step would copy the row.
-- SET search_path would cost as much again: every operator says where it is from.
CREATE FUNCTION howdah.counters_add(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
	names jsonb := pg_catalog.jsonb_path_query_array(new, '$.keyvalue().key');
	n     int := pg_catalog.jsonb_array_length(names);
	i     int := 0;
	name  text;
	was   jsonb;
BEGIN
	IF n OPERATOR(pg_catalog.>) 8 OR pg_catalog.pg_column_size(old) OPERATOR(pg_catalog.>) 2000 THEN
		RETURN howdah.counters_add_many(old, new);
	END IF;
	WHILE i OPERATOR(pg_catalog.<) n LOOP
		name := names OPERATOR(pg_catalog.->>) i;
		was := old OPERATOR(pg_catalog.->) name;
		old := old OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(name,
			CASE WHEN pg_catalog.jsonb_typeof(was) OPERATOR(pg_catalog.=) 'number' THEN was::numeric ELSE howdah.counters_number(was, name) END
				OPERATOR(pg_catalog.+) (new OPERATOR(pg_catalog.->) name)::numeric);
		i := i OPERATOR(pg_catalog.+) 1;
	END LOOP;
	RETURN old;
END $$;
COMMENT ON FUNCTION howdah.counters_add(jsonb, jsonb) IS 'Adds every number of new to the field of old; other fields stay.';

CREATE FUNCTION howdah.counters_max(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
	SELECT o || coalesce((
		SELECT jsonb_object_agg(key, CASE
			WHEN coalesce(jsonb_typeof(o -> key), 'null') = 'null' THEN value
			ELSE to_jsonb(greatest(howdah.counters_number(o -> key, key), value::numeric)) END)
		FROM jsonb_each(new)), '{}')
	FROM (SELECT old || '{}' AS o OFFSET 0) AS once);
COMMENT ON FUNCTION howdah.counters_max(jsonb, jsonb) IS 'Keeps in each field the larger of what old and new have.';

CREATE FUNCTION howdah.counters_min(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
	SELECT o || coalesce((
		SELECT jsonb_object_agg(key, CASE
			WHEN coalesce(jsonb_typeof(o -> key), 'null') = 'null' THEN value
			ELSE to_jsonb(least(howdah.counters_number(o -> key, key), value::numeric)) END)
		FROM jsonb_each(new)), '{}')
	FROM (SELECT old || '{}' AS o OFFSET 0) AS once);
COMMENT ON FUNCTION howdah.counters_min(jsonb, jsonb) IS 'Keeps in each field the smaller of what old and new have.';

CREATE FUNCTION howdah.counters_setup(tbl text, ping text, mode text) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('howdah.counters_setup')); -- two at once would fail one of them
	-- What another made while we waited, to_regclass may not see yet; CREATE TABLE does.
	IF pg_catalog.to_regclass(tbl) IS NULL THEN
		EXECUTE pg_catalog.format(CASE mode
			WHEN 'partial' THEN 'CREATE TABLE IF NOT EXISTS %s (
				key varchar(255) COLLATE pg_catalog."C" NOT NULL, at timestamptz NOT NULL, data jsonb NOT NULL DEFAULT ''{}'', PRIMARY KEY (key, at)) WITH (fillfactor = 70)'
			WHEN 'separated' THEN 'CREATE TABLE IF NOT EXISTS %s (
				key varchar(255) COLLATE pg_catalog."C" NOT NULL, granularity varchar(255) COLLATE pg_catalog."C" NOT NULL, at timestamptz NOT NULL,
				data jsonb NOT NULL DEFAULT ''{}'', PRIMARY KEY (key, granularity, at)) WITH (fillfactor = 70)'
			ELSE 'CREATE TABLE IF NOT EXISTS %s (
				key varchar(255) COLLATE pg_catalog."C" NOT NULL PRIMARY KEY, data jsonb NOT NULL DEFAULT ''{}'') WITH (fillfactor = 70)' END, tbl);
		EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', tbl, 'Made by howdah: numbers added up over time, a row for each bucket.');
	END IF;
	IF pg_catalog.to_regclass(ping) IS NULL THEN
		EXECUTE pg_catalog.format('CREATE TABLE IF NOT EXISTS %s (
			key varchar(255) COLLATE pg_catalog."C" NOT NULL PRIMARY KEY, at timestamptz NOT NULL, data jsonb NOT NULL DEFAULT ''{}'')', ping);
		EXECUTE pg_catalog.format('COMMENT ON TABLE %s IS %L', ping, 'Made by howdah: the last known state of things.');
	END IF;
END $$;
COMMENT ON FUNCTION howdah.counters_setup(text, text, text) IS 'Makes a counter table and its ping table where they are missing. Names come quoted.';

-- The default table, if this role may make it where it would be looked for; howdah counters setup makes any.
DO $howdah$
BEGIN
	IF to_regclass({{.table_text}}) IS NULL
		AND has_schema_privilege(to_regnamespace(quote_ident(current_schema()))::oid, 'CREATE') THEN
		PERFORM howdah.counters_setup({{.table_text}}, {{.ping_text}}, 'full');
	END IF;
END
$howdah$;
