-- The index of what is due is for statements that ask for due, and for no others: of a list that nobody has analyzed
-- the planner believes that it has one item, and read all of it by this index, which is smaller than the key's, to find
-- one by its name. due is never null; that the statement says nothing of it is what keeps the index out.
DO $howdah$
DECLARE
	old regclass;
BEGIN
	IF coalesce(obj_description(to_regclass({{.lists_text}}), 'pg_class'), '') NOT LIKE 'Made by howdah%' THEN
		RETURN; -- howdah adopt does it
	END IF;
	FOR old IN
		SELECT indexrelid
		FROM pg_index
		WHERE indrelid = {{.lists_text}}::regclass AND pg_get_indexdef(indexrelid) LIKE '%(list, priority, due)'
	LOOP
		EXECUTE format('DROP INDEX %s', old);
	END LOOP;
	CREATE INDEX lists_due ON {{.lists}} (list, priority, due) WHERE due IS NOT NULL;
END
$howdah$;
