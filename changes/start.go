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
	p, err := l.find(ctx, "position", name)
	return p, pg.Wrap("changes: find", err)
}

// find is Find of a name that stands in a field.
func (l *Log) find(ctx context.Context, field, name string) (Position, error) {
	switch name {
	case "start":
		return l.start(ctx)
	case "now":
		p, err := l.sync(ctx)
		if readOnly(err) {
			return l.head(ctx)
		}
		return p, err
	}
	if t, err := time.Parse(time.RFC3339Nano, name); err == nil {
		return l.at(ctx, field, t)
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
	p, err := l.start(ctx)
	return p, pg.Wrap("changes: start", err)
}

func (l *Log) start(ctx context.Context) (p Position, err error) {
	err = l.row(ctx, []any{&p.Commit}, `SELECT floor FROM howdah.change_state`)
	return p, err
}

// At returns the position that the feed had reached at t: what committed after t
// stands after it, and of what committed shortly before t some may, too, because
// commits are numbered when somebody looks. It is the start where t is before that,
// and Invalid where t is still to come: more than a minute from now, as the database's
// clock has it.
func (l *Log) At(ctx context.Context, t time.Time) (Position, error) {
	p, err := l.at(ctx, "time", t)
	return p, pg.Wrap("changes: at", err)
}

func (l *Log) at(ctx context.Context, field string, t time.Time) (p Position, err error) {
	var toCome bool
	err = l.row(ctx, []any{&p.Commit, &toCome}, `
		SELECT greatest(floor, coalesce((SELECT n FROM howdah.change_tick WHERE at <= $1 ORDER BY at DESC, tick DESC LIMIT 1), 0)),
			$1 > clock_timestamp() + interval '1 minute'
		FROM howdah.change_state`, t)
	if err == nil && toCome {
		return Position{}, pg.Refuse(field, "%s is still to come: nobody knows which changes will be before it", t.Format(time.RFC3339Nano))
	}
	return p, err
}

// Head returns where what is numbered ends. It numbers nothing, as Sync does, and is there on
// a standby and in a transaction, too.
func (l *Log) Head(ctx context.Context) (Position, error) {
	p, err := l.head(ctx)
	return p, pg.Wrap("changes: head", err)
}

func (l *Log) head(ctx context.Context) (p Position, err error) {
	err = l.row(ctx, []any{&p.Commit}, `SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1`)
	return p, err
}

// row reads the one row of a statement.
func (l *Log) row(ctx context.Context, into []any, sql string, args ...any) error {
	return pg.Retry(ctx, l.db, func() error { return l.db.QueryRow(ctx, sql, args...).Scan(into...) })
}
