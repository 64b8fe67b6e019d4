-- Whoever may read a counter table reads all of it through howdah: how it counts, and what waits to be added to its rows.
-- What waits for the rows of other tables is not theirs to see. Functions of the schema that do more than their caller may
-- are for triggers, or do what is right whoever calls them. Who may read but some of a table's rows or columns sees nothing of what waits. A table is not looked
-- for in a schema that is closed to the role: that is an error.
CREATE VIEW howdah.counter_slots_readable WITH (security_barrier) AS
SELECT tbl, key, slot, data
FROM howdah.counter_slots
WHERE CASE WHEN has_schema_privilege(to_regnamespace(quote_ident((parse_ident(tbl))[1]))::oid, 'USAGE')
	THEN has_table_privilege(to_regclass(tbl)::oid, 'SELECT') AND NOT row_security_active(to_regclass(tbl)::oid)
	ELSE false END;
COMMENT ON VIEW howdah.counter_slots_readable IS 'Of howdah.counter_slots those of tables that the current role may read all of.';

-- How a table counts is for all to see who may read something of it; which others there are is not.
CREATE VIEW howdah.counter_tables_readable WITH (security_barrier) AS
SELECT tbl, settings
FROM howdah.counter_tables
WHERE CASE WHEN has_schema_privilege(to_regnamespace(quote_ident((parse_ident(tbl))[1]))::oid, 'USAGE')
	THEN has_any_column_privilege(to_regclass(tbl)::oid, 'SELECT')
	ELSE false END;
COMMENT ON VIEW howdah.counter_tables_readable IS 'Of howdah.counter_tables those of tables that the current role may read.';

GRANT USAGE ON SCHEMA howdah TO PUBLIC;
GRANT SELECT ON howdah.counter_tables_readable, howdah.counter_slots_readable TO PUBLIC;
