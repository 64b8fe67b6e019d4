package changes

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Rebase makes the log usable in a database that came from another cluster, where a
// tick returns ErrRestored. It empties the log and begins an era: every position from
// before is ErrExpired, and consumers have to be moved or begin again.
//
// With keep it keeps the log, and consumers go on where they were: after pg_upgrade,
// which takes transaction ids along. Where they ran backwards, as in a dump that was
// restored, it returns a Conflict and changes nothing.
func (l *Log) Rebase(ctx context.Context, keep bool) error {
	const op = "changes: rebase"
	if pg.InTx(l.db) {
		return pg.Wrap(op, ErrInTx)
	}
	err := pg.Retry(ctx, l.db, func() error {
		return l.begin(ctx, func(tx pgx.Tx) error {
			// Nobody ticks, tends, or makes or moves a consumer meanwhile.
			for _, sql := range []string{
				`SELECT pg_advisory_xact_lock(1752135524, 1)`,
				`SELECT FROM howdah.change_state FOR UPDATE`,
			} {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			if keep {
				return rebaseKeeping(ctx, tx)
			}
			for _, sql := range rebase {
				if _, err := tx.Exec(ctx, sql); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return pg.Wrap(op, err)
}

// The new tick is one of the new cluster; its number is the last before the new era,
// and the floor.
var rebase = []string{
	`TRUNCATE howdah.change, howdah.change_commit`,
	`INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
	SELECT tick + 1, (n / 1000000000000 + 1) * 1000000000000 - 1, pg_current_snapshot(), pg_current_xact_id(),
		(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM howdah.change_id), ` + timeline + `
	FROM howdah.change_tick
	ORDER BY tick DESC
	LIMIT 1`,
	`DELETE FROM howdah.change_tick WHERE tick < (SELECT max(tick) FROM howdah.change_tick)`,
	`DELETE FROM howdah.change_era`,
	`UPDATE howdah.change_state
	SET system = (SELECT system_identifier FROM pg_control_system()), floor = (SELECT n FROM howdah.change_tick)`,
	`UPDATE howdah.change_consumer SET state = 'expired', reason = 'the log was emptied: the database came from another cluster'`,
	`SELECT setval('howdah.change_floor', floor) FROM howdah.change_state`, // the last: it stays though the rest were rolled back
}

const timeline = `substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)`

func rebaseKeeping(ctx context.Context, tx pgx.Tx) error {
	var backwards bool
	err := tx.QueryRow(ctx, `
		SELECT pg_snapshot_xmax(pg_current_snapshot()) < next
		FROM howdah.change_tick
		ORDER BY tick DESC
		LIMIT 1`).Scan(&backwards)
	if err != nil {
		return err
	}
	if backwards {
		return fmt.Errorf("transaction ids run backwards here, so the log means nothing; rebase without keeping it: %w", fault.Conflict)
	}
	_, err = tx.Exec(ctx, `UPDATE howdah.change_state SET system = (SELECT system_identifier FROM pg_control_system())`)
	if err != nil {
		return err
	}
	// What the last tick saw still holds; only the history has another name.
	_, err = tx.Exec(ctx, `
		INSERT INTO howdah.change_tick (tick, n, snap, next, seq, timeline)
		SELECT tick + 1, n, snap, next, seq, `+timeline+`
		FROM howdah.change_tick
		ORDER BY tick DESC
		LIMIT 1`)
	return err
}
