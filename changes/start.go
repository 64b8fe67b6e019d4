package changes

import (
	"context"
	"time"

	"github.com/howdah-db/howdah/pg"
)

// Find returns the position that name stands for: "start", "now" (the end of the
// feed, as Sync numbers it; on a standby, and where nothing may be written, the end of
// what is numbered there), a time as RFC 3339 writes it (see At), or a position
// itself. What is none of these is Invalid.
func (l *Log) Find(ctx context.Context, name string) (Position, error) {
	return l.find(ctx, "position", name)
}

func (l *Log) find(ctx context.Context, field, name string) (Position, error) {
	switch name {
	case "start":
		return l.Start(ctx)
	case "now":
		p, err := l.Sync(ctx)
		if readOnly(err) {
			return l.Head(ctx)
		}
		return p, err
	}
	if t, err := time.Parse(time.RFC3339Nano, name); err == nil {
		return l.At(ctx, t)
	}
	p, err := ParsePosition(name)
	if err != nil {
		return p, pg.Refuse(field, "%q; want start, now, a time such as 2026-11-20T14:00:00Z, or a position such as 1042.88213", name)
	}
	return p, nil
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

// Head returns where what is numbered ends. It numbers nothing, as Sync does, and is there on
// a standby and in a transaction, too.
func (l *Log) Head(ctx context.Context) (Position, error) {
	return l.position(ctx, "changes: head", `SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1`)
}

func (l *Log) position(ctx context.Context, op, sql string, args ...any) (p Position, err error) {
	err = pg.Retry(ctx, l.db, func() error {
		return l.db.QueryRow(ctx, sql, args...).Scan(&p.Commit)
	})
	return p, pg.Wrap(op, err)
}
