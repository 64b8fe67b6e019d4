-- What keeps the log small: leaves are emptied in turn, commits and ticks below the floor are deleted.

CREATE SEQUENCE howdah.change_floor AS bigint;
COMMENT ON SEQUENCE howdah.change_floor IS 'The floor of change_state as soon as it may be reached: TRUNCATE shows itself to old snapshots too, and so must this.';

CREATE INDEX change_tick_n ON howdah.change_tick (n, tick);

CREATE FUNCTION howdah.change_retain(keep interval, hold_ interval) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
	UPDATE howdah.change_state SET retention = keep, hold = hold_; -- of two at once the second waits
	-- In the function and not in the row: it is asked for every change.
	EXECUTE format('CREATE OR REPLACE FUNCTION howdah.change_slot() RETURNS smallint
		LANGUAGE sql VOLATILE
		RETURN (extract(epoch FROM clock_timestamp())::bigint / %s %% 8)::smallint', ceil(extract(epoch FROM keep) / 6)::bigint); -- upwards: eight have to take more than is kept
END $$;
COMMENT ON FUNCTION howdah.change_retain(interval, interval) IS 'Sets for how long changes are kept: each leaf of the log takes those of a sixth of it.';
