-- Increments of hot keys and of system rows wait in howdah.counter_slots until they are folded into their rows. A slot is
-- written over and over and soon gone: room for a few versions beside each other, and vacuum before they are many.
ALTER TABLE howdah.counter_slots SET (
	fillfactor = 50,
	autovacuum_vacuum_scale_factor = 0,
	autovacuum_vacuum_threshold = 5000,
	autovacuum_vacuum_cost_delay = 0
);
COMMENT ON COLUMN howdah.counter_slots.tbl IS 'Schema and name, quoted where they have to be';
COMMENT ON COLUMN howdah.counter_slots.key IS 'The whole key of the row, name, granularity and unix second, whatever the mode of the table';
COMMENT ON COLUMN howdah.counter_slots.slot IS 'One of several, so that not all wait for the same';

CREATE TABLE howdah.counter_turns (
	tbl  text        COLLATE "C" NOT NULL,
	task text        COLLATE "C" NOT NULL,
	at   timestamptz NOT NULL,
	done timestamptz,
	CONSTRAINT counter_turns_pk PRIMARY KEY (tbl, task)
);
COMMENT ON TABLE howdah.counter_turns IS 'When a keeper last began a task that it finished or is on, so that of several processes one does it. Tasks for all tables at once have none.';
COMMENT ON COLUMN howdah.counter_turns.done IS 'When it was last finished; NULL: never';
