-- What changes/logical keeps: a second way to fill the log, from a slot instead of triggers.

ALTER TABLE howdah.change ADD COLUMN missing jsonb;
COMMENT ON COLUMN howdah.change.missing IS 'Names of columns that new lacks because the WAL did not have them: large values that did not change.';

CREATE TABLE howdah.change_pump (
	system   bigint NOT NULL,
	slot     text   NOT NULL,
	lsn      pg_lsn NOT NULL,
	timeline int    NOT NULL,
	CONSTRAINT change_pump_pk PRIMARY KEY (system, slot, lsn)
);
COMMENT ON TABLE howdah.change_pump IS 'Up to where the log has what a replication slot of some cluster gave: one row each, in whose place the next one is put.';
COMMENT ON COLUMN howdah.change_pump.lsn IS 'The log has the commits whose records begin up to here, here too.';
COMMENT ON COLUMN howdah.change_pump.timeline IS 'Of the source, in which that place is: after a failover another one begins.';
