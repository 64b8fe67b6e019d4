-- How far imports that can be resumed have come. Of all checklist tables of the database, as in 002.
DO $howdah$
BEGIN
	IF to_regclass('howdah.checklist_import') IS NOT NULL THEN
		RETURN; -- another checklist table of this database made it
	END IF;
	CREATE TABLE howdah.checklist_import (
		relation regclass    NOT NULL,
		list     text        COLLATE "C" NOT NULL,
		id       text        COLLATE "C" NOT NULL,
		items    bigint      NOT NULL,
		digest   bytea       NOT NULL,
		added    bigint      NOT NULL DEFAULT 0,
		skipped  bigint      NOT NULL DEFAULT 0,
		at       timestamptz NOT NULL DEFAULT clock_timestamp(),
		CONSTRAINT checklist_import_pk PRIMARY KEY (relation, list, id)
	);
	COMMENT ON TABLE howdah.checklist_import IS 'Imports that have begun and not ended: from where the next one with the same id goes on.';
	COMMENT ON COLUMN howdah.checklist_import.items IS 'So many items of the source were committed, in the order of the source.';
	COMMENT ON COLUMN howdah.checklist_import.digest IS 'SHA-256 of their names, each ended by a NUL byte: the next import compares.';
	COMMENT ON COLUMN howdah.checklist_import.at IS 'When the last chunk was committed.';
END
$howdah$;
