-- What tells a log that was restored from one that was kept, and a slot that was made anew.

ALTER TABLE howdah.change_state
	ADD COLUMN database oid,
	ADD COLUMN ticks    oid;
COMMENT ON COLUMN howdah.change_state.database IS 'The database that the log was made or rebased in: a copy has another number.';
COMMENT ON COLUMN howdah.change_state.ticks IS 'The table change_tick, by its number, which pg_upgrade keeps and a restore does not. Not as regclass: that would be restored by its name.';

UPDATE howdah.change_state
SET database = (SELECT oid FROM pg_database WHERE datname = current_database()), ticks = 'howdah.change_tick'::regclass;

CREATE FUNCTION howdah.change_own() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp -- whoever ticks first need not be allowed more than to tick
AS $$
	UPDATE howdah.change_state
	SET database = (SELECT oid FROM pg_database WHERE datname = current_database()), ticks = 'howdah.change_tick'::regclass
	WHERE (database <> (SELECT oid FROM pg_database WHERE datname = current_database()) OR ticks <> 'howdah.change_tick'::regclass)
		AND (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) = 0; -- else nothing is locked: anybody may call it
$$;
COMMENT ON FUNCTION howdah.change_own() IS 'Makes a copied log, of a template, say, one of its own: where nothing was numbered nobody has been told anything of it.';

ALTER TABLE howdah.change_pump ADD COLUMN confirmed pg_lsn;
COMMENT ON COLUMN howdah.change_pump.confirmed IS 'The last that the slot was told. Where the slot knows of more, it is another slot.';
