package changes

import (
	"context"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Vitals are figures about the log.
type Vitals struct {
	Head, Floor       int64         // the last commit that is numbered; up to where they are gone
	Bytes             int64         // of the log, with its indexes
	OldestTransaction time.Duration // how long the oldest of the database has been open; it delays retention, not the feed
	Ticks             int64         // looks at the log by this process
	TickTime          time.Duration // spent in them
}

// Vitals returns figures about the log, without looking for what has committed since.
func (l *Log) Vitals(ctx context.Context) (v Vitals, err error) {
	var seconds float64
	err = pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, `
			SELECT t.n, s.floor,
				(SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits WHERE inhparent = 'howdah.change'::regclass)::bigint,
				coalesce((
					SELECT extract(epoch FROM clock_timestamp() - min(xact_start))
					FROM pg_stat_activity
					WHERE datname = current_database() AND pid <> pg_backend_pid()), 0)::float8
			FROM (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) t, howdah.change_state s`).
			Scan(&v.Head, &v.Floor, &v.Bytes, &seconds)
	})
	v.OldestTransaction = time.Duration(seconds * float64(time.Second))
	v.Ticks, v.TickTime = l.looks.n.Load(), time.Duration(l.looks.nanos.Load())
	return v, pg.Wrap("changes: vitals", err)
}
