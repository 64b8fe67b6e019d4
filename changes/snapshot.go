package changes

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/howdah-db/howdah/pg"
)

// Snapshot runs fn in a read-only transaction that sees exactly what the feed has
// up to at: who reads the present state there, and then the changes that follow
// at, has every change once. It needs two connections for a moment, and no lock.
// It returns ErrInTx in a transaction, and what fn returns.
func (l *Log) Snapshot(ctx context.Context, fn func(tx pgx.Tx, at Position) error) error {
	const op = "changes: snapshot"
	if pg.InTx(l.db) {
		return pg.Wrap(op, ErrInTx)
	}
	// One at a time in a process: each needs two connections, and waits for the
	// other's tick with none.
	l.snapshots.Lock()
	reader, at, err := l.reader(ctx)
	l.snapshots.Unlock()
	if err != nil {
		return pg.Wrap(op, asOurs(err))
	}
	defer reader.Rollback(context.WithoutCancel(ctx)) // it wrote nothing
	return fn(reader, at)
}

// reader begins a transaction on the snapshot of a tick. The tick's number is only
// given once the reader has its snapshot; who reads the feed cannot be ahead of it.
func (l *Log) reader(ctx context.Context) (reader pgx.Tx, at Position, err error) {
	if reader, err = pg.Begin(ctx, l.db); err != nil {
		return nil, at, err
	}
	err = pg.BeginFunc(ctx, l.db, func(tick pgx.Tx) error {
		// The tick holds its lock until we have answered: not for ever.
		if _, err := tick.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '5s'`, pgx.QueryExecModeSimpleProtocol); err != nil {
			return err
		}
		var snapshot string
		if err := tick.QueryRow(ctx, `SELECT howdah.change_tick(true, true)`).Scan(&at.Commit); err != nil {
			return err
		}
		if err := tick.QueryRow(ctx, `SELECT current_setting('howdah.snapshot')`).Scan(&snapshot); err != nil {
			return err
		}
		_, err := reader.Exec(ctx, `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET TRANSACTION SNAPSHOT `+pg.Literal(snapshot), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		reader.Rollback(context.WithoutCancel(ctx)) // the error says more
		return nil, at, err
	}
	return reader, at, nil
}
