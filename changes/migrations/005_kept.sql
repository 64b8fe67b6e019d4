-- What tells a log that was restored from one that was kept, and a slot that was made anew.

ALTER TABLE howdah.change_state
	ADD COLUMN database oid,
	ADD COLUMN ticks    oid;
COMMENT ON COLUMN howdah.change_state.database IS 'The database that the log was made or rebased in: a copy has another number.';
COMMENT ON COLUMN howdah.change_state.ticks IS 'The table change_tick, by its number, which pg_upgrade keeps and a restore does not. Not as regclass: that would be restored by its name.';

UPDATE howdah.change_state
SET database = (SELECT oid FROM pg_database WHERE datname = current_database()), ticks = 'howdah.change_tick'::regclass;

ALTER TABLE howdah.change_pump ADD COLUMN confirmed pg_lsn;
COMMENT ON COLUMN howdah.change_pump.confirmed IS 'The last that the slot was told. Where the slot knows of more, it is another slot.';
