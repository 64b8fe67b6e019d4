-- What the triggers of a capture call.

-- What a row is in JSON must not depend on how its writer likes to read bytes, intervals and floats.
CREATE FUNCTION howdah.change_json(r record) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET bytea_output = hex SET intervalstyle = postgres SET extra_float_digits = 1 SET datestyle = 'ISO, MDY' SET quote_all_identifiers = off
AS $$ BEGIN RETURN to_jsonb(r); END $$;
COMMENT ON FUNCTION howdah.change_json(record) IS 'A row as JSON, whatever the connection has set.';

-- A key is to be the same for all who write the row: where there is an instant in it, it is not spelled by their clocks.
CREATE FUNCTION howdah.change_json_utc(r record) RETURNS jsonb
LANGUAGE plpgsql STABLE
SET bytea_output = hex SET intervalstyle = postgres SET extra_float_digits = 1 SET datestyle = 'ISO, MDY' SET quote_all_identifiers = off SET timezone = 'UTC'
AS $$ BEGIN RETURN to_jsonb(r); END $$;
COMMENT ON FUNCTION howdah.change_json_utc(record) IS 'A row as JSON, its instants in UTC: of tables with one in their key.';

-- For a row of which other columns cannot be made JSON: each is picked by name, which takes a statement of its own.
CREATE FUNCTION howdah.change_json_without(r record, relation oid, columns text[], utc boolean) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
	one   text;
	image jsonb;
BEGIN
	SELECT format('SELECT howdah.%I(x.*) FROM (SELECT %s) AS x', CASE WHEN utc THEN 'change_json_utc' ELSE 'change_json' END,
		string_agg(format('($1).%I', attname), ', ' ORDER BY attnum))
	INTO one
	FROM pg_attribute
	WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped AND attname <> ALL (columns);
	EXECUTE one INTO image USING r;
	RETURN image;
END $$;
COMMENT ON FUNCTION howdah.change_json_without(record, oid, text[], boolean) IS 'A row as JSON, whatever the connection has set, without some columns.';

CREATE FUNCTION howdah.change_pick(image jsonb, columns text[]) RETURNS jsonb
LANGUAGE sql STABLE
RETURN CASE WHEN cardinality(columns) = 1 THEN jsonb_build_object(columns[1], image -> columns[1])
	ELSE (SELECT jsonb_object_agg(c, image -> c) FROM unnest(columns) AS c) END;
COMMENT ON FUNCTION howdah.change_pick(jsonb, text[]) IS 'The given columns of a row.';

CREATE FUNCTION howdah.change_capture() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	-- arguments: schema, table, payload, max_bytes, wake, key columns, columns left out, and the key's only
	-- column where what is inserted is logged as it is; '' where the key has an instant in it
	was jsonb; -- OLD
	is_ jsonb; -- NEW
BEGIN
	-- The most frequent by the shortest way: each expression is made ready anew in each transaction, which
	-- costs as much as what it does. Where the column was renamed, or the row is large, the long way knows.
	IF TG_OP = 'INSERT' AND TG_ARGV[7] <> ''
		AND current_setting('bytea_output') = 'hex' AND current_setting('intervalstyle') = 'postgres' AND current_setting('extra_float_digits')::int > 0
		AND current_setting('datestyle') LIKE 'ISO,%' AND current_setting('quote_all_identifiers') = 'off' THEN
		is_ := to_jsonb(NEW);
	END IF;
	IF is_ ? TG_ARGV[7] AND pg_column_size(is_) <= TG_ARGV[3]::int THEN
		INSERT INTO howdah.change (slot, op, schema_name, table_name, key, new)
		VALUES (howdah.change_slot(), 'i', TG_ARGV[0], TG_ARGV[1], jsonb_build_object(TG_ARGV[7], is_ -> TG_ARGV[7]), is_);
	ELSE
		DECLARE
			columns text[] := TG_ARGV[5];
			payload CONSTANT text := TG_ARGV[2];
			except_ CONSTANT text[] := TG_ARGV[6];
			plain   CONSTANT boolean := current_setting('bytea_output') = 'hex'
				AND current_setting('intervalstyle') = 'postgres' AND current_setting('extra_float_digits')::int > 0 AND current_setting('datestyle') LIKE 'ISO,%'
				AND current_setting('quote_all_identifiers') = 'off' AND (TG_ARGV[7] IS DISTINCT FROM '' OR current_setting('timezone') IN ('UTC', 'Etc/UTC'));
			was_key jsonb;
			is_key  jsonb;
			op      "char" := lower(left(TG_OP, 1));
			moved   boolean := false;
			large   boolean := false;
		BEGIN
			IF except_ = '{}' THEN
				IF TG_OP IN ('UPDATE', 'DELETE') THEN
					IF plain THEN was := to_jsonb(OLD); ELSE was := CASE WHEN TG_ARGV[7] = '' THEN howdah.change_json_utc(OLD) ELSE howdah.change_json(OLD) END; END IF;
				END IF;
				IF TG_OP IN ('UPDATE', 'INSERT') THEN
					IF plain THEN is_ := to_jsonb(NEW); ELSE is_ := CASE WHEN TG_ARGV[7] = '' THEN howdah.change_json_utc(NEW) ELSE howdah.change_json(NEW) END; END IF;
				END IF;
			ELSE
				-- A subtransaction, for those only that leave columns out: perhaps of what cannot be made JSON.
				BEGIN
					was := CASE WHEN plain THEN to_jsonb(OLD) WHEN TG_ARGV[7] = '' THEN howdah.change_json_utc(OLD) ELSE howdah.change_json(OLD) END;
					is_ := CASE WHEN plain THEN to_jsonb(NEW) WHEN TG_ARGV[7] = '' THEN howdah.change_json_utc(NEW) ELSE howdah.change_json(NEW) END;
				EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
					was := CASE WHEN TG_OP <> 'INSERT' THEN howdah.change_json_without(OLD, TG_RELID, except_, TG_ARGV[7] IS NOT DISTINCT FROM '') END;
					is_ := CASE WHEN TG_OP <> 'DELETE' THEN howdah.change_json_without(NEW, TG_RELID, except_, TG_ARGV[7] IS NOT DISTINCT FROM '') END;
				END;
			END IF;

			IF columns <> '{}' AND TG_OP <> 'TRUNCATE' THEN
				IF NOT coalesce(is_, was) ?& columns THEN -- renamed since
					columns := howdah.change_key(TG_RELID);
				END IF;
				-- Not change_pick: a function in SQL is parsed anew in each transaction, which costs as much as the rest.
				IF cardinality(columns) = 1 THEN
					was_key := jsonb_build_object(columns[1], was -> columns[1]);
					is_key := jsonb_build_object(columns[1], is_ -> columns[1]);
				ELSE
					SELECT jsonb_object_agg(c, was -> c), jsonb_object_agg(c, is_ -> c) INTO was_key, is_key FROM unnest(columns) AS c;
				END IF;
				moved := TG_OP = 'UPDATE' AND was_key IS DISTINCT FROM is_key;
			END IF;

			IF except_ <> '{}' THEN
				was := was - except_;
				is_ := is_ - except_;
			END IF;
			CASE payload
			WHEN 'row' THEN
				IF TG_OP = 'UPDATE' AND NOT moved THEN was := NULL; END IF;
			WHEN 'diff' THEN
				IF TG_OP = 'UPDATE' AND NOT moved THEN
					-- As text: 1.0 and 1.00 are equal numbers and different values.
					SELECT jsonb_object_agg(w.key, w.value), jsonb_object_agg(w.key, is_ -> w.key) INTO was, is_
					FROM jsonb_each(was) AS w
					WHERE w.value::text IS DISTINCT FROM (is_ -> w.key)::text;
				END IF;
			WHEN 'keys' THEN
				was := NULL;
				is_ := NULL;
			ELSE -- full
			END CASE;
			IF coalesce(pg_column_size(was), 0) + coalesce(pg_column_size(is_), 0) > TG_ARGV[3]::int THEN
				large := true;
				was := NULL;
				is_ := NULL;
			END IF;

			IF moved THEN
				-- Who follows the old key sees it end, who follows the new one sees it begin.
				INSERT INTO howdah.change (slot, op, trimmed, schema_name, table_name, key, old, new) VALUES
					(howdah.change_slot(), 'd', large, TG_ARGV[0], TG_ARGV[1], was_key, was, NULL),
					(howdah.change_slot(), 'i', large, TG_ARGV[0], TG_ARGV[1], is_key, NULL, is_);
			ELSE
				INSERT INTO howdah.change (slot, op, trimmed, schema_name, table_name, key, old, new)
				VALUES (howdah.change_slot(), op, large, TG_ARGV[0], TG_ARGV[1], CASE WHEN op = 'd' THEN was_key ELSE is_key END, was, is_);
			END IF;
		END;
	END IF;

	-- A doorbell, rung by one transaction at a time: each NOTIFY holds a lock of
	-- the whole database through its commit, and nobody is to queue for it. One of
	-- those that began in the same second, that is: one that stays open would mute
	-- all others for as long.
	IF TG_ARGV[4] = 'notify' AND pg_try_advisory_xact_lock(1752135525, (date_part('epoch', now())::bigint & 2147483647)::int) THEN
		PERFORM pg_notify('howdah_changes', '');
	END IF;
	RETURN NULL;
END $$;
COMMENT ON FUNCTION howdah.change_capture() IS 'Trigger: logs the change of a row, or a TRUNCATE.';

CREATE FUNCTION howdah.change_capture_bulk() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
<<ours>>
DECLARE
	-- arguments as of change_capture; diff and columns left out are not to be had
	payload CONSTANT text := TG_ARGV[2];
	most    CONSTANT int := TG_ARGV[3];
	columns text[] := TG_ARGV[5];
	plain   CONSTANT boolean := current_setting('bytea_output') = 'hex'
		AND current_setting('intervalstyle') = 'postgres' AND current_setting('extra_float_digits')::int > 0 AND current_setting('datestyle') LIKE 'ISO,%'
		AND current_setting('quote_all_identifiers') = 'off' AND (TG_ARGV[7] IS DISTINCT FROM '' OR current_setting('timezone') IN ('UTC', 'Etc/UTC'));
	utc     CONSTANT boolean := TG_ARGV[7] = '';
BEGIN
	IF EXISTS (SELECT FROM unnest(columns) AS c
		WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = TG_RELID AND attname = c AND NOT attisdropped)) THEN -- renamed since
		columns := howdah.change_key(TG_RELID);
	END IF;

	-- Beside the table's columns, which may have any names, ours are qualified.
	-- OFFSET 0: a subquery that is pulled up makes the JSON anew wherever it is used.
	IF TG_OP = 'INSERT' THEN
		INSERT INTO howdah.change (slot, op, trimmed, schema_name, table_name, key, new)
		SELECT howdah.change_slot(), 'i', payload <> 'keys' AND pg_column_size(n.image) > most, TG_ARGV[0], TG_ARGV[1],
			howdah.change_pick(n.image, columns), CASE WHEN payload <> 'keys' AND pg_column_size(n.image) <= most THEN n.image END
		FROM (SELECT CASE WHEN ours.plain THEN to_jsonb(r.*) WHEN ours.utc THEN howdah.change_json_utc(r.*) ELSE howdah.change_json(r.*) END AS image FROM howdah_new r OFFSET 0) n;
	ELSIF TG_OP = 'DELETE' THEN
		INSERT INTO howdah.change (slot, op, trimmed, schema_name, table_name, key, old)
		SELECT howdah.change_slot(), 'd', payload <> 'keys' AND pg_column_size(o.image) > most, TG_ARGV[0], TG_ARGV[1],
			howdah.change_pick(o.image, columns), CASE WHEN payload <> 'keys' AND pg_column_size(o.image) <= most THEN o.image END
		FROM (SELECT CASE WHEN ours.plain THEN to_jsonb(r.*) WHEN ours.utc THEN howdah.change_json_utc(r.*) ELSE howdah.change_json(r.*) END AS image FROM howdah_old r OFFSET 0) o;
	ELSE
		-- Rows are paired by their place: each that is changed is added to both tables, and foreign keys may
		-- change one several times. FULL, though both are as long: it is never done as a nested loop, for which
		-- a plan that was made for one row would be.
		INSERT INTO howdah.change (slot, op, trimmed, schema_name, table_name, key, old, new)
		SELECT howdah.change_slot(), e.op, e.size > most, TG_ARGV[0], TG_ARGV[1], e.key,
			CASE WHEN e.size <= most THEN e.old END, CASE WHEN e.size <= most THEN e.new END
		FROM (
			SELECT e.op, e.key, e.old, e.new, coalesce(pg_column_size(m.old), 0) + coalesce(pg_column_size(m.new), 0) AS size
			FROM (
				SELECT k.place, k.was_key, k.is_key, k.was_key IS DISTINCT FROM k.is_key AS moved,
					CASE WHEN payload = 'full' OR payload = 'row' AND k.was_key IS DISTINCT FROM k.is_key THEN k.was END AS old,
					CASE WHEN payload <> 'keys' THEN k.is_ END AS new
				FROM (
					SELECT i.place, i.was, i.is_, howdah.change_pick(i.was, ours.columns) AS was_key, howdah.change_pick(i.is_, ours.columns) AS is_key
					FROM (
						SELECT o.place,
							CASE WHEN ours.plain THEN to_jsonb(o.whole) WHEN ours.utc THEN howdah.change_json_utc(o.whole) ELSE howdah.change_json(o.whole) END AS was,
							CASE WHEN ours.plain THEN to_jsonb(n.whole) WHEN ours.utc THEN howdah.change_json_utc(n.whole) ELSE howdah.change_json(n.whole) END AS is_
						FROM (SELECT coalesce(r.*) AS whole, row_number() OVER () AS place FROM howdah_old r) o
						FULL JOIN (SELECT coalesce(r.*) AS whole, row_number() OVER () AS place FROM howdah_new r) n ON n.place = o.place
						WHERE coalesce(o.whole *<> n.whole, true)
						OFFSET 0) i
					OFFSET 0) k) m
			CROSS JOIN LATERAL (
				SELECT 'u'::"char" AS op, m.is_key AS key, m.old, m.new
				WHERE NOT m.moved
				UNION ALL
				SELECT 'd', m.was_key, m.old, NULL
				WHERE m.moved
				UNION ALL
				SELECT 'i', m.is_key, NULL, m.new
				WHERE m.moved) e
			ORDER BY m.place, e.op) e; -- what is moved ends before it begins
	END IF;

	IF FOUND AND TG_ARGV[4] = 'notify' AND pg_try_advisory_xact_lock(1752135525, (date_part('epoch', now())::bigint & 2147483647)::int) THEN
		PERFORM pg_notify('howdah_changes', '');
	END IF;
	RETURN NULL;
END $$;
COMMENT ON FUNCTION howdah.change_capture_bulk() IS 'Trigger: logs the changes of a statement at once.';

CREATE FUNCTION howdah.change_key(relation oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	-- The primary key, else the replica identity, in the order of its columns.
	SELECT coalesce((
		SELECT array_agg(a.attname::text ORDER BY k.position)
		FROM pg_index i
		CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
		JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
		WHERE i.indrelid = relation AND k.position <= i.indnkeyatts AND (i.indisprimary OR i.indisreplident)
		GROUP BY i.indexrelid, i.indisprimary
		ORDER BY i.indisprimary DESC
		LIMIT 1), '{}')
$$;
COMMENT ON FUNCTION howdah.change_key(oid) IS 'The columns of a table''s key.';

-- Names are written out in full, whatever the path of who asks: it is compared with what others saw.
CREATE FUNCTION howdah.change_trigger(trigger oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_get_triggerdef(trigger) $$;
COMMENT ON FUNCTION howdah.change_trigger(oid) IS 'The statement that makes a trigger.';

-- They run as their owner and believe their arguments: who could put one on a table
-- of his own could write into the feed, and more.
REVOKE EXECUTE ON FUNCTION howdah.change_capture(), howdah.change_capture_bulk() FROM PUBLIC;
