package changes

import (
	"context"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Find returns the position that name stands for: "start", "now" (the end of the
// feed, as Sync numbers it), a time as RFC 3339 writes it (see At), or a position
// itself. What is none of these is Invalid.
func (l *Log) Find(ctx context.Context, name string) (Position, error) {
	switch name {
	case "start":
		return l.Start(ctx)
	case "now":
		return l.Sync(ctx)
	}
	if t, err := time.Parse(time.RFC3339Nano, name); err == nil {
		return l.At(ctx, t)
	}
	return ParsePosition(name)
}

// Start returns the earliest position that can be read from: whoever begins
// there sees all that retention has kept.
func (l *Log) Start(ctx context.Context) (Position, error) {
	return l.position(ctx, "changes: start", `SELECT floor FROM howdah.change_state`)
}

// At returns the position that the feed had reached at t: what committed after t
// stands after it, and of what committed shortly before t some may, too, because
// commits are numbered when somebody looks. It is the start where t is before that.
func (l *Log) At(ctx context.Context, t time.Time) (Position, error) {
	return l.position(ctx, "changes: at", `
		SELECT greatest(floor, coalesce((SELECT n FROM howdah.change_tick WHERE at <= $1 ORDER BY at DESC, tick DESC LIMIT 1), 0))
		FROM howdah.change_state`, t)
}

func (l *Log) position(ctx context.Context, op, sql string, args ...any) (p Position, err error) {
	err = pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, sql, args...).Scan(&p.Commit)
	})
	return p, pg.Wrap(op, err)
}
