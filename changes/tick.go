package changes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/fault"
	"github.com/howdah-db/howdah/pg"
)

// Sync numbers all that has committed and returns the end of the feed: whatever
// had committed before the call stands at or before it. It waits for another
// tick that runs. It returns ErrInTx in a transaction, where the snapshot is too
// old to tell. On a standby, which can number nothing, it is Unavailable: what has
// arrived there can be read, and Find tells where it ends.
func (l *Log) Sync(ctx context.Context) (Position, error) {
	p, err := l.sync(ctx)
	return p, pg.Wrap("changes: sync", err)
}

func (l *Log) sync(ctx context.Context) (Position, error) {
	if pg.InTx(l.db) {
		return Position{}, ErrInTx
	}
	n, err := l.tick(ctx, true)
	if readOnly(err) {
		err = fmt.Errorf("a standby, or a transaction that only reads, can number nothing: ask the primary: %w: %w", fault.Unavailable, err)
	}
	if err != nil {
		return Position{}, err
	}
	return Position{Commit: *n}, nil
}

// tick numbers what has committed and returns the last number; nil where another
// is at it and wait is false.
func (l *Log) tick(ctx context.Context, wait bool) (n *int64, err error) {
	began := time.Now()
	defer func() {
		l.looks.n.Add(1)
		l.looks.nanos.Add(time.Since(began).Nanoseconds())
	}()
	err = pg.Retry(ctx, l.db, func() error {
		err := asOurs(tickOn(ctx, l.db, wait, &n))
		if !pg.Begun(l.db) && errors.Is(err, ErrInTx) {
			// Outside a transaction the only reason is another default isolation.
			return asOurs(l.begin(ctx, func(tx pgx.Tx) error { return tickOn(ctx, tx, wait, &n) }))
		}
		return err
	})
	return n, err
}

func tickOn(ctx context.Context, db pg.DB, wait bool, n **int64) error {
	return db.QueryRow(ctx, `SELECT howdah.change_tick($1)`, wait).Scan(n)
}

// foreign is whether howdah.change_state came from another database, as a tick finds it
// out. Where nothing was numbered yet a tick takes a copy over. Which system and database it
// is in each session looks up once: that cannot change, and costs a file to read.
const foreign = `
		((ticks <> 'howdah.change_tick'::regclass OR system || ' ' || database <> coalesce(nullif(current_setting('howdah.here', true), ''),
				set_config('howdah.here', (SELECT system_identifier || ' ' || oid FROM pg_control_system(), pg_database WHERE datname = current_database()), false)))
			AND (system <> (SELECT system_identifier FROM pg_control_system())
				OR (SELECT n FROM howdah.change_tick ORDER BY tick DESC LIMIT 1) > 0))`

// own returns ErrRestored where the log came from another database: at once, also while
// others number what has committed.
func (l *Log) own(ctx context.Context) error {
	return pg.Retry(ctx, l.db, func() error {
		var is bool
		if err := l.db.QueryRow(ctx, `SELECT `+foreign+` FROM howdah.change_state`).Scan(&is); err != nil {
			return err
		}
		if is {
			return ErrRestored
		}
		return nil
	})
}
