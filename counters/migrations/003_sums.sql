-- Adding up costs less: three fields at a time are put into a row, and one that the row has not is not asked for its number.
CREATE FUNCTION howdah.counters_sum(old jsonb, new jsonb, field text) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE
	WHEN jsonb_typeof(old -> field) = 'number' THEN (old -> field)::numeric + (new -> field)::numeric
	WHEN old -> field IS NULL THEN (new -> field)::numeric
	ELSE howdah.counters_number(old -> field, field) + (new -> field)::numeric END;
COMMENT ON FUNCTION howdah.counters_sum(jsonb, jsonb, text) IS 'What old and new have of a field together. It becomes a part of the expression that it is called in.';

-- Most events have few fields, and most rows too: then this costs half of an aggregate. Else each step would copy the row.
-- SET search_path would cost as much again: every operator says where it is from.
CREATE OR REPLACE FUNCTION howdah.counters_add(old jsonb, new jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
	names jsonb := pg_catalog.jsonb_path_query_array(new, '$.keyvalue().key');
	n     int := pg_catalog.jsonb_array_length(names);
	a     text;
	b     text;
	c     text;
BEGIN
	IF n OPERATOR(pg_catalog.>) 8 OR pg_catalog.pg_column_size(old) OPERATOR(pg_catalog.>) 2000 THEN
		RETURN howdah.counters_add_many(old, new);
	END IF;
	FOR i IN 0 .. n OPERATOR(pg_catalog.-) 1 BY 3 LOOP
		a := names OPERATOR(pg_catalog.->>) i;
		b := names OPERATOR(pg_catalog.->>) (i OPERATOR(pg_catalog.+) 1);
		c := names OPERATOR(pg_catalog.->>) (i OPERATOR(pg_catalog.+) 2);
		IF c IS NOT NULL THEN
			old := old OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(
				a, howdah.counters_sum(old, new, a), b, howdah.counters_sum(old, new, b), c, howdah.counters_sum(old, new, c));
		ELSIF b IS NOT NULL THEN
			old := old OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(a, howdah.counters_sum(old, new, a), b, howdah.counters_sum(old, new, b));
		ELSE
			old := old OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(a, howdah.counters_sum(old, new, a));
		END IF;
	END LOOP;
	RETURN old;
END $$;
