-- Who is handed the feed, how far each has come, and what could not be handled. DESIGN.md says why it is right.

CREATE TABLE howdah.change_consumer (
	name        text        NOT NULL,
	state       text        NOT NULL DEFAULT 'running' CONSTRAINT change_consumer_state CHECK (state IN ('running', 'paused', 'expired')),
	reason      text        NOT NULL DEFAULT '',
	shards      smallint    NOT NULL,
	next_shards smallint,
	stop_at     bigint,
	patterns    text[]      NOT NULL,
	sink        text,
	created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
	seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_consumer_pk PRIMARY KEY (name)
);
COMMENT ON TABLE howdah.change_consumer IS 'Who is handed the feed. One is made or moved in a transaction that first takes change_state FOR SHARE, so that retention, which takes it FOR UPDATE, sees whom it must wait for.';
COMMENT ON COLUMN howdah.change_consumer.state IS 'running: what it still has to be handed is kept; paused: kept too; expired: kept no longer, it stands still until it is moved';
COMMENT ON COLUMN howdah.change_consumer.reason IS 'Why it is paused or expired.';
COMMENT ON COLUMN howdah.change_consumer.next_shards IS 'How many shards there are to be once all of the present ones have come to stop_at, and nothing is parked.';
COMMENT ON COLUMN howdah.change_consumer.stop_at IS 'The commit after which the present shards go no further; NULL where they go on, for next_shards until nothing is parked.';
COMMENT ON COLUMN howdah.change_consumer.sink IS 'What is done with the changes, where a server does it, and to where it leads, without its secrets; NULL where a program of its own does.';
COMMENT ON COLUMN howdah.change_consumer.seen_at IS 'About when an instance last ran.';

CREATE TABLE howdah.change_sink (
	consumer text  NOT NULL,
	sink     jsonb NOT NULL,
	CONSTRAINT change_sink_pk PRIMARY KEY (consumer)
);
COMMENT ON TABLE howdah.change_sink IS 'What a server needs to know to do what change_consumer.sink says: URLs and keys that sign, which are secrets. By itself, so that who only reads need not see it.';

CREATE TABLE howdah.change_checkpoint (
	consumer text        NOT NULL,
	shard    smallint    NOT NULL,
	seq      bigint      NOT NULL,
	n        bigint      NOT NULL,
	id       bigint      NOT NULL DEFAULT 0,
	failures smallint    NOT NULL DEFAULT 0,
	backfill jsonb,
	handled  bigint      NOT NULL DEFAULT 0,
	failed   bigint      NOT NULL DEFAULT 0,
	at       timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_checkpoint_pk PRIMARY KEY (consumer, shard, seq)
);
COMMENT ON TABLE howdah.change_checkpoint IS 'How far each shard of a consumer has come: the row with the greatest seq. Each batch appends one and deletes those before it, because a row that is updated gets slow while anybody holds an old snapshot. The commits after the least n of a consumer that has not expired are to be kept.';
COMMENT ON COLUMN howdah.change_checkpoint.id IS 'The change in commit n after which to go on; 0 after all of the commit.';
COMMENT ON COLUMN howdah.change_checkpoint.failures IS 'Changes parked in a row, with no success between. From three on it is taken for an outage: the shard stalls.';
COMMENT ON COLUMN howdah.change_checkpoint.backfill IS 'How far the present state of tables has been handed over; NULL where none is to be.';
COMMENT ON COLUMN howdah.change_checkpoint.handled IS 'Changes that were handled, since there are so many shards.';
COMMENT ON COLUMN howdah.change_checkpoint.failed IS 'Calls of a handler that failed; those since the checkpoint are told with the next.';

-- By the index alone, whatever the planner has heard of the table: behind an old
-- snapshot it fills with checkpoints that are no more, which nobody is to walk through.
CREATE FUNCTION howdah.change_place(consumer_ text, shard_ int) RETURNS howdah.change_checkpoint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
	place howdah.change_checkpoint;
BEGIN
	SELECT * INTO place
	FROM howdah.change_checkpoint
	WHERE consumer = consumer_ AND shard = shard_::smallint
	ORDER BY seq DESC
	LIMIT 1;
	RETURN place;
END $$;
COMMENT ON FUNCTION howdah.change_place(text, int) IS 'Where a shard of a consumer stands: its newest checkpoint.';

-- Names are written out in full, whatever the path of who asks: what one shard was told is compared with what others are.
CREATE FUNCTION howdah.change_order(relation oid, OUT columns text[], OUT types text[], OUT orders text[], OUT schemas text[])
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
AS $$
	SELECT array_agg(a.attname::text ORDER BY k.position),
		array_agg(format_type(a.atttypid, a.atttypmod) ORDER BY k.position),
		array_agg(CASE WHEN a.attcollation IN (0, 'pg_catalog."default"'::regcollation) THEN '' ELSE ' COLLATE ' || a.attcollation::regcollation END ORDER BY k.position),
		(SELECT array_agg(DISTINCT n.nspname::text)
			FROM unnest(i.indclass::oid[]) AS x(opclass)
			JOIN pg_opclass c ON c.oid = x.opclass
			JOIN pg_amop m ON m.amopfamily = c.opcfamily AND m.amoplefttype = c.opcintype AND m.amoprighttype = c.opcintype
			JOIN pg_operator p ON p.oid = m.amopopr
			JOIN pg_namespace n ON n.oid = p.oprnamespace
			WHERE n.nspname <> 'pg_catalog')
	FROM pg_index i
	CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, position)
	LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
	WHERE i.indrelid = relation AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND k.position <= i.indnkeyatts
	GROUP BY i.indexrelid, i.indisprimary, i.indclass
	-- No row has NULL there. From PostgreSQL 18 on NOT NULL may hold for the rows to come alone (NOT VALID).
	HAVING bool_and(coalesce(a.attnotnull AND NOT EXISTS (
		SELECT FROM pg_constraint n
		WHERE n.conrelid = a.attrelid AND n.contype = 'n' AND NOT n.convalidated AND a.attnum = ANY(n.conkey)), false))
	ORDER BY i.indisprimary DESC, i.indexrelid
	LIMIT 1
$$;
COMMENT ON FUNCTION howdah.change_order(oid) IS 'The columns of a unique index of a table in whose order its rows can be read, their types and collations, and the schemas, but pg_catalog, of the operators that compare them; NULL where there is none.';

CREATE FUNCTION howdah.change_move(consumer_ text, shard_ int, seq_ bigint, n_ bigint, id_ bigint, failures_ int, path text, backfill_ jsonb, handled_ bigint, failed_ bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
	last howdah.change_checkpoint;
BEGIN
	IF path <> '' AND current_setting('howdah.path', true) IS DISTINCT FROM path THEN
		RAISE EXCEPTION 'the handler ended its transaction' USING ERRCODE = 'HD003';
	END IF;
	-- Where nothing else was written, nothing is lost with the checkpoint: what was done
	-- elsewhere, if anything, is done again, as it may be after any crash.
	IF pg_current_xact_id_if_assigned() IS NULL THEN
		PERFORM set_config('synchronous_commit', 'off', true);
	END IF;
	-- Exactly the one before: those before that are dead, but would have to be passed over
	-- as long as anybody holds an old snapshot.
	DELETE FROM howdah.change_checkpoint
	WHERE consumer = consumer_ AND shard = shard_::smallint AND seq = seq_
	RETURNING * INTO last;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'the checkpoint % of shard % of % is not there', seq_, shard_, consumer_ USING ERRCODE = 'HD003';
	END IF;
	INSERT INTO howdah.change_checkpoint (consumer, shard, seq, n, id, failures, backfill, handled, failed)
	VALUES (consumer_, shard_, seq_ + 1, n_, id_, failures_, backfill_, last.handled + handled_, last.failed + failed_);
END $$;
COMMENT ON FUNCTION howdah.change_move(text, int, bigint, bigint, bigint, int, text, jsonb, bigint, bigint) IS 'Puts a checkpoint in the place of seq_; HD003 where that is not there, or howdah.path is not path any more. What was handled and failed since is added to what it counts.';

-- By value and not by text: 1.0 and 1.00 are one key.
CREATE FUNCTION howdah.change_lane(schema_name text, table_name text, key jsonb) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN hashtextextended(schema_name || '.' || table_name, coalesce(jsonb_hash_extended(key, 0), 0));
COMMENT ON FUNCTION howdah.change_lane(text, text, jsonb) IS 'Changes of one lane are handled one after the other: those of a key, or of a table or topic without one.';

CREATE TABLE howdah.change_parked (
	consumer   text        NOT NULL,
	shard      smallint    NOT NULL,
	place      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
	n          bigint      NOT NULL,
	id         bigint      NOT NULL,
	lane       bigint      NOT NULL,
	relation   text        NOT NULL,
	everything boolean     NOT NULL,
	change     json        NOT NULL,
	head       boolean     NOT NULL,
	attempts   int         NOT NULL DEFAULT 0,
	error      text        NOT NULL DEFAULT '',
	dead       boolean     NOT NULL DEFAULT false,
	next_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
	parked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
	CONSTRAINT change_parked_pk PRIMARY KEY (consumer, shard, place)
);
CREATE INDEX change_parked_lane ON howdah.change_parked (consumer, shard, lane, place);
CREATE INDEX change_parked_everything ON howdah.change_parked (consumer, shard, relation, place) WHERE everything;
CREATE INDEX change_parked_relation ON howdah.change_parked (consumer, shard, relation, place);
CREATE INDEX change_parked_position ON howdah.change_parked (consumer, n, id);
CREATE INDEX change_parked_failed ON howdah.change_parked (consumer, n, id) WHERE attempts > 0;
CREATE INDEX change_parked_due ON howdah.change_parked (consumer, shard, next_at) WHERE head AND NOT dead;
CREATE INDEX change_parked_dead ON howdah.change_parked (consumer, shard) WHERE dead;
COMMENT ON TABLE howdah.change_parked IS 'Changes that a handler failed on, and those behind them. They hold the change itself, so that retention cannot take it.';
COMMENT ON COLUMN howdah.change_parked.place IS 'The order in which they were parked, which in a shard is that of the feed.';
COMMENT ON COLUMN howdah.change_parked.lane IS 'change_lane of the change.';
COMMENT ON COLUMN howdah.change_parked.everything IS 'Is about all of the table (TRUNCATE): behind whatever of it is parked, and before whatever follows.';
COMMENT ON COLUMN howdah.change_parked.change IS 'The change as it is handed over.';
COMMENT ON COLUMN howdah.change_parked.attempts IS 'Since it was parked, or a person had it tried again. 0 has not been tried since.';
COMMENT ON COLUMN howdah.change_parked.head IS 'The first of its lane, which has been tried; others wait behind it, unseen.';
COMMENT ON COLUMN howdah.change_parked.dead IS 'Failed so often that a person has to look: retry or skip.';
