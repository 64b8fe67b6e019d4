// Package pg is what every service needs of PostgreSQL: a handle that is a pool
// or a transaction, connections with sane defaults, quoted names, errors sorted
// into kinds, retries, notifications heard by many ([Hub]) and writes committed
// together ([Batcher]).
//
// It knows nothing of the services above it.
package pg

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/howdah-db/howdah/fault"
)

// DB is what a service runs its statements on: the six methods that
// *pgxpool.Pool, *pgx.Conn and pgx.Tx have in common. A transaction on a connection is
// the Tx of its Begin. One that was begun by an SQL statement is joined by what needs no
// transaction of its own; what needs one returns [ErrBegun].
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error) // on a Tx: a savepoint
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error)
}

// Copy is db.CopyFrom whose error is, where ctx ended it, the end of ctx. pgx closes the
// connection then, and may say of that only.
func Copy(ctx context.Context, db DB, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (int64, error) {
	n, err := db.CopyFrom(ctx, table, columns, src)
	if ended := ctx.Err(); ended != nil && LostConnection(err) && !errors.Is(err, ended) {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return n, err
}

// InTx reports whether db is a transaction of the caller's: what is written is
// then his to commit, and a failed statement must not be repeated.
func InTx(db DB) bool {
	_, ok := db.(pgx.Tx)
	return ok
}

// ErrBegun reports a connection in a transaction that was begun by an SQL statement.
// BEGIN on it makes no savepoint, and COMMIT would end what the caller began.
var ErrBegun = fmt.Errorf("the connection is in a transaction that an SQL statement began, which this would end: begin it with Begin of the connection, and work on the Tx (WithTx): %w", fault.Invalid)

// Begun reports whether db is in a transaction: one of [InTx], or a connection on which
// an SQL statement began one.
func Begun(db DB) bool {
	switch db := db.(type) {
	case pgx.Tx:
		return true
	case interface{ PgConn() *pgconn.PgConn }:
		return db.PgConn().TxStatus() != 'I'
	case interface{ Conn() *pgx.Conn }:
		return db.Conn().PgConn().TxStatus() != 'I'
	}
	return false
}

// Begin begins a transaction, or a savepoint in one of the caller's. It returns
// [ErrBegun] where that would not be one.
func Begin(ctx context.Context, db DB) (pgx.Tx, error) {
	if Begun(db) && !InTx(db) {
		return nil, ErrBegun
	}
	return db.Begin(ctx)
}

// BeginFunc is [pgx.BeginFunc], with [Begin].
func BeginFunc(ctx context.Context, db DB, fn func(pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, beginner{db}, fn)
}

// beginner begins as [Begin] does.
type beginner struct{ db DB }

func (b beginner) Begin(ctx context.Context) (pgx.Tx, error) { return Begin(ctx, b.db) }
