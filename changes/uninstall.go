package changes

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Uninstall removes every trigger of the captures and then all that the feed
// keeps, the log included, so that the tables are as they were before. A table
// that others keep locked fails it as it fails [Log.Apply]; it can be run again.
func (l *Log) Uninstall(ctx context.Context) error {
	const op = "changes: uninstall"
	installed, err := l.installed(ctx)
	if err != nil {
		return pg.Wrap(op, err)
	}
	for _, in := range installed {
		step := in.release()
		if err := l.do(ctx, &step); err != nil {
			return pg.Wrap(op, err)
		}
	}
	err = pg.BeginFunc(ctx, l.db, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `
			DROP VIEW howdah.database_trigger_logs;
			DROP FUNCTION howdah.change_place, howdah.change_move;
			DROP TABLE howdah.change, howdah.change_commit, howdah.change_tick, howdah.change_era, howdah.change_state, howdah.change_spec, howdah.change_pattern,
				howdah.change_consumer, howdah.change_sink, howdah.change_checkpoint, howdah.change_parked, howdah.change_pump,
				howdah.changes_version;
			DROP FUNCTION howdah.change_slot, howdah.change_own, howdah.change_json, howdah.change_json_utc, howdah.change_json_without, howdah.change_pick, howdah.change_capture, howdah.change_capture_bulk,
				howdah.change_key, howdah.change_trigger, howdah.change_emit, howdah.change_tick, howdah.change_lane, howdah.change_order, howdah.change_retain;
			DROP SEQUENCE howdah.change_id, howdah.change_floor`)
		return err
	})
	return pg.Wrap(op, err)
}
