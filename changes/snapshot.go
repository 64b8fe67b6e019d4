package changes

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/howdah-db/howdah/pg"
)

// Snapshot runs fn in a read-only transaction that sees exactly what the feed has
// up to at: who reads the present state there, and then the changes that follow
// at, has every change once. It needs two connections of a pool for a moment, and no
// lock. A table that is truncated or rewritten (ALTER TABLE) before fn first touches it is
// empty there: PostgreSQL's snapshots do not reach that far.
//
// It returns ErrInTx in a transaction, Invalid where there are not two connections, and
// what fn returns.
func (l *Log) Snapshot(ctx context.Context, fn func(tx pgx.Tx, at Position) error) error {
	const op = "changes: snapshot"
	if pg.InTx(l.db) {
		return pg.Wrap(op, ErrInTx)
	}
	pool, ok := l.db.(*pgxpool.Pool)
	if !ok || pool.Config().MaxConns < 2 {
		return pg.Wrap(op, pg.Refuse("pool", "one connection; a snapshot is taken with two: pool_max_conns"))
	}
	reader, at, err := readerOf(ctx, pool)
	if err != nil {
		return pg.Wrap(op, asOurs(err))
	}
	defer giveUp(ctx, reader) // it wrote nothing
	return fn(reader, at)
}

// pairs are the pools of which somebody takes two connections: one at a time of each,
// whichever Log asks, because the second is waited for with the first in hand.
var pairs = struct {
	sync.Mutex
	of map[*pgxpool.Pool]chan struct{} // closed once he has them
}{of: map[*pgxpool.Pool]chan struct{}{}}

// pairing waits until nobody takes two connections of pool; done lets others do it.
func pairing(ctx context.Context, pool *pgxpool.Pool) (done func(), err error) {
	for {
		pairs.Lock()
		other := pairs.of[pool]
		if other == nil {
			mine := make(chan struct{})
			pairs.of[pool] = mine
			pairs.Unlock()
			return func() {
				pairs.Lock()
				defer pairs.Unlock()
				delete(pairs.of, pool)
				close(mine)
			}, nil
		}
		pairs.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// giveUp rolls back. Where that cannot be said the connection is closed, which says it, too.
func giveUp(ctx context.Context, tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	tx.Rollback(ctx)
}

// readerOf begins a transaction on the snapshot of a tick. The tick's number is only
// given once the reader has its snapshot; who reads the feed cannot be ahead of it.
func readerOf(ctx context.Context, pool *pgxpool.Pool) (reader pgx.Tx, at Position, err error) {
	done, err := pairing(ctx, pool)
	if err != nil {
		return nil, at, err
	}
	defer done()
	if reader, err = pg.Begin(ctx, pool); err != nil {
		return nil, at, err
	}
	err = pg.BeginFunc(ctx, pool, func(tick pgx.Tx) error {
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
		giveUp(ctx, reader) // the error says more
		return nil, at, err
	}
	return reader, at, nil
}
