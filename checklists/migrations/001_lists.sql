-- The table of the original, made as the original makes it; one that is there is left exactly as it is.
DO $howdah$
DECLARE
	missing text;
BEGIN
	IF to_regclass({{.lists_text}}) IS NOT NULL THEN
		SELECT string_agg(want, ', ') INTO missing
		FROM unnest(ARRAY['list', 'item', 'attempts']) AS want
		WHERE NOT EXISTS (SELECT FROM pg_attribute
			WHERE attrelid = to_regclass({{.lists_text}}) AND attname = want AND NOT attisdropped);
		IF missing IS NOT NULL THEN
			RAISE EXCEPTION 'table % is there but is no checklist: it has no column %', {{.lists_text}}, missing
				USING ERRCODE = 'invalid_table_definition', HINT = 'name another table for checklists';
		END IF;
		RETURN;
	END IF;
{{- if .schema}}
	IF to_regnamespace({{.schema_text}}) IS NULL THEN
		CREATE SCHEMA {{.schema}};
		COMMENT ON SCHEMA {{.schema}} IS 'Checklists: made by howdah.';
	END IF;
{{- end}}
	CREATE TABLE {{.lists}} (
		list     text    COLLATE "C" NOT NULL,
		item     text    COLLATE "C" NOT NULL,
		attempts integer NOT NULL DEFAULT 0,
		CONSTRAINT list_pk PRIMARY KEY (list, item)
	) WITH (fillfactor = 85); -- room for an increment beside the row it replaces, which spares the index
	-- The first words mark the table as one that later migrations may add to.
	COMMENT ON TABLE {{.lists}} IS 'Made by howdah: items to get through, and how often each was attempted. A list exists while it has items.';
	COMMENT ON COLUMN {{.lists}}.attempts IS 'Attempts begun; stays at 2147483647 when it gets there.';
END
$howdah$;
