-- Whoever may read a counter table reads all of it through howdah: how it counts, and what waits to be added to its rows.
-- What waits for the rows of other tables is not theirs to see. Functions of the schema that do more than their caller may
-- are for triggers only.
CREATE VIEW howdah.counter_slots_readable WITH (security_barrier) AS
SELECT tbl, key, slot, data
FROM howdah.counter_slots
WHERE has_table_privilege(to_regclass(tbl), 'SELECT');
COMMENT ON VIEW howdah.counter_slots_readable IS 'Of howdah.counter_slots those of tables that the current role may read.';

GRANT USAGE ON SCHEMA howdah TO PUBLIC;
GRANT SELECT ON howdah.counter_tables, howdah.counter_slots_readable TO PUBLIC;
